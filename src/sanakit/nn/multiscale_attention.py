"""ReLU linear attention over the positions of a map at several scales, as DC-AE has it.

What all positions contribute is one small sum, which can be gathered and read part by part.
Source: EfficientViT (Cai et al. 2023), DC-AE (arXiv 2410.10733); diffusers
src/diffusers/models/attention_processor.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sanakit.nn.inference import Linear
from sanakit.nn.int8 import products
from sanakit.nn.linear_attention import Total
from sanakit.nn.resample import to_columns, to_map
from sanakit.shapes import AnyMap, Map

ATTENTION_EPS = 1e-15


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
        self, channels: int, head_dim: int, norm: nn.Module, kernel_sizes: tuple[int, ...]
    ) -> None:
        super().__init__()
        heads = channels // head_dim
        width = heads * head_dim
        self.head_dim = head_dim
        self.kernel_sizes = kernel_sizes
        self.total: Total | None = None
        """Set while processes share the positions of a map: all of them run in the linear form."""
        self.to_q = Linear(channels, width, bias=False)
        self.to_k = Linear(channels, width, bias=False)
        self.to_v = Linear(channels, width, bias=False)
        self.to_qkv_multiscale = nn.ModuleList(
            MultiscaleProjection(width, heads, size) for size in kernel_sizes
        )
        self.to_out = Linear(width * (1 + len(kernel_sizes)), channels, bias=False)
        self.norm_out = norm

    @property
    def reach(self) -> int:
        """Positions around its own that a query, key or value depends on."""
        return max((size // 2 for size in self.kernel_sizes), default=0)

    def sums(self, positions: int) -> bool:
        """Whether so many positions run in the linear form."""
        return positions > self.head_dim

    def project(self, x: Map) -> AnyMap:
        """Queries, keys and values of all scales, interleaved."""
        columns = to_columns(x)
        qkv = to_map(torch.cat(products(columns, (self.to_q, self.to_k, self.to_v)), dim=-1))
        return torch.cat([qkv, *(project(qkv) for project in self.to_qkv_multiscale)], dim=1)

    def summarise(self, qkv: Map) -> Tensor:
        """What the linear form keeps of keys and values: fp32, additive over positions."""
        _, k, v = self._heads(qkv)
        return summarise(k.float().relu(), v.float())

    def read(self, x: Map, qkv: AnyMap, summary: Tensor) -> Map:
        """The block's result where its queries are, from the summary of all positions."""
        q, _, _ = self._heads(qkv)
        return self._residual(x, read(summary, q.float().relu()))

    def forward(self, x: Map) -> Map:
        """Shape and grid stay."""
        qkv = self.project(x)
        if self.total is not None:
            return self.read(x, qkv, self.total(self.summarise(qkv)))
        if self.sums(x.shape[-2] * x.shape[-1]):
            return self.read(x, qkv, self.summarise(qkv))
        q, k, v = self._heads(qkv)
        return self._residual(x, quadratic_form(q.relu(), k.relu(), v))

    def _heads(self, qkv: Map) -> tuple[Tensor, Tensor, Tensor]:
        pattern = "b (heads three dh) h w -> three b heads dh (h w)"
        q, k, v = rearrange(qkv, pattern, three=3, dh=self.head_dim)
        return q, k, v

    def _residual(self, x: Map, attended: Tensor) -> Map:
        y = rearrange(attended, "b heads dh (h w) -> b h w (heads dh)", h=x.shape[-2])
        return x + self.norm_out(to_map(self.to_out(y.to(x.dtype))))


def summarise(k: Tensor, v: Tensor) -> Tensor:
    """Values by keys, ``b heads dh+1 dh``, from ``b heads dh n``; the last row is the mass."""
    return F.pad(v, (0, 0, 0, 1), value=1.0) @ k.transpose(-1, -2)


def read(summary: Tensor, q: Tensor) -> Tensor:
    """What queries ``b heads dh n`` find in a summary, divided by its mass."""
    attended = (summary @ q).float()
    return attended[:, :, :-1] / (attended[:, :, -1:] + ATTENTION_EPS)


def quadratic_form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The n-by-n map, normalised over keys in fp32; equal to reading a summary."""
    scores = (k.transpose(-1, -2) @ q).float()
    scores = scores / (scores.sum(dim=-2, keepdim=True) + ATTENTION_EPS)
    return v @ scores.to(v.dtype)
