"""What a layer keeps for the backward pass, and in which dtype it hands values to its products."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Give ``function(*inputs)``; for the backward pass keep the inputs and compute it again.

    For what is cheap to compute and large to keep. The second time it stops where nothing more is
    needed, so that a product at the end of ``function`` runs once. The function must not draw
    random numbers. Where no gradient is wanted it is just called, and a compiler, which knows
    better what to keep, sees the plain call.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which products with ``x`` have its own dtype."""
    kind = x.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a product with ``x`` is computed: autocast's within it, else its own.

    Several products with one input then share one cast, and one copy kept for their gradients.
    """
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x.dtype
    return torch.get_autocast_dtype(kind)
