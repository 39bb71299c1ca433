"""`sanakit eval retrieval`: R-precision with a judge of this data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sanakit.cli.errors import friendly_errors


def retrieval(
    model: Annotated[str, typer.Argument(help="Embedded name, folder, or owner/name.")] = "glyph",
    judge: Annotated[
        Path, typer.Option(help="Folder that `sanakit eval train-judge` made.")
    ] = Path("runs/judge"),
    data: Annotated[Path, typer.Option(help="The data that the judge was trained on.")] = Path(
        "data/glyph"
    ),
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the evaluation.")] = Path(
        "runs/eval-retrieval"
    ),
    features: Annotated[
        Path | None,
        typer.Option(help="Folder with EfficientNet-Lite0's wheels. Default: the packages."),
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Prompts of either held-out split.", min=2)
    ] = None,
    ways: Annotated[int, typer.Option(help="Captions to choose from.", min=2)] = 100,
    seed: Annotated[int, typer.Option(help="Of prompts, distractors and pictures.")] = 0,
    steps: Annotated[int, typer.Option(help="Solver steps.", min=1)] = 20,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale. Default: the model's.")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="Solver. Default: the model's.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Fail rather than download a model.")
    ] = False,
) -> None:
    """Ask how often a picture's own caption is found among 99 captions of other concepts."""
    with friendly_errors():
        from sanakit.evaluate.drawn import DrawSettings
        from sanakit.evaluate.features import load_features
        from sanakit.evaluate.judge_files import load_judge
        from sanakit.evaluate.judge_sight import sight_of
        from sanakit.evaluate.retrieval_run import COUNT, evaluate_retrieval
        from sanakit.pipeline.generate import Pipeline

        saved = load_judge(judge)
        found = evaluate_retrieval(
            Pipeline.load(model, offline=offline),
            saved,
            sight_of(load_features(features)),
            data=data,
            out=out,
            count=COUNT if count is None else count,
            ways=ways,
            seed=seed,
            settings=DrawSettings(
                seed=seed, num_steps=steps, guidance_scale=guidance, solver=solver
            ),
            report=typer.echo,
        )
        typer.echo(found.table())
