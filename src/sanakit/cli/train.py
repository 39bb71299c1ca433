"""`sanakit train`: one command a stage, in the order that they depend on each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.cli.train_diffusion import diffusion, export
from sanakit.cli.train_plan import DryRun, Measure, check_dry, print_plan
from sanakit.cli.train_show import plot, show
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
Phase = Literal["full", "latent", "decoder", "refine"]


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
    data: Annotated[
        str, typer.Option(help="What `sanakit data build` made: the glyph set, or SET/shards.")
    ] = str(DATA),
    out: Out = Path("runs/glyph-autoencoder"),
    phase: Annotated[
        Phase,
        typer.Option(
            help="full; latent: what is next to the latents, at high resolution; decoder; "
            "refine: the decoder's head, against a discriminator."
        ),
    ] = "full",
    start: Annotated[
        str | None,
        typer.Option("--from", help="Weights to begin with: a run, glyph, a model or its folder."),
    ] = None,
    size: Size = None,
    preset: Annotated[
        str | None, typer.Option(help="Of shards, without --from: the shape to begin with.")
    ] = None,
    held: Annotated[
        str | None, typer.Option(help="Of shards: other shards, to measure on.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Of shards: processes that decode.")] = 0,
    resume: Resume = False,
    dry_run: DryRun = False,
    measure: Measure = True,
    settings: Settings = None,
) -> None:
    """Train the deep-compression autoencoder; at the end OUT/vae holds it, with its scale."""
    with friendly_errors():
        _known(recipe)
        from sanakit.train.autoencoder_files import finish_autoencoder
        from sanakit.train.autoencoder_recipes import (
            glyph_autoencoder,
            is_shards,
            shards_autoencoder,
        )
        from sanakit.train.loop import train

        check_dry(dry_run, measure)
        if phase != "full" and start is None and not resume:
            raise ConfigError(
                f"--phase {phase} would keep weights that were never trained",
                hint="name what to begin with: --from glyph, or --from runs/glyph-autoencoder",
            )
        if preset is not None and start is not None:
            raise ConfigError("--preset with --from", hint="weights come with their own shape")
        pairs = settings or []
        if is_shards(data):
            if size is not None:
                raise ConfigError("--size with shards", hint="their sizes are in their index")
            run, config = shards_autoencoder(
                data,
                phase=phase,
                preset=preset or "glyph",
                start=start,
                held=held,
                workers=workers,
                settings=pairs,
            )
        elif preset or held or workers:
            raise ConfigError(
                f"{data} holds no shards, which --preset, --held and --workers are for",
                hint="name the folder of shards: --data SET/shards",
            )
        else:
            run, config = glyph_autoencoder(
                Path(data), phase=phase, start=start, size=size, settings=pairs
            )
        if dry_run:
            print_plan(run, config, shards=data if is_shards(data) else None, measure=measure)
            return
        if train(run, config, out, resume=resume, report=typer.echo):
            finish_autoencoder(run, out, report=typer.echo)


app.command()(diffusion)
app.command()(export)
app.command()(show)
app.command()(plot)
