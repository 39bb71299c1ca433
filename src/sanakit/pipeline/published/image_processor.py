"""``pipe.image_processor``: what a decoder gave becomes pictures, for loops of a caller's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image as PILImage
from torch import Tensor
from torch.nn import functional as F

from sanakit.errors import ConfigError
from sanakit.pipeline.input_images import Images as GivenImages
from sanakit.pipeline.input_images import as_image
from sanakit.pipeline.pixels import cut_to, to_pil, to_pixels
from sanakit.pipeline.request import OUTPUT_TYPES
from sanakit.shapes import Image

Images = list[PILImage] | npt.NDArray[np.float32] | Tensor


def as_output(image: Image, output_type: str) -> Images:
    """Pictures in [-1, 1] as ``b 3 H W`` or, for "np", ``b H W 3`` in [0, 1]."""
    unit = (image.float() / 2 + 0.5).clamp(0, 1).cpu()
    return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True, kw_only=True)
class PixArtImageProcessor:
    """The methods that published code calls, over the package's one rounding rule."""

    vae_scale_factor: int = 32

    @property
    def config(self) -> Mapping[str, Any]:
        """Its one setting."""
        return {"vae_scale_factor": self.vae_scale_factor}

    def postprocess(
        self, image: Image, output_type: str = "pil", do_denormalize: Sequence[bool] | None = None
    ) -> Images:
        """Give pictures of ``b 3 H W`` in [-1, 1], or [0, 1] in rows not to denormalize."""
        if output_type not in OUTPUT_TYPES:
            raise ConfigError(
                f"output_type={output_type!r}", hint=f"one of {', '.join(OUTPUT_TYPES)}"
            )
        if output_type == "latent":
            return image
        if do_denormalize is not None and not all(do_denormalize):
            rows = zip(image, do_denormalize, strict=True)
            image = torch.stack([row if signed else row * 2 - 1 for row, signed in rows])
        return to_pil(to_pixels(image)) if output_type == "pil" else as_output(image, output_type)

    def preprocess(
        self, image: GivenImages, height: int | None = None, width: int | None = None
    ) -> Image:
        """Give ``b 3 H W`` in [-1, 1] of what `as_image` takes, bilinearly at a size if asked."""
        values = as_image(image)
        size = (height or values.shape[2], width or values.shape[3])
        if size == tuple(values.shape[2:]):
            return values
        return F.interpolate(values, size=size, mode="bilinear", antialias=True)

    @staticmethod
    def classify_height_width_bin(
        height: int, width: int, ratios: Mapping[str, Sequence[float]]
    ) -> tuple[int, int]:
        """Give the height and width of the ratio that is nearest."""
        asked = height / width
        key = min(ratios, key=lambda ratio: abs(float(ratio) - asked))
        return int(ratios[key][0]), int(ratios[key][1])

    @staticmethod
    def resize_and_crop_tensor(samples: Image, new_width: int, new_height: int) -> Image:
        """Scale pictures to cover a size, and cut its centre out."""
        return cut_to(samples, new_height, new_width)

    @staticmethod
    def numpy_to_pil(images: npt.NDArray[np.float32]) -> list[PILImage]:
        """Give pictures of ``b H W 3`` in [0, 1]."""
        batch = images if images.ndim == 4 else images[None]
        return to_pil(np.rint(np.clip(batch, 0, 1) * 255).astype(np.uint8))

    @staticmethod
    def pt_to_numpy(images: Image) -> npt.NDArray[np.float32]:
        """Give ``b H W 3`` of ``b 3 H W``."""
        array: npt.NDArray[np.float32] = images.detach().cpu().permute(0, 2, 3, 1).float().numpy()
        return array

    @staticmethod
    def numpy_to_pt(images: npt.NDArray[np.float32]) -> Image:
        """Give ``b 3 H W`` of ``b H W 3``."""
        return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    @staticmethod
    def denormalize(images: Tensor) -> Tensor:
        """Bring [-1, 1] to [0, 1]."""
        return (images * 0.5 + 0.5).clamp(0, 1)

    @staticmethod
    def normalize(images: Tensor) -> Tensor:
        """Bring [0, 1] to [-1, 1]."""
        return 2.0 * images - 1.0
