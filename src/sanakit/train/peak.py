"""How much of a device's arithmetic a run uses: MFU, against what the device can do at most."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch

from sanakit.train.flops import training_factor
from sanakit.train.network import DTYPES
from sanakit.train.precision import ComputeDtype
from sanakit.train.recipe import Recipe

PEAKS = {"H100": 989e12, "A100": 312e12, "RTX 4090": 165e12}
"""Operations a second in bfloat16 and float16 with fp32 sums, dense, by the maker's data sheets."""
SIDE = 768
SECONDS = 0.25


def peak_of(device: torch.device, dtype: ComputeDtype) -> float:
    """Operations a second that a device can do at most; 0 if it is not known.

    GPUs by their name. For a CPU, what a product of matrices does with the threads that there are:
    measured once, in a third of a second.
    """
    if device.type == "cpu":
        return _measured(dtype)
    if device.type != "cuda" or dtype == "float32":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAKS.items() if known in name), 0.0)


def model_share(
    recipe: Recipe[Any], per_second: float, device: torch.device, dtype: ComputeDtype
) -> float | None:
    """MFU: the share of a device's peak that ``per_second`` samples of training use on it.

    Only operations that the model asks for count, so recomputed blocks lower it (as Chowdhery et
    al. 2022, appendix B, define it). None if the recipe's or the device's number is unknown.
    """
    forward = recipe.flops()
    peak = peak_of(device, dtype) if forward > 0 else 0.0
    if not peak:
        return None
    sizes = [(p.numel(), p.requires_grad) for p in recipe.module.parameters()]
    factor = training_factor(sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes))
    return float(f"{forward * factor * per_second / peak:.3g}")


@cache
def _measured(dtype: ComputeDtype) -> float:
    a, b = (torch.full((SIDE, SIDE), 0.5, dtype=DTYPES[dtype]) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + SECONDS
    while (began := time.perf_counter()) < end:
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * SIDE**3 / best
