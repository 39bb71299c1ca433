"""What a latent looks like before it is decoded: a linear map from its channels to colors."""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch
from PIL import Image as PILImage
from torch import Tensor
from torch.nn import functional as F

from sanakit.pipeline.pixels import Pixels, to_pixels
from sanakit.shapes import Latent

LONGEST = 256
QUALITY = 80
RIDGE = 1e-3


@dataclass(frozen=True)
class LinearPreview:
    """Weights ``c + 1, 3``: the last row is the color of a latent that is zero."""

    weights: Tensor

    @classmethod
    def fit(cls, latents: Latent, pixels: Pixels) -> LinearPreview:
        """Fit by least squares to pictures ``b H W 3`` and their scaled latents ``b c h w``."""
        height, width = latents.shape[-2:]
        values = torch.as_tensor(pixels).permute(0, 3, 1, 2).double() / 127.5 - 1
        colors = F.adaptive_avg_pool2d(values, (height, width)).permute(0, 2, 3, 1).reshape(-1, 3)
        features = latents.detach().cpu().double().permute(0, 2, 3, 1)
        features = F.pad(features, (0, 1), value=1.0).flatten(0, 2)
        gram = features.T @ features
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        return cls(torch.linalg.solve(gram, features.T @ colors).float())

    def jpeg(self, latent: Latent) -> bytes:
        """Give the first picture of a batch as JPEG, a bit blurred."""
        image = latent[0].detach().cpu().float().permute(1, 2, 0)
        colors = image @ self.weights[:-1] + self.weights[-1]
        pixels = to_pixels(colors.permute(2, 0, 1)[None].clamp(-1, 1))[0]
        height, width = pixels.shape[:2]
        scale = LONGEST / max(height, width)
        sides = max(1, round(width * scale)), max(1, round(height * scale))
        small = PILImage.fromarray(pixels).resize(sides, PILImage.Resampling.BICUBIC)
        buffer = io.BytesIO()
        small.save(buffer, "jpeg", quality=QUALITY)
        return buffer.getvalue()
