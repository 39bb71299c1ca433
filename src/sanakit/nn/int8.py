"""Products with int8 weights, one scale for each output; activations rounded as they come (W8A8).

Each token has the scale of its largest value, so nothing is calibrated. Sums are exact integers;
scales, biases and all that is no product stay real numbers. Source: SANA (arXiv 2410.10629), table
5; scales are those of LLM.int8() (arXiv 2208.07339, section 2.1), without its columns in 16 bits.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, MutableMapping, Sequence
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sanakit.errors import ConfigError, WeightsError
from sanakit.nn.cpu import PointConv
from sanakit.nn.processor import has_units
from sanakit.nn.ways import infers_on_cpu, untouched
from sanakit.shapes import Map

LEVELS = 127
FEWER_LEVELS = 63
SCALE = "weight_scale"
TEXT_SIDE = ("attn2.to_k", "attn2.to_v")
"""Layers that run once a picture and not once a step: rounding them would gain nothing."""
WIDE = 1 << 20
"""Values of a widened map that are worked on at a time, so that they stay in the cache."""
SMALLEST = torch.finfo(torch.float32).tiny


@cache
def activation_levels() -> int:
    """To how many levels, each way, this processor can round activations; 0: it does not pay.

    Units of AVX-512 VNNI and later take 8 bits times 8 bits. Before them x86 adds two products in
    16 bits, which hold 255 * 127 once and not twice: there activations are of 7 bits, without sign.
    """
    if (
        platform.machine().lower() not in ("x86_64", "amd64")
        or not torch.backends.mkldnn.is_available()
    ):
        return 0
    worst = torch.full((32, 64), LEVELS, dtype=torch.int8)
    # Asked of the library itself, which may be told to leave units unused.
    exact = bool((torch._int_mm(worst, worst.t()) == 64 * LEVELS**2).all())
    return LEVELS if exact else FEWER_LEVELS


def round_weight(weight: Tensor, *, name: str) -> tuple[Tensor, Tensor]:
    """Give int8 of the weight's shape, and fp32 scales ``outputs 1``; zeros have scale zero.

    Raises:
        ConfigError: for a value that is not finite.
    """
    rows = weight.detach().flatten(1).float()
    scale = rows.abs().amax(dim=1, keepdim=True) / LEVELS
    if not scale.isfinite().all():
        raise ConfigError(f"{name}: holds values that are not finite", hint="use a whole model")
    levels = (rows / scale.clamp(min=SMALLEST)).round_().clamp_(-LEVELS, LEVELS)
    return levels.to(torch.int8).view(weight.shape), scale


def round_tokens(rows: Tensor, levels: int, *, own: bool = False) -> tuple[Tensor, Tensor]:
    """Round fp32 ``n inputs`` to ``-levels..levels``: int8, and the step of each row, ``n 1``.

    The memory of ``own`` rows is overwritten.
    A row of zeros stays one, what is not finite has a step that is not finite either.
    """
    largest = torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_())
    step = largest.div_(levels).clamp_(min=SMALLEST)
    scaled = torch.mul(rows, step.reciprocal(), out=rows if own else None)
    return scaled.round_().to(torch.int8), step


def summed(tokens: Tensor, weight: Tensor, *, unsigned: bool) -> Tensor:
    """Exact int32 ``n outputs`` of int8 tokens; ``unsigned`` where those are of 7 bits."""
    if not unsigned:
        return torch._int_mm(tokens, weight.t())
    middle = FEWER_LEVELS + 1
    # One row more is the middle alone: its sums are what the middle adds to all others.
    shifted = tokens.new_full((len(tokens) + 1, tokens.shape[1]), middle)
    shifted[:-1] += tokens
    sums = torch._int_mm(shifted.view(torch.uint8), weight.t())
    return sums[:-1].sub_(sums[-1])


class Int8Layer(nn.Module):
    """What a linear layer or a 1x1 convolution gains: int8 in ``weight``, its scales beside it."""

    weight: Any  # as linear layers and convolutions declare it, each in its way
    bias: Any
    weight_scale: Tensor
    rounds_tokens: bool

    def levels(self, x: Tensor) -> int:
        """To how many levels tokens are rounded; 0 where the weight is made real instead.

        They are where that is faster and no gradient is asked for.
        """
        learns = torch.is_grad_enabled() and x.requires_grad
        rounds = self.rounds_tokens and x.device.type == "cpu" and not learns
        return activation_levels() if rounds else 0

    def product(self, x: Tensor) -> Tensor:
        """``x`` times the weight over the last axis, in the dtype of ``x``."""
        if levels := self.levels(x):
            return self.rounded_product(x, levels)
        return F.linear(x, self.real_weight(x.dtype).flatten(1), self.bias)

    def real_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight that the layer has, in its own shape."""
        real = self.weight.flatten(1) * self.weight_scale
        return real.view(self.weight.shape).to(dtype)

    def rounded_product(self, x: Tensor, levels: int) -> Tensor:
        """The product with tokens rounded, through exact sums."""
        tokens, step = round_tokens(x.reshape(-1, x.shape[-1]).float(), levels)
        return self.of_tokens(tokens, step, levels).view(*x.shape[:-1], -1).to(x.dtype)

    @torch.no_grad()
    def of_tokens(
        self, tokens: Tensor, step: Tensor, levels: int, outputs: slice = slice(None)
    ) -> Tensor:
        """Some outputs of the product of rounded tokens, fp32 ``n outputs``."""
        weight = self.weight.flatten(1)[outputs]
        sums = summed(tokens, weight, unsigned=levels == FEWER_LEVELS)
        y = sums.view(torch.float32)
        y.copy_(sums)  # in place: a page that is touched for the first time costs more than a sum
        y.mul_(self.weight_scale[outputs].view(-1))
        if self.bias is None:
            return y.mul_(step)
        return torch.addcmul(self.bias[outputs].to(y.dtype), y, step, out=y)


