"""Layers of any network become quantized ones, in place and one after the other.

Int8 layers are ours (`nn.int8`). bitsandbytes has layers of its own, torchao tensors that linear
layers multiply with unchanged; both are optional, and imported only where something is quantized.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError, WeightsError, did_you_mean
from sanakit.models.published import say_once
from sanakit.nn.cpu import PointConv
from sanakit.nn.fast_convolution import Conv1x1, Conv3x3, DoublingConv3x3
from sanakit.nn.int8 import (
    SCALE,
    TEXT_SIDE,
    Int8Layer,
    Int8Linear,
    Int8PointConv,
    int8_layer,
    restored,
    round_weight,
)
from sanakit.nn.int8_convolution import Int8Conv3x3, Int8DoublingConv3x3, pays
from sanakit.quant.method import BitsAndBytes, Int8, Method, TorchAo

NOTHING = torch.empty(0)
# Layers of bitsandbytes, by name, so that asking does not import it.
INT8, FOUR_BIT = "Linear8bitLt", "Linear4bit"
OUT_BLOCK, IN_BLOCK = 32, 64
INT8_LAYERS: dict[type[nn.Linear | nn.Conv2d], type[Int8Layer]] = {
    nn.Linear: Int8Linear,
    PointConv: Int8PointConv,
}
INT8_CONVOLUTIONS: dict[type[nn.Linear | nn.Conv2d], type[Int8Layer]] = {
    Conv1x1: Int8PointConv,
    Conv3x3: Int8Conv3x3,
    DoublingConv3x3: Int8DoublingConv3x3,
}
"""Those of maps that are no tokens: rounded for speed alone, and only where they gain it."""
ROUNDED_LAYERS = tuple(INT8_LAYERS | INT8_CONVOLUTIONS)
GROUP = 32
"""torchao's int4: values that share a scale; each costs 16 bits, so 4.5 bits a value."""


def quantize(
    module: nn.Module,
    method: Method,
    *,
    keep: Sequence[str] = (),
    always_keep: Sequence[str] = (),
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Quantize the linear layers of a network that has its weights; `Int8` also convolutions.

    Weights are rounded from the dtype that they have and then let go, so that beside the network
    one layer at a time is in memory twice.

    Args:
        module: any network; changed in place and given back.
        method: how, see `method_of`.
        keep: modules that stay as they are where the method names none itself.
        always_keep: modules that stay as they are whatever the method says.
        dtype: of all that is not quantized, and of torchao's products.
        device: where the network goes.

    Raises:
        ConfigError: a library that is not installed, or a name to skip that nothing has.
    """
    kinds = tuple(_kinds(method))
    names = linear_names(module, (*_skipped(module, method, keep), *always_keep), of=kinds)
    if isinstance(method, Int8):
        names = [name for name in names if not _gains_nothing(_linear(module, name), device)]
        for name in names:
            layer = _linear(module, name)
            weight, scale = round_weight(layer.weight, name=name)
            kind = _kind(layer)
            made = int8_layer(layer, kind, weight, scale, rounds_tokens=method.kind == "w8a8")
            _replace(module, name, made)
    elif isinstance(method, BitsAndBytes):
        for name in names:
            _replace(module, name, _bnb_quantized(_linear(module, name), method, device))
    else:
        _torchao_quantize(module, method, names, dtype, device)
    cast_real(module, dtype)
    return module.to(device)


def restore(
    module: nn.Module,
    state: MutableMapping[str, Tensor],
    method: Method,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    source: str,
) -> list[str]:
    """Put in the linear layers that ``state`` holds quantized, whose tensors are taken out of it.

    Gives the names of those layers. Layers whose weights are real stay for strict loading, and so
    do convolutions of int8 that are no faster here, made real.

    Raises:
        ConfigError: a method whose weights are not stored quantized. WeightsError: misfits.
    """
    if isinstance(method, TorchAo):
        raise ConfigError(
            f"{source}: holds weights of torchao", hint="load real weights and quantize those"
        )
    names = [
        name
        for name in linear_names(module, (), of=tuple(_kinds(method)))
        if state.get(f"{name}.weight", NOTHING).dtype in (torch.int8, torch.uint8)
    ]
    filled = []
    for name in names:
        where: dict[str, Any] = {"dtype": dtype, "device": device, "source": source}
        linear = _linear(module, name)
        layer: nn.Module
        if isinstance(method, Int8):
            rounds = method.kind == "w8a8"
            layer = restored(linear, _kind(linear), name, state, rounds_tokens=rounds, **where)
            if _gains_nothing(linear, device):
                state[f"{name}.weight"] = layer.real_weight(dtype)
                if layer.bias is not None:
                    state[f"{name}.bias"] = layer.bias.detach()
                continue
        else:
            layer = _bnb_restored(linear, name, state, method, **where)
        _replace(module, name, layer)
        filled.append(name)
    return filled


def cast_real(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast what is not quantized, tensor by tensor; quantized weights know their dtype.

    Buffers that no file holds keep theirs: in 16 bits rotary frequencies lose tokens' places.
    """
    for child in module.modules():
        held = [*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)]
        computed = child._non_persistent_buffers_set
        for name, tensor in held:
            stays = name in computed or (name in ("weight", SCALE) and _is_quantized(child))
            if not stays and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


