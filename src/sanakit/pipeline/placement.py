"""Where the parts of a model are: placed when loaded, moved for good, or only while they run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import RLock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from sanakit.errors import ConfigError
from sanakit.quant.quantize import is_movable, is_quantized

Placed = str | torch.device | Mapping[str, "str | int | torch.device"]
MaxMemory = Mapping["int | str", "int | str"]
Networks = Mapping[str, nn.Module]
"""The parts that hold weights, by their names in messages, in the order in which they run."""
TEXT_ENCODER = "text encoder"
Visit = Callable[[nn.Module], AbstractContextManager[object]]
"""A context in which a network is on the device that it runs on."""
BY_MEMORY = ("balanced", "auto")
RESERVE = 0.8
"""Share of a device's free memory that weights may take; activations need the rest."""


def place_one(device_map: Placed | None, max_memory: MaxMemory | None = None) -> torch.device:
    """Choose the device of a single network."""
    return place({"": 0}, device_map, max_memory)[""]


def place(
    sizes: Mapping[str, int], device_map: Placed | None, max_memory: MaxMemory | None = None
) -> dict[str, torch.device]:
    """Choose a device for each part.

    Args:
        sizes: bytes of each part.
        device_map: a device for all; a mapping from parts to devices, "" for those not named; or
            "balanced": the largest part first, each to the accelerator with the most room left,
            and to the CPU where none has room. Without accelerators all stay on the CPU.
        max_memory: for "balanced": what weights may take of each, ``{0: "10GB", "cpu": "30GB"}``;
            of those that are named only.

    Raises:
        ConfigError: a device that cannot be used, a part that there is not, a size that is none.
    """
    if max_memory is not None and device_map not in BY_MEMORY:
        raise ConfigError(
            f"max_memory={max_memory!r} is read with device_map='balanced'",
            hint="add it, or leave max_memory out",
        )
    if device_map is None:
        return dict.fromkeys(sizes, torch.device("cpu"))
    if isinstance(device_map, Mapping):
        if absent := sorted(device_map.keys() - sizes.keys() - {""}):
            raise ConfigError(
                f"device_map names {absent[0]!r}", hint=f"parts: {', '.join(sorted(sizes))}"
            )
        default = device_map.get("", "cpu")
        return {part: device_named(device_map.get(part, default)) for part in sizes}
    if device_map not in BY_MEMORY:
        return dict.fromkeys(sizes, device_named(device_map))
    from accelerate.utils import get_max_memory  # noqa: PLC0415 - slow

    try:
        memory = get_max_memory(None if max_memory is None else dict(max_memory))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"max_memory={max_memory!r} is none ({error})", hint='e.g. {0: "10GB", "cpu": "30GB"}'
        ) from error
    share = RESERVE if max_memory is None else 1.0
    free = {
        torch.device(accelerator().type, index): share * room
        for index, room in memory.items()
        if isinstance(index, int)
    }
    return balanced(sizes, free)


def balanced(
    sizes: Mapping[str, int], free: Mapping[torch.device, float]
) -> dict[str, torch.device]:
    """Give each part, the largest first, the device with the most room; the CPU takes the rest."""
    room = dict(free)
    placed = {}
    for part in sorted(sizes, key=lambda part: -sizes[part]):
        best = max(room, key=lambda device: room[device], default=torch.device("cpu"))
        if room and room[best] < sizes[part]:
            best = torch.device("cpu")
        if best in room:
            room[best] -= sizes[part]
        placed[part] = best
    return placed


def accelerator() -> torch.device:
    """The accelerator of this machine, or its CPU where it has none."""
    found = torch.accelerator.current_accelerator()
    return torch.device("cpu") if found is None else found


def device_named(name: str | int | torch.device) -> torch.device:
    """Give the device of that name, after it has held a tensor."""
    try:
        device = (
            torch.device(accelerator().type, name) if isinstance(name, int) else torch.device(name)
        )
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(
            f"device {name!r} cannot be used ({reason})",
            hint=f'use "cpu", {", ".join(BY_MEMORY)}, or a device like "cuda:0" where there is one',
        ) from error
    return device


