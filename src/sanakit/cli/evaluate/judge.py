"""`sanakit eval train-judge`: the dual encoder that R-precision asks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sanakit.cli.errors import friendly_errors


def train_judge(
    data: Annotated[Path, typer.Option(help="Folder that `sanakit data build glyph` made.")] = Path(
        "data/glyph"
    ),
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the judge.")] = Path(
        "runs/judge"
    ),
    features: Annotated[
        Path | None,
        typer.Option(help="Folder with EfficientNet-Lite0's wheels. Default: the packages."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Which size, if the data set has several, px.")
    ] = None,
    pictures: Annotated[
        int | None, typer.Option(help="Samples of the training split to learn from.", min=1)
    ] = None,
    held: Annotated[
        int | None, typer.Option(help="Real pictures of either held-out split to try it on.", min=2)
    ] = None,
    ways: Annotated[int, typer.Option(help="Captions to choose from.", min=2)] = 100,
    seed: Annotated[int, typer.Option(help="Of the samples and the weights.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = (
        False
    ),
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: --set total_images=9999.")
    ] = None,
) -> None:
    """Teach a small judge on pictures and captions of the training split: minutes on a CPU."""
    with friendly_errors():
        from sanakit.evaluate.features import load_features
        from sanakit.evaluate.judge_run import HELD, PICTURES
        from sanakit.evaluate.judge_run import train_judge as run
        from sanakit.evaluate.judge_sight import sight_of
        from sanakit.evaluate.judge_training import JUDGE_LOOP
        from sanakit.train.settings import with_overrides

        found = run(
            data,
            out,
            sight_of(load_features(features)),
            size=size,
            count=PICTURES if pictures is None else pictures,
            held=HELD if held is None else held,
            ways=ways,
            seed=seed,
            loop=with_overrides(JUDGE_LOOP, settings or []),
            resume=resume,
            report=typer.echo,
        )
        if found is None:
            typer.echo("stopped; go on with --resume")
            return
        typer.echo(found.table())
