"""What enters a transformer besides attention: patches and their positions, times, captions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from sanakit.nn.inference import Linear
from sanakit.shapes import Grid, Latent, PerSample, Text, Tokens

FREQUENCIES = 256
PERIOD = 10_000.0


def sinusoid(scalar: PerSample, width: int = FREQUENCIES) -> Float[Tensor, "b width"]:
    """Write one number a sample as cosines, then sines, of falling frequency; always fp32.

    Source: NVlabs/Sana diffusion/model/nets/sana_blocks.py, ``TimestepEmbedder``.
    """
    half = torch.arange(width // 2, dtype=torch.float32, device=scalar.device)
    frequencies = torch.exp(-math.log(PERIOD) / (width // 2) * half)
    angles = scalar.float().unsqueeze(1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def sincos_axis(length: int, width: int, span: float) -> Float[Tensor, "length width"]:
    """Encode ``length`` positions spread evenly over [0, span): sines, then cosines; fp32."""
    # The published tables place positions in fp32 and only then widen to fp64.
    positions = (torch.arange(length, dtype=torch.float32) / (length / span)).double()
    rank = torch.arange(width // 2, dtype=torch.float64)
    angles = torch.outer(positions, PERIOD ** (-rank / (width // 2)))
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def sincos_positions(
    width: int, grid: Grid, span: float, *, device: torch.device
) -> Float[Tensor, "n d"]:
    """Encode every cell of ``grid`` in row-major order; both axes run over [0, span), fp32.

    The first half of the channels tells the column, the second the row, so a grid of any size and
    aspect covers the same field of view. Source: diffusers src/diffusers/models/embeddings.py.
    """
    height, columns = grid
    rows = sincos_axis(height, width // 2, span).to(device)
    cols = sincos_axis(columns, width // 2, span).to(device)
    return torch.cat(
        [repeat(cols, "w d -> (h w) d", h=height), repeat(rows, "h d -> (h w) d", w=columns)], dim=1
    )


class PatchEmbed(nn.Module):
    """Cut a latent into patches of ``patch`` squared and carry each to one token.

    ``span`` is the coordinate range of the positional encoding; None leaves positions out (NoPE).
    """

    def __init__(self, channels: int, width: int, patch: int, *, span: float | None = None) -> None:
        super().__init__()
        self.span = span
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Latent, *, placed: bool = True) -> Tokens:
        """Give tokens in row-major order; what does not fill a patch is not looked at.

        Without ``placed`` they are not told their positions.
        """
        patches = self.proj(x)
        # Laid out as tokens from here on: every sum of a block keeps the layout of its first term.
        tokens = rearrange(patches, "b d h w -> b (h w) d").contiguous()
        if self.span is None or not placed:
            return tokens
        grid = (patches.shape[2], patches.shape[3])
        table = sincos_positions(tokens.shape[2], grid, self.span, device=tokens.device)
        return (tokens + table).to(tokens.dtype)


class ScalarEmbed(nn.Module):
    """Carry one number a sample to the model width: sinusoid, linear, SiLU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(FREQUENCIES, width)
        self.linear_2 = Linear(width, width)

    def forward(self, scalar: PerSample, dtype: torch.dtype) -> Float[Tensor, "b d"]:
        """Embed ``scalar``; the sinusoid is fp32, the rest is ``dtype``."""
        return self.linear_2(F.silu(self.linear_1(sinusoid(scalar).to(dtype))))


class TimeEmbed(nn.Module):
    """Turn a timestep into one embedding and the six modulation rows that all blocks share.

    The embedder sits one level deeper than in `GuidedTimeEmbed`: published names say so.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = nn.ModuleDict({"timestep_embedder": ScalarEmbed(width)})
        self.linear = Linear(width, 6 * width)

    def forward(
        self, timestep: PerSample, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "b six_d"], Float[Tensor, "b d"]]:
        """Return the modulation rows, then the embedding they are made from."""
        embedded = self.emb["timestep_embedder"](timestep, dtype)
        return self.linear(F.silu(embedded)), embedded


class GuidedTimeEmbed(nn.Module):
    """`TimeEmbed` that also knows the guidance scale, for models distilled from guided ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = ScalarEmbed(width)
        self.guidance_embedder = ScalarEmbed(width)
        self.linear = Linear(width, 6 * width)

    def forward(
        self, timestep: PerSample, guidance: PerSample, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "b six_d"], Float[Tensor, "b d"]]:
        """Return the modulation rows, then the sum of both embeddings."""
        embedded = self.timestep_embedder(timestep, dtype) + self.guidance_embedder(guidance, dtype)
        return self.linear(F.silu(embedded)), embedded


class TextProjection(nn.Module):
    """Carry text states to the model width: linear, tanh-GELU, linear."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(text_width, width)
        self.linear_2 = Linear(width, width)

    def forward(self, text: Text) -> Float[Tensor, "b l width"]:
        """Project each token by itself."""
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))
