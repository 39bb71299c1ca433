"""Products with int8 weights, one scale for each output; activations rounded as they come (W8A8).

Each token has the scale of its largest value, so nothing is calibrated. Sums are exact integers;
scales, biases and all that is no product stay real numbers. Source: SANA (arXiv 2410.10629), table
5; scales are those of LLM.int8() (arXiv 2208.07339, section 2.1), without its columns in 16 bits.
"""

from __future__ import annotations

import platform
from collections.abc import MutableMapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sanakit.errors import ConfigError, WeightsError
from sanakit.nn.cpu import PointConv
from sanakit.shapes import Map

LEVELS = 127
FEWER_LEVELS = 63
SCALE = "weight_scale"
TEXT_SIDE = ("attn2.to_k", "attn2.to_v")
"""Layers that run once a picture and not once a step: rounding them would gain nothing."""
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


def round_tokens(rows: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Round fp32 ``n inputs`` to ``-levels..levels``: int8, and the step of each row, ``n 1``.

    A row of zeros stays one, what is not finite has a step that is not finite either.
    """
    largest = torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_())
    step = largest.div_(levels).clamp_(min=SMALLEST)
    return rows.mul(step.reciprocal()).round_().to(torch.int8), step


class Int8Layer(nn.Module):
    """What a linear layer or a 1x1 convolution gains: int8 in ``weight``, its scales beside it."""

    weight: Any  # as linear layers and convolutions declare it, each in its way
    bias: Any
    weight_scale: Tensor
    rounds_tokens: bool
    row_sums: Tensor | None = None

    def product(self, x: Tensor) -> Tensor:
        """``x`` times the weight over the last axis, in the dtype of ``x``.

        Tokens are rounded where that is faster and no gradient is asked for, else the weight is
        made real for this product.
        """
        learns = torch.is_grad_enabled() and x.requires_grad
        rounds = self.rounds_tokens and x.device.type == "cpu" and not learns
        if rounds and (levels := activation_levels()):
            return self.rounded_product(x, levels)
        weight = self.weight.flatten(1) * self.weight_scale
        return F.linear(x, weight.to(x.dtype), self.bias)

    @torch.no_grad()
    def rounded_product(self, x: Tensor, levels: int) -> Tensor:
        """The product with tokens rounded, through exact sums."""
        tokens, step = round_tokens(x.reshape(-1, x.shape[-1]).float(), levels)
        sums = self.sums(tokens, unsigned=levels == FEWER_LEVELS)
        y = sums.view(torch.float32)
        y.copy_(sums)  # in place: a page that is touched for the first time costs more than a sum
        y.mul_(self.weight_scale.view(-1))
        if self.bias is None:
            y.mul_(step)
        else:
            torch.addcmul(self.bias.to(y.dtype), y, step, out=y)
        return y.view(*x.shape[:-1], -1).to(x.dtype)

    def sums(self, tokens: Tensor, *, unsigned: bool) -> Tensor:
        """Exact int32 ``n outputs`` of int8 tokens; ``unsigned`` where those are of 7 bits."""
        weight = self.weight.flatten(1).t()
        if not unsigned:
            return torch._int_mm(tokens, weight)
        middle = FEWER_LEVELS + 1
        if self.row_sums is None:
            self.row_sums = weight.sum(0, dtype=torch.int32).mul_(middle)
        return torch._int_mm(tokens.add_(middle).view(torch.uint8), weight).sub_(self.row_sums)


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


def int8_layer(
    layer: nn.Linear | PointConv, weight: Tensor, scale: Tensor, *, rounds_tokens: bool
) -> Int8Layer:
    """Make the layer that takes the place of a real one; the bias is shared."""
    biased = layer.bias is not None
    made: Int8Layer
    with torch.device("meta"):
        if isinstance(layer, PointConv):
            made = Int8PointConv(layer.in_channels, layer.out_channels, bias=biased)
        else:
            made = Int8Linear(layer.in_features, layer.out_features, bias=biased)
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.register_buffer(SCALE, scale)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    made.rounds_tokens = rounds_tokens
    return made.eval()


def restored(
    layer: nn.Linear | PointConv,
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
        layer, weight.to(device), scale.float().to(device), rounds_tokens=rounds_tokens
    )
    if bias is not None:
        made.bias = nn.Parameter(bias.to(device=device, dtype=dtype), requires_grad=False)
    return made
