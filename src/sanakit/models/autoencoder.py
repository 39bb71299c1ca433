"""The deep-compression autoencoder (DC-AE): pictures to a latent grid 32 to 128 times smaller.

Deterministic both ways; raw latents come out, and whoever calls multiplies by ``scaling_factor``.
Parameter names are the published ones. Source: DC-AE (Chen et al. 2024); reference 2.4 and 3.13.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sanakit.errors import ConfigError
from sanakit.models.config import AutoencoderConfig
from sanakit.nn.norm import ChannelRMSNorm
from sanakit.nn.resample import (
    Downsample,
    Upsample,
    average_channels,
    repeat_channels,
    to_columns,
    to_map,
)
from sanakit.shapes import Image, Latent, Map

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
}
EPS = 1e-5
ATTENTION_EPS = 1e-15


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"activation {name!r} is unknown", hint=f"known: {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]


def _norm(name: str, channels: int) -> nn.Module:
    if name == "rms_norm":
        return ChannelRMSNorm(channels, EPS, bias=True)
    if name == "batch_norm":
        return nn.BatchNorm2d(channels)
    raise ConfigError(f"norm {name!r} is unknown", hint="known: batch_norm, rms_norm")


class ResBlock(nn.Module):
    """Two 3x3 convolutions around an activation, normalised, added to the input."""

    def __init__(self, channels: int, norm: str, act: str) -> None:
        super().__init__()
        self.act = _activation(act)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = _norm(norm, channels)

    def forward(self, x: Map) -> Map:
        """Shape and grid stay."""
        return x + self.norm(self.conv2(self.act(self.conv1(x))))


class MultiscaleProjection(nn.Module):
    """A coarser view of q, k and v: a wide depthwise convolution, then one mix per chunk."""

    def __init__(self, width: int, heads: int, kernel_size: int) -> None:
        super().__init__()
        channels = 3 * width
        self.proj_in = nn.Conv2d(
            channels,
            channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=channels,
            bias=False,
        )
        self.proj_out = nn.Conv2d(channels, channels, 1, groups=3 * heads, bias=False)

    def forward(self, qkv: Map) -> Map:
        """Shape and grid stay."""
        return self.proj_out(self.proj_in(qkv))


class MultiscaleLinearAttention(nn.Module):
    """ReLU attention over all positions of a map, at one or more scales.

    ``to_q``, ``to_k`` and ``to_v`` are storage chunks of one fused projection: query, key and value
    of a head are neighbouring thirds of each group of ``3 * head_dim`` channels of their
    concatenation. Up to ``head_dim`` positions the n-by-n form is cheaper and is what the published
    models run; above that the linear form runs in fp32.
    """

    def __init__(
        self, channels: int, head_dim: int, norm: str, kernel_sizes: tuple[int, ...]
    ) -> None:
        super().__init__()
        heads = channels // head_dim
        width = heads * head_dim
        self.head_dim = head_dim
        self.to_q = nn.Linear(channels, width, bias=False)
        self.to_k = nn.Linear(channels, width, bias=False)
        self.to_v = nn.Linear(channels, width, bias=False)
        self.to_qkv_multiscale = nn.ModuleList(
            MultiscaleProjection(width, heads, size) for size in kernel_sizes
        )
        self.to_out = nn.Linear(width * (1 + len(kernel_sizes)), channels, bias=False)
        self.norm_out = _norm(norm, channels)

    def forward(self, x: Map) -> Map:
        """Shape and grid stay."""
        height, width = x.shape[-2:]
        columns = to_columns(x)
        qkv = to_map(
            torch.cat([self.to_q(columns), self.to_k(columns), self.to_v(columns)], dim=-1)
        )
        qkv = torch.cat([qkv, *(project(qkv) for project in self.to_qkv_multiscale)], dim=1)
        linear = height * width > self.head_dim
        q, k, v = rearrange(
            qkv.float() if linear else qkv,
            "b (heads three dh) h w -> three b heads dh (h w)",
            three=3,
            dh=self.head_dim,
        )
        attend = linear_form if linear else quadratic_form
        y = rearrange(
            attend(q.relu(), k.relu(), v), "b heads dh (h w) -> b h w (heads dh)", h=height
        )
        return x + self.norm_out(to_map(self.to_out(y.to(x.dtype))))


def linear_form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys first: ``b heads dh n`` in and out, O(n * dh^2); the denominator is one more row."""
    summary = F.pad(v, (0, 0, 0, 1), value=1.0) @ k.transpose(-1, -2)
    attended = (summary @ q).float()
    return attended[:, :, :-1] / (attended[:, :, -1:] + ATTENTION_EPS)


