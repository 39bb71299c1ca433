"""`sanakit eval generation`: FD, KID, precision and recall against real pictures."""

from __future__ import annotations

from pathlib import Path

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


def generation(
    model: Model = "glyph",
    data: Data = DATA,
    size: Size = None,
    count: Count = 1000,
    reference: Reference = 5000,
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = None,
    solver: Solver = None,
    flow_shift: FlowShift = None,
    out: Out = Path("runs/eval/generation"),
    features: FeatureFolder = None,
    cache: Cache = CACHE,
    device: Device = "cpu",
) -> None:
    """Draw held-out captions; say how far the pictures are from real ones, and real ones are."""
    with friendly_errors():
        from recipes.glyph.evaluate.generation import evaluate_generation
        from sanakit.evaluate.pictures import open_glyph_set
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
            settings=draw_settings(seed, steps, guidance, solver, flow_shift),
            report=progress,
        )
        tell(evaluation, out)
