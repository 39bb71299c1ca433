"""`sanakit train diffusion` and `export`: the glyph recipe, and models on one's own pictures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.cli.train_plan import DryRun, Measure, check_dry, print_plan
from sanakit.cli.train_start import as_told, keep, speaks
from sanakit.errors import ConfigError

VERB, GLYPH_VERB = "diffusion", "diffusion glyph"
RUNS = Path("runs")
GLYPH_DATA = Path("data/glyph")
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: --set batch_size=16.")
]
Storage = Literal["as-is", "int8-rows"]


def diffusion(
    recipe: Annotated[
        str | None, typer.Argument(help="glyph: the embedded model's recipe; else your own data.")
    ] = None,
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
        str | None, typer.Option(help="Another autoencoder than that of --from; glyph: its run.")
    ] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="Another text encoder than that of --from: its folder.")
    ] = None,
    lm: Annotated[
        str | None, typer.Option(help="glyph: run of the language model, or a model with one.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="glyph: blocks of the transformer; new ones add nothing yet.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="glyph: samples of the mixture whose latents are kept.")
    ] = None,
    freeze_text: Annotated[
        bool | None,
        typer.Option("--freeze-text/--tune-text", help="glyph: leave the text encoder as it is."),
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help='glyph: what captions are read behind; "" for nothing.')
    ] = None,
    size: Annotated[int | None, typer.Option(help="glyph: which size of the data set, px.")] = None,
    dry_run: DryRun = False,
    measure: Measure = True,
    settings: Settings = None,
) -> None:
    """Train or fine-tune a diffusion transformer, whole or as a LoRA."""
    with friendly_errors():
        check_dry(dry_run, measure)
        pairs = settings or []
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
        given = {key for key, value in arguments.items() if value is not None}
        if recipe is None and _is_own(given, data, out, resume):
            glyphs = {
                "--freeze-text": freeze_text,
                "--size": size,
                "--lm": lm,
                "--layers": layers,
                "--samples": samples,
                "--instruction": instruction,
            }
            if named := [name for name, value in glyphs.items() if value is not None]:
                raise ConfigError(
                    f"{named[0]} is of the glyph recipe", hint="leave it out, or name the recipe"
                )
            _own(arguments, pairs, out, resume=resume, dry=dry_run, measure=measure)
            return
        if recipe not in (None, "glyph"):
            raise ConfigError(f"no recipe {recipe!r}", hint="recipes: glyph; or --data and --from")
        if odd := sorted(given - {"data", "autoencoder", "start"}):
            raise ConfigError(
                f"--{odd[0].replace('_', '-')} has no meaning for the recipe glyph",
                hint="leave the recipe's name out to train on your own data",
            )
        given_here = {
            "data": data,
            "autoencoder": autoencoder,
            "lm": lm,
            "start": start,
            "layers": layers,
            "samples": samples,
            "tune_text": None if freeze_text is None else not freeze_text,
            "instruction": instruction,
            "size": size,
        }
        folder = out or RUNS / "glyph-diffusion"
        _glyph(given_here, pairs, folder, resume=resume, dry=dry_run, measure=measure)


def export(
    recipe: Annotated[str, typer.Argument(help="Folder of a run, or glyph.")] = "glyph",
    data: Annotated[Path | None, typer.Option(help="glyph: folder of the data set.")] = None,
    autoencoder: Annotated[
        str | None, typer.Option(help="glyph: another autoencoder than that of its latents.")
    ] = None,
    diffusion: Annotated[Path, typer.Option(help="glyph: run of the transformer.")] = Path(
        "runs/glyph-diffusion"
    ),
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
        from sanakit.train.runs.run_config import is_run, read_run

        if is_run(recipe):
            from sanakit.train.recipes.diffusion_run import export_run

            folder = out or Path("models") / Path(recipe).resolve().name
            written = export_run(Path(recipe), folder, storage=storage, merged=merged)
            option = "--model" if written == folder else "--lora"
            typer.echo(f"{written}: draw with `sanakit generate PROMPT {option} {folder}`")
            return
        if recipe != "glyph":
            raise ConfigError(f"no recipe {recipe!r}", hint="recipes: glyph; or a run's folder")
        if merged:
            raise ConfigError("--merged is of a run with a LoRA", hint="name the run's folder")
        from recipes.glyph.train.runs import glyph_export

        folder = out or Path("models/glyph")
        told = read_run(diffusion).arguments
        glyph_export(
            Path(told["data"]) if data is None else data,
            autoencoder=autoencoder or told["autoencoder"],
            lm=told["lm"],
            diffusion_run=diffusion,
            out=folder,
            storage=storage,
            layers=told["layers"],
            instruction=told["instruction"],
        )
        typer.echo(f"{folder}: draw with `sanakit generate PROMPT --model {folder}`")


def _is_own(given: set[str], data: str | None, out: Path | None, resume: bool) -> bool:
    """Whether somebody who named no recipe means their own pictures."""
    if given - {"data", "autoencoder"}:
        return True
    if data is not None and any((Path(data) / name).exists() for name in ("set.json", "shards")):
        return True
    if not resume or data is not None:
        return False
    from sanakit.train.runs.run_config import is_run, read_run

    if out is not None:
        return is_run(out) and read_run(out).verb != GLYPH_VERB
    own = any(read_run(path.parent).verb == VERB for path in RUNS.glob("*/run.json"))
    return own or not (RUNS / "glyph-diffusion").exists()


def _glyph(
    arguments: dict[str, Any],
    settings: list[str],
    out: Path,
    *,
    resume: bool,
    dry: bool,
    measure: bool,
) -> None:
    from recipes.glyph.train.runs import (
        GLYPH_DIFFUSION,
        GLYPH_INSTRUCTION,
        GLYPH_LAYERS,
        GLYPH_SAMPLES,
        glyph_diffusion,
    )

    from sanakit.train.config import with_overrides
    from sanakit.train.distributed.ranks import Ranks, join_ranks, leave_ranks
    from sanakit.train.loop import train

    file = as_told(GLYPH_VERB, arguments, settings, out, resume=resume)
    told = {
        "data": str(GLYPH_DATA),
        "autoencoder": str(RUNS / "glyph-autoencoder"),
        "lm": str(RUNS / "glyph-lm"),
        "layers": GLYPH_LAYERS,
        "samples": GLYPH_SAMPLES,
        "tune_text": True,
        "instruction": GLYPH_INSTRUCTION,
        **file.arguments,
    }
    config = with_overrides(GLYPH_DIFFUSION, list(file.settings))
    ranks = (
        Ranks() if dry else join_ranks(config.device, timeout_minutes=2 * config.hang_minutes + 1)
    )
    try:
        run, _ = glyph_diffusion(
            Path(told["data"]),
            autoencoder=told["autoencoder"],
            lm=told["lm"],
            ranks=ranks,
            out=None if dry else out,
            start=told.get("start"),
            layers=told["layers"],
            samples=told["samples"],
            tune_text=told["tune_text"],
            instruction=told["instruction"],
            size=told.get("size"),
            report=_speaking(),
        )
        if dry:
            print_plan(run, config, measure=measure)
            return
        keep(out, GLYPH_VERB, told, config, resume=resume)
        train(run, config, out, resume=resume, report=typer.echo, ranks=ranks)
    finally:
        leave_ranks()


def _own(
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
