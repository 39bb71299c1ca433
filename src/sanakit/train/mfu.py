"""How much of a device's arithmetic a run uses: MFU, against what the device can do at most."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sanakit.train.distributed.loss_scale import ComputeDtype
from sanakit.train.distributed.network import dtype_of_products
from sanakit.train.recipe import Recipe

MOST_SHAPES = 8
"""Different inputs that are counted; further ones are taken to be like these."""
Shapes = tuple[tuple[int, ...], ...]


def counted(forward: Callable[[], object]) -> float:
    """Operations of the products, convolutions and attentions that ``forward`` does.

    All tensors and modules must be made inside it; they have shapes and no memory.
    A multiplication with its addition is two; sums, norms and activations are not counted.
    """
    counter = FlopCounterMode(display=False)
    # It does not know a CPU's fused attention.
    with FakeTensorMode(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        forward()
    return float(counter.get_total_flops())


class SeenShapes:
    """The shapes of a recipe's samples, and operations of one of them on average.

    ``count`` gives the operations of one sample whose inputs have the shapes.
    """

    def __init__(self, count: Callable[[Shapes], float]) -> None:
        self._count = count
        self._samples: Counter[Shapes] = Counter()
        self._counts: dict[Shapes, float] = {}

    def add(self, samples: int, *shapes: tuple[int, ...]) -> None:
        """Note ``samples`` of these shapes, their first dimension left out."""
        if shapes in self._samples or len(self._samples) < MOST_SHAPES:
            self._samples[shapes] += samples

    def mean(self) -> float:
        """Operations of one sample's forward pass; 0 while none was seen."""
        for shapes in self._samples.keys() - self._counts.keys():
            self._counts[shapes] = self._count(shapes)
        total = self._samples.total()
        operations = sum(n * self._counts[shapes] for shapes, n in self._samples.items())
        return operations / total if total else 0.0


def training_factor(trained: int, whole: int, *, recomputed: bool = False) -> float:
    """A training step's operations, in forward passes.

    One forward, one for the gradients of activations, and one for those of weights, of which a LoRA
    asks for few; recomputed blocks are one more.
    """
    return 2 + trained / whole + recomputed


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
        return _measured(dtype_of_products(dtype, device))
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
    share = forward * factor * per_second / peak
    # More than all there is: the peak was measured beside other work, and is not known.
    return float(f"{share:.3g}") if share <= 1 else None


@cache
def _measured(dtype: torch.dtype) -> float:
    a, b = (torch.full((SIDE, SIDE), 0.5, dtype=dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + SECONDS
    while (began := time.perf_counter()) < end:
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * SIDE**3 / best
