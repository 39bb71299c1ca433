"""`sanakit data scan`: decode every picture once, and say what is wrong with which."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.errors import ConfigError

if TYPE_CHECKING:
    from sanakit.data.scan import ScanSummary


def scan(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of pictures, table, data set or tars to read; never changed."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the training set.")],
    caption: Annotated[
        str, typer.Option(help="One caption for all pictures, instead of their own.")
    ] = "",
    captions: Annotated[
        str, typer.Option(help="source: as they are found; none: pictures alone.")
    ] = "source",
    licence: Annotated[str, typer.Option(help="Licence of pictures that name none.")] = "",
    near: Annotated[
        int, typer.Option(help="Bits of 64 that duplicates may differ in; 0: same bytes only.")
    ] = 4,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Keep pictures that show the same.")
    ] = False,
    min_side: Annotated[
        int, typer.Option(help="Refuse pictures with a shorter side than this, px.")
    ] = 8,
    first_frame: Annotated[
        bool, typer.Option("--first-frame", help="Take the first frame of animations.")
    ] = False,
    max_refused: Annotated[
        float | None,
        typer.Option(help="Stop when more than this share is refused, as 0.1; never if not given."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that decode.")] = 2,
    engine: Annotated[str, typer.Option(help="local or ray.")] = "local",
) -> None:
    """Look at all pictures: decode, measure, find duplicates; list what stays out and why."""
    with friendly_errors():
        if captions not in ("source", "none"):
            raise ConfigError(f"--captions {captions!r} is not one of source, none")
        from sanakit.data.engines import engine_named
        from sanakit.data.images.decode import DecodeLimits
        from sanakit.data.scan import scan_source
        from sanakit.data.sources.captions import CaptionPolicy
        from sanakit.data.sources.opening import open_source

        policy = CaptionPolicy(use="none" if captions == "none" else "source", user=caption)
        summary = scan_source(
            open_source(source, captions=policy, licence=licence),
            out,
            engine_named(engine, workers),
            given=source,
            near=None if keep_duplicates else near,
            limits=DecodeLimits(min_side=min_side, first_frame=first_frame),
            max_refused=max_refused,
            report=typer.echo,
        )
        for line in summary_lines(out, summary):
            typer.echo(line)


def summary_lines(out: Path, summary: ScanSummary) -> list[str]:
    """What a scan found, for the terminal."""
    lines = [f"{out}: {summary.pictures} of {summary.seen} pictures are in the set"]
    if summary.refused:
        reasons = ", ".join(f"{n} {reason}" for reason, n in summary.refused.items())
        lines.append(f"  refused      {reasons}")
    if summary.same_bytes or summary.same_look:
        lines.append(
            f"  duplicates   {summary.same_bytes} with the same bytes,"
            f" {summary.same_look} that look the same"
        )
    lines += [f"  remarks      {n} {reason}" for reason, n in summary.remarks.items()]
    if summary.misnamed:
        lines.append(f"  misnamed     {summary.misnamed} have the ending of another format; kept")
    without = f", {summary.without_captions} pictures have none" * bool(summary.without_captions)
    lines.append(f"  captions     {summary.captions}{without}")
    least, middle, most = summary.sides
    small = ", ".join(f"{n} below {size}" for size, n in summary.smaller_than.items() if n)
    lines.append(
        f"  shorter side {least} to {most} px, median {middle}" + (f"; {small}" if small else "")
    )
    if summary.refused or summary.remarks or summary.same_bytes or summary.same_look:
        lines.append(f"{out / 'quarantine.jsonl'} names what stays out, and why")
    return lines
