"""The blocks of DC-AE, and each as steps that can run tile by tile.

Source: DC-AE (arXiv 2410.10733); diffusers src/diffusers/models/autoencoders/autoencoder_dc.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from sanakit.errors import ConfigError
from sanakit.models.tiling import Attend, Layer, Step
from sanakit.nn.by_rows import by_rows, own
from sanakit.nn.fast_convolution import Conv1x1, Conv3x3, convolved
from sanakit.nn.int8 import mix_rounded, mixes_rounded
from sanakit.nn.int8_convolution import convolved_in_stripes, fuses
from sanakit.nn.multiscale_attention import MultiscaleLinearAttention
from sanakit.nn.norm import ChannelRMSNorm
from sanakit.nn.resample import Downsample, Upsample
from sanakit.nn.ways import is_bare, is_unhooked
from sanakit.shapes import Map

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
}
EPS = 1e-5


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """An activation by its published name."""
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


def gated(value: Map, gate: Map) -> Map:
    """What the gate lets through."""
    return value * F.silu(gate)


def plus(x: Map, norm: nn.Module, y: Map, into: Map | None) -> Map:
    """``x + norm(y)``, in the memory of ``into`` where it may be overwritten."""
    if not sees_positions(norm):
        return x + norm(y)
    return by_rows(lambda y, x: x + norm(y), y, x, into=into)


def sees_positions(norm: nn.Module) -> bool:
    """Whether a norm sees no more than single positions, and shows them to nobody."""
    single = type(norm) is ChannelRMSNorm or (
        isinstance(norm, nn.BatchNorm2d) and not norm.training
    )
    return single and is_unhooked(norm)


class ResBlock(nn.Module):
    """Two 3x3 convolutions around an activation, normalised, added to the input."""

    def __init__(self, channels: int, norm: str, act: str) -> None:
        super().__init__()
        self.act = activation(act)
        self.conv1 = Conv3x3(channels, channels)
        self.conv2 = Conv3x3(channels, channels, bias=False)
        self.norm = _norm(norm, channels)

    def forward(self, x: Map) -> Map:
        """Shape and grid stay."""
        y = self.conv1(x)
        if fuses(self.conv2, y) and sees_positions(self.norm):

            def finish(y: Map, out: Map, place: int, rows: slice) -> Map:
                return plus(x[place : place + 1, :, rows], self.norm, y, out)

            ours = own(self.conv1, y) is not None
            return convolved_in_stripes(
                self.conv2, y, before=self.act, after=finish, overwrite=ours
            )
        y = convolved(self.conv2, by_rows(self.act, y, into=own(self.conv1, y)))
        return plus(x, self.norm, y, own(self.conv2, y))


class GatedConv(nn.Module):
    """Mix-FFN on a map: widen, 3x3 depthwise, gate, narrow, normalise, add. No norm before it."""

    def __init__(self, channels: int, expand_ratio: int = 4) -> None:
        super().__init__()
        hidden = expand_ratio * channels
        self.conv_inverted = Conv1x1(channels, 2 * hidden)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = Conv1x1(hidden, channels, bias=False)
        self.norm = ChannelRMSNorm(channels, EPS, bias=True)

    def forward(self, x: Map) -> Map:
        """Shape and grid stay."""
        points = self.conv_inverted, self.conv_point
        if is_bare(self.conv_depth, x.dtype, (nn.Conv2d,)) and mixes_rounded(x, *points):
            y = mix_rounded(x, self.conv_inverted, self.conv_depth, self.conv_point)
            return plus(x, self.norm, y, y)
        y = self.conv_inverted(x)
        y = self.conv_depth(by_rows(F.silu, y, into=own(self.conv_inverted, y)))
        value, gate = y.chunk(2, dim=1)
        y = self.conv_point(by_rows(gated, value, gate, into=own(self.conv_depth, value)))
        return plus(x, self.norm, y, own(self.conv_point, y))


class EfficientViTBlock(nn.Module):
    """Multi-scale linear attention, then a gated convolution; both residual."""

    def __init__(
        self, channels: int, head_dim: int, norm: str, kernel_sizes: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.attn = MultiscaleLinearAttention(
            channels, head_dim, _norm(norm, channels), kernel_sizes
        )
        self.conv_out = GatedConv(channels)

    def forward(self, x: Map) -> Map:
        """Shape and grid stay."""
        return self.conv_out(self.attn(x))


def block_steps(module: nn.Module) -> list[Step]:
    """A block as steps that can run tile by tile, with what each holds in memory at its peak.

    The figures count maps in the code above in units of a channel; 16-bit convolutions and norms
    hold fp32 copies, which benchmarks/decoding.py measures. They are those of the plain ways, which
    GPUs and graphs have. The widest blocks have those of `by_rows` and `fast_convolution` beside
    them: measured, three maps and what a convolution works on.
    """
    if isinstance(module, EfficientViTBlock):
        width = module.attn.to_out.out_features
        scales = 1 + len(module.attn.kernel_sizes)
        attend = Attend(
            module=module.attn,
            channels=width,
            storage_values=(2 + 3 * scales) * width,
            fp32_values=8 * scales * width,
        )
        mix = Layer(run=module.conv_out, channels=width, storage_values=25 * width)
        return [attend, mix]
    if isinstance(module, ResBlock):
        width = module.conv1.out_channels
        return [
            Layer(
                run=module,
                channels=width,
                reach=2,
                storage_values=6 * width,
                frugal_values=3.25 * width,
            )
        ]
    if isinstance(module, Upsample):
        width = module.out_channels
        inside = module.conv.in_channels * (2 if module.interpolate else 1)
        return [
            Layer(
                run=module,
                channels=width,
                up=2,
                storage_values=inside + 3 * width,
                frugal_values=inside / 4 + 2 * width,
            )
        ]
    if isinstance(module, Downsample):
        values = 3 * module.conv.in_channels + module.out_channels / 4
        return [Layer(run=module, channels=module.out_channels, down=2, storage_values=values)]
    assert isinstance(module, nn.Conv2d)
    values = 2 * (module.in_channels + module.out_channels)
    return [Layer(run=module, channels=module.out_channels, storage_values=values)]


def stage_steps(stages: Iterable[nn.Module]) -> list[Step]:
    """All blocks of some stages as one chain."""
    return [step for stage in stages for block in stage.children() for step in block_steps(block)]


def make_block(
    kind: str, channels: int, *, head_dim: int, norm: str, act: str, scales: tuple[int, ...]
) -> nn.Module:
    """A block by the published name of its type."""
    if kind == "ResBlock":
        return ResBlock(channels, norm, act)
    return EfficientViTBlock(channels, head_dim, norm, scales)
