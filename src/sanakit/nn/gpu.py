"""When a layer's function runs as one kernel on a GPU. The function stays, as the kernel's twin."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from typing import ParamSpec

import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError

SWITCH = "SANAKIT_KERNELS"
"""0 in this variable of the environment turns all kernels off."""
P = ParamSpec("P")
logger = logging.getLogger(__name__)
failed: set[str] = set()
"""Kernels that raised an error in this process, and are not tried again."""


def with_kernel(twin: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Have a function run on CUDA as the kernel of its name, where that knows its arguments.

    The kernel takes what the function takes, and gives None for what it does not know. It is asked
    where triton is installed and no gradient is recorded; under autocast, compilation and for
    tensors that are not plain ones the function runs. An error of a kernel is logged once, and the
    function runs from then on.
    """
    name = twin.__name__

    @wraps(twin)
    def chosen(*given: P.args, **named: P.kwargs) -> Tensor:
        found = None
        if _is_for_kernels(given) and name not in failed:
            try:
                kernel = getattr(importlib.import_module("sanakit.nn.kernels"), name)
                found = kernel(*given, **named)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                failed.add(name)
                logger.warning("kernel %s failed, and is not tried again: %s", name, error)
        return twin(*given, **named) if found is None else found

    return chosen


def _is_for_kernels(given: tuple[object, ...]) -> bool:
    tensors = [one for one in given if isinstance(one, Tensor)]
    if not tensors or not on_gpu(tensors[0]) or torch.compiler.is_compiling() or not available():
        return False
    weights = (weight for one in given if isinstance(one, nn.Module) for weight in one.parameters())
    recorded = torch.is_grad_enabled() and any(one.requires_grad for one in (*tensors, *weights))
    plain = all(type(one) in (Tensor, nn.Parameter) for one in tensors)
    return plain and not recorded and not torch.is_autocast_enabled("cuda")


def on_gpu(x: Tensor) -> bool:
    """Whether a tensor is where kernels run."""
    return x.is_cuda


@cache
def available() -> bool:
    """Whether kernels can run here, and are not turned off.

    Raises:
        ConfigError: the switch is neither 0 nor 1.
    """
    switch = os.environ.get(SWITCH, "1")
    if switch not in ("0", "1"):
        raise ConfigError(f"{SWITCH}={switch!r} is neither 0 nor 1", hint=f"{SWITCH}=0 is off")
    return switch == "1" and torch.cuda.is_available() and find_spec("triton") is not None
