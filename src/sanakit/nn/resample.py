"""Halve and double a feature map, each with the parameter-free shortcut of residual autoencoding.

Source: DC-AE (arXiv 2410.10733), section 3.2.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import nn

from sanakit.errors import ConfigError
from sanakit.nn.by_rows import by_rows, own
from sanakit.nn.fast_convolution import Conv3x3, DoublingConv3x3
from sanakit.nn.int8_convolution import doubled_in_stripes, fuses
from sanakit.shapes import AnyMap, Map


def average_channels(x: Map, channels: int) -> AnyMap:
    """Reduce to ``channels`` by averaging neighbouring channels; the encoder's shortcut."""
    return reduce(x, "b (channels group) h w -> b channels h w", "mean", channels=channels)


def repeat_channels(x: Map, channels: int) -> AnyMap:
    """Widen to ``channels`` by repeating each channel in place; the decoder's shortcut."""
    repeats = channels // x.shape[1]
    return repeat(x, "b c h w -> b (c repeats) h w", repeats=repeats)


class Downsample(nn.Module):
    """Half the side, ``out_channels`` deep, by a strided convolution or by space to channel."""

    def __init__(
        self, in_channels: int, out_channels: int, *, unshuffle: bool, shortcut: bool
    ) -> None:
        super().__init__()
        if unshuffle and out_channels % 4:
            raise ConfigError(f"width {out_channels} is not a multiple of 4, pixel_unshuffle's")
        if shortcut and (4 * in_channels) % out_channels:
            raise ConfigError(
                f"widths {in_channels} -> {out_channels}: the shortcut needs "
                f"{4 * in_channels} to be a multiple of {out_channels}"
            )
        self.unshuffle = unshuffle
        self.shortcut = shortcut
        self.out_channels = out_channels
        self.conv: nn.Conv2d = (
            Conv3x3(in_channels, out_channels // 4)
            if unshuffle
            else nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)
        )

    def forward(self, x: Map) -> AnyMap:
        """``b d h w`` to ``b out h/2 w/2``; both sides must be even."""
        y = self.conv(x)
        if self.unshuffle:
            y = F.pixel_unshuffle(y, 2)
        if not self.shortcut:
            return y
        return by_rows(self._with_shortcut, y, x, into=own(self.conv, y))

    def _with_shortcut(self, y: AnyMap, x: AnyMap) -> AnyMap:
        return y + average_channels(F.pixel_unshuffle(x, 2), self.out_channels)


class Upsample(nn.Module):
    """Double the side, by a convolution on nearest neighbours or by channel to space."""

    def __init__(
        self, in_channels: int, out_channels: int, *, interpolate: bool, shortcut: bool
    ) -> None:
        super().__init__()
        if shortcut and (4 * out_channels) % in_channels:
            raise ConfigError(
                f"widths {in_channels} -> {out_channels}: the shortcut needs "
                f"{4 * out_channels} to be a multiple of {in_channels}"
            )
        self.interpolate = interpolate
        self.shortcut = shortcut
        self.out_channels = out_channels
        self.conv: nn.Conv2d = (
            DoublingConv3x3(in_channels, out_channels)
            if interpolate
            else Conv3x3(in_channels, 4 * out_channels)
        )

    def forward(self, x: Map) -> AnyMap:
        """``b d h w`` to ``b out 2h 2w``."""
        if self.shortcut and self.interpolate and fuses(self.conv, x):
            return doubled_in_stripes(self.conv, x, shortcut=True)
        y = self.conv(x)
        if not self.interpolate:
            y = F.pixel_shuffle(y, 2)
        if not self.shortcut:
            return y
        return by_rows(self._with_shortcut, y, x, into=own(self.conv, y))

    def _with_shortcut(self, y: AnyMap, x: AnyMap) -> AnyMap:
        return y + F.pixel_shuffle(repeat_channels(x, 4 * self.out_channels), 2)


def to_columns(x: Map) -> AnyMap:
    """Move channels last, so that linear layers and norms act on them."""
    return rearrange(x, "b d h w -> b h w d")


def to_map(x: Map) -> AnyMap:
    """Undo :func:`to_columns`."""
    return rearrange(x, "b h w d -> b d h w")
