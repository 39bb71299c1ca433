"""The family "autoencoder": how much of a picture is left after encoding and decoding it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sanakit.charts import Mark, histograms, save, sheet
from sanakit.errors import ConfigError
from sanakit.evaluate.features import BATCH, NAME, FeatureNetwork, features_of
from sanakit.evaluate.figures import Evaluation, Figure, mean_figure
from sanakit.evaluate.frechet import paired_distance
from sanakit.evaluate.pictures import Pictures
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.perceptual import PerceptualNetwork
from sanakit.pipeline.pixels import Pixels, from_pixels, to_pixels
from sanakit.shapes import Image, PerSample

TAPS, SIGMA = 11, 1.5
PEAK = 2.0
"""Of pictures in [-1, 1]."""
_K1, _K2 = 0.01, 0.03


def squared_error(image: Image, reference: Image) -> PerSample:
    """The mean square of each picture's differences; both in [-1, 1]."""
    return (image - reference).square().flatten(1).mean(dim=1)


def psnr_of(error: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Peak signal-to-noise ratio of squared errors, dB; at most 106, where nothing differs."""
    return 10 * np.log10(PEAK**2 / np.maximum(np.asarray(error, dtype=np.float64), 1e-10))


def ssim(image: Image, reference: Image) -> PerSample:
    """Structural similarity of each picture, at most 1; both in [-1, 1].

    Windows of 11 x 11 px with Gaussian weights (sigma 1.5 px) that lie wholly within the picture,
    each colour by itself, then the mean.

    Raises:
        ConfigError: for pictures below 11 px.
    Source: Wang, Bovik, Sheikh and Simoncelli 2004, section III.
    """
    if min(image.shape[-2:]) < TAPS:
        raise ConfigError(
            f"pictures of {image.shape[-2]} x {image.shape[-1]} px: SSIM needs {TAPS} px"
        )
    offsets = torch.arange(TAPS, dtype=torch.float32, device=image.device) - TAPS // 2
    taps = torch.exp(-offsets.square() / (2 * SIGMA**2))
    taps = taps / taps.sum()

    def blurred(x: Tensor) -> Tensor:
        planes = x.reshape(-1, 1, *x.shape[-2:])
        planes = F.conv2d(F.conv2d(planes, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))
        return planes.reshape(*x.shape[:2], *planes.shape[-2:])

    one, other = image.float(), reference.float()
    mean, wanted = blurred(one), blurred(other)
    variance = blurred(one * one) - mean * mean
    spread = blurred(other * other) - wanted * wanted
    together = blurred(one * other) - mean * wanted
    low, contrast = (_K1 * PEAK) ** 2, (_K2 * PEAK) ** 2
    luminance = (2 * mean * wanted + low) / (mean * mean + wanted * wanted + low)
    structure = (2 * together + contrast) / (variance + spread + contrast)
    return (luminance * structure).flatten(1).mean(dim=1)


PLOT, SHEET = "psnr.png", "pictures.png"
SHOWN = 8
_EVERY = 64


@dataclass(frozen=True)
class Restored:
    """Pictures at a side in px as an autoencoder gives them back, some at a time."""

    autoencoder: Autoencoder
    pictures: Pictures
    side: int

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, part: slice) -> Pixels:
        image = from_pixels(self.pictures[part])
        if image.shape[-1] != self.side:
            size = (self.side, self.side)
            image = F.interpolate(image, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
        return to_pixels(restored(self.autoencoder, image))


@torch.no_grad()
def restored(autoencoder: Autoencoder, image: Image) -> Image:
    """Pictures after encoding and decoding, fp32 in [-1, 1]; computed as the weights are."""
    weight = next(autoencoder.parameters())
    image = image.to(weight.device, weight.dtype)
    return autoencoder(image, return_dict=False)[0].float().clamp(-1, 1).cpu()


@torch.no_grad()
def evaluate_autoencoder(
    autoencoder: Autoencoder,
    pictures: Pictures,
    *,
    model: str,
    data: str,
    out: Path,
    perceptual: PerceptualNetwork | None = None,
    features: FeatureNetwork | None = None,
    cache: Path | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> Evaluation:
    """Measure, and write figures, a histogram and a sheet of pictures into ``out``.

    Restored pictures are compared before they are rounded to pixels, and rounded for their
    features. Without ``perceptual`` there is no LPIPS, without ``features`` no rFD.

    Raises:
        ConfigError: pictures of a size that the autoencoder or a measure cannot take.
    """
    device = next(autoencoder.parameters()).device
    if perceptual is not None:
        perceptual.to(device)
    columns: dict[str, list[npt.NDArray[Any]]] = defaultdict(list)
    for first in range(0, len(pictures), BATCH):
        image = from_pixels(pictures[first : first + BATCH])
        again = restored(autoencoder, image)
        columns["error"].append(squared_error(again, image).numpy())
        columns["ssim"].append(ssim(again, image).numpy())
        if perceptual is not None:
            judged = perceptual(again.to(device), image.to(device))
            columns["lpips"].append(judged.cpu().numpy())
        if features is not None:
            columns["features"].append(features(to_pixels(again)).cpu().numpy())
        if first % _EVERY == 0:
            report(f"restored {first + len(image)} of {len(pictures)} pictures")
    found = {name: np.concatenate(parts) for name, parts in columns.items()}
    values = psnr_of(found["error"])
    figures = [
        mean_figure("PSNR, mean over pictures", values, unit="dB", better="higher"),
        mean_figure(
            "PSNR of the pooled error", found["error"], _pooled, unit="dB", better="higher"
        ),
        mean_figure("SSIM", found["ssim"], better="higher"),
    ]
    if perceptual is not None:
        figures.append(mean_figure("LPIPS (ST-LPIPS, VGG16)", found["lpips"], better="lower"))
    if features is not None:
        real = features_of(features, pictures, asked=pictures.asked, cache=cache, report=report)
        figures.append(_distance(found["features"], real))
    evaluation = Evaluation(
        family="autoencoder",
        model=model,
        data=data,
        settings={
            "side of the pictures, px": pictures[0:1].shape[1],
            "PSNR": "peak 2 in [-1, 1], all colours together; pooled: of the mean squared error",
            "SSIM": "11 x 11 px, sigma 1.5, each colour by itself",
            "rFD": f"Fréchet distance on {NAME} between originals and restored, not FID",
        },
        figures=figures,
        details={
            "psnr_db": {
                name: round(float(value), 3)
                for name, value in zip(_distinct(pictures.labels), values, strict=True)
            }
        },
    )
    out.mkdir(parents=True, exist_ok=True)
    evaluation.save(out)
    _draw(autoencoder, pictures, values, model=model, out=out)
    return evaluation


def _pooled(errors: npt.NDArray[Any]) -> float:
    return float(psnr_of(errors.mean()))


def _distance(again: npt.NDArray[Any], real: npt.NDArray[Any]) -> Figure:
    found = paired_distance(again, real).estimate
    return Figure(
        name="rFD-EffNetLite0",
        value=found.value,
        low=found.low,
        high=found.high,
        count=len(real),
        better="lower",
    )


def _draw(
    autoencoder: Autoencoder,
    pictures: Pictures,
    values: npt.NDArray[np.float64],
    *,
    model: str,
    out: Path,
) -> None:
    mean = float(values.mean())
    title = f"{model}: PSNR of {len(values):,} pictures"
    mark = Mark(at=mean, label=f"mean {mean:.2f} dB")
    save(histograms({"pictures": values}, title=title, axis="PSNR, dB", marks=[mark]), out / PLOT)
    order = np.argsort(values, kind="stable")
    start = max(0, (len(order) - SHOWN) // 2)
    rows: list[tuple[str, Pixels]] = []
    labels: dict[int, list[str]] = {}
    for name, chosen in (("worst", order[:SHOWN]), ("middle", order[start : start + SHOWN])):
        originals = np.concatenate([pictures[int(i) : int(i) + 1] for i in chosen])
        again = to_pixels(restored(autoencoder, from_pixels(originals)))
        labels[len(rows) + 1] = [f"{values[i]:.1f} dB {pictures.labels[i]}" for i in chosen]
        rows += [(f"{name} {len(chosen)}: originals", originals), ("restored", again)]
    save(sheet(rows, labels, title=f"{model}: worst and middle by PSNR"), out / SHEET)


def _distinct(names: list[str]) -> list[str]:
    """Names with numbers where two are alike."""
    seen: dict[str, int] = defaultdict(int)
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