Layers = tuple[type[nn.Module], ...]


def linear_names(module: nn.Module, skip: Sequence[str], *, of: Layers = (nn.Linear,)) -> list[str]:
    """Names of linear layers, without those that are, or lie in, a module named in ``skip``.

    ``attn2`` and ``attn2.to_k`` name all modules of which that is the end of the way, or a part.
    """
    return [
        name
        for name, child in module.named_modules()
        if isinstance(child, of) and not any(f".{each}." in f".{name}." for each in skip)
    ]


def _kinds(method: Method) -> Iterable[type[nn.Module]]:
    if not isinstance(method, Int8):
        return (nn.Linear,)
    return INT8_LAYERS if method.kind == "w8a16" else INT8_LAYERS | INT8_CONVOLUTIONS


def _kind(layer: nn.Module) -> type[Int8Layer]:
    """The layer of int8 that takes the place of a real one."""
    kinds = INT8_LAYERS | INT8_CONVOLUTIONS
    return next(made for kind, made in kinds.items() if isinstance(layer, kind))


def _gains_nothing(layer: nn.Module, device: str | torch.device) -> bool:
    """Whether it is a convolution that stays real on this device, which is said once."""
    stays = isinstance(layer, tuple(INT8_CONVOLUTIONS)) and not pays(device)
    if stays:
        say_once("convolutions stay real numbers: in int8 they gain nothing on this processor")
    return stays


def is_quantized(module: nn.Module) -> bool:
    """Whether any weight is held in fewer than 16 bits."""
    return any(_is_quantized(child) for child in module.modules())


def is_movable(module: nn.Module) -> bool:
    """Whether the network may change its device: LLM.int8() layers lose their scales on the way."""
    return not any(type(child).__name__ == INT8 for child in module.modules())


def has_torchao(module: nn.Module) -> bool:
    """Whether any linear layer has a weight of torchao."""
    return any(_is_torchao(child) for child in module.modules())


def settle(network: nn.Module) -> None:
    """Make layers of bitsandbytes fit to run, also those that another loader made.

    Its fast 4-bit path on CPUs takes whole blocks only, and fails on other widths, which its slower
    path runs. At every product it logs that LLM.int8() casts bf16 to fp16; that is kept quiet.
    """
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_news)
    for layer in network.modules():
        if type(layer).__name__ == FOUR_BIT:
            linear: Any = layer
            if linear.out_features % OUT_BLOCK or linear.in_features % IN_BLOCK:
                linear.support_avx512bf16_for_cpu = False


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")


def _is_quantized(child: nn.Module) -> bool:
    bnb = type(child).__name__ in (INT8, FOUR_BIT)
    return bnb or isinstance(child, Int8Layer) or _is_torchao(child)


def _is_torchao(child: nn.Module) -> bool:
    weight = getattr(child, "weight", None)
    return isinstance(child, nn.Linear) and type(weight).__module__.startswith("torchao")


def _skipped(module: nn.Module, method: Method, keep: Sequence[str]) -> tuple[str, ...]:
    """What stays as it is: the method's own names, else ``keep``."""
    if method.skip is None:
        text_side = TEXT_SIDE if isinstance(method, Int8) and method.kind == "w8a8" else ()
        return (*keep, *text_side)
    whole = {name for name, _ in module.named_modules()}
    parts = {part for name in whole for part in name.split(".")}
    for name in method.skip:
        if name not in parts and not any(f".{name}." in f".{each}." for each in whole):
            raise ConfigError(
                f"modules to skip name {name!r}, which {type(module).__name__} does not have",
                hint=did_you_mean(name, sorted(parts - {""})),
            )
    return method.skip


def _linear(module: nn.Module, name: str) -> Any:
    return module.get_submodule(name)


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, new)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{name.partition('.')[0]} cannot be imported ({error})",
            hint="install it: pip install 'sanakit[quant]'",
        ) from error


