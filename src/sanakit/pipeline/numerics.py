"""Numbers that are not finite: found where they appear, tried once more in a safer dtype, reported.

The retry works on a copy that lives as long as the call that needed it; no weights are changed.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from sanakit.errors import NumericsError
from sanakit.pipeline.pixels import Pixels

Component = Literal["text encoder", "controlnet", "transformer", "autoencoder"]
M = TypeVar("M", bound=nn.Module)
TELLING = 32 * 32
"""Pixels of a picture from which one colour tells of a fault."""
_ARGUMENT: dict[Component, str] = {
    "text encoder": "text_encoder",
    "controlnet": "controlnet",
    "transformer": "transformer",
    "autoencoder": "vae",
}


class NumericsWarning(UserWarning):
    """A component failed in its dtype and goes on in a safer one, or a picture has one colour."""


def all_finite(values: Tensor) -> bool:
    """Whether there is neither NaN nor infinity; waits for the device."""
    return bool(torch.isfinite(values).all())


def require_finite(
    values: Tensor, component: str, where: str = "", *, dtype: torch.dtype | None = None
) -> None:
    """Stop at the first number that is not one, before it becomes a black picture.

    ``dtype`` is that of the component where it differs from its result's.
    """
    if not all_finite(values):
        raise _failure(component, where, dtype or values.dtype)


def safer_dtype(component: Component, dtype: torch.dtype) -> torch.dtype | None:
    """What to try after a failure in ``dtype``: fp16, bf16, fp32, in this order; None after fp32.

    A transformer, and what steers it, goes from fp16 straight to fp32: bf16 has fewer bits than it
    was trained with.
    """
    if dtype == torch.float16 and component not in ("controlnet", "transformer"):
        return torch.bfloat16
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else None


def safer_copy(module: M, component: Component, where: str = "") -> M:
    """Copy a component that gave numbers that are not finite into the next safer dtype, warning."""
    dtype = next(module.parameters()).dtype
    safer = safer_dtype(component, dtype)
    plain = all(
        type(p) is nn.Parameter and p.is_floating_point() and not p.is_meta
        for p in module.parameters()
    )
    if safer is None or not plain:
        raise _failure(component, where, dtype)
    warnings.warn(
        f"the {component} gave values that are not finite{where} in {_short(dtype)}: the rest of "
        f"this call runs it in {_short(safer)}, which takes memory for a copy. Load it in "
        f"{_short(safer)}: torch_dtype={{{_ARGUMENT[component]!r}: {safer}}}",
        NumericsWarning,
        stacklevel=2,
    )
    return deepcopy(module).to(safer)


def report_constant(pixels: Pixels, *, dtype: torch.dtype) -> None:
    """Warn of each picture ``H W 3`` uint8 of one colour; ``dtype`` is the autoencoder's.

    A picture of fewer pixels than `TELLING` may well be of one.
    """
    for index, picture in enumerate(pixels):
        low, high = picture.min((0, 1)), picture.max((0, 1))
        if (low == high).all() and picture[..., 0].size >= TELLING:
            colour = tuple(int(value) for value in low)
            warnings.warn(
                f"picture {index} is nothing but the colour {colour}: a component went wrong "
                f"without overflowing (the autoencoder ran in {_short(dtype)}). Try "
                "torch_dtype=torch.float32, and check the weights",
                NumericsWarning,
                stacklevel=3,
            )


def _failure(component: str, where: str, dtype: torch.dtype) -> NumericsError:
    if component not in _ARGUMENT:
        hint = "they came from the caller: look at what made them"
    elif dtype in (torch.float16, torch.bfloat16):
        hint = f"load the {component} in float32"
    elif dtype.is_floating_point:
        hint = f"even this dtype fails: check the weights of the {component} and what it was given"
    else:
        hint = f"load the {component} without quantization, in float32"
    return NumericsError(f"values of the {component} are not finite{where} ({dtype})", hint=hint)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
