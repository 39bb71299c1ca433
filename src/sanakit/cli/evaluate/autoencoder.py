"""`sanakit eval autoencoder`: PSNR, SSIM, LPIPS and rFD on pictures that it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.cli.evaluate.options import (
    CACHE,
    Cache,
    Device,
    FeatureFolder,
    Out,
    feature_network,
    progress,
    tell,
)
from sanakit.errors import MissingModelError

if TYPE_CHECKING:
    from sanakit.evaluate.pictures import Pictures


def autoencoder(
    model: Annotated[
        str, typer.Argument(help="Embedded name, run, model, or folder with an autoencoder.")
    ],
    data: Annotated[Path, typer.Option(help="Pictures, as `sanakit data scan` reads them.")],
    size: Annotated[int, typer.Option(help="Side of the squares they are cut to, px.")] = 256,
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
    """Encode and decode pictures; say what is left of them, and show the worst and the middle."""
    with friendly_errors():
        from sanakit.evaluate.pictures import pictures_to_restore

        measure(
            model,
            pictures_to_restore(data, size=size, count=count),
            data=data,
            out=out,
            lpips=lpips,
            rfd=rfd,
            features=features,
            cache=cache,
            device=device,
        )


def measure(
    model: str,
    pictures: Pictures,
    *,
    data: Path,
    out: Path,
    lpips: bool,
    rfd: bool,
    features: Path | None,
    cache: Path,
    device: str,
) -> None:
    """Measure a model on pictures that were chosen, and print what came out."""
    from sanakit.evaluate.restoration import evaluate_autoencoder
    from sanakit.train.recipes.autoencoder_run import start_autoencoder
    from sanakit.weights.perceptual import load_perceptual

    network = feature_network(features, device) if rfd else None
    try:
        perceptual = load_perceptual() if lpips else None
    except MissingModelError as error:
        raise MissingModelError(
            "LPIPS needs a network that is not installed",
            hint="pip install stlpips-pytorch==0.0.2 (64 MB, BSD-2), or measure without: "
            "--no-lpips",
        ) from error
    evaluation = evaluate_autoencoder(
        start_autoencoder(model).eval().to(device),
        pictures,
        model=model,
        data=str(data),
        out=out,
        perceptual=perceptual,
        features=network,
        cache=cache,
        report=progress,
    )
    tell(evaluation, out)
