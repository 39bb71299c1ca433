"""What a run was started with, in `run.json`: why resuming needs no argument but the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from sanakit.errors import ConfigError, DataError
from sanakit.files import expanded, write_json
from sanakit.train.checkpoint import checkpoints
from sanakit.train.config import LoopConfig, unknown_setting, with_overrides
from sanakit.untrusted import parse_json, read_file, whole_number
from sanakit.weights.resolve import EMBEDDED

RUN = "run.json"
FORMAT = 2
PATHS = ("data", "start", "held", "autoencoder", "text_encoder", "lm", "condition")
STEPS = "steps"
"""The setting that is kept as another one: images are counted, whatever the batch."""
MAY_CHANGE = frozenset(
    {
        *("total_images", "peak_lr", "schedule", "warmup_images", "decay_share", "lr_rule"),
        *("weight_decay", "grad_clip", "accumulation", "compute_dtype", "gradient_checkpointing"),
        *("compile_blocks", "strategy", "device", "log_every", "evaluate_every", "pictures_every"),
        *("save_minutes", "async_save", "hang_minutes", "most_skipped"),
        *("workers", "prompts", "held", "data"),
    }
)
"""Arguments and settings that a resumed run may be given anew; others would make it another run."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that a run is told."""

    what: str
    """What is trained: the word behind `sanakit train`."""
    data: Mapping[str, Any]
    """The command's arguments by name, JSON values: the data, what to begin with."""
    objective: Any = None
    """What is minimised, a dataclass of the recipe; None: it has no settings."""
    loop: LoopConfig

    def with_settings(self, pairs: Sequence[str]) -> RunConfig:
        """Apply ``key=value`` texts of ``--set`` to objective and loop.

        Values are JSON or plain words. ``steps=N`` is ``total_images`` in batches.

        Raises:
            ConfigError: a key that neither has, a value of the wrong type or that breaks a rule.
        """
        mine, of_loop = (sorted(_plain(part)) for part in (self.objective, self.loop))
        steps, ours, rest = list[str](), list[str](), list[str]()
        for pair in pairs:
            key = pair.partition("=")[0]
            if key not in [*mine, *of_loop, STEPS]:
                raise unknown_setting(pair, [*mine, *of_loop, STEPS])
            (steps if key == STEPS else ours if key in mine else rest).append(pair)
        objective = with_overrides(self.objective, ours) if ours else self.objective
        loop = with_overrides(self.loop, rest)
        if steps:
            images = _whole_number(steps[-1]) * loop.batch_size
            typed = any(pair.startswith("total_images=") for pair in rest)
            if typed and loop.total_images != images:
                raise ConfigError(
                    f"{steps[-1]} are {images:,} images, and total_images={loop.total_images}",
                    hint="leave one of them out",
                )
            loop = replace(loop, total_images=images)
        return replace(self, objective=objective, loop=loop)

    def settings(self) -> dict[str, Any]:
        """All settings by name."""
        return _plain(self.objective) | _plain(self.loop)

    def resumed_with(self, typed: Mapping[str, Any], pairs: Sequence[str]) -> RunConfig:
        """The same run with what was typed now; None and nothing are "as before".

        Raises:
            ConfigError: for a change that would make it another run; as `with_settings`.
        """
        given = lasting(typed)
        for key, value in given.items():
            if key not in MAY_CHANGE and value != self.data.get(key):
                _refuse(f"--{key.replace('_', '-')}", self.data.get(key), value)
        changed = replace(self, data={**self.data, **given}).with_settings(pairs)
        before, now = self.settings(), changed.settings()
        for key in (pair.partition("=")[0] for pair in pairs):
            if key not in (STEPS, *MAY_CHANGE) and now[key] != before[key]:
                _refuse(f"--set {key}", json.dumps(before[key]), json.dumps(now[key]))
        return changed


def _whole_number(pair: str) -> int:
    """The number of ``steps=N``."""
    number = whole_number(pair.partition("=")[2])
    if number is None or number < 1:
        raise ConfigError(f"{pair} must be a whole number of at least 1", hint="such as steps=200")
    return number