@dataclass
class _Use:
    """How many calls of each thread draw with a network; whoever changes it holds the lock."""

    threads: Counter[int] = field(default_factory=Counter)
    lock: Any = field(default_factory=RLock)


_USES: WeakKeyDictionary[nn.Module, _Use] = WeakKeyDictionary()


def _use_of(network: nn.Module) -> _Use:
    return _USES.setdefault(getattr(network, "_orig_mod", network), _Use())


@contextmanager
def drawing(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Count this thread as one that draws with networks; where one is being changed, wait."""
    uses, thread = [_use_of(network) for network in networks], get_ident()
    for use in uses:
        with use.lock:
            use.threads[thread] += 1
    try:
        yield
    finally:
        for use in uses:
            with use.lock:
                use.threads -= Counter({thread: 1})  # which drops what is down to zero


@contextmanager
def changing(networks: Iterable[nn.Module], what: str) -> Iterator[None]:
    """Let no call begin with networks within the block. A callback may change what it draws with.

    Raises:
        ConfigError: another thread draws with one, and would see it half changed.
    """
    with ExitStack() as held:
        for network in networks:
            use = _use_of(network)
            held.enter_context(use.lock)
            if use.threads.keys() - {get_ident()}:
                raise ConfigError(
                    f"{what} would change the {type(network).__name__} that another thread draws "
                    "with",
                    hint="wait for its calls to end, or give threads pipelines of their own: "
                    "copy.deepcopy(pipe)",
                )
        yield


def move(networks: Networks, device: str | torch.device) -> None:
    """Move all networks to a device; whatever was offloaded is so no longer.

    Raises:
        ConfigError: as `changing`, unless all are there; a quantized network that cannot be moved.
    """
    place = device_named(device)
    there = all(_is_at(network, place) for network in networks.values())
    with nullcontext() if there else changing(networks.values(), f"moving to {place}"):
        _move(networks, place)


def _is_at(network: nn.Module, place: torch.device) -> bool:
    """Whether a network is on a device for good."""
    places = {p.device for p in network.parameters()}
    return all(
        one.type == place.type and place.index in (None, one.index) for one in places
    ) and not _is_hooked(network)


def _is_hooked(network: nn.Module) -> bool:
    return any(hasattr(part, "_hf_hook") for part in network.modules())


def _move(networks: Networks, place: torch.device) -> None:
    release(networks)
    for name, module in networks.items():
        here = next(module.parameters()).device
        if not is_movable(module) and here.type != place.type:
            raise ConfigError(
                f"the {name} is quantized to 8 bits on {here} and cannot be moved to {place}",
                hint=f'load it there: from_pretrained(..., device_map="{place}")',
            )
    for module in networks.values():
        if is_movable(module):
            bring(module, place)


def cast(networks: Networks, dtypes: Mapping[str, torch.dtype]) -> None:
    """Bring all networks to their dtypes.

    Raises:
        ConfigError: a quantized network; or as `changing`.
    """
    for name, module in networks.items():
        if is_quantized(module):
            raise ConfigError(
                f"the {name} is quantized, its dtype cannot be changed",
                hint="name the dtype where it is loaded: from_pretrained(..., torch_dtype=...)",
            )
    others = {
        name: module
        for name, module in networks.items()
        if any(p.dtype != dtypes[name] for p in module.parameters() if p.is_floating_point())
    }
    with changing(others.values(), "another dtype"):
        for name, module in others.items():
            nn.Module.to(module, dtypes[name])


def bring(module: nn.Module, device: torch.device) -> None:
    """Move a network, also a 4-bit one: the ``to`` of transformers' own class refuses those."""
    nn.Module.to(module, device)


def release(networks: Networks) -> None:
    """Take all offloading off; weights come back to the CPU."""
    for module in networks.values():
        if _is_hooked(module):
            from accelerate.hooks import remove_hook_from_module  # noqa: PLC0415 - slow

            remove_hook_from_module(module, recurse=True)
