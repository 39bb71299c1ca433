"""Floating-point operations of a forward pass, counted on shapes alone: nothing is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

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
