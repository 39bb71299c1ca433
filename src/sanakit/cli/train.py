"""`sanakit train`: one command a stage, in the order that they depend on each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.cli.train_diffusion import diffusion, export
from sanakit.errors import ConfigError

app = typer.Typer(
    help="Train a tokenizer, a language model, an autoencoder, a diffusion transformer; export.",
    no_args_is_help=True,
)
Recipe = Annotated[str, typer.Argument(help="Recipe; there is one: glyph.")]
Data = Annotated[Path, typer.Option(help="Folder that `sanakit data build` made.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: checkpoints and log.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: --set batch_size=16.")
]
Size = Annotated[int | None, typer.Option(help="Which size, if the data set has several, px.")]
DATA = Path("data/glyph")
Phase = Literal["full", "decoder"]


def _known(recipe: str) -> None:
    if recipe != "glyph":
        raise ConfigError(f"no recipe {recipe!r}", hint="recipes: glyph")


@app.command()
def tokenizer(
    recipe: Recipe = "glyph",
    data: Data = DATA,
    packages: Annotated[
        Path | None, typer.Option(help="Folder with the packages, if already downloaded.")
    ] = None,
) -> None:
    """Learn a tokenizer on captions and dictionary glosses; pack rows for the language model."""
    with friendly_errors():
        _known(recipe)
        from sanakit.train.recipes import glyph_tokenizer

        glyph_tokenizer(data, packages=packages, report=typer.echo)


@app.command()
def lm(
    recipe: Recipe = "glyph",
    data: Data = DATA,
    out: Out = Path("runs/glyph-lm"),
    resume: Resume = False,
    settings: Settings = None,
) -> None:
    """Train the text encoder as a language model."""
    with friendly_errors():
        _known(recipe)
        from sanakit.train.loop import train
        from sanakit.train.recipes import glyph_language_model
        from sanakit.train.settings import with_overrides

        run, config = glyph_language_model(data)
        train(run, with_overrides(config, settings or []), out, resume=resume, report=typer.echo)


@app.command()
def autoencoder(
    recipe: Recipe = "glyph",
    data: Data = DATA,
    out: Out = Path("runs/glyph-autoencoder"),
    phase: Annotated[
        Phase, typer.Option(help="full, or decoder: the encoder stays as it is.")
    ] = "full",
    start: Annotated[
        Path | None, typer.Option("--from", help="Run whose weights to begin with.")
    ] = None,
    size: Size = None,
    resume: Resume = False,
    settings: Settings = None,
) -> None:
    """Train the deep-compression autoencoder."""
    with friendly_errors():
        _known(recipe)
        from sanakit.train.loop import train
        from sanakit.train.recipes import glyph_autoencoder
        from sanakit.train.settings import with_overrides

        if phase == "decoder" and start is None and not resume:
            raise ConfigError(
                "--phase decoder would keep an encoder that was never trained",
                hint="name the run to begin with: --from runs/glyph-autoencoder",
            )
        run, config = glyph_autoencoder(data, phase=phase, start=start, size=size)
        train(run, with_overrides(config, settings or []), out, resume=resume, report=typer.echo)


app.command()(diffusion)
app.command()(export)