def _bnb_quantized(
    linear: nn.Linear, method: BitsAndBytes, device: str | torch.device
) -> nn.Module:
    """Round the weights of a linear layer; its bias keeps its dtype."""
    layer, made = _bnb_empty(linear, method), _imported("bitsandbytes").nn
    weight = linear.weight.detach()
    if method.kind == "int8":
        held = made.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        held = made.Params4bit(
            weight, requires_grad=False, quant_type=method.kind, compress_statistics=method.nested
        )
    layer.weight = held.to(torch.device(device))
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.detach().to(device), requires_grad=False)
    return layer.eval()


def _bnb_restored(
    linear: nn.Linear,
    name: str,
    state: MutableMapping[str, Tensor],
    method: BitsAndBytes,
    *,
    dtype: torch.dtype | None,
    device: str | torch.device,
    source: str,
) -> nn.Module:
    """Build the quantized layer from its stored tensors, which are taken out of ``state``."""
    layer, made = _bnb_empty(linear, method), _imported("bitsandbytes").nn
    own = {key: state.pop(key) for key in list(state) if key.startswith(f"{name}.")}
    place = torch.device(device)
    shape = (linear.out_features, linear.in_features)
    weight = own.pop(f"{name}.weight", NOTHING)
    bias = own.pop(f"{name}.bias", None)
    if method.kind == "int8":
        scale = own.get(f"{name}.SCB", NOTHING)
        fits = weight.dtype == torch.int8 and weight.shape == shape
        fits = fits and scale.shape == shape[:1]
    else:
        size = shape[0] * shape[1]
        fits = weight.dtype == torch.uint8 and weight.numel() == -(-size // 2) and bool(own)
    biased = None if linear.bias is None else linear.bias.shape
    if not fits or (None if bias is None else bias.shape) != biased:
        raise WeightsError(
            f"{source}: the tensors of {name} are not those of a {method.kind} layer of {shape}",
            hint="config.json must be the one these weights were made with",
        )
    if method.kind == "int8":
        held = weight.to(place)
        layer.weight = made.Int8Params(
            held, requires_grad=False, has_fp16_weights=False, CB=held, SCB=scale.to(place)
        )
    else:
        statistics = {key.removeprefix(f"{name}.weight."): value for key, value in own.items()}
        layer.weight = made.Params4bit.from_prequantized(
            weight, statistics, device=place, module=layer
        )
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(device=place, dtype=dtype), requires_grad=False)
    return layer.eval()


def _bnb_empty(linear: nn.Linear, method: BitsAndBytes) -> Any:
    made = _imported("bitsandbytes").nn
    sizes, bias = (linear.in_features, linear.out_features), linear.bias is not None
    with torch.device("meta"):
        if method.kind == "int8":
            layer = made.Linear8bitLt(
                *sizes, bias=bias, has_fp16_weights=False, threshold=method.threshold
            )
        else:
            compute = None if method.compute_dtype is None else getattr(torch, method.compute_dtype)
            layer = made.Linear4bit(
                *sizes,
                bias=bias,
                compute_dtype=compute,
                compress_statistics=method.nested,
                quant_type=method.kind,
            )
    settle(layer)
    return layer


def _torchao_quantize(
    module: nn.Module,
    method: TorchAo,
    names: Sequence[str],
    dtype: torch.dtype,
    device: str | torch.device,
) -> None:
    """Quantize the weights of the named linear layers in place.

    ``int4`` rounds to 4 bits and runs everywhere, but holds a value in a byte; pass torchao's own
    ``Int4WeightOnlyConfig`` in a ``TorchAoConfig`` for its packed GPU formats.
    """
    library = _imported("torchao.quantization")
    config = _torchao_config(library, method.kind) if isinstance(method.kind, str) else method.kind
    for name in names:
        layer = module.get_submodule(name).to(device=device, dtype=dtype)
        try:
            library.quantize_(layer, config)
        except (
            ImportError,
            RuntimeError,
            ValueError,
            AssertionError,
            NotImplementedError,
        ) as error:
            raise ConfigError(
                f"torchao cannot quantize {name} to {method.kind} on {device} ({error})",
                hint="int8 and fp8 fit any width on any device",
            ) from error


def _torchao_config(library: Any, kind: str) -> Any:
    if kind == "int8":
        return library.Int8WeightOnlyConfig()
    if kind == "fp8":
        return library.Float8WeightOnlyConfig()
    if kind == "int4":
        four_bits: Any = getattr(torch, kind)  # torch's stubs lack it
        groups = library.PerGroup(GROUP)
        return library.IntxWeightOnlyConfig(weight_dtype=four_bits, granularity=groups)
    raise ConfigError(f"torchao kind {kind!r} is unknown", hint="use int8, int4 or fp8")
