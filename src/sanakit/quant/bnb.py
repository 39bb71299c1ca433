"""bitsandbytes: linear layers in 8 or 4 bits, from real weights or from stored quantized ones."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError, WeightsError
from sanakit.quant.recipe import BitsAndBytes

# By name, so that asking does not import the library.
INT8, FOUR_BIT = "Linear8bitLt", "Linear4bit"
OUT_BLOCK, IN_BLOCK = 32, 64


@cache
def _library() -> ModuleType:
    try:
        import bitsandbytes  # noqa: PLC0415  optional: only quantized loading needs it
    except ImportError as error:
        raise ConfigError(
            f"bitsandbytes cannot be imported ({error})",
            hint="install it: pip install 'sanakit[quant]'",
        ) from error
    quieten()
    return bitsandbytes


def settle(network: nn.Module) -> None:
    """Make layers of the library fit to run, also those that another loader made.

    Its fast 4-bit path on CPUs takes whole blocks only, and fails on other widths, which its slower
    path runs.
    """
    quieten()
    for layer in network.modules():
        if type(layer).__name__ == FOUR_BIT:
            linear: Any = layer
            if linear.out_features % OUT_BLOCK or linear.in_features % IN_BLOCK:
                linear.support_avx512bf16_for_cpu = False


def quieten() -> None:
    """Keep the library from logging, at every product, that LLM.int8() casts bf16 to fp16."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")


def is_int8(module: nn.Module) -> bool:
    """Whether this is an LLM.int8() layer."""
    return type(module).__name__ == INT8


def is_quantized(module: nn.Module) -> bool:
    """Whether this is a layer of bitsandbytes."""
    return type(module).__name__ in (INT8, FOUR_BIT)


def quantized(linear: nn.Linear, recipe: BitsAndBytes, device: str | torch.device) -> nn.Module:
    """Round the weights of a linear layer; its bias keeps its dtype."""
    layer = _empty(linear, recipe)
    weight = linear.weight.detach()
    parameters = _library().nn
    if recipe.kind == "int8":
        held = parameters.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        held = parameters.Params4bit(
            weight, requires_grad=False, quant_type=recipe.kind, compress_statistics=recipe.nested
        )
    layer.weight = held.to(torch.device(device))
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.detach().to(device), requires_grad=False)
    return layer.eval()


def restored(
    linear: nn.Linear,
    name: str,
    state: MutableMapping[str, Tensor],
    recipe: BitsAndBytes,
    *,
    dtype: torch.dtype | None,
    device: str | torch.device,
    source: str,
) -> nn.Module:
    """Build the quantized layer from its stored tensors, which are taken out of ``state``.

    Raises:
        WeightsError: for tensors that are missing or of the wrong shape.
    """
    layer = _empty(linear, recipe)
    own = {key: state.pop(key) for key in list(state) if key.startswith(f"{name}.")}
    place = torch.device(device)
    shape = (linear.out_features, linear.in_features)
    size = shape[0] * shape[1]
    weight = own.pop(f"{name}.weight", torch.empty(0))
    bias = own.pop(f"{name}.bias", None)
    if recipe.kind == "int8":
        scale = own.get(f"{name}.SCB", torch.empty(0))
        fits = weight.dtype == torch.int8 and weight.shape == shape
        fits = fits and scale.shape == shape[:1]
    else:
        fits = weight.dtype == torch.uint8 and weight.numel() == -(-size // 2) and bool(own)
    biased = None if linear.bias is None else linear.bias.shape
    if not fits or (None if bias is None else bias.shape) != biased:
        raise WeightsError(
            f"{source}: the tensors of {name} are not those of a {recipe.kind} layer of {shape}",
            hint="config.json must be the one these weights were made with",
        )
    parameters = _library().nn
    if recipe.kind == "int8":
        held = weight.to(place)
        layer.weight = parameters.Int8Params(
            held, requires_grad=False, has_fp16_weights=False, CB=held, SCB=scale.to(place)
        )
    else:
        statistics = {key.removeprefix(f"{name}.weight."): value for key, value in own.items()}
        layer.weight = parameters.Params4bit.from_prequantized(
            weight, statistics, device=place, module=layer
        )
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(device=place, dtype=dtype), requires_grad=False)
    return layer.eval()


def _empty(linear: nn.Linear, recipe: BitsAndBytes) -> Any:
    layers = _library().nn
    sizes = (linear.in_features, linear.out_features)
    bias = linear.bias is not None
    with torch.device("meta"):
        if recipe.kind == "int8":
            return layers.Linear8bitLt(
                *sizes, bias=bias, has_fp16_weights=False, threshold=recipe.threshold
            )
        compute = None if recipe.compute_dtype is None else getattr(torch, recipe.compute_dtype)
        layer = layers.Linear4bit(
            *sizes,
            bias=bias,
            compute_dtype=compute,
            compress_statistics=recipe.nested,
            quant_type=recipe.kind,
        )
    settle(layer)
    return layer
