"""`sanakit data build`: pictures, or a set that was scanned, become shards and a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from sanakit.data.build import BuildSummary
    from sanakit.data.training_set import TrainingSet

DEFAULT_FOLDER = Path("data")
_SET_FILE = "set.json"
_FOR_PICTURES, _FOR_SHARDS = "Pictures", "Shards"
_OF_SHARDS = ("resolution", "buckets", "store", "min_side", "shard_samples", "seed", "max_bad")
_OF_PICTURES = ("caption", "captions", "licence")


@dataclass(frozen=True, kw_only=True)
class _Given:
    """Options that have a meaning for some targets only; None where not given."""

    caption: str | None
    captions: str | None
    licence: str | None
    resolution: int | None
    buckets: str | None
    store: str | None
    min_side: int | None
    shard_samples: int | None
    seed: int | None
    max_bad: float | None
    engine: str | None

    def only(self, *known: str, what: str) -> dict[str, Any]:
        """The options among ``known`` that were given.

        Raises:
            ConfigError: another one was, and would be ignored.
        """
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        for name in given:
            if name not in known:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{option} has no meaning for {what}", hint=f"leave out {option}")
        return given


def build(
    target: Annotated[
        str,
        typer.Argument(
            help="A folder or file of pictures; or a set that was scanned, which is only built."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the set; data/NAME unless given."),
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            help="About the side of a square picture, px; 512.", rich_help_panel=_FOR_SHARDS
        ),
    ] = None,
    buckets: Annotated[
        str | None,
        typer.Option(
            help="Sizes: training (40 ratios), inference (33), square.",
            rich_help_panel=_FOR_SHARDS,
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="fitted: pictures cut to their bucket; original: as they came.",
            rich_help_panel=_FOR_SHARDS,
        ),
    ] = None,
    min_side: Annotated[
        int | None,
        typer.Option(help="Leave out pictures with a shorter side.", rich_help_panel=_FOR_SHARDS),
    ] = None,
    shard_samples: Annotated[
        int | None,
        typer.Option(help="Most pictures of a shard; 1000.", rich_help_panel=_FOR_SHARDS),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the order of the pictures; 0.", rich_help_panel=_FOR_SHARDS),
    ] = None,
    max_bad: Annotated[
        float | None,
        typer.Option(
            help="Share of pictures lost since the scan that ends the build; 0.05.",
            rich_help_panel=_FOR_SHARDS,
        ),
    ] = None,
    caption: Annotated[
        str | None,
        typer.Option(help="One caption for all pictures.", rich_help_panel=_FOR_PICTURES),
    ] = None,
    captions: Annotated[
        str | None,
        typer.Option(
            help="source: those beside the pictures; none: no captions.",
            rich_help_panel=_FOR_PICTURES,
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="Of all pictures that state none.", rich_help_panel=_FOR_PICTURES),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="What runs the work: local or ray.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that work at once.")] = 2,
) -> None:
    """Make a training set: check the pictures, cut them to buckets, write shards and a report.

    Every step can be stopped and started again; what is finished is not done twice. Settings of
    the shards that are not given stay as they were.
    """
    given = _Given(
        caption=caption, captions=captions, licence=licence, resolution=resolution,
        buckets=buckets, store=store, min_side=min_side, shard_samples=shard_samples, seed=seed,
        max_bad=max_bad, engine=engine,
    )  # fmt: skip
    with friendly_errors(), _going_on_later():
        if (Path(target) / _SET_FILE).is_file():
            if out is not None:
                raise ConfigError(
                    f"--out has no meaning for {target}, a set that is built where it is",
                    hint="leave out --out",
                )
            options = given.only(*_OF_SHARDS, "engine", what="a set that was scanned")
            _build_set(Path(target), options, workers)
        else:
            options = given.only(*_OF_PICTURES, *_OF_SHARDS, "engine", what="pictures")
            source = Path(target)
            _build_pictures(source, out or DEFAULT_FOLDER / source.resolve().stem, options, workers)


@contextmanager
def _going_on_later() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped; what is finished stays", hint="the same command goes on from there"
        ) from None


def _build_pictures(source: Path, out: Path, options: dict[str, Any], workers: int) -> None:
    from sanakit.data.engines import engine_named
    from sanakit.data.scan import scan_source
    from sanakit.data.shard_plan import BuildSettings
    from sanakit.data.sources.captions import CaptionPolicy
    from sanakit.data.sources.opening import open_source

    if not source.exists():
        raise ConfigError(
            f"there is no {source}",
            hint="name a folder of pictures, or a file that lists them",
        )
    captions = options.pop("captions", "source")
    if captions not in ("source", "none"):
        raise ConfigError(f"--captions {captions!r} is unknown", hint="one of source, none")
    policy = CaptionPolicy(use=captions, user=options.pop("caption", ""))
    opened = open_source(source, captions=policy, licence=options.pop("licence", ""))
    engine = engine_named(options.get("engine", "local"), workers)
    # A setting that cannot be is refused now, not after an hour of scanning.
    BuildSettings(**{k: v for k, v in options.items() if k not in ("engine", "max_bad")})
    scan_source(opened, out, engine, given=source, report=typer.echo)
    _build_set(out, options, workers)


def _build_set(folder: Path, options: dict[str, Any], workers: int) -> None:
    from sanakit.data.build import build_shards, last_settings
    from sanakit.data.engines import engine_named
    from sanakit.data.report.page import write_report
    from sanakit.data.shard_plan import BuildSettings
    from sanakit.data.training_set import TrainingSet

    engine = engine_named(options.pop("engine", "local"), workers)
    max_bad = options.pop("max_bad", 0.05)
    training_set = TrainingSet.open(folder)
    # What is not asked for stays as it was: `build SET` after new captions changes no size.
    settings = replace(last_settings(training_set) or BuildSettings(), **options)
    summary = build_shards(
        training_set, settings, engine=engine, report=typer.echo, max_bad=max_bad
    )
    page = write_report(training_set)
    _tell(training_set, summary, page, settings.resolution)


def _tell(training_set: TrainingSet, summary: BuildSummary, page: Path, resolution: int) -> None:
    """The summary: what there is, what there is not, and what to do next."""
    from sanakit.data.build import LEFT_OUT
    from sanakit.data.scan import REMARKS
    from sanakit.data.training_set import SHARDS

    reasons = Counter(one.reason for one in training_set.quarantined())
    reasons.update(summary.left_out)
    left_out = {key: number for key, number in reasons.most_common() if key not in REMARKS}
    remarks = {key: number for key, number in reasons.most_common() if key in REMARKS}
    folder = training_set.folder
    manifest = folder / SHARDS / LEFT_OUT
    lines = [
        "",
        f"{summary.samples} pictures in {summary.buckets} buckets at {resolution} px, "
        f"{summary.shards} shards, {summary.bytes / 1e6:.1f} MB",
        f"left out: {sum(left_out.values())}" + (f"; {manifest} names each" if left_out else ""),
        *(f"  {number:>6}  {reason}" for reason, number in left_out.items()),
        *(f"kept, with a remark: {number} {reason}" for reason, number in remarks.items()),
    ]
    if summary.enlarged:
        lines.append(
            f"enlarged to their bucket: {summary.enlarged}; --min-side {resolution} leaves out "
            "what is smaller"
        )
    lines.append(f"without captions: {summary.without_captions}")
    lines.append(f"report: {page}")
    next_ = f"sanakit data show {folder} 0"
    if summary.without_captions:
        next_ = f"sanakit data caption {folder} --model MODEL; sanakit data build {folder}"
    typer.echo("\n".join((*lines, f"next: {next_}")))
