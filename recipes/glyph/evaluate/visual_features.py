"""What a judge sees of a picture: feature maps of a frozen classifier, and colours by place.

A classifier hardly sees colour, and its pooled features have no place: so its last maps are kept on
a coarse grid, beside the colours of each cell. Nothing here is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from sanakit.evaluate.features import FeatureNetwork, middle_square
from sanakit.shapes import Image

SIDE = 128
"""Of the pictures that the classifier looks at, px: a third of the time of its own 224."""
GRID = 4
_COLOUR_SIDE = 32
_CELL_LEVELS, _WHOLE_LEVELS = 3, 5
_STAGES = ("_blocks.10", "_blocks.15")
"""The last blocks at strides 16 and 32: 112 and 320 channels."""

Looks = Float[Tensor, "b k"]
"""What is seen of each picture: the part without place first, then cell after cell."""
Backbone = Callable[[Image], list[Tensor]]
"""Pictures in [-1, 1] to feature maps ``b c h w``; of the first only the mean over places counts.
"""


class Sight(nn.Module):
    """Pictures to looks, the same for a picture whatever batch it is in."""

    def __init__(self, backbone: Backbone, *, fingerprint: str) -> None:
        """Take a frozen backbone; ``fingerprint`` says which one it is."""
        super().__init__()
        self.backbone = backbone
        self.fingerprint = f"{fingerprint}-{SIDE}-{GRID}"
        whole, cells = self._parts(torch.zeros(1, 3, SIDE, SIDE))
        self.whole_width, self.cell_width = whole.shape[1], cells.shape[2]

    @torch.no_grad()
    def forward(self, image: Image) -> Looks:
        """See pictures in [-1, 1] of any size; of one that is no square the middle is taken.

        They are resized to 128 x 128, bilinear and with antialiasing. Looks are on the CPU, fp32.
        """
        whole, cells = self._parts(_resized(middle_square(image.float()), SIDE).clamp(-1, 1))
        return torch.cat([whole, cells.flatten(1)], dim=1)

    def _parts(self, image: Image) -> tuple[Tensor, Tensor]:
        top, *maps = self.backbone(image)
        small = (_resized(image, _COLOUR_SIDE) + 1) / 2
        whole = [top.mean(dim=(2, 3)), _shares(small, _WHOLE_LEVELS).mean(dim=(2, 3)), _edge(small)]
        mean = _pooled(small)
        spread = (_pooled(small.square()) - mean.square()).clamp_min(0).sqrt()
        cells = [*map(_pooled, maps), _pooled(_shares(small, _CELL_LEVELS)), mean, spread]
        by_place = [rearrange(part, "b c rows columns -> b (rows columns) c") for part in cells]
        return torch.cat(whole, dim=1), torch.cat(by_place, dim=2)


def sight_of(features: FeatureNetwork) -> Sight:
    """The sight through EfficientNet-Lite0."""
    network = features.network
    device = next(features.parameters()).device

    def maps(image: Image) -> list[Tensor]:
        kept: list[Tensor] = []
        hooks = [
            network.get_submodule(name).register_forward_hook(lambda _, __, out: kept.append(out))
            for name in _STAGES
        ]
        try:
            # The network was trained on (pixel - 127) / 128.
            top = network.extract_features((image.to(device) * 127.5 + 0.5) / 128)
        finally:
            for hook in hooks:
                hook.remove()
        return [one.cpu() for one in (top, *kept)]

    return Sight(maps, fingerprint=features.fingerprint)


def _resized(image: Image, side: int) -> Image:
    if image.shape[-1] == side:
        return image
    return F.interpolate(image, size=(side, side), mode="bilinear", antialias=True)


def _pooled(maps: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(maps, GRID)


def _edge(colours: Tensor) -> Tensor:
    """The median colour along the outermost pixels: the background's, where there is one."""
    sides = [colours[:, :, 0], colours[:, :, -1], colours[:, :, :, 0], colours[:, :, :, -1]]
    return torch.cat(sides, dim=2).median(dim=2).values


def _shares(colours: Tensor, levels: int) -> Tensor:
    """How much each pixel in [0, 1] is of each colour of a lattice, ``b levels^3 h w``.

    Trilinear: what lies between two colours of the lattice is in part both, so that near colours
    look alike.
    """
    steps = torch.linspace(0, 1, levels, device=colours.device)
    near = (1 - (colours.unsqueeze(2) - steps[:, None, None]).abs() * (levels - 1)).clamp_min(0)
    red, green, blue = near.unbind(dim=1)
    found = torch.einsum("brhw,bghw,bjhw->brgjhw", red, green, blue)
    return found.reshape(len(colours), math.prod([levels] * 3), *colours.shape[2:])
