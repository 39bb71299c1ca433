"""torchao: weight-only formats, as tensors that linear layers multiply with unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sanakit.errors import ConfigError
from sanakit.quant.recipe import TorchAo

GROUP = 32
"""int4: values that share a scale; each costs 16 bits, so 4.5 bits a value."""


def quantize(
    module: nn.Module,
    recipe: TorchAo,
    names: Sequence[str],
    dtype: torch.dtype,
    device: str | torch.device,
) -> None:
    """Quantize the weights of the named linear layers in place.

    ``int4`` rounds to 4 bits and runs everywhere, but holds a value in a byte; pass torchao's own
    ``Int4WeightOnlyConfig`` in a ``TorchAoConfig`` for its packed GPU formats.

    Raises:
        ConfigError: torchao is missing, or refuses: a width its groups do not divide, a device it
            has no kernel for.
    """
    try:
        from torchao.quantization import quantize_  # noqa: PLC0415  optional, and slow to import
    except ImportError as error:
        raise ConfigError(
            f"torchao cannot be imported ({error})", hint="install it: pip install 'sanakit[quant]'"
        ) from error
    config = _config(recipe.kind) if isinstance(recipe.kind, str) else recipe.kind
    for name in names:
        layer = module.get_submodule(name).to(device=device, dtype=dtype)
        try:
            quantize_(layer, config)
        except (
            ImportError,
            RuntimeError,
            ValueError,
            AssertionError,
            NotImplementedError,
        ) as error:
            raise ConfigError(
                f"torchao cannot quantize {name} to {recipe.kind} on {device} ({error})",
                hint="int8 and fp8 fit any width on any device",
            ) from error


def is_quantized(module: nn.Module) -> bool:
    """Whether this is a linear layer with a weight of torchao."""
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Linear) and type(weight).__module__.startswith("torchao")


def _config(kind: str) -> Any:
    from torchao import quantization  # noqa: PLC0415
    from torchao.quantization.granularity import PerGroup  # noqa: PLC0415

    if kind == "int8":
        return quantization.Int8WeightOnlyConfig()
    if kind == "fp8":
        return quantization.Float8WeightOnlyConfig()
    if kind == "int4":
        four_bits: Any = getattr(torch, kind)  # torch's stubs lack it
        return quantization.IntxWeightOnlyConfig(
            weight_dtype=four_bits, granularity=PerGroup(GROUP)
        )
    raise ConfigError(f"torchao kind {kind!r} is unknown", hint="use int8, int4 or fp8")
