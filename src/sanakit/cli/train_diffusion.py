"""`sanakit train diffusion` and `export`: a transformer on one's own pictures, whole or LoRA."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.cli.train_plan import DryRun, Measure, check_dry, print_plan
from sanakit.cli.train_start import as_told, keep, speaks
from sanakit.errors import ConfigError

VERB = "diffusion"
RUNS = Path("runs")
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: --set batch_size=16.")
]
Storage = Literal["as-is", "int8-rows"]


def diffusion(
    data: Annotated[
        str | None, typer.Option(help="Set that `sanakit data build` made, or shards' address.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Model to begin with: glyph, a folder, owner/name, a run."),
    ] = None,
    lora: Annotated[
        int | None, typer.Option(help="Train a LoRA of this rank instead of all weights.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the run. Default: runs/NAME-OF-THE-SET."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on; without --out with the newest run in runs/.")
    ] = False,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Drawn on the way, to see what is learned; may be repeated."),
    ] = None,
    held: Annotated[str | None, typer.Option(help="Set to measure on, never trained on.")] = None,
    states: Annotated[
        str | None,
        typer.Option(help="Cached latents and text: auto (if there), live, or cached (only)."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode pictures.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="From scratch: shape of the transformer, sana-0.6b.")
    ] = None,
    autoencoder: Annotated[
        str | None, typer.Option(help="Another autoencoder than that of --from.")
    ] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="Another text encoder than that of --from: its folder.")
    ] = None,
    dry_run: DryRun = False,
    measure: Measure = True,
    settings: Settings = None,
) -> None:
    """Train or fine-tune a diffusion transformer, whole or as a LoRA."""
    with friendly_errors():
        check_dry(dry_run, measure)
        arguments = {
            "data": data,
            "start": start,
            "preset": preset,
            "autoencoder": autoencoder,
            "text_encoder": text_encoder,
            "lora": lora,
            "held": held,
            "prompts": prompt,
            "states": states,
            "workers": workers,
        }
        _train(arguments, settings or [], out, resume=resume, dry=dry_run, measure=measure)


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write. Default: models/NAME.")
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Of a LoRA: the whole model with it inside.")
    ] = False,
    storage: Annotated[
        Storage, typer.Option(help="as-is (fp32, every library reads it) or int8-rows (a quarter).")
    ] = "as-is",
) -> None:
    """Write what a run learned: a model in the published layout, or the file of a LoRA."""
    with friendly_errors():
        from sanakit.train.recipes.diffusion_run import export_run

        folder = out or Path("models") / run.resolve().name
        written = export_run(run, folder, storage=storage, merged=merged)
        option = "--model" if written == folder else "--lora"
        typer.echo(f"{written}: draw with `sanakit generate PROMPT {option} {folder}`")


def _train(
    arguments: dict[str, Any],
    settings: list[str],
    out: Path | None,
    *,
    resume: bool,
    dry: bool,
    measure: bool,
) -> None:
    from sanakit.train.loop import train
    from sanakit.train.recipes.diffusion_run import SanaArguments, sana_run
    from sanakit.train.runs.run_config import newest_run, read_run

    if resume:
        out = out or newest_run(RUNS, VERB)
        read_run(out)  # without it nothing is known of the run
    elif arguments["data"] is None:
        raise ConfigError(
            "--data is missing", hint="sanakit data build my-pictures --out my-set makes one"
        )
    file = as_told(VERB, arguments, settings, out or RUNS, resume=resume)
    out = out or RUNS / Path(file.arguments["data"].rstrip("/")).name
    run, config, found = sana_run(
        SanaArguments(**file.arguments), file.settings, report=_speaking()
    )
    if dry:
        beside = run.frozen.autoencoder, run.frozen.prompts.text_encoder
        shards = run.pictures.shards
        print_plan(run, config, frozen=beside, shards=shards, measure=measure)
        return
    keep(out, VERB, asdict(found), run.settings, config, resume=resume)
    finished = train(run, config, out, resume=resume, report=typer.echo)
    if not speaks():
        return
    if not finished:
        typer.echo(f"stopped; go on: sanakit train {VERB} --resume --out {out}")
        return
    if found.lora or run.settings.lora_rank:
        typer.echo(f"draw: sanakit generate PROMPT --lora {out}")
    typer.echo(f"next: sanakit train export {out} --out models/{out.resolve().name}")


def _speaking() -> Any:
    return typer.echo if speaks() else lambda line: None
