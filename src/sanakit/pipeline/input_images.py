"""Pictures and masks that a caller hands in, of any kind, become tensors of one kind."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor
from torch.nn import functional as F

from sanakit.errors import ConfigError, DataError
from sanakit.images.color import WHITE, UnclearColors, to_rgb
from sanakit.images.files import read_image
from sanakit.pipeline.aspect_ratios import check_proportions
from sanakit.pipeline.pixels import from_pixels
from sanakit.shapes import Image, PixelMask
from sanakit.untrusted import other_readers

Color: TypeAlias = tuple[int, int, int]
BLACK: Color = (0, 0, 0)
One: TypeAlias = PILImage.Image | NDArray[Any] | Tensor | str | Path
Images: TypeAlias = One | Sequence[One]
KINDS = "a PIL picture, an array H W 3, a tensor 3 H W in [0, 1], or a path"


def as_image(given: Images, name: str = "image", *, grey: bool = False) -> Image:
    """Give ``b 3 H W`` fp32 in [-1, 1] of one picture or several of one size.

    Pictures and files are turned upright and laid over white. Arrays are uint8, or in [0, 1];
    tensors in [0, 1], or [-1, 1] where one of their values is negative. With ``grey`` they may have
    one channel.

    Raises:
        ConfigError: it is none of these, or they differ in size. DataError: a file is no picture.
    """
    return _joined([_image(one, name, grey=grey) for one in _several(given, name)], name)


def as_mask(given: Images, size: tuple[int, int], name: str = "mask_image") -> PixelMask:
    """Give masks for pictures of a size: 1 where they are white, from half up.

    What is transparent counts as black. A mask of the same proportions is taken at another size,
    with a warning.

    Raises:
        ConfigError: as `as_image`, or other proportions than the picture's.
    """
    mask = _joined([_mask(one, name) for one in _several(given, name)], name)
    height, width = mask.shape[-2:]
    if (height, width) != size:
        check_proportions(name, (height, width), size)
        warnings.warn(
            f"{name} is {width} x {height} and is taken at the picture's {size[1]} x {size[0]}",
            stacklevel=2,
        )
        mask = F.interpolate(mask, size=size, mode="nearest-exact")
    return mask


def of_pil(picture: PILImage.Image) -> Image:
    """Give ``1 3 H W`` in [-1, 1] of an RGB picture."""
    return from_pixels(np.asarray(picture)[None])


def _grey_of(picture: PILImage.Image) -> PixelMask:
    return of_pil(picture).mean(dim=1, keepdim=True) / 2 + 0.5


def _several(given: Images, name: str) -> list[One]:
    if isinstance(given, PILImage.Image | np.ndarray | Tensor | str | Path):
        return [given]
    if not isinstance(given, Sequence) or not given:
        raise ConfigError(f"{name} is {_described(given)}", hint=KINDS)
    return list(given)


def _joined(images: list[Tensor], name: str) -> Tensor:
    sizes = {tuple(image.shape[-2:]) for image in images}
    if len(sizes) > 1:
        shown = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise ConfigError(f"{name} holds pictures of {shown}", hint="one size in one call")
    return torch.cat(images)


def _image(one: One, name: str, *, grey: bool) -> Image:
    if isinstance(one, str | Path):
        return of_pil(read_image(one))
    if isinstance(one, PILImage.Image):
        return of_pil(_upright(one, name, WHITE))
    channels = 1 if grey and _is_grey(one) else 3
    values = _values(one, name, channels=channels, lowest=-1).expand(-1, 3, -1, -1)
    return values if values.min() < 0 else values * 2 - 1


def _is_grey(one: object) -> bool:
    """Whether an array or a tensor has one channel, or tells of none."""
    if not isinstance(one, np.ndarray | Tensor) or one.ndim < 3:
        return isinstance(one, np.ndarray | Tensor) and one.ndim == 2
    return bool(one.shape[-3 if isinstance(one, Tensor) else -1] == 1)


def _mask(one: One, name: str) -> PixelMask:
    if isinstance(one, str | Path):
        grey = _grey_of(read_image(one, over=BLACK))
    elif isinstance(one, PILImage.Image):
        grey = _grey_of(_upright(one, name, BLACK))
    elif isinstance(one, np.ndarray) and one.ndim > 2 and one.shape[-1] == 3:
        grey = _values(one, name, channels=3).mean(dim=1, keepdim=True)
    else:
        grey = _values(one, name, channels=1)
    return (grey >= 0.5).float()


def _upright(picture: PILImage.Image, name: str, over: Color) -> PILImage.Image:
    with other_readers(name, DataError, hint=None):
        picture.load()
        try:
            return to_rgb(ImageOps.exif_transpose(picture), over=over)
        except UnclearColors as error:
            raise DataError(f"{name}: {error}") from error


def _values(one: object, name: str, *, channels: int, lowest: int = 0) -> Tensor:
    """``b channels H W`` fp32 of an array, channels last, or of a tensor, channels first."""
    if isinstance(one, np.ndarray) and one.dtype.kind in "buif":
        values = torch.from_numpy(np.array(one, order="C"))
        if values.ndim > 2 and values.shape[-1] == channels:
            values = values.movedim(-1, -3)
    elif isinstance(one, Tensor) and not one.is_complex():
        values = one.detach().cpu()
    else:
        raise ConfigError(f"{name} holds {_described(one)}", hint=KINDS)
    if channels == 1 and (values.ndim == 2 or (values.ndim == 3 and len(values) != 1)):
        values = values.unsqueeze(-3)
    whole = values[None] if values.ndim == 3 else values
    if whole.ndim != 4 or whole.shape[1] != channels or not whole.numel():
        raise ConfigError(f"{name} has the shape {tuple(values.shape)}", hint=KINDS)
    whole = whole.float() / (255 if whole.dtype == torch.uint8 else 1)
    low, high = float(whole.min()), float(whole.max())
    if not (high <= 1 and low >= lowest):
        raise ConfigError(
            f"{name} has values from {low:g} to {high:g}", hint="in [0, 1], or uint8 to 255"
        )
    return whole


def _described(value: object) -> str:
    empty = isinstance(value, list | tuple) and not value
    return "empty" if empty else f"of type {type(value).__name__}"
