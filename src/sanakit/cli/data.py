"""`sanakit data`: build the training sets that recipes name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.errors import ConfigError

app = typer.Typer(help="Build training sets.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Build training sets."""


@app.command()
def build(
    recipe: Annotated[str, typer.Argument(help="Recipe; there is one: glyph.")] = "glyph",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to build in.")] = Path(
        "data/glyph"
    ),
    packages: Annotated[
        Path | None, typer.Option(help="Folder with the packages, if already downloaded.")
    ] = None,
    drawings: Annotated[
        Path | None,
        typer.Option("--from", help="Folder `drawings` of another build, or a .tar of it."),
    ] = None,
    size: Annotated[
        list[int] | None,
        typer.Option(metavar="PX", help="Side of a picture; may be given again. [128]"),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that render.")] = 2,
    limit: Annotated[
        int | None, typer.Option(help="About this many pictures, the same number of each row.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="ROW", help="Row to leave out; may be given again."),
    ] = None,
) -> None:
    """Fetch permissively licensed picture packages, render and caption them."""
    with friendly_errors():
        if recipe != "glyph":
            raise ConfigError(f"no recipe {recipe!r}", hint="recipes: glyph")
        from sanakit.data.glyph.build import build_glyph

        summary = build_glyph(
            out,
            packages=packages,
            drawings=drawings,
            size=size or 128,
            workers=workers,
            limit=limit,
            without=without or (),
            report=typer.echo,
        )
        typer.echo(f"{out}: {summary.pictures} pictures")
