"""Mix-FFN: a gated feed-forward whose 3x3 depthwise convolution is what tells positions apart."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sanakit.nn.cpu import PointConv
from sanakit.nn.gpu import with_kernel
from sanakit.nn.inference import mix_in_stripes
from sanakit.nn.int8 import mix_rounded, mixes_rounded
from sanakit.nn.recompute import recomputed
from sanakit.nn.ways import infers_on_cpu, is_bare
from sanakit.shapes import Map

PLAIN = (nn.Conv2d, PointConv)


class MixFFN(nn.Module):
    """Widen, look at the neighbours, gate, narrow; without norm and residual.

    ``hidden`` is the width after the gate; the convolutions before it carry twice as much.
    Zero padding is the only position signal of a model without positional encoding.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv_inverted = PointConv(width, 2 * hidden)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = PointConv(hidden, width, bias=False)

    def forward(self, x: Map) -> Map:
        """Transform a map; the second half of the hidden channels gates the first."""
        layers = (self.conv_inverted, self.conv_depth, self.conv_point)
        if infers_on_cpu(x) and all(is_bare(each, x.dtype, PLAIN) for each in layers):
            return mix_in_stripes(x, *layers)
        if is_bare(self.conv_depth, x.dtype, PLAIN) and mixes_rounded(x, layers[0], layers[2]):
            return mix_rounded(x, *layers)
        # The widest activations of a model, five of them: one is kept, the rest costs no product.
        return recomputed(self.narrow, self.conv_inverted(x))

    def narrow(self, hidden: Float[Tensor, "b wide h w"]) -> Map:
        """What comes after widening."""
        return self.conv_point(depthwise_gate(hidden, self.conv_depth))


@with_kernel
def depthwise_gate(hidden: Float[Tensor, "b wide h w"], convolution: nn.Module) -> Map:
    """Activate, convolve channel by channel, and gate one half of the channels by the other."""
    value, gate = convolution(F.silu(hidden)).chunk(2, dim=1)
    return value * F.silu(gate)