class Int8Linear(Int8Layer, nn.Linear):
    """A linear layer of int8 weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Project the last axis."""
        return self.product(x)


class Int8PointConv(Int8Layer, PointConv):
    """A 1x1 convolution of int8 weights."""

    def forward(self, x: Map) -> Float[Tensor, "b outputs h w"]:
        """Mix the channels of each position."""
        return self.product(x.movedim(1, -1)).movedim(-1, 1)


def products(x: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
    """What several layers make of the same tokens, which layers of int8 round once for all."""
    levels = {_levels_of(layer, Int8Linear, x) for layer in layers}
    if 0 in levels:
        return [layer(x) for layer in layers]
    level = levels.pop()
    tokens, step = round_tokens(x.reshape(-1, x.shape[-1]).float(), level)
    made = (cast(Int8Linear, layer).of_tokens(tokens, step, level) for layer in layers)
    return [y.view(*x.shape[:-1], -1).to(x.dtype) for y in made]


def _levels_of(layer: nn.Module, kind: type[Int8Layer], x: Tensor) -> int:
    """The levels of a layer that is of that kind and nothing else; else 0."""
    return cast(Int8Layer, layer).levels(x) if untouched(layer, kind) else 0


def mixes_rounded(x: Map, widen: nn.Module, narrow: nn.Module) -> bool:
    """Whether `mix_rounded` may take the place of these layers of a Mix-FFN and one between."""
    points = (_levels_of(layer, Int8PointConv, x) for layer in (widen, narrow))
    return infers_on_cpu(x) and all(points)


def mix_rounded(x: Map, widen: nn.Module, depth: nn.Conv2d, narrow: nn.Module) -> Map:
    """The Mix-FFN of a map by int8 layers, some of its channels at a time.

    What is between the products is in bf16 where the processor has units for it: the tokens are
    rounded to half as many bits after it.
    """
    assert isinstance(widen, Int8PointConv)
    assert isinstance(narrow, Int8PointConv)
    tokens = x.movedim(1, -1)
    place, half = tokens.shape[:-1], narrow.in_channels
    levels = widen.levels(x)
    rounded, step = round_tokens(tokens.flatten(0, -2).float(), levels)
    between = torch.bfloat16 if has_units(torch.bfloat16) else torch.float32
    gated = torch.empty(len(rounded), half)

    def seen(channels: slice) -> Tensor:
        wide = F.silu(widen.of_tokens(rounded, step, levels, channels), inplace=True)
        weight, bias = depth.weight[channels].to(between), depth.bias
        bias = None if bias is None else bias[channels].to(between)
        wide = wide.to(between).view(*place, -1).movedim(-1, 1)
        return F.conv2d(wide, weight, bias, padding=1, groups=len(weight)).movedim(1, -1)

    parts = max(1, len(rounded) * half // WIDE)
    part = -(-half // parts)
    for first in range(0, half, part):
        last = min(first + part, half)
        value, gate = seen(slice(first, last)), seen(slice(half + first, half + last))
        gated[:, first:last] = value.mul_(F.silu(gate, inplace=True)).flatten(0, -2)
    y = narrow.of_tokens(*round_tokens(gated, levels, own=True), levels)
    return y.view(*place, -1).movedim(-1, 1).to(x.dtype)


def int8_layer(
    layer: nn.Linear | nn.Conv2d,
    kind: Callable[..., Int8Layer],
    weight: Tensor,
    scale: Tensor,
    *,
    rounds_tokens: bool,
) -> Int8Layer:
    """Make the layer of that kind that takes the place of a real one; the bias is shared."""
    linear = isinstance(layer, nn.Linear)
    inputs = layer.in_features if linear else layer.in_channels
    outputs = layer.out_features if linear else layer.out_channels
    with torch.device("meta"):
        made = kind(inputs, outputs, bias=layer.bias is not None)
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.register_buffer(SCALE, scale)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    made.rounds_tokens = rounds_tokens
    return made.eval()


def restored(
    layer: nn.Linear | nn.Conv2d,
    kind: Callable[..., Int8Layer],
    name: str,
    state: MutableMapping[str, Tensor],
    *,
    rounds_tokens: bool,
    dtype: torch.dtype,
    device: str | torch.device,
    source: str,
) -> Int8Layer:
    """Build the layer from its stored tensors, which are taken out of ``state``.

    Raises:
        WeightsError: tensors that are missing, too many or of another shape, and scales that are
            no scales.
    """
    own = {key: state.pop(key) for key in list(state) if key.startswith(f"{name}.")}
    weight, scale = own.pop(f"{name}.weight"), own.pop(f"{name}.{SCALE}", torch.empty(0))
    bias = own.pop(f"{name}.bias", None)
    shape = tuple(layer.weight.shape)
    fits = weight.dtype == torch.int8 and tuple(weight.shape) == shape and not own
    fits = fits and scale.is_floating_point() and tuple(scale.shape) == (shape[0], 1)
    if not fits or (None if layer.bias is None else layer.bias.shape) != (
        None if bias is None else bias.shape
    ):
        raise WeightsError(
            f"{source}: the tensors of {name} are not those of an int8 layer of {shape}",
            hint="config.json must be the one these weights were made with",
        )
    if not (scale.isfinite() & (scale >= 0)).all():
        raise WeightsError(
            f"{source}: {name}.{SCALE} holds values that are no scales",
            hint="download or write it again",
        )
    made = int8_layer(
        layer, kind, weight.to(device), scale.float().to(device), rounds_tokens=rounds_tokens
    )
    if bias is not None:
        made.bias = nn.Parameter(bias.to(device=device, dtype=dtype), requires_grad=False)
    return made
