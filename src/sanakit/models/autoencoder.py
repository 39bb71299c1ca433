"""The deep-compression autoencoder (DC-AE): pictures to a latent grid 32 to 128 times smaller.

Deterministic both ways; raw latents come out, and the caller multiplies by ``scaling_factor``.
Parameter names are the published ones. Source: DC-AE (arXiv 2410.10733); diffusers
src/diffusers/models/autoencoders/autoencoder_dc.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, overload

import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError
from sanakit.models.autoencoder_blocks import EPS, activation, block_steps, make_block, stage_steps
from sanakit.models.config import AutoencoderConfig
from sanakit.models.outputs import DecoderOutput, EncoderOutput
from sanakit.models.tiling import Layer, Step, Tile, Tiling, assemble, blended, tiles
from sanakit.models.tiny_decoder import TinyDecoder
from sanakit.nn.by_rows import by_rows, own
from sanakit.nn.norm import ChannelRMSNorm
from sanakit.nn.resample import Downsample, Upsample, average_channels, repeat_channels
from sanakit.nn.wide_products import each_with_wide_products, with_wide_products
from sanakit.shapes import Image, Latent, Map


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
                make_block(
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

    @with_wide_products
    def forward(self, x: Image) -> Latent:
        """``b 3 H W`` in [-1, 1] to ``b c h w``."""
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x = stage(x)
        return self._finish(x)

    def steps(self) -> list[Step]:
        """The same work as a chain that can run tile by tile."""
        last = Layer(
            run=self._finish,
            channels=self.conv_out.out_channels,
            storage_values=2 * (self.conv_out.in_channels + self.conv_out.out_channels),
        )
        return [*block_steps(self.conv_in), *stage_steps(self.down_blocks), last]

    def _finish(self, x: Map) -> Latent:
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
                make_block(
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
        self.conv_act = activation(config.decoder_conv_act_fn)
        self.conv_out: nn.Module = (
            nn.Conv2d(last, config.in_channels, 3, padding=1)
            if layers[0] > 0
            else Upsample(last, config.in_channels, interpolate=interpolate, shortcut=False)
        )

    @with_wide_products
    def forward(self, z: Latent) -> Image:
        """``b c h w`` to ``b 3 H W``, about [-1, 1] and not clamped."""
        x = self._start(z)
        for stage in reversed(self.up_blocks):
            x = stage(x)
        return self._finish(x)

    def steps(self) -> list[Step]:
        """The same work as a chain that can run tile by tile."""
        first = Layer(run=self._start, channels=self.width, storage_values=4 * self.width)
        (out,) = block_steps(self.conv_out)
        assert isinstance(out, Layer)
        inside = 4 * self.norm_out.weight.numel()
        last = replace(
            out,
            run=self._finish,
            storage_values=max(out.storage_values, inside / out.up**2),
            frugal_values=out.storage_values,
        )
        return [first, *stage_steps(reversed(self.up_blocks)), last]

    def _start(self, z: Latent) -> Map:
        x = self.conv_in(z)
        return x + repeat_channels(z, self.width) if self.in_shortcut else x

    def _finish(self, x: Map) -> Image:
        y = self.norm_out(x)
        return self.conv_out(by_rows(self.conv_act, y, into=own(self.norm_out, y, ChannelRMSNorm)))


def _sides(least: int | None, stride: int | None, *, exact: bool) -> tuple[int, int]:
    """Least side that is cut, and the stride, of what was given of the two."""
    least = 512 if least is None else least
    if stride is None:
        return least, max(1, least * 7 // 8)
    return (max(least, stride) if exact else least), stride


class Autoencoder(nn.Module):
    """A DC-AE: ``encode`` and ``decode`` between pictures and raw latents.

    ``slicing`` and ``tiling`` are what the user prefers; like ``training`` they are set from
    outside and no call changes them.

    Raises:
        ConfigError: on construction for a shape that cannot be built; in ``encode`` for a picture
            whose sides are not multiples of ``config.spatial_factor``.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder: Decoder | TinyDecoder = Decoder(config)
        self.slicing = False
        self.tiling: Tiling | None = None

    @property
    def use_tiling(self) -> bool:
        """Whether tiling is on, under the name that published code asks by."""
        return self.tiling is not None

    @property
    def spatial_compression_ratio(self) -> int:
        """``config.spatial_factor`` by its published name."""
        return self.config.spatial_factor

    @property
    def use_slicing(self) -> bool:
        """Whether slicing is on, likewise."""
        return self.slicing

    def enable_slicing(self) -> None:
        """Encode and decode the pictures of a batch one after the other."""
        self.slicing = True

    def disable_slicing(self) -> None:
        """Undo :meth:`enable_slicing`."""
        self.slicing = False

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_sample_stride_height: int | None = None,
        tile_sample_stride_width: int | None = None,
        *,
        exact: bool = True,
    ) -> None:
        """Cut pictures larger than the minimum into tiles that advance by the stride, in pixels.

        A minimum that is not given is 512, a stride seven eighths of it. Where ``exact``, the
        result is that of no tiling up to rounding, at any tile size; see `Tiling`. An exact tile
        is as large as its stride, which may then pass the minimum.

        Raises:
            ConfigError: for sizes that are none, and, where not exact, for such as leave gaps or
                are no multiples of ``config.spatial_factor``.
        """
        height = _sides(tile_sample_min_height, tile_sample_stride_height, exact=exact)
        width = _sides(tile_sample_min_width, tile_sample_stride_width, exact=exact)
        tiling = Tiling(height[0], width[0], height[1], width[1], exact)
        if not exact:
            tiling.require_multiples(self.config.spatial_factor)
        self.tiling = tiling

    def disable_tiling(self) -> None:
        """Undo :meth:`enable_tiling`."""
        self.tiling = None

    @overload
    def encode(self, x: Image, return_dict: Literal[True] = True) -> EncoderOutput: ...
    @overload
    def encode(self, x: Image, return_dict: bool) -> EncoderOutput | tuple[Latent]: ...
    def encode(self, x: Image, return_dict: bool = True) -> EncoderOutput | tuple[Latent]:
        """Pictures ``b 3 H W`` in [-1, 1] to raw latents ``b c H/f W/f``; no randomness.

        ``return_dict=False`` gives a tuple of one, here and below.
        """
        factor = self.config.spatial_factor
        height, width = x.shape[-2:]
        if height % factor or width % factor:
            raise ConfigError(f"picture of {height} x {width} is not a multiple of {factor} px")
        latent = self._each(self._encode, x)
        return EncoderOutput(latent=latent) if return_dict else (latent,)

    @overload
    def decode(self, z: Latent, return_dict: Literal[True] = True) -> DecoderOutput: ...
    @overload
    def decode(self, z: Latent, return_dict: bool) -> DecoderOutput | tuple[Image]: ...
    def decode(self, z: Latent, return_dict: bool = True) -> DecoderOutput | tuple[Image]:
        """Raw latents (before ``* scaling_factor``) to pictures; values may overshoot [-1, 1]."""
        image = self._each(self._decode, z)
        return DecoderOutput(sample=image) if return_dict else (image,)

    def decode_tiles(self, raw_latent: Latent, tiling: Tiling) -> Iterator[Tile]:
        """Decode exactly, part by part: each pixel comes once, and the whole is never held."""
        self._require_local_norms()
        parts = tiles(self.decoder.steps(), raw_latent, tiling)
        return each_with_wide_products(parts, next(self.parameters()))

    def decode_blended(self, raw_latent: Latent, tiling: Tiling) -> Image:
        """Decode overlapping tiles on their own and blend them, fp32; see `Tiling`."""
        factor = self.config.spatial_factor
        return blended(
            self.decoder,
            raw_latent,
            tile=tiling.minimum(factor),
            stride=tiling.advance(factor),
            scale=lambda positions: positions * factor,
            channels=self.config.in_channels,
        )

    def forward(self, sample: Image, return_dict: bool = True) -> DecoderOutput | tuple[Image]:
        """Reconstruct: decode what was encoded."""
        return self.decode(self.encode(sample).latent, return_dict)

    @with_wide_products
    def _encode(self, image: Image) -> Latent:
        tiling, factor = self.tiling, self.config.spatial_factor
        if tiling is None or not tiling.cuts(*image.shape[-2:]):
            return self.encoder(image)
        self._require_local_norms()
        if tiling.exact:
            return assemble(self.encoder.steps(), image, tiling)
        return blended(
            self.encoder,
            image,
            tile=tiling.minimum(1),
            stride=tiling.advance(1),
            scale=lambda pixels: pixels // factor,
            channels=self.config.latent_channels,
        ).to(image.dtype)

    @with_wide_products
    def _decode(self, raw_latent: Latent) -> Image:
        tiling, factor = self.tiling, self.config.spatial_factor
        if tiling is None or not tiling.cuts(*(side * factor for side in raw_latent.shape[-2:])):
            return self.decoder(raw_latent)
        self._require_local_norms()
        if tiling.exact:
            return assemble(self.decoder.steps(), raw_latent, tiling)
        return self.decode_blended(raw_latent, tiling).to(raw_latent.dtype)

    def _each(self, run: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        if not self.slicing or len(batch) < 2:
            return run(batch)
        return torch.cat([run(one) for one in batch.split(1)])

    def _require_local_norms(self) -> None:
        """Batch statistics of a tile are not those of the picture."""
        if any(isinstance(part, nn.BatchNorm2d) and part.training for part in self.modules()):
            raise ConfigError(
                "batch norm in training mode cannot run tile by tile", hint="call .eval() first"
            )
