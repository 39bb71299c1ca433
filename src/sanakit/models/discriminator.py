"""Discriminators, of pictures and of a transformer's tokens; training alone needs them.

Sources: PatchGAN of Isola et al. 2017, section 3.2.2; heads on the tokens of a frozen network as
NVlabs/Sana diffusion/model/nets/ladd_blocks.py has them, after StyleGAN-T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sanakit.errors import ConfigError
from sanakit.nn.norm import ChannelRMSNorm
from sanakit.nn.recompute import without_autocast
from sanakit.shapes import Image, Tokens

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


GROUP = 8
"""Samples whose tokens share the statistics of a `LocalBatchNorm`."""
GROUP_EPS = 1e-5
NEIGHBOURS = 9
"""Tokens in a row that a head's second layer sees together, around the end of the last row too."""
ITERATIONS = 8


def spectral_norm(weight: Tensor) -> Tensor:
    """Give the spectral norm of a weight, as a matrix of its outputs; a scalar with gradient.

    By power iteration from a fixed vector, where the reference keeps a vector from step to step and
    iterates once: what a step computes is then a function of its weights and its batch alone, in
    whatever parts and on however many ranks.
    """
    with without_autocast(weight):
        matrix = weight.flatten(1).float()
        with torch.no_grad():
            left = torch.arange(len(matrix), device=weight.device, dtype=torch.float32).cos()
            for _ in range(ITERATIONS):
                right = F.normalize(matrix.mT @ left, dim=0)
                left = F.normalize(matrix @ right, dim=0)
        return left @ matrix @ right


class SpectralConv(nn.Conv1d):
    """A convolution over tokens in a row, divided by its spectral norm; it goes around the end."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, *, bias: bool = True) -> None:
        around = size // 2
        super().__init__(inputs, outputs, size, padding=around, padding_mode="circular", bias=bias)

    def forward(self, x: Float[Tensor, "b inputs n"]) -> Float[Tensor, "b outputs n"]:
        """Mix channels and neighbours."""
        return self._conv_forward(x, self.weight / spectral_norm(self.weight), self.bias)


class LocalBatchNorm(nn.Module):
    """Batch norm over the tokens of up to eight samples at a time; it keeps no statistics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "b width n"]) -> Float[Tensor, "b width n"]:
        """Normalise each channel; groups are of one size, or differ by one sample."""
        parts = x.float().tensor_split(-(-len(x) // GROUP))
        whole = [F.batch_norm(part, None, None, training=True, eps=GROUP_EPS) for part in parts]
        return torch.cat(whole) * self.weight[:, None] + self.bias[:, None]


class TokenHead(nn.Module):
    """One logit for each token, above 0 means real; spectral norms throughout.

    Convolutions before a norm have no bias: the reference has some, and the norm takes them out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.points, self.rows = (
            nn.Sequential(
                SpectralConv(width, width, size, bias=False),
                LocalBatchNorm(width),
                nn.LeakyReLU(SLOPE),
            )
            for size in (1, NEIGHBOURS)
        )
        self.last = SpectralConv(width, 1)

    def forward(self, tokens: Tokens) -> Float[Tensor, "b n"]:
        """Judge tokens."""
        x = self.points(tokens.mT)
        x = (self.rows(x) + x) / math.sqrt(2)
        return self.last(x).squeeze(1)


class FeatureDiscriminator(nn.Module):
    """Judges what a frozen transformer makes of a noisy latent: a head on some of its blocks.

    Raises:
        ConfigError: no block, or one that the transformer does not have.
    """

    def __init__(self, width: int, blocks: Sequence[int], *, of: int) -> None:
        super().__init__()
        if not blocks or not all(0 <= block < of for block in blocks):
            raise ConfigError(
                f"head_blocks={list(blocks)}: the transformer has {of} blocks",
                hint=f"name some, from 0 to {of - 1}",
            )
        self.blocks = tuple(blocks)
        self.heads = nn.ModuleList(TokenHead(width) for _ in blocks)

    def forward(self, *tokens: Tokens) -> Float[Tensor, "b logits"]:
        """Judge what the blocks gave, one after another: all tokens' logits of all heads."""
        pairs = zip(self.heads, tokens, strict=True)
        return torch.cat([head(each) for head, each in pairs], dim=1)


PUBLISHED_HEADS = (2, 8, 14, 19)
"""Of 20 blocks, and of 28."""


def usual_blocks(count: int) -> tuple[int, ...]:
    """The blocks that have heads where none are named: the published ones, or as spread as they."""
    if count > PUBLISHED_HEADS[-1]:
        return PUBLISHED_HEADS
    last = PUBLISHED_HEADS[-1]
    return tuple(sorted({round(block * (count - 1) / last) for block in PUBLISHED_HEADS}))
