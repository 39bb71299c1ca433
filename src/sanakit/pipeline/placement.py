"""Which part of a model goes to which device: whole parts are placed, never cut."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate.utils import get_max_memory

from sanakit.errors import ConfigError

Placed = str | torch.device | Mapping[str, "str | int | torch.device"]
BY_MEMORY = ("balanced", "auto")
RESERVE = 0.8
"""Share of a device's free memory that weights may take; activations need the rest."""


def place_one(device_map: Placed | None) -> torch.device:
    """Choose the device of a single network.

    Raises:
        ConfigError: for a device that does not exist.
    """
    return place({"": 0}, device_map)[""]


def place(sizes: Mapping[str, int], device_map: Placed | None) -> dict[str, torch.device]:
    """Choose a device for each part.

    Args:
        sizes: bytes of each part.
        device_map: a device for all; a mapping from parts to devices, "" for those not named; or
            "balanced": the largest part first, each to the accelerator with the most room left,
            and to the CPU where none has room. Without accelerators all stay on the CPU.

    Raises:
        ConfigError: for a device that does not exist, or a part that the model does not have.
    """
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
    free = {
        torch.device(accelerator().type, index): RESERVE * memory
        for index, memory in get_max_memory().items()
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
    """Give the device of that name, after it has held a tensor.

    Raises:
        ConfigError: for one that does not exist.
    """
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
