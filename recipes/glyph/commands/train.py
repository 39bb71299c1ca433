"""The set, its samples, the tokenizer, the language model, and what diffusion begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sanakit.cli.terminal import say
from sanakit.cli.train import (
    DryRun,
    Measure,
    Out,
    Resume,
    Settings,
    check_dry,
    new_or_resumed,
    print_plan,
)
from sanakit.errors import ConfigError

DATA, RUNS = Path("data/glyph"), Path("runs")
Data = Annotated[
    Path | None,
    typer.Option(help=f"Folder that `build` made. Default: {DATA}."),
]
Packages = Annotated[
    Path | None, typer.Option(help="Folder with the packages, if already downloaded.")
]
Shape = Annotated[str, typer.Option(help="Of the networks: glyph, or tiny to try the chain.")]
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
    summary = build_glyph(out, workers=workers, report=say, **given)
    say(f"{out}: {summary.pictures} pictures")


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
    from recipes.glyph.train.tokenizer import glyph_tokenizer

    glyph_tokenizer(data, packages=packages, dictionary=dictionary, report=say)


def samples(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of tars to write.")],
    data: Annotated[Path, typer.Option(help="Folder that `build` made.")] = DATA,
    count: Annotated[int, typer.Option("--count", "-n", help="So many pictures.")] = 60_000,
    size: Size = None,
    captions: Annotated[int, typer.Option(help="Wordings of each, at most.")] = 6,
    composites: Annotated[float, typer.Option(help="Share of composites.")] = 0.2,
    everyday: Annotated[
        float, typer.Option(help="How much more often come things that people ask for first.")
    ] = 3.0,
    held: Annotated[
        bool,
        typer.Option("--held", help="Of pairs of concept and style never trained on."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the samples and their words.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that work at once.")] = 2,
) -> None:
    """Write pictures on their backgrounds, composites too, with captions: for `sanakit data`."""
    from recipes.glyph.data.samples import write_samples

    write_samples(
        data,
        out,
        count=count,
        size=size,
        captions=captions,
        composites=composites,
        everyday=everyday,
        held=held,
        seed=seed,
        workers=workers,
        report=say,
    )


def lm(
    data: Data = None,
    out: Out = RUNS / "glyph-lm",
    shape: Shape = "glyph",
    resume: Resume = False,
    dry_run: DryRun = False,
    measure: Measure = True,
    settings: Settings = None,
) -> None:
    """Train the text encoder as a language model."""
    check_dry(dry_run, measure)
    from recipes.glyph.train.language_model import LANGUAGE_MODEL_LOOP, language_model_run
    from recipes.glyph.train.start import TEXT
    from sanakit.train.loop import train
    from sanakit.train.runs.run_config import RunConfig, lasting, save_run

    def new_run(typed: dict[str, Any], pairs: list[str]) -> RunConfig:
        told = {"data": str(DATA), **lasting(typed)}
        return RunConfig(what="lm", data=told, loop=LANGUAGE_MODEL_LOOP).with_settings(pairs)

    typed = {"data": None if data is None else str(data), "shape": shape}
    resumed = out if resume else None
    run = new_or_resumed("lm", None, new_run, typed, settings, resumed=resumed)
    recipe = language_model_run(Path(run.data["data"]) / TEXT, run.data["shape"])
    if dry_run:
        print_plan(recipe, run, measure=measure)
        return
    save_run(run, out, resume=resume)
    train(recipe, run.loop, out, resume=resume, report=say)


def start(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the model to write.")],
    data: Annotated[Path, typer.Option(help="Folder that `build` made.")] = DATA,
    autoencoder: Annotated[
        str, typer.Option(help="Run of `sanakit train autoencoder`, or a model with one.")
    ] = "runs/autoencoder",
    lm: Annotated[Path, typer.Option(help="Run of the language model.")] = RUNS / "glyph-lm",
    shape: Shape = "glyph",
    layers: Annotated[
        int | None, typer.Option(help="Blocks of the transformer, if not the shape's.")
    ] = None,
    side: Annotated[int, typer.Option(help="Of the pictures, px.")] = 256,
    grown: Annotated[
        str | None,
        typer.Option("--from", help="Model whose transformer is taken; new blocks add nothing."),
    ] = None,
) -> None:
    """Put trained parts and a fresh transformer together: `sanakit train diffusion --from OUT`."""
    from recipes.glyph.train.start import write_start

    write_start(
        out,
        data,
        autoencoder=autoencoder,
        lm=lm,
        shape=shape,
        layers=layers,
        side=side,
        start=grown,
    )
    say(f"{out}: train it with `sanakit train diffusion --from {out} --data SET`")