def lasting(typed: Mapping[str, Any]) -> dict[str, Any]:
    """What was typed, without None and nothing; paths that are there become absolute."""

    def whole(key: str, value: Any) -> Any:
        if key not in PATHS or "://" in value or value in EMBEDDED:
            return value
        path = expanded(value)
        return str(path.resolve()) if path.exists() else value

    given = {key: value for key, value in typed.items() if value not in (None, [], ())}
    return {key: whole(key, value) for key, value in given.items()}


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a run whose arguments are known."""
    return (expanded(folder) / RUN).is_file()


def load_run(folder: str | Path, what: str, objective: type | None) -> RunConfig:
    """What a run was started with.

    Raises:
        DataError: the file is missing, damaged or of another format.
        ConfigError: it is a run of another kind than ``what``.
    """
    value = read_run(folder)
    if value["what"] != what:
        raise ConfigError(
            f"{folder} is a run of `sanakit train {value['what']}`", hint="name another: --out RUN"
        )
    try:
        return RunConfig(
            what=what,
            data=value["data"],
            objective=None if objective is None else objective(**value["objective"]),
            loop=LoopConfig(**value["loop"]),
        )
    except TypeError as error:
        raise DataError(f"{folder}: {RUN} is damaged ({error})") from error


def read_run(folder: str | Path) -> dict[str, Any]:
    """The file of a run: ``what``, and mappings ``data``, ``objective`` and ``loop``.

    Raises:
        DataError: the file is missing, damaged or of another format.
    """
    path = expanded(folder) / RUN
    try:
        value = parse_json(read_file(path))
        if value["format"] == 1:
            value = _of_format_1(value)
        if value["format"] != FORMAT:
            raise KeyError(f"format {value['format']}, and this is {FORMAT}")
        found = {key: dict(value[key]) for key in ("data", "objective", "loop")}
        for part in ("objective", "loop"):
            found[part] = {
                key: tuple(v) if isinstance(v, list) else v for key, v in found[part].items()
            }
        return {"what": str(value["what"]), **found}
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} is no folder of a run: {RUN} is missing",
            hint="name the folder that was --out of `sanakit train`",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error})") from error


def _of_format_1(value: Mapping[str, Any]) -> dict[str, Any]:
    """A file of version 0.1: all settings stood in one list of ``key=value``."""
    settings = {}
    for pair in value["settings"]:
        key, _, text = pair.partition("=")
        settings[key] = parse_json(text)
    of_loop = {field.name for field in fields(LoopConfig)}
    return {
        "format": FORMAT,
        "what": value["verb"],
        "data": value["arguments"],
        "objective": {key: v for key, v in settings.items() if key not in of_loop},
        "loop": {key: v for key, v in settings.items() if key in of_loop},
    }


def check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse a folder that holds a run which is not to be resumed.

    Raises:
        ConfigError: it does.
    """
    if not resume and checkpoints(folder):
        raise ConfigError(
            f"{folder} already holds a run", hint="pass --resume to go on, or another folder"
        )


def save_run(run: RunConfig, folder: Path, *, resume: bool) -> None:
    """Note what a run was started with, or goes on with; of several ranks the first one does.

    All fields are noted: a default that changes later changes no run.

    Raises:
        ConfigError: the folder holds a run, and it is not to be resumed. DataError: the disk.
    """
    if not speaks():
        return
    check_folder(folder, resume=resume)
    value = {
        "format": FORMAT,
        "what": run.what,
        "data": dict(run.data),
        "objective": _plain(run.objective),
        "loop": _plain(run.loop),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made ({error})") from error
    write_json(folder / RUN, value)


def newest_run(root: Path, what: str) -> Path:
    """The run of a kind that was started or resumed last.

    Raises:
        DataError: there is none.
    """
    found = sorted(root.glob(f"*/{RUN}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        if read_run(path.parent)["what"] == what:
            return path.parent
    raise DataError(
        f"{root} holds no run of `sanakit train {what}` to resume", hint="name one: --out RUN"
    )


def speaks() -> bool:
    """Whether this is the process that speaks, of those that torchrun started."""
    return int(os.environ.get("RANK", 0)) == 0


def _plain(config: Any) -> dict[str, Any]:
    """The fields of a dataclass; none of None."""
    return {} if config is None else asdict(config)


def _refuse(name: str, before: Any, now: Any) -> None:
    raise ConfigError(
        f"{name} was {before} when the run began, and is {now}",
        hint="leave it out to go on, or start anew with another --out; "
        f"these may change: {', '.join(sorted(MAY_CHANGE))}",
    )
