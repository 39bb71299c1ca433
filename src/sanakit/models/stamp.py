"""Whether a network computes what it computed before: values that differ if it may not.

What is kept of its results is forgotten when they change. No result is computed for it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_INNER = frozenset(vars(nn.Module()))
_WORD = 8


def settings_of(network: nn.Module) -> Hashable:
    """How it computes, and where its numbers are; reads none of them.

    Its modules with all that they hold beside tensors, such as the scale of an adapter or that it
    is switched off; hooks and replaced forwards; the place, dtype and version of every tensor; and
    what else decides the last digits of a result.
    """
    modules = tuple(
        (
            name,
            type(module),
            module.training,
            (*module._forward_pre_hooks, *module._forward_hooks),
            id(vars(module).get("forward")),
            tuple((key, repr(value)) for key, value in vars(module).items() if _tells(key, value)),
        )
        for name, module in network.named_modules()
    )
    # An inference tensor counts no versions: nothing may write to it.
    tensors = tuple(
        (part.data_ptr(), 0 if part.is_inference() else part._version, part.dtype, part.device)
        for part in _tensors(network)
    )
    config: Any = getattr(network, "config", None)
    told = config.to_json_string(use_diff=False) if hasattr(config, "to_json_string") else config
    kind = next((device.type for *_, device in tensors), "cpu")
    known = kind != "meta" and torch.is_autocast_enabled(kind)
    arithmetic = (
        str(getattr(config, "_attn_implementation", None)),
        torch.get_float32_matmul_precision(),
        torch.get_autocast_dtype(kind) if known else None,
    )
    return modules, tensors, told, arithmetic


def checksum_of(network: nn.Module) -> Hashable:
    """A sum over all numbers that it holds, also when they were written past torch's notice.

    Versions do not count what is written through ``weight.data`` or numpy. Any single change
    changes the sum; it reads as fast as memory does.
    """
    sums: dict[torch.device, list[Tensor]] = {}
    for part in _tensors(network):
        if not part.is_meta:
            sums.setdefault(part.device, []).append(_checksum(part))
    return tuple(tuple(torch.stack(each).tolist()) for each in sums.values())


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    for held in (*network.parameters(), *network.buffers()):
        yield from _plain(held)


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """Take a quantized tensor apart into those that it wraps."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for name in flatten()[0]:
        yield from _plain(getattr(tensor, name))


def _checksum(tensor: Tensor) -> Tensor:
    """The sum of its bytes in words of eight, a row of words weighed by its place; int64."""
    octets = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    skipped = -octets.storage_offset() % _WORD
    if len(octets) < skipped + _WORD:
        return octets.sum()
    whole = (len(octets) - skipped) // _WORD * _WORD
    ends = (octets[:skipped], octets[skipped + whole :])
    words = octets[skipped : skipped + whole].view(torch.int64)
    wide = int(len(words) ** 0.5)
    rows = words[: len(words) // wide * wide].view(-1, wide).sum(1)
    weight = 2 * torch.arange(len(rows), device=rows.device) + 1
    return (rows * weight).sum() + words[len(rows) * wide :].sum() + sum(end.sum() for end in ends)


def _tells(name: str, value: object) -> bool:
    """Whether an attribute is a setting: a plain value, or a collection of such."""
    if name in _INNER:
        return False
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return all(_tells("", item) for item in value)
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)
