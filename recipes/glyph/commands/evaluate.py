"""`python -m recipes.glyph eval`: figures that need the glyph set's captions and its splits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from sanakit.cli.evaluate import (
    CACHE,
    Cache,
    Device,
    FeatureFolder,
    FlowShift,
    Model,
    Out,
    feature_network,
    generation_settings,
    progress,
    tell,
)
from sanakit.cli.options import GuidanceScale, Seed, Solver, Steps

if TYPE_CHECKING:
    from recipes.glyph.evaluate.composition import Kind
    from recipes.glyph.evaluate.names import Stratum
    from sanakit.evaluate.features import Features
    from sanakit.pipeline.pixels import Pixels

DATA = Path("data/glyph")
Data = Annotated[Path, typer.Option(help="Glyph set: what `python -m recipes.glyph build` made.")]
Size = Annotated[int | None, typer.Option(help="Which size, if the data set has several, px.")]
Count = Annotated[int, typer.Option("--count", "-n", help="Captions, one picture each.")]
Reference = Annotated[int, typer.Option(help="Pictures of the training split.")]
Ways = Annotated[int, typer.Option(help="Captions to choose from.")]

app = typer.Typer(
    help="Measure on the glyph set: figures with intervals, as JSON and Markdown.",
    no_args_is_help=True,
)


@app.command()
def autoencoder(
    model: Annotated[
        str, typer.Argument(help="Embedded name, run, model, or folder with an autoencoder.")
    ],
    data: Data = DATA,
    size: Size = None,
    count: Annotated[
        int | None, typer.Option("--count", "-n", help="At most so many. Default: all.")
    ] = None,
    out: Out = Path("runs/eval/autoencoder"),
    lpips: Annotated[bool, typer.Option(help="Measure LPIPS, the slowest of all.")] = True,
    rfd: Annotated[bool, typer.Option(help="Measure rFD-EffNetLite0.")] = True,
    features: FeatureFolder = None,
    cache: Cache = CACHE,
    device: Device = "cpu",
) -> None:
    """Encode and decode held-out concepts on white; say what is left of them."""
    from recipes.glyph.evaluate.pictures import held_pictures
    from sanakit.cli.evaluate import measure

    measure(
        model,
        held_pictures(data, size=size, count=count),
        data=data,
        out=out,
        lpips=lpips,
        rfd=rfd,
        features=features,
        cache=cache,
        device=device,
    )


@app.command()
def composition(
    model: Model = "glyph",
    data: Data = DATA,
    size: Size = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Prompts of each kind.")] = 100,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="background, colour, relation or count; may be repeated. Default: all four."
        ),
    ] = None,
    prompts_seed: Annotated[
        int, typer.Option(help="Which list of prompts; 0 is the usual one.")
    ] = 0,
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: GuidanceScale = None,
    solver: Solver = None,
    flow_shift: FlowShift = None,
    out: Out = Path("runs/eval/composition"),
    features: FeatureFolder = None,
    cache: Cache = CACHE,
    device: Device = "cpu",
) -> None:
    """Draw prompts that state what is where; look whether it is, in drawn and in real pictures."""
    from recipes.glyph.evaluate.composition import KINDS, evaluate_composition
    from recipes.glyph.evaluate.composition_judge import with_plain_looks
    from recipes.glyph.evaluate.pictures import open_glyph_set
    from sanakit.evaluate.features import features_of
    from sanakit.pipeline.pipeline import Pipeline

    network = feature_network(features, device)

    def seen(crops: Pixels) -> Features:
        return features_of(network, crops, cache=cache, report=progress)

    pictures = open_glyph_set(data, size)
    evaluation = evaluate_composition(
        Pipeline.load(model, device=device),
        pictures,
        with_plain_looks(seen),
        model=model,
        data=str(data),
        out=out,
        cache=cache,
        count=count,
        kinds=cast("tuple[Kind, ...]", tuple(dict.fromkeys(kind or KINDS))),
        prompts_seed=prompts_seed,
        settings=generation_settings(seed, steps, guidance, solver, flow_shift),
        report=progress,
    )
    tell(evaluation, out)


@app.command()
def generation(
    model: Model = "glyph",
    data: Data = DATA,
    size: Size = None,
    count: Count = 1000,
    reference: Reference = 5000,
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: GuidanceScale = None,
    solver: Solver = None,
    flow_shift: FlowShift = None,
    out: Out = Path("runs/eval/generation"),
    features: FeatureFolder = None,
    cache: Cache = CACHE,
    device: Device = "cpu",
) -> None:
    """Draw held-out captions; say how far the pictures are from real ones, and real ones are."""
    from recipes.glyph.evaluate.generation import evaluate_generation
    from recipes.glyph.evaluate.pictures import open_glyph_set
    from sanakit.pipeline.pipeline import Pipeline

    network = feature_network(features, device)
    pictures = open_glyph_set(data, size)
    evaluation = evaluate_generation(
        Pipeline.load(model, device=device),
        pictures,
        network,
        model=model,
        data=str(data),
        out=out,
        cache=cache,
        count=count,
        reference=reference,
        settings=generation_settings(seed, steps, guidance, solver, flow_shift),
        report=progress,
    )
    tell(evaluation, out)


@app.command()
def memorisation(
    model: Model = "glyph",
    data: Data = DATA,
    size: Size = None,
    count: Count = 1000,
    reference: Reference = 5000,
    prompts: Annotated[
        Literal["held", "train"],
        typer.Option(
            help="Captions: of held-out pictures, or of training, which a model may know."
        ),
    ] = "held",
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: GuidanceScale = None,
    solver: Solver = None,
    flow_shift: FlowShift = None,
    out: Out = Path("runs/eval/memorisation"),
    features: FeatureFolder = None,
    cache: Cache = CACHE,
    device: Device = "cpu",
) -> None:
    """Draw captions; find each picture's nearest training picture, and that of new real ones."""
    from recipes.glyph.evaluate.memorisation import evaluate_memorisation
    from recipes.glyph.evaluate.pictures import open_glyph_set
    from sanakit.pipeline.pipeline import Pipeline

    network = feature_network(features, device)
    pictures = open_glyph_set(data, size)
    evaluation = evaluate_memorisation(
        Pipeline.load(model, device=device),
        pictures,
        network,
        model=model,
        data=str(data),
        out=out,
        cache=cache,
        prompts=prompts,
        count=count,
        reference=reference,
        settings=generation_settings(seed, steps, guidance, solver, flow_shift),
        report=progress,
    )
    tell(evaluation, out)


