"""`sanakit data build`: build the training sets that recipes name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.errors import ConfigError


def build(
    recipe: Annotated[str, typer.Argument(help="Recipe; there is one: glyph.")] = "glyph",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to build in.")] = Path(
        "data/glyph"
    ),
    packages: Annotated[
        Path | None, typer.Option(help="Folder with the packages, if already downloaded.")
    ] = None,
    size: Annotated[int, typer.Option(help="Side of a picture, px.")] = 128,
    workers: Annotated[int, typer.Option(help="Processes that render.")] = 2,
) -> None:
    """Fetch permissively licensed picture packages, render and caption them."""
    with friendly_errors():
        if recipe != "glyph":
            raise ConfigError(f"no recipe {recipe!r}", hint="recipes: glyph")
        from sanakit.data.glyph.build import build_glyph

        summary = build_glyph(out, packages=packages, size=size, workers=workers, report=typer.echo)
        typer.echo(f"{out}: {summary.pictures} pictures")
