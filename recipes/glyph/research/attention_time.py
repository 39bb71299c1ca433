"""Seconds of a block with linear and with softmax attention, over the number of tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import cast

import torch

from recipes.glyph.research.blocks import Attention, transformer_of
from recipes.glyph.research.short_run import is_done, keep
from sanakit.models.config import TransformerConfig
from sanakit.models.transformer import Block
from sanakit.nn.processor import keep_freed_memory

NAME = "attention-time"
SIDES = (8, 16, 32, 64, 128)
"""Of the grid of tokens; an f32 autoencoder makes them of pictures 32 times as wide."""
KINDS: tuple[Attention, ...] = ("linear", "softmax")
WORDS = 16
SHAPE = TransformerConfig(
    num_attention_heads=8,
    num_layers=1,
    num_cross_attention_heads=4,
    cross_attention_head_dim=64,
    cross_attention_dim=256,
    caption_channels=256,
)


def time_blocks(
    results: Path, *, repeats: int = 5, report: Callable[[str], object] = print
) -> None:
    """Forward passes in turn, one picture, bf16 products, one thread; seconds of processor time."""
    if is_done(NAME, results):
        return
    keep_freed_memory()
    config = SHAPE
    blocks = {
        kind: cast(Block, transformer_of(config, attention=kind).transformer_blocks[0]).eval()
        for kind in KINDS
    }
    text, time_row = torch.randn(1, WORDS, config.width), torch.randn(1, 6 * config.width)
    found = []
    for side in SIDES:
        x = torch.randn(1, side * side, config.width)
        taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            # The first pass of each is not counted.
            for _ in range(repeats + 1):
                for kind, block in blocks.items():
                    # Many of the short ones, so that the clock can tell.
                    passes = max(1, 2048 // side**2)
                    started = time.process_time()
                    for _ in range(passes):
                        block(x, text, None, None, time_row, (side, side), None)
                    taken[kind].append((time.process_time() - started) / passes)
        row = {
            kind: {
                "seconds": median(values[1:]),
                "least": min(values[1:]),
                "most": max(values[1:]),
            }
            for kind, values in taken.items()
        }
        found.append({"tokens": side * side, **row})
        told = ", ".join(f"{kind} {1000 * each['seconds']:.2f} ms" for kind, each in row.items())
        report(f"{side * side} tokens: {told}")
    keep(NAME, {"width": config.width, "repeats": repeats, "blocks": found}, results)
