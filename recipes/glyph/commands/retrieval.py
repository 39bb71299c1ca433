"""`sanakit eval retrieval`: R-precision with a judge of this data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.cli.evaluate.options import (
    CACHE,
    DATA,
    Cache,
    Data,
    Device,
    FeatureFolder,
    FlowShift,
    Guidance,
    Model,
    Out,
    Seed,
    Solver,
    Steps,
    draw_settings,
    feature_network,
    progress,
    tell,
)


def retrieval(
    model: Model = "glyph",
    judge: Annotated[
        Path, typer.Option(help="Folder that `sanakit eval train-judge` made.")
    ] = Path("runs/judge"),
    data: Data = DATA,
    count: Annotated[
        int, typer.Option("--count", "-n", help="Captions of either held-out split.")
    ] = 200,
    ways: Annotated[int, typer.Option(help="Captions to choose from.")] = 100,
    captions_seed: Annotated[int, typer.Option(help="Of captions and their distractors.")] = 0,
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = None,
    solver: Solver = None,
    flow_shift: FlowShift = None,
    out: Out = Path("runs/eval/retrieval"),
    features: FeatureFolder = None,
    cache: Cache = CACHE,
    device: Device = "cpu",
) -> None:
    """Ask how often a picture's own caption is found among 99 captions of other concepts."""
    with friendly_errors():
        from recipes.glyph.evaluate.judge_files import load_judge
        from recipes.glyph.evaluate.retrieval_run import evaluate_retrieval
        from recipes.glyph.evaluate.visual_features import sight_of
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
            settings=draw_settings(seed, steps, guidance, solver, flow_shift),
            report=progress,
        )
        tell(found, out)
