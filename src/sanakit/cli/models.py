"""`sanakit models`: what there is, what is on this disk, whether it is unchanged; fetch and remove.

The store is the Hugging Face cache, so other programs see the same files.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanakit.cli.terminal import say
from sanakit.errors import ConfigError, MissingModelError, WeightsError, plain

if TYPE_CHECKING:
    from sanakit.weights.catalog import Checkpoint

app = typer.Typer(help="List, show, fetch, verify and remove models.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Name = Annotated[str, typer.Argument(help="Alias such as sana-1.6b, or owner/name[@revision].")]
EMBEDDED = "glyph"
EMBEDDED_PARAMETERS = 29_211_008
"""Of its transformer, as everywhere in the list."""
EMBEDDED_RESOLUTION = 256
HEADINGS = ("name", "parameters", "download", "dtype", "pixels", "on disk", "repository")


@app.command("list")
def list_(
    all_: Annotated[
        bool, typer.Option("--all", help="Also those that have to be converted first.")
    ] = False,
    json_: Json = False,
) -> None:
    """List the published checkpoints: size, dtype, and what of them is on this disk."""
    from sanakit.weights.catalog import CATALOG
    from sanakit.weights.hub import cached_repository

    rows: list[dict[str, Any]] = [_embedded_row()]
    for checkpoint in CATALOG:
        held = cached_repository(checkpoint.repository)
        if not (all_ or checkpoint.loadable or held):
            continue
        state = None if held is None else "whole" if held.complete else "partial"
        rows.append(
            {
                "alias": checkpoint.alias,
                "repository": checkpoint.repository,
                "kind": checkpoint.kind,
                "parameters": checkpoint.parameters,
                "download_bytes": checkpoint.download_bytes,
                "dtype": checkpoint.dtype or "float32",
                "resolution": checkpoint.resolution,
                "on_disk": state,
                "bytes": 0 if held is None else held.bytes,
            }
        )
    if json_:
        say(json.dumps({"models": rows}))
        return
    _print_table([HEADINGS, *map(_row, rows)])


@app.command()
def show(name: Name, json_: Json = False) -> None:
    """Show a checkpoint: licences, the rule of its dtype, its files on this disk."""
    facts = _embedded_facts() if name == EMBEDDED else _facts(name)
    if json_:
        say(json.dumps(facts))
        return
    for key, value in facts.items():
        if isinstance(value, list) and value:
            say(f"{key}:")
            for item in value:
                say(f"  {item}" if isinstance(item, str) else "  " + "  ".join(item.values()))
        elif value:
            say(f"{key}: {value}")


@app.command()
def pull(
    name: Name,
    variant: Annotated[
        str | None,
        typer.Option(help="fp16, bf16 or plain. Default: of the recommended dtype."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Take what the revision means today.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no network; fail if a file is missing.")
    ] = False,
    json_: Json = False,
) -> None:
    """Fetch the files that are missing of a model, of one variant; goes on where it stopped."""
    _refuse_embedded(name, "there is nothing to pull")
    from huggingface_hub import is_offline_mode

    from sanakit.weights.catalog import find_checkpoint
    from sanakit.weights.hub import fetch, latest_commit
    from sanakit.weights.lockfile import known_commit, read_lockfile

    notes: list[str] = []
    own, wanted = _repository(name, revision)
    checkpoint = find_checkpoint(own)
    for licence in checkpoint.licences if checkpoint and not json_ else ():
        say(f"licence of {licence.subject}: {licence.name} <{licence.url}>", err=True)
    before = known_commit(own, wanted, read_lockfile(own))
    asked = f"{own}@{wanted}"
    folder = fetch(asked, variant=variant, update=update, offline=offline, report=notes.append)
    if before and not (update or offline or is_offline_mode()) and before != wanted:
        today = latest_commit(own, wanted)
        if today != before:
            notes.append(
                f"{wanted} has moved from {before[:7]} to {today[:7]}; {before[:7]} stays "
                "pinned until you pull with --update"
            )
    if json_:
        report = {"repository": own, "commit": folder.name, "folder": str(folder)}
        say(json.dumps({**report, "notes": notes}))
        return
    for note in notes:
        say(f"note: {note}", err=True)
    say(f"{own}@{folder.name[:7]} is in {folder}")


@app.command()
def verify(
    name: Annotated[
        str | None, typer.Argument(help="Alias or owner/name. Default: all on this disk.")
    ] = None,
    json_: Json = False,
) -> None:
    """Hash the files on this disk again; exit code 2 if one is not what was fetched."""
    from sanakit.weights.catalog import CATALOG
    from sanakit.weights.hub import cached_repository
    from sanakit.weights.hub import verify as hash_again

    _refuse_embedded(name, "`pip check` looks after it")
    report = []
    here = [c.repository for c in CATALOG if name is None and cached_repository(c.repository)]
    for repository in here if name is None else [_repository(name)[0]]:
        count, findings = hash_again(repository)
        problems = [asdict(finding) for finding in findings]
        report.append({"repository": repository, "files": count, "findings": problems})
        if not json_:
            say(f"{repository}: {count} files, {len(findings) or 'none'} changed")
            for finding in findings:
                say(f"  {finding.file}: {finding.problem}")
    bad = [row["repository"] for row in report if row["findings"]]
    if json_:
        say(json.dumps({"ok": not bad, "models": report}))
    if bad:
        raise WeightsError(
            f"{', '.join(map(str, bad))}: not as fetched",
            hint=f"do not use it; run: sanakit models rm {bad[0]}, then pull it again",
        )
    if not report and not json_:
        say("no published checkpoint is on this disk")


@app.command()
def rm(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json_: Json = False,
) -> None:
    """Remove a model from the cache, for every program that shares it."""
    from sanakit.weights.hub import cached_repository, remove

    _refuse_embedded(name, "it cannot be removed alone")
    repository, _ = _repository(name)
    held = cached_repository(repository)
    if held is not None and not yes:
        if not sys.stdin.isatty():
            raise ConfigError("there is no terminal to ask on", hint="pass --yes")
        question = f"Remove {repository} ({_size(held.bytes)}) from {held.folder.parent}?"
        if not typer.confirm(plain(question), err=True):
            say("kept", err=True)
            return
    freed = remove(repository)
    if json_:
        say(json.dumps({"repository": repository, "bytes": freed}))
    else:
        say(f"{repository}: removed, {_size(freed)} freed")


def _refuse_embedded(name: str | None, hint: str) -> None:
    if name == EMBEDDED:
        raise ConfigError(f"{name} ships with sanakit", hint=hint)


def _repository(name: str, revision: str | None = None) -> tuple[str, str]:
    """``owner/name`` and the revision of what was typed.

    Raises:
        MissingModelError: neither an alias nor a repository. ConfigError: two revisions.
    """
    from sanakit.weights.catalog import find_checkpoint, nearest_models
    from sanakit.weights.lockfile import split_revision

    own, wanted = split_revision(name, revision)
    checkpoint = find_checkpoint(own)
    if checkpoint is not None:
        own = checkpoint.repository
    elif own.count("/") != 1 or not all(own.split("/")) or own.startswith((".", "~")):
        near = nearest_models(own)
        raise MissingModelError(
            f"{own!r} is no alias and no owner/name",
            hint=(f"did you mean {near[0]!r}? " if near else "")
            + "`sanakit models list` names the aliases",
        )
    return own, wanted


def _facts(name: str) -> dict[str, Any]:
    from sanakit.weights.catalog import find_checkpoint
    from sanakit.weights.hub import cached_repository
    from sanakit.weights.lockfile import read_lockfile, snapshot_folder

    repository, _ = _repository(name)
    checkpoint = find_checkpoint(repository)
    held = cached_repository(repository)
    lockfile = read_lockfile(repository)
    files = []
    for commit in held.commits if held else ():
        folder = snapshot_folder(repository, commit)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            own = path.relative_to(folder).as_posix()
            files.append(f"{commit[:7]}/{own}  {_size(path.stat().st_size)}")
    facts: dict[str, Any] = {"repository": repository}
    if checkpoint is not None:
        facts |= {
            "aliases": ", ".join(checkpoint.aliases),
            "kind": checkpoint.kind,
            "parameters": f"{_count(checkpoint.parameters)}, "
            f"{_count(checkpoint.total_parameters)} with all parts",
            "pixels": checkpoint.resolution,
            "dtype rule": _dtype_rule(checkpoint),
            "variant": checkpoint.variant,
            "flow shift": _shift(checkpoint),
            "same weights": checkpoint.twin,
            "licences": [asdict(licence) for licence in checkpoint.licences],
        }
    return facts | {
        "licence on its page when fetched": lockfile.licence,
        "on disk": None if held is None else f"{_size(held.bytes)} in {held.folder}",
        "pinned": ", ".join(f"{k} = {v[:7]}" for k, v in lockfile.revisions.items()) or None,
        "files": files,
    }


def _embedded_row() -> dict[str, Any]:
    # Not by `embedded_folder`: its module brings torch, which a list does not need.
    folder = Path(str(files("sanakit") / "assets" / EMBEDDED))
    return {
        "alias": EMBEDDED,
        "repository": "embedded",
        "kind": "pipeline",
        "parameters": EMBEDDED_PARAMETERS,
        "download_bytes": 0,
        "dtype": "float32",
        "resolution": EMBEDDED_RESOLUTION,
        "on_disk": "whole",
        "bytes": sum(path.stat().st_size for path in folder.rglob("*")),
    }


def _embedded_facts() -> dict[str, Any]:
    from sanakit.weights.resolve import embedded_folder

    folder = embedded_folder(EMBEDDED)
    return {
        "repository": "embedded",
        "dtype rule": "float32 by default; bfloat16 and float16 for the transformer work too",
        "licences": ["Apache-2.0", f"pictures it learnt from: {folder / 'ATTRIBUTION.md'}"],
        "on disk": str(folder),
    }


def _dtype_rule(checkpoint: Checkpoint) -> str:
    if checkpoint.dtype is None:
        return "float32 or bfloat16, never float16"
    other = "never float16" if checkpoint.dtype == "bfloat16" else "bfloat16 works too"
    return (
        f"transformer {checkpoint.dtype} or float32, {other}; text encoder and VAE bfloat16 or "
        "float32, never float16"
    )


def _shift(checkpoint: Checkpoint) -> str | None:
    if checkpoint.flow_shift is None:
        return None
    if checkpoint.flow_shift == checkpoint.original_flow_shift:
        return f"{checkpoint.flow_shift}"
    return f"{checkpoint.flow_shift}; {checkpoint.original_flow_shift} in the original code"


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    disk = "-" if row["on_disk"] is None else _size(row["bytes"])
    return (
        row["alias"],
        _count(row["parameters"]),
        f"about {_size(row['download_bytes'])}" if row["download_bytes"] else "-",
        row["dtype"],
        str(row["resolution"] or "-"),
        f"{disk} partial" if row["on_disk"] == "partial" else disk,
        row["repository"],
    )


def _print_table(rows: list[tuple[str, ...]]) -> None:
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip())


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"


def _size(size: int) -> str:
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size} B"
