"""Control images out of pictures: edges, soft edges and a scribble; white on black.

No network is in here. HED, whose scribbles the published SANA branches were trained with, and depth
networks have weights of their own: what they gave can be passed as it is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from sanakit.errors import ConfigError, did_you_mean
from sanakit.pipeline.input_images import One, as_image
from sanakit.pipeline.picture_requests import ControlKind
from sanakit.pipeline.pixels import to_pixels
from sanakit.untrusted import shown

KINDS: tuple[str, ...] = get_args(ControlKind)
Picture: TypeAlias = NDArray[np.float64]  # H W 3 in [0, 1]
Map: TypeAlias = NDArray[np.float64]  # H W in [0, 1], 1 on a line

CANNY_SIGMA = 1.4
CANNY_LOW, CANNY_HIGH = 0.1, 0.2
SCALES = (1.0, 2.0, 4.0)
"""Widths in pixels at which soft edges are looked for."""
BRIGHTEST = 99.0
"""Percentile of a picture's edges that becomes white."""
# The scribble of the published branches. Source: NVlabs/Sana tools/controlnet/utils.py.
THIN_SIGMA, THIN_LEAST = 3.0, 127 / 255
SPREAD_SIGMA, SPREAD_LEAST = 3.0, 4 / 255
LINE = 3
"""Pixels that lines are thinned along, and by which a scribble is thicker at last."""


def check_kind(kind: str) -> None:
    """Refuse a kind of control image that is not made here."""
    if kind == "depth":
        raise ConfigError(
            "control kind 'depth': no depth network comes with this package",
            hint="make a depth map with one, near is white, and pass it with kind 'none'",
        )
    if kind not in KINDS:
        raise ConfigError(f"control kind {shown(kind)} is unknown", hint=did_you_mean(kind, KINDS))


def control_image(image: One, kind: ControlKind = "canny") -> PILImage.Image:
    """Give the control image of a picture, RGB and of its size; "none" takes it as one already.

    Raises:
        ConfigError: an unknown kind, several pictures, or scikit-image is not installed.
    """
    check_kind(kind)
    (picture, *others) = to_pixels(as_image(image, grey=True), component="control image")
    if others:
        raise ConfigError(f"{len(others) + 1} pictures", hint="one at a time")
    if kind == "none":
        return PILImage.fromarray(picture)
    lines = MAKERS[kind](picture / 255.0)
    return PILImage.fromarray(np.rint(255 * lines).astype(np.uint8)).convert("RGB")


def canny(picture: Picture) -> Map:
    """Thin edges, 0 or 1, by hysteresis between two gradients. Source: Canny (1986)."""
    feature = _skimage("feature")
    grey = picture @ np.array([0.299, 0.587, 0.114])
    found = feature.canny(
        grey, sigma=CANNY_SIGMA, low_threshold=CANNY_LOW, high_threshold=CANNY_HIGH, mode="nearest"
    )
    return found.astype(np.float64)


def soft_edges(picture: Picture) -> Map:
    """How much of an edge there is at each pixel, over several scales and all colors.

    At each scale gradients are weighed by its width, so that fine and coarse edges count alike, as
    in the side outputs that HED (arXiv 1504.06375) fuses.
    """
    filters = _skimage("filters")
    found = np.zeros(picture.shape[:2])
    for sigma in SCALES:
        smooth = filters.gaussian(picture, sigma, channel_axis=-1, mode="nearest")
        slopes = np.gradient(smooth, axis=(0, 1)) if min(smooth.shape[:2]) > 1 else [0 * smooth] * 2
        found += sigma * np.hypot(*slopes).max(axis=-1)
    top = np.percentile(found, BRIGHTEST)
    return np.clip(found / top, 0, 1) if top > 1e-6 else np.zeros_like(found)


def scribble(picture: Picture) -> Map:
    """Thick lines, 0 or 1, along the strongest edges: thinned, spread, cut off."""
    filters, morphology = _skimage("filters"), _skimage("morphology")
    soft = filters.gaussian(soft_edges(picture), THIN_SIGMA, mode="nearest")
    soft /= soft.max() or 1.0
    across = [np.eye(LINE), np.eye(LINE)[::-1], _bar(axis=0), _bar(axis=1)]
    ridge = np.any([soft >= morphology.dilation(soft, line) for line in across], axis=0)
    thin = np.where(ridge & (soft > THIN_LEAST), 1.0, 0.0)
    spread = filters.gaussian(thin, SPREAD_SIGMA, mode="nearest")
    return (spread > SPREAD_LEAST).astype(np.float64)


MAKERS: Mapping[str, Callable[[Picture], Map]] = {
    "canny": canny,
    "soft-edges": soft_edges,
    "scribble": scribble,
}


def _bar(*, axis: int) -> NDArray[np.float64]:
    shape = [1, 1]
    shape[axis] = LINE
    return np.ones(shape)


def _skimage(module: str) -> Any:
    try:
        return importlib.import_module(f"skimage.{module}")
    except ImportError as error:
        raise ConfigError(
            "control images are made with scikit-image, which is not installed",
            hint="pip install 'sanakit[control]', or pass a ready one with kind 'none'",
        ) from error
