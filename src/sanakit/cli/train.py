"""`sanakit train`: one command a stage, in the order that they depend on each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.cli.train_autoencoder import autoencoder
from sanakit.cli.train_diffusion import diffusion, export
from sanakit.cli.train_plan import DryRun, Measure, check_dry, print_plan
from sanakit.cli.train_show import plot, show
from sanakit.cli.train_start import as_told, keep
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
DATA = Path("data/glyph")


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
    dictionary: Annotated[
        bool, typer.Option(help="Read WordNet's glosses, too, or captions alone.")
    ] = True,
) -> None:
    """Learn a tokenizer on captions and dictionary glosses; pack rows for the language model."""
    with friendly_errors():
        _known(recipe)
        if packages is not None and not dictionary:
            raise ConfigError(
                "--packages without the dictionary", hint="captions alone need no package"
            )
        from recipes.glyph.train.runs import glyph_tokenizer

        glyph_tokenizer(data, packages=packages, dictionary=dictionary, report=typer.echo)


@app.command()
def lm(
    recipe: Recipe = "glyph",
    data: Annotated[
        Path | None, typer.Option(help=f"Folder that `sanakit data build` made. Default: {DATA}.")
    ] = None,
    out: Out = Path("runs/glyph-lm"),
    resume: Resume = False,
    dry_run: DryRun = False,
    measure: Measure = True,
    settings: Settings = None,
) -> None:
    """Train the text encoder as a language model."""
    with friendly_errors():
        _known(recipe)
        check_dry(dry_run, measure)
        from recipes.glyph.train.runs import glyph_language_model

        from sanakit.train.config import with_overrides
        from sanakit.train.loop import train

        given = {"data": None if data is None else str(data)}
        file = as_told("lm", given, settings or [], out, resume=resume)
        told = {"data": str(DATA), **file.arguments}
        run, config = glyph_language_model(Path(told["data"]))
        config = with_overrides(config, list(file.settings))
        if dry_run:
            print_plan(run, config, measure=measure)
            return
        keep(out, "lm", told, config, resume=resume)
        train(run, config, out, resume=resume, report=typer.echo)


app.command()(autoencoder)
app.command()(diffusion)
app.command()(export)
app.command()(show)
app.command()(plot)
