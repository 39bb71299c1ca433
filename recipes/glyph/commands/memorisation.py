"""`sanakit eval memorisation`: how near drawn pictures are to those of training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.cli.evaluate.options import (
    CACHE,
    DATA,
    Cache,
    Count,
    Data,
    Device,
    FeatureFolder,
    FlowShift,
    Guidance,
    Model,
    Out,
    Reference,
    Seed,
    Size,
    Solver,
    Steps,
    draw_settings,
    feature_network,
    progress,
    tell,
)

Prompts = Annotated[
    Literal["held", "train"],
    typer.Option(help="Captions: of held-out pictures, or of training, which a model may know."),
]


def memorisation(
    model: Model = "glyph",
    data: Data = DATA,
    size: Size = None,
    count: Count = 1000,
    reference: Reference = 5000,
    prompts: Prompts = "held",
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = None,
    solver: Solver = None,
    flow_shift: FlowShift = None,
    out: Out = Path("runs/eval/memorisation"),
    features: FeatureFolder = None,
    cache: Cache = CACHE,
    device: Device = "cpu",
) -> None:
    """Draw captions; find each picture's nearest training picture, and that of new real ones."""
    with friendly_errors():
        from recipes.glyph.evaluate.memorisation import evaluate_memorisation
        from sanakit.evaluate.pictures import open_glyph_set
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
            settings=draw_settings(seed, steps, guidance, solver, flow_shift),
            report=progress,
        )
        tell(evaluation, out)
