"""Mix-FFN: a gated feed-forward whose 3x3 depthwise convolution is what tells positions apart."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from sanakit.shapes import Map


class MixFFN(nn.Module):
    """Widen, look at the neighbours, gate, narrow; without norm and residual.

    ``hidden`` is the width after the gate; the convolutions before it carry twice as much.
    Zero padding is the only position signal of a model without positional encoding.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv_inverted = nn.Conv2d(width, 2 * hidden, 1)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, width, 1, bias=False)

    def forward(self, x: Map) -> Map:
        """Transform a map; the second half of the hidden channels gates the first."""
        value, gate = self.conv_depth(F.silu(self.conv_inverted(x))).chunk(2, dim=1)
        return self.conv_point(value * F.silu(gate))
