"""The set, its tokenizer, and the three trainings of the embedded model, each as one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sanakit.cli.train_autoencoder import Phase
from sanakit.cli.train_diffusion import Storage
from sanakit.cli.train_plan import DryRun, Measure, check_dry, print_plan
from sanakit.cli.train_start import as_told, keep, speaks
from sanakit.errors import ConfigError

GLYPH_VERB = "diffusion glyph"
DATA, RUNS = Path("data/glyph"), Path("runs")
Data = Annotated[
    Path | None,
    typer.Option(help=f"Folder that `build` made. Default: {DATA}."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: checkpoints and log.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint, as it was begun.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: --set batch_size=16.")
]
Packages = Annotated[
    Path | None, typer.Option(help="Folder with the packages, if already downloaded.")
]
Size = Annotated[int | None, typer.Option(help="Which size, if the data set has several, px.")]


def build(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the set.")] = DATA,
    packages: Packages = None,
    drawings: Annotated[
        Path | None,
        typer.Option("--from", help="Folder `drawings` of another build, or a .tar of it."),
    ] = None,
    size: Annotated[
        list[int] | None,
        typer.Option(metavar="PX", help="Side of a picture; may be given again; 128."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="About this many pictures, the same number of each row."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="ROW", help="Row to leave out; may be given again."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that work at once.")] = 2,
) -> None:
    """Make the glyph set: fetch packages, draw them, write captions and splits."""
    from recipes.glyph.data.build import build_glyph

    options: dict[str, Any] = {
        "packages": packages,
        "drawings": drawings,
        "size": size,
        "limit": limit,
        "without": without,
    }
    given = {name: value for name, value in options.items() if value}
    summary = build_glyph(out, workers=workers, report=typer.echo, **given)
    typer.echo(f"{out}: {summary.pictures} pictures")


def tokenizer(
    data: Annotated[Path, typer.Option(help="Folder that `build` made.")] = DATA,
    packages: Packages = None,
    dictionary: Annotated[
        bool, typer.Option(help="Read WordNet's glosses, too, or captions alone.")
    ] = True,
) -> None:
    """Learn a tokenizer on captions and dictionary glosses; pack rows for the language model."""
    if packages is not None and not dictionary:
        raise ConfigError(
            "--packages without the dictionary", hint="captions alone need no package"
        )
    from recipes.glyph.train.runs import glyph_tokenizer

    glyph_tokenizer(data, packages=packages, dictionary=dictionary, report=typer.echo)


def lm(
    data: Data = None,
    out: Out = RUNS / "glyph-lm",
    resume: Resume = False,
    dry_run: DryRun = False,
    measure: Measure = True,
    settings: Settings = None,
) -> None:
    """Train the text encoder as a language model."""
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


def autoencoder(
    data: Data = None,
    out: Out = RUNS / "glyph-autoencoder",
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
    size: Size = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    measure: Measure = True,
    settings: Settings = None,
) -> None:
    """Train the autoencoder on the glyph set; at the end OUT/vae holds it, with its scale."""
    check_dry(dry_run, measure)
    from recipes.glyph.train.autoencoder import glyph_autoencoder
    from sanakit.train.loop import train
    from sanakit.train.recipes.autoencoder_run import finish_autoencoder

    arguments = {
        "data": None if data is None else str(data),
        "phase": phase,
        "start": start,
        "size": size,
    }
    file = as_told("autoencoder", arguments, settings or [], out, resume=resume)
    told = {"data": str(DATA), "phase": "full", **file.arguments}
    if told["phase"] != "full" and told.get("start") is None and not resume:
        raise ConfigError(
            f"--phase {phase} would keep weights that were never trained",
            hint="name what to begin with: --from glyph, or --from runs/glyph-autoencoder",
        )
    run, config = glyph_autoencoder(
        Path(told["data"]),
        phase=told["phase"],
        start=told.get("start"),
        size=told.get("size"),
        settings=list(file.settings),
    )
    if dry_run:
        beside = () if run.perceptual is None else (run.perceptual,)
        print_plan(run, config, frozen=beside, measure=measure)
        return
    keep(out, "autoencoder", told, run.settings, config, resume=resume)
    if train(run, config, out, resume=resume, report=typer.echo):
        finish_autoencoder(run, out, report=typer.echo)


def diffusion(
    data: Data = None,
    autoencoder: Annotated[
        str | None, typer.Option(help="Run of the autoencoder, or a model with one.")
    ] = None,
    lm: Annotated[
        str | None, typer.Option(help="Run of the language model, or a model with one.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Model whose transformer is taken to begin with.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="Blocks of the transformer; new ones add nothing yet.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Samples of the mixture whose latents are kept.")
    ] = None,
    freeze_text: Annotated[
        bool | None,
        typer.Option("--freeze-text/--tune-text", help="Leave the text encoder as it is."),
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help='What captions are read behind; "" for nothing.')
    ] = None,
    size: Size = None,
    out: Out = RUNS / "glyph-diffusion",
    resume: Resume = False,
    dry_run: DryRun = False,
    measure: Measure = True,
    settings: Settings = None,
) -> None:
    """Train the transformer on latents of the mixture, with its text encoder tuned along."""
    check_dry(dry_run, measure)
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

    arguments = {
        "data": None if data is None else str(data),
        "autoencoder": autoencoder,
        "lm": lm,
        "start": start,
        "layers": layers,
        "samples": samples,
        "tune_text": None if freeze_text is None else not freeze_text,
        "instruction": instruction,
        "size": size,
    }
    file = as_told(GLYPH_VERB, arguments, settings or [], out, resume=resume)
    told: dict[str, Any] = {
        "data": str(DATA),
        "autoencoder": str(RUNS / "glyph-autoencoder"),
        "lm": str(RUNS / "glyph-lm"),
        "layers": GLYPH_LAYERS,
        "samples": GLYPH_SAMPLES,
        "tune_text": True,
        "instruction": GLYPH_INSTRUCTION,
        **file.arguments,
    }
    config = with_overrides(GLYPH_DIFFUSION, list(file.settings))
    patience = 2 * config.hang_minutes + 1
    ranks = Ranks() if dry_run else join_ranks(config.device, timeout_minutes=patience)
    try:
        run, _ = glyph_diffusion(
            Path(told["data"]),
            autoencoder=told["autoencoder"],
            lm=told["lm"],
            ranks=ranks,
            out=None if dry_run else out,
            start=told.get("start"),
            layers=told["layers"],
            samples=told["samples"],
            tune_text=told["tune_text"],
            instruction=told["instruction"],
            size=told.get("size"),
            report=typer.echo if speaks() else lambda line: None,
        )
        if dry_run:
            print_plan(run, config, measure=measure)
            return
        keep(out, GLYPH_VERB, told, config, resume=resume)
        train(run, config, out, resume=resume, report=typer.echo, ranks=ranks)
    finally:
        leave_ranks()


def export(
    data: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    autoencoder: Annotated[
        str | None, typer.Option(help="Another autoencoder than that of its latents.")
    ] = None,
    diffusion: Annotated[Path, typer.Option(help="Run of the transformer.")] = RUNS
    / "glyph-diffusion",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path(
        "models/glyph"
    ),
    storage: Annotated[
        Storage, typer.Option(help="as-is (fp32, every library reads it) or int8-rows (a quarter).")
    ] = "as-is",
) -> None:
    """Write what was learned as a model in the published layout."""
    from recipes.glyph.train.runs import glyph_export
    from sanakit.train.runs.run_config import read_run

    told = read_run(diffusion).arguments
    glyph_export(
        Path(told["data"]) if data is None else data,
        autoencoder=autoencoder or told["autoencoder"],
        lm=told["lm"],
        diffusion_run=diffusion,
        out=out,
        storage=storage,
        layers=told["layers"],
        instruction=told["instruction"],
    )
    typer.echo(f"{out}: draw with `sanakit generate PROMPT --model {out}`")
