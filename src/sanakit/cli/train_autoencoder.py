"""`sanakit train autoencoder`: on shards of one's own pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.cli.train_plan import DryRun, Measure, check_dry, print_plan
from sanakit.cli.train_start import as_told, keep
from sanakit.errors import ConfigError

VERB = "autoencoder"
Phase = Literal["full", "latent", "decoder", "refine"]


def autoencoder(
    data: Annotated[
        str | None, typer.Option(help="Shards that `sanakit data build` made: SET/shards.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the run: checkpoints and log.")
    ] = Path("runs/autoencoder"),
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
    preset: Annotated[
        str | None, typer.Option(help="Without --from: the shape to begin with; glyph.")
    ] = None,
    held: Annotated[str | None, typer.Option(help="Other shards, to measure on.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode. Default: none.")
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
        check_dry(dry_run, measure)
        arguments = {
            "data": data,
            "phase": phase,
            "start": start,
            "preset": preset,
            "held": held,
            "workers": workers,
        }
        file = as_told(VERB, arguments, settings or [], out, resume=resume)
        told = {"phase": "full", **file.arguments}
        run, config = _put_together(told, list(file.settings), resume=resume)
        if dry_run:
            beside = () if run.perceptual is None else (run.perceptual,)
            print_plan(run, config, frozen=beside, shards=told["data"], measure=measure)
            return
        from sanakit.train.loop import train
        from sanakit.train.recipes.autoencoder_run import finish_autoencoder

        keep(out, VERB, told, run.settings, config, resume=resume)
        if train(run, config, out, resume=resume, report=typer.echo):
            finish_autoencoder(run, out, report=typer.echo)


def _put_together(told: dict[str, Any], settings: list[str], *, resume: bool) -> Any:
    from sanakit.train.recipes.autoencoder_run import shards_autoencoder

    phase, start = told["phase"], told.get("start")
    if phase != "full" and start is None and not resume:
        raise ConfigError(
            f"--phase {phase} would keep weights that were never trained",
            hint="name what to begin with: --from glyph, or --from runs/autoencoder",
        )
    if told.get("preset") is not None and start is not None:
        raise ConfigError("--preset with --from", hint="weights come with their own shape")
    if told.get("data") is None:
        raise ConfigError(
            "--data is missing", hint="sanakit data build my-pictures --out SET; --data SET/shards"
        )
    return shards_autoencoder(
        told["data"],
        phase=phase,
        preset=told.get("preset", "glyph"),
        start=start,
        held=told.get("held"),
        workers=told.get("workers", 0),
        settings=settings,
    )
