"""How well a picture is restored: PSNR, and SSIM as it was published."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sanakit.errors import ConfigError
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
