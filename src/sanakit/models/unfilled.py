"""Networks built on the meta device: their shapes, and no memory for their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _NoNumbers(TorchFunctionMode):
    """Leaves initialisation out. It would fill nothing, but draw on torch's compiler to do so.

    To import that takes longer than all else until the first picture of a small model.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs.get("tensor", args[:1] and args[0])
        return func(*args, **kwargs)


@contextmanager
def unfilled() -> Iterator[None]:
    """Let networks that are made within the block wait for their weights."""
    with torch.device("meta"), _NoNumbers():
        yield
