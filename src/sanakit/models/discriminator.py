"""A discriminator of pictures and reconstructions, patch by patch; training alone needs it.

Source: PatchGAN of Isola et al. 2017, section 3.2.2.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from sanakit.errors import ConfigError
from sanakit.nn.norm import ChannelRMSNorm
from sanakit.shapes import Image

SLOPE = 0.2
EPS = 1e-6


class PatchDiscriminator(nn.Module):
    """One logit for every patch; with 3 layers each sees 70 x 70 px and nothing else.

    Norms are over the channels of each position: unlike those over batch or map they keep no
    statistics, mix no pictures and widen no patch. ``width`` doubles with each layer, up to 8-fold.

    Raises:
        ConfigError: no width, or no layer.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        for name, value in (("width", width), ("layers", layers)):
            if value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        widths = [width * min(2**layer, 8) for layer in range(layers + 1)]
        self.first = nn.Conv2d(3, width, 4, stride=2, padding=1)
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        for layer, (narrow, wide) in enumerate(pairwise(widths), start=1):
            stride = 2 if layer < layers else 1
            self.convolutions.append(
                nn.Conv2d(narrow, wide, 4, stride=stride, padding=1, bias=False)
            )
            self.norms.append(ChannelRMSNorm(wide, EPS, bias=True))
        self.last = nn.Conv2d(widths[-1], 1, 4, padding=1)

    def forward(self, image: Image) -> Tensor:
        """Pictures ``b 3 H W`` in [-1, 1] to logits ``b 1 h w``; above 0 means real.

        With 3 layers h is H / 8 - 2; H must be at least 24.
        """
        x = F.leaky_relu(self.first(image), SLOPE)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.leaky_relu(norm(convolution(x)), SLOPE)
        return self.last(x)
