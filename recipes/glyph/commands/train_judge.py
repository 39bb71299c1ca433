"""`sanakit eval train-judge`: the dual encoder that R-precision asks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.cli.evaluate.options import (
    DATA,
    Data,
    Device,
    FeatureFolder,
    Size,
    feature_network,
    progress,
    tell,
)


def train_judge(
    data: Data = DATA,
    size: Size = None,
    pictures: Annotated[
        int, typer.Option(help="Samples of the training split to learn from, composites too.")
    ] = 12_000,
    held: Annotated[
        int, typer.Option(help="Real pictures of either held-out split to try it on.")
    ] = 500,
    ways: Annotated[int, typer.Option(help="Captions to choose from.")] = 100,
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
    with friendly_errors():
        from dataclasses import replace

        from recipes.glyph.evaluate.judge_run import train_judge as run
        from recipes.glyph.evaluate.judge_training import JUDGE_LOOP
        from recipes.glyph.evaluate.visual_features import sight_of
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
