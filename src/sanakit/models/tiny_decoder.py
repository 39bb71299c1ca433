"""A decoder of plain convolutions: latents to pictures in a tenth of the time, a little coarser.

Layers stand in one row and are named by their place in it, as in the published files (TAESD and,
for SANA's latents, ``taesana``). Source: madebyollin/taesd taesd.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from sanakit.errors import ConfigError
from sanakit.models.config import DEEP, MOST_STAGES, POSITIVE, WIDE, Fields, Stages
from sanakit.models.tiling import Layer, Step
from sanakit.nn.wide_products import with_wide_products
from sanakit.shapes import Image, Latent, Map
from sanakit.untrusted import check_fields

BOUND = 3.0
"""Latents of unit size hardly leave [-3, 3]: softly cut there, no outlier upsets a layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyDecoderConfig(Fields):
    """The shape of a `TinyDecoder`, stage by stage from fine to coarse; defaults: ``taesana``."""

    latent_channels: int = 32
    out_channels: int = 3
    block_out_channels: Stages = (64, 64, 64, 64, 128, 256)
    layers_per_block: Stages = (1, 3, 3, 3, 3, 3)
    scaling_factor: float | None = None
    """Of the latents that it was made for, where that is known."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "latent_channels": WIDE,
                "out_channels": (1, 4),
                "block_out_channels": WIDE,
                "layers_per_block": DEEP,
                "scaling_factor": POSITIVE,
            },
        )
        stages = len(self.block_out_channels)
        if not 0 < stages <= MOST_STAGES or stages != len(self.layers_per_block):
            raise ConfigError(
                f"block_out_channels has {stages} entries, layers_per_block "
                f"{len(self.layers_per_block)}",
                hint=f"one a stage in both, 1 to {MOST_STAGES}",
            )

    @property
    def spatial_factor(self) -> int:
        """Side of the picture over side of the latent."""
        return int(2 ** (len(self.block_out_channels) - 1))


TINY_DECODERS = {
    # The published one: 8.3 million numbers, a fourteenth of the products of SANA's own decoder.
    "taesana": TinyDecoderConfig(),
    # 0.6 million: a fifth of the time of the embedded model's decoder.
    "tiny": TinyDecoderConfig(
        block_out_channels=(16, 16, 32, 64, 64, 64), layers_per_block=(0, 1, 1, 1, 1, 2)
    ),
}


class Clamp(nn.Module):
    """A soft bound, so that the row's first place is taken as it is in the published files."""

    def forward(self, z: Latent) -> Latent:
        """Values in (-3, 3)."""
        return torch.tanh(z / BOUND) * BOUND


class TinyBlock(nn.Module):
    """Three 3x3 convolutions around ReLUs, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        first, second, third = layers
        self.conv = nn.Sequential(
            first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True), third
        )

    def forward(self, x: Map) -> Map:
        """Shape and grid stay."""
        return F.relu(self.conv(x).add_(x), inplace=True)


class TinyDecoder(nn.Sequential):
    """Raw latents to pictures, in the place of an autoencoder's own decoder."""

    def __init__(self, config: TinyDecoderConfig, *, scaling_factor: float) -> None:
        """Build it for an autoencoder whose latents have that ``scaling_factor``."""
        widths = config.block_out_channels[::-1]
        first = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        layers: list[nn.Module] = [Clamp(), first, nn.ReLU(inplace=True)]
        for stage, (width, count) in enumerate(
            zip(widths, config.layers_per_block[::-1], strict=True)
        ):
            layers += [TinyBlock(width) for _ in range(count)]
            if stage + 1 < len(widths):
                convolution = nn.Conv2d(width, widths[stage + 1], 3, padding=1, bias=False)
                layers += [nn.Upsample(scale_factor=2), convolution]
        super().__init__(*layers, nn.Conv2d(widths[-1], config.out_channels, 3, padding=1))
        self.config = config
        self.scaling_factor = scaling_factor

    @property
    def conv_out(self) -> nn.Module:
        """The last layer, by the name that decoders have for it."""
        return self[-1]

    @with_wide_products
    def forward(self, z: Latent) -> Image:
        """``b c h w`` to ``b 3 H W``, about [-1, 1] and not clamped."""
        x = z * self.scaling_factor
        for layer in self:
            x = layer(x)
        return x * 2 - 1

    def steps(self) -> list[Step]:
        """The same work as a chain that can run tile by tile."""
        return list(self._steps())

    def _steps(self) -> Iterator[Step]:
        clamp, first, relu, *blocks, last = self
        assert isinstance(first, nn.Conv2d)
        assert isinstance(last, nn.Conv2d)
        width = first.out_channels
        yield Layer(
            run=lambda z: relu(first(clamp(z * self.scaling_factor))),
            channels=width,
            storage_values=3 * first.in_channels + 2 * width,
        )
        rest = iter(blocks)
        for layer in rest:
            if isinstance(layer, TinyBlock):
                yield Layer(run=layer, channels=width, reach=3, storage_values=4 * width)
                continue
            convolution = next(rest)
            assert isinstance(convolution, nn.Conv2d)
            inside, width = width, convolution.out_channels
            yield Layer(
                run=nn.Sequential(layer, convolution),
                channels=width,
                up=2,
                storage_values=2 * inside + 2 * width,
            )
        yield Layer(
            run=lambda x: last(x) * 2 - 1,
            channels=last.out_channels,
            storage_values=2 * width + 3 * last.out_channels,
        )
