"""Which way a layer is computed when: every condition and size that decides, in one place.

| plain way | other way | taken where |
|---|---|---|
| ``F.linear`` | `inference.product` by oneDNN | `multiplies_by_onednn` |
| softmax attention | `inference.read_by_rows` | `lengths_where_it_pays` |
| | `cpu.read_few` | `reads_few` |
| `relu_linear_attention` | `inference.attend_by_rows` | `infers_at_length` |
| | `cpu.linear_attention_of_inputs` | a gradient is recorded |
| Mix-FFN of a whole map | `inference.mix_in_stripes` | `infers_on_cpu`, layers `is_bare` |
| | `int8.mix_rounded` | `int8.mixes_rounded` |
| a function of positions | `by_rows.by_rows` | `infers_on_cpu`, and a map of many `CACHED` |
| 3x3 convolution | `fast_convolution` | `filters_less` |
| | `int8_convolution`, of int8 weights | `int8_convolution.rounds` |
| norm, gate in new memory | passes in place | `infers_at_length` |
| 16-bit products | `wide_products` | `is_emulated` |
| weights of 8 bits made real | tokens of 8 bits, too | `int8.Int8Layer.levels` |
| a function on a GPU | its kernel in `kernels` | `gpu.with_kernel` |

A condition looks at the layer, the tensor and the kind of processor, and measures nothing: what is
measured differs from run to run, and with it the last digits of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level
from torch.autograd import forward_ad
from torch.jit._trace import is_tracing
from torch.nn.modules import module as torch_module

from sanakit.nn import processor
from sanakit.nn.processor import HALF
from sanakit.shapes import Heads, Map, TextMask

CACHED = 100_000
"""Values of a tensor that a CPU works on at a time."""
FEW = 64
"""Keys so few that plain products are learned from faster on a CPU than the fused attention."""
MULTIPLIED = 1 << 24
"""Multiplications of a product from which on the choice of a library shows."""
SPARED = 1 << 15
"""Pairs of query and masked key from which on it pays to read each row's text by itself."""
WIDE = 128
"""Channels from which on the sums around the products of a 3x3 convolution are a small part."""
MANY = 1024
"""Positions from which on transforming the weights is one."""


def infers_on_cpu(x: Tensor) -> bool:
    """Whether ``x`` is on a CPU and nothing learns from it, transforms, traces or only counts."""
    traced = torch.compiler.is_compiling() or is_tracing() or type(x) is not Tensor
    traced = traced or torch._C._len_torch_dispatch_stack() > 0  # who counts knows plain ways
    return x.device.type == "cpu" and not (torch.is_grad_enabled() or traced or is_transformed())


def is_transformed() -> bool:
    """Whether derivatives are carried along, or functions transformed: fused ways know of none."""
    return maybe_current_level() is not None or forward_ad._current_level >= 0


def infers_at_length(x: Tensor) -> bool:
    """The same, of a tensor so large that passes over it cost more than calls do."""
    return x.numel() > CACHED and infers_on_cpu(x)


def is_unhooked(layer: nn.Module) -> bool:
    """Whether nobody else is shown what the layer takes and gives."""
    return not (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
    )


def untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is one of torch's, with nothing hooked to it, so that its weights are all."""
    return type(module) is kind and is_unhooked(module) and "forward" not in vars(module)


def is_plain(layer: nn.Module, dtype: torch.dtype, kinds: Sequence[type]) -> bool:
    """Whether a convolution is its weight, in ``dtype`` or widened to it, with zeros around.

    Pictures without seams are made by another ``padding_mode`` or ``_conv_forward``.
    """
    return (
        type(layer) in kinds
        and type(layer.weight) is nn.Parameter
        and (layer.weight.dtype == dtype or (layer.weight.dtype in HALF and dtype == torch.float32))
        and layer.padding_mode == "zeros"
        and not {"forward", "_conv_forward"} & vars(layer).keys()
    )


def is_bare(layer: nn.Module, dtype: torch.dtype, kinds: Sequence[type]) -> bool:
    """Whether a convolution is its weight, in ``dtype``, and nothing else: no adapter or hook."""
    return is_plain(layer, dtype, kinds) and is_unhooked(layer)


def multiplies_by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is faster than the library that torch gives a product to."""
    return (
        infers_on_cpu(x)
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= MULTIPLIED
        and type(weight) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and _onednn_is_faster()
    )


@cache
def _onednn_is_faster() -> bool:
    """Whether torch's own, Intel's MKL, takes slower kernels: on processors of another maker.

    Of few rows two to three times as slow, of many a tenth.
    """
    known = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkl.is_available()
    return known and "AMD" in processor.this_processor().name


def lengths_where_it_pays(mask: TextMask, queries: int) -> list[int] | None:
    """How many tokens of each row are real, where those are its first ones, and others many."""
    lengths = mask.sum(dim=1)
    if queries * (mask.numel() - int(lengths.sum())) < SPARED:
        return None
    first = torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]
    return lengths.tolist() if torch.equal(first, mask) else None


def reads_few(q: Heads, k: Tensor) -> bool:
    """Whether `cpu.read_few` is the faster way, or the only one.

    It is faster where a CPU learns from few keys; derivatives go through no other.
    """
    few = q.device.type == "cpu" and torch.is_grad_enabled() and k.shape[2] <= FEW
    return few or is_transformed()


def filters_less(conv: nn.Conv2d, x: Map, kinds: Sequence[type]) -> bool:
    """Whether a 3x3 convolution of these kinds is faster with fewer products and more sums.

    It is in inference on a CPU in fp32, also of weights and maps that are stored in 16 bits, unless
    the processor multiplies those four times as fast.
    """
    if not (is_plain(conv, x.dtype, kinds) and infers_on_cpu(x)) or torch.is_autocast_enabled(
        "cpu"
    ):
        return False
    wide = min(conv.in_channels, conv.out_channels) >= WIDE
    many = x.shape[-2] * x.shape[-1] >= MANY
    plain = not torch.is_autocast_enabled("cpu")
    return plain and wide and many and _are_fp32_faster(x.dtype)


def _are_fp32_faster(dtype: torch.dtype) -> bool:
    """Whether a quarter of the products in fp32 takes less time than all of them in ``dtype``."""
    if dtype not in HALF or not processor.has_units(dtype):
        return dtype in (torch.float32, *HALF)
    units = processor.this_processor().units
    return "AVX-512 bf16" in units and not any(each.startswith("AMX") for each in units)


def is_emulated(x: Tensor) -> bool:
    """Whether products in the dtype of ``x`` are emulated where it is."""
    return x.device.type == "cpu" and not processor.has_units(x.dtype)
