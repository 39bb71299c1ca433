"""A network of features small enough for every test: random, but the same every time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sanakit.evaluate.features import WIDTH, FeatureNetwork


class TinyMaps(nn.Module):
    """Maps as EfficientNet-Lite0 gives them, of two convolutions on an eighth of the pixels."""

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(12, 3, 3, 3, generator=generator))
        self.last = nn.Parameter(torch.randn(width, 12, 1, 1, generator=generator))

    def extract_features(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.avg_pool2d(x, 4)
        x = torch.nn.functional.conv2d(x, self.first, stride=2).relu()
        return torch.nn.functional.conv2d(x, self.last).relu()


def tiny_features(seed: int = 0, width: int = WIDTH) -> FeatureNetwork:
    """Features that know colours and edges."""
    return FeatureNetwork(TinyMaps(seed, width), fingerprint=f"tiny-{seed}-{width}")