def quadratic_form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The n-by-n map, normalised over keys in fp32; equal to :func:`linear_form`."""
    scores = (k.transpose(-1, -2) @ q).float()
    scores = scores / (scores.sum(dim=-2, keepdim=True) + ATTENTION_EPS)
    return v @ scores.to(v.dtype)


class GatedConv(nn.Module):
    """Mix-FFN on a map: widen, 3x3 depthwise, gate, narrow, normalise, add. No norm before it."""

    def __init__(self, channels: int, expand_ratio: int = 4) -> None:
        super().__init__()
        hidden = expand_ratio * channels
        self.conv_inverted = nn.Conv2d(channels, 2 * hidden, 1)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, channels, 1, bias=False)
        self.norm = ChannelRMSNorm(channels, EPS, bias=True)

    def forward(self, x: Map) -> Map:
        """Shape and grid stay."""
        value, gate = self.conv_depth(F.silu(self.conv_inverted(x))).chunk(2, dim=1)
        return x + self.norm(self.conv_point(value * F.silu(gate)))


class EfficientViTBlock(nn.Module):
    """Multi-scale linear attention, then a gated convolution; both residual."""

    def __init__(
        self, channels: int, head_dim: int, norm: str, kernel_sizes: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.attn = MultiscaleLinearAttention(channels, head_dim, norm, kernel_sizes)
        self.conv_out = GatedConv(channels)

    def forward(self, x: Map) -> Map:
        """Shape and grid stay."""
        return self.conv_out(self.attn(x))


def _block(
    kind: str, channels: int, *, head_dim: int, norm: str, act: str, scales: tuple[int, ...]
) -> nn.Module:
    if kind == "ResBlock":
        return ResBlock(channels, norm, act)
    return EfficientViTBlock(channels, head_dim, norm, scales)


class Encoder(nn.Module):
    """Pictures to raw latents, stage by stage from fine to coarse."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.encoder_block_out_channels
        layers = config.encoder_layers_per_block
        kinds = config.per_stage("encoder_block_types")
        unshuffle = config.downsample_block_type == "pixel_unshuffle"
        self.conv_in: nn.Module = (
            nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
            if layers[0] > 0
            else Downsample(config.in_channels, widths[1], unshuffle=unshuffle, shortcut=False)
        )
        self.down_blocks = nn.ModuleList()
        for stage, (width, count) in enumerate(zip(widths, layers, strict=True)):
            modules = [
                _block(
                    kinds[stage],
                    width,
                    head_dim=config.attention_head_dim,
                    norm="rms_norm",
                    act="silu",
                    scales=config.encoder_qkv_multiscales[stage],
                )
                for _ in range(count)
            ]
            if stage + 1 < len(widths) and count > 0:
                down = Downsample(width, widths[stage + 1], unshuffle=unshuffle, shortcut=True)
                modules.append(down)
            self.down_blocks.append(nn.Sequential(*modules))
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)
        self.out_shortcut = config.encoder_out_shortcut

    def forward(self, x: Image) -> Latent:
        """``b 3 H W`` in [-1, 1] to ``b c h w``."""
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x = stage(x)
        y = self.conv_out(x)
        return y + average_channels(x, y.shape[1]) if self.out_shortcut else y


class Decoder(nn.Module):
    """Raw latents to pictures; ``up_blocks[i]`` is the stage of width i, so it runs backwards."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.decoder_block_out_channels
        layers = config.decoder_layers_per_block
        kinds = config.per_stage("decoder_block_types")
        norms = config.per_stage("decoder_norm_types")
        acts = config.per_stage("decoder_act_fns")
        interpolate = config.upsample_block_type == "interpolate"
        self.width = widths[-1]
        self.in_shortcut = config.decoder_in_shortcut
        self.conv_in = nn.Conv2d(config.latent_channels, self.width, 3, padding=1)
        self.up_blocks = nn.ModuleList()
        for stage, (width, count) in enumerate(zip(widths, layers, strict=True)):
            modules: list[nn.Module] = []
            if stage + 1 < len(widths) and count > 0:
                up = Upsample(widths[stage + 1], width, interpolate=interpolate, shortcut=True)
                modules.append(up)
            modules += [
                _block(
                    kinds[stage],
                    width,
                    head_dim=config.attention_head_dim,
                    norm=norms[stage],
                    act=acts[stage],
                    scales=config.decoder_qkv_multiscales[stage],
                )
                for _ in range(count)
            ]
            self.up_blocks.append(nn.Sequential(*modules))
        last = widths[0] if layers[0] > 0 else widths[1]
        self.norm_out = ChannelRMSNorm(last, EPS, bias=True)
        self.conv_act = _activation(config.decoder_conv_act_fn)
        self.conv_out: nn.Module = (
            nn.Conv2d(last, config.in_channels, 3, padding=1)
            if layers[0] > 0
            else Upsample(last, config.in_channels, interpolate=interpolate, shortcut=False)
        )

    def forward(self, z: Latent) -> Image:
        """``b c h w`` to ``b 3 H W``, about [-1, 1] and not clamped."""
        x = self.conv_in(z)
        if self.in_shortcut:
            x = x + repeat_channels(z, self.width)
        for stage in reversed(self.up_blocks):
            x = stage(x)
        return self.conv_out(self.conv_act(self.norm_out(x)))


class Autoencoder(nn.Module):
    """A DC-AE: ``encode`` and ``decode`` between pictures and raw latents.

    Raises:
        ConfigError: on construction for a shape that cannot be built; in ``encode`` for a picture
            whose sides are not multiples of ``config.spatial_factor``.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, image: Image) -> Latent:
        """Pictures ``b 3 H W`` in [-1, 1] to raw latents ``b c H/f W/f``; no randomness."""
        factor = self.config.spatial_factor
        height, width = image.shape[-2:]
        if height % factor or width % factor:
            raise ConfigError(f"picture of {height} x {width} is not a multiple of {factor} px")
        return self.encoder(image)

    def decode(self, raw_latent: Latent) -> Image:
        """Raw latents (before ``* scaling_factor``) to pictures; values may overshoot [-1, 1]."""
        return self.decoder(raw_latent)

    def forward(self, image: Image) -> Image:
        """Reconstruct: decode what was encoded."""
        return self.decode(self.encode(image))
