"""`sanakit train autoencoder`: on the glyph set, or on shards of one's own pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.cli.train_plan import DryRun, Measure, check_dry, print_plan
from sanakit.cli.train_start import as_told, keep
from sanakit.errors import ConfigError

VERB = "autoencoder"
GLYPH_DATA = "data/glyph"
Phase = Literal["full", "latent", "decoder", "refine"]


def autoencoder(
    recipe: Annotated[str, typer.Argument(help="Recipe; there is one: glyph.")] = "glyph",
    data: Annotated[
        str | None,
        typer.Option(
            help="What `sanakit data build` made: the glyph set, or SET/shards. "
            f"Default: {GLYPH_DATA}."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the run: checkpoints and log.")
    ] = Path("runs/glyph-autoencoder"),
    phase: Annotated[
        Phase | None,
        typer.Option(
            help="full (default); latent: what is next to the latents, at high resolution; "
            "decoder; refine: the decoder's head, against a discriminator."
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Weights to begin with: a run, glyph, a model or its folder."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Which size, if the data set has several, px.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Of shards, without --from: the shape to begin with.")
    ] = None,
    held: Annotated[
        str | None, typer.Option(help="Of shards: other shards, to measure on.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Of shards: processes that decode. Default: none.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint, as it was begun.")
    ] = False,
    dry_run: DryRun = False,
    measure: Measure = True,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: --set batch_size=16.")
    ] = None,
) -> None:
    """Train the deep-compression autoencoder; at the end OUT/vae holds it, with its scale."""
    with friendly_errors():
        if recipe != "glyph":
            raise ConfigError(f"no recipe {recipe!r}", hint="recipes: glyph")
        check_dry(dry_run, measure)
        arguments = {
            "data": data,
            "phase": phase,
            "start": start,
            "size": size,
            "preset": preset,
            "held": held,
            "workers": workers,
        }
        file = as_told(VERB, arguments, settings or [], out, resume=resume)
        told = {"data": GLYPH_DATA, "phase": "full", **file.arguments}
        run, config = _put_together(told, list(file.settings), resume=resume)
        if dry_run:
            beside = () if run.perceptual is None else (run.perceptual,)
            shards = told["data"] if _holds_shards(told) else None
            print_plan(run, config, frozen=beside, shards=shards, measure=measure)
            return
        from sanakit.train.loop import train
        from sanakit.train.recipes.autoencoder_run import finish_autoencoder

        keep(out, VERB, told, run.settings, config, resume=resume)
        if train(run, config, out, resume=resume, report=typer.echo):
            finish_autoencoder(run, out, report=typer.echo)


def _put_together(told: dict[str, Any], settings: list[str], *, resume: bool) -> Any:
    from sanakit.train.recipes.autoencoder_run import glyph_autoencoder, shards_autoencoder

    data, phase, start = told["data"], told["phase"], told.get("start")
    if phase != "full" and start is None and not resume:
        raise ConfigError(
            f"--phase {phase} would keep weights that were never trained",
            hint="name what to begin with: --from glyph, or --from runs/glyph-autoencoder",
        )
    if told.get("preset") is not None and start is not None:
        raise ConfigError("--preset with --from", hint="weights come with their own shape")
    if _holds_shards(told):
        if told.get("size") is not None:
            raise ConfigError("--size with shards", hint="their sizes are in their index")
        return shards_autoencoder(
            data,
            phase=phase,
            preset=told.get("preset", "glyph"),
            start=start,
            held=told.get("held"),
            workers=told.get("workers", 0),
            settings=settings,
        )
    if told.keys() & {"preset", "held", "workers"}:
        raise ConfigError(
            f"{data} holds no shards, which --preset, --held and --workers are for",
            hint="name the folder of shards: --data SET/shards",
        )
    return glyph_autoencoder(
        Path(data), phase=phase, start=start, size=told.get("size"), settings=settings
    )


def _holds_shards(told: dict[str, Any]) -> bool:
    from sanakit.train.recipes.autoencoder_run import is_shards

    return is_shards(told["data"])