@app.command()
def names(
    model: Model = "glyph",
    data: Data = DATA,
    size: Size = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Names of emoji, at random.")] = 200,
    names_seed: Annotated[int, typer.Option(help="Of which names.")] = 0,
    stratum: Annotated[
        list[str] | None,
        typer.Option(help="names or words; may be repeated. Default: both."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every picture.")] = 1,
    steps: Steps = 20,
    guidance: GuidanceScale = None,
    solver: Solver = None,
    flow_shift: FlowShift = None,
    out: Out = Path("runs/eval/names"),
    features: FeatureFolder = None,
    cache: Cache = CACHE,
    device: Device = "cpu",
) -> None:
    """Draw emoji by name, and everyday words; look whether they are found among all emoji."""
    from recipes.glyph.evaluate.names import STRATA, evaluate_names
    from recipes.glyph.evaluate.pictures import open_glyph_set
    from sanakit.pipeline.pipeline import Pipeline

    evaluation = evaluate_names(
        Pipeline.load(model, device=device),
        open_glyph_set(data, size),
        feature_network(features, device),
        model=model,
        data=str(data),
        out=out,
        cache=cache,
        count=count,
        names_seed=names_seed,
        strata=cast("tuple[Stratum, ...]", tuple(dict.fromkeys(stratum or STRATA))),
        settings=generation_settings(seed, steps, guidance, solver, flow_shift),
        report=progress,
    )
    tell(evaluation, out)


@app.command()
def retrieval(
    model: Model = "glyph",
    judge: Annotated[Path, typer.Option(help="Folder that `eval train-judge` made.")] = Path(
        "runs/judge"
    ),
    data: Data = DATA,
    count: Annotated[
        int, typer.Option("--count", "-n", help="Captions of either held-out split.")
    ] = 200,
    ways: Ways = 100,
    captions_seed: Annotated[int, typer.Option(help="Of captions and their distractors.")] = 0,
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: GuidanceScale = None,
    solver: Solver = None,
    flow_shift: FlowShift = None,
    out: Out = Path("runs/eval/retrieval"),
    features: FeatureFolder = None,
    cache: Cache = CACHE,
    device: Device = "cpu",
) -> None:
    """Ask how often a picture's own caption is found among 99 captions of other concepts."""
    from recipes.glyph.evaluate.judge import load_judge
    from recipes.glyph.evaluate.judge_samples import sight_of
    from recipes.glyph.evaluate.retrieval import evaluate_retrieval
    from sanakit.pipeline.pipeline import Pipeline

    saved = load_judge(judge)
    found = evaluate_retrieval(
        Pipeline.load(model, device=device),
        saved,
        sight_of(feature_network(features, device)),
        data=data,
        out=out,
        cache=cache,
        count=count,
        ways=ways,
        seed=captions_seed,
        settings=generation_settings(seed, steps, guidance, solver, flow_shift),
        report=progress,
    )
    tell(found, out)


@app.command()
def train_judge(
    data: Data = DATA,
    size: Size = None,
    pictures: Annotated[
        int, typer.Option(help="Samples of the training split to learn from, composites too.")
    ] = 12_000,
    held: Annotated[
        int, typer.Option(help="Real pictures of either held-out split to try it on.")
    ] = 500,
    ways: Ways = 100,
    seed: Annotated[int, typer.Option(help="Of the samples, the weights and the order.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the judge.")] = Path(
        "runs/judge"
    ),
    features: FeatureFolder = None,
    device: Device = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = (
        False
    ),
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: --set total_images=9999.")
    ] = None,
) -> None:
    """Teach a small judge on pictures and captions of the training split: minutes on a CPU."""
    from dataclasses import replace

    from recipes.glyph.evaluate.judge_run import JUDGE_LOOP
    from recipes.glyph.evaluate.judge_run import train_judge as run
    from recipes.glyph.evaluate.judge_samples import sight_of
    from sanakit.train.config import with_overrides

    found = run(
        data,
        out,
        sight_of(feature_network(features, device)),
        size=size,
        count=pictures,
        held=held,
        ways=ways,
        loop=with_overrides(replace(JUDGE_LOOP, device=device, seed=seed), settings or []),
        resume=resume,
        report=progress,
    )
    if found is None:
        progress("stopped: go on with --resume")
    else:
        tell(found, out)
