"""`sanakit eval composition`: background, colour, relation and number, judged by program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

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
    Size,
    Solver,
    Steps,
    draw_settings,
    feature_network,
    progress,
    tell,
)

if TYPE_CHECKING:
    from recipes.glyph.evaluate.composition_prompts import Kind
    from sanakit.evaluate.features import Features
    from sanakit.pipeline.images import Pixels

Each = Annotated[int, typer.Option("--count", "-n", help="Prompts of each kind.")]
Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        help="background, colour, relation or count; may be repeated. Default: all four.",
    ),
]
PromptsSeed = Annotated[int, typer.Option(help="Which list of prompts; 0 is the usual one.")]


def composition(
    model: Model = "glyph",
    data: Data = DATA,
    size: Size = None,
    count: Each = 100,
    kind: Kinds = None,
    prompts_seed: PromptsSeed = 0,
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = None,
    solver: Solver = None,
    flow_shift: FlowShift = None,
    out: Out = Path("runs/eval/composition"),
    features: FeatureFolder = None,
    cache: Cache = CACHE,
    device: Device = "cpu",
) -> None:
    """Draw prompts that state what is where; look whether it is, in drawn and in real pictures."""
    with friendly_errors():
        from recipes.glyph.evaluate.composition_judge import with_plain_looks
        from recipes.glyph.evaluate.composition_prompts import KINDS
        from recipes.glyph.evaluate.composition_run import evaluate_composition
        from sanakit.evaluate.features import features_of
        from sanakit.evaluate.pictures import open_glyph_set
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
            settings=draw_settings(seed, steps, guidance, solver, flow_shift),
            report=progress,
        )
        tell(evaluation, out)
