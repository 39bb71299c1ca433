"""What a layer keeps for the backward pass, and in which dtype it hands values to its products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
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
    return checkpointed(function, *inputs, preserve_rng_state=False)


def checkpointed(function: Callable[..., Tensor], *inputs: Any, **options: Any) -> Tensor:
    """Give ``function(*inputs)``, to be run again in the backward pass instead of being kept.

    The second run computes as the first: what overrides torch's functions now does so then.
    """
    modes = [] if torch.compiler.is_compiling() else _get_current_function_mode_stack()
    if modes:
        options["context_fn"] = lambda: (nullcontext(), _within(modes))
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, **options)
    return result


@contextmanager
def _within(modes: Sequence[AbstractContextManager[object]]) -> Iterator[None]:
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield


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
