"""How much memory a device can still give this process, by what the system says."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import torch

if sys.platform != "win32":
    import resource

CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that may still be had; on the CPU the least of machine, container and process limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return max(0, min(psutil.virtual_memory().available, _process_room(), *_container_rooms()))


def _process_room() -> int:
    """What is left under ``ulimit -v``."""
    if sys.platform == "win32":
        return sys.maxsize
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return int(limit - psutil.Process().memory_info().vms)


def _container_rooms() -> list[int]:
    """What every enclosing control group leaves; pages of files are given back on demand."""
    rooms = []
    for folder, limit, used in _groups():
        try:
            most = (folder / limit).read_text().strip()
            if most != "max":
                taken = int((folder / used).read_text())
                rooms.append(int(most) - taken + _file_pages(folder))
        except (OSError, ValueError):
            continue
    return rooms


def _groups() -> list[tuple[Path, str, str]]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        names = ("memory.max", "memory.current")
        if kinds:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        root = CGROUP / kinds
        inside = root / path.lstrip("/")
        # Inside a container the path may be the host's, and only the root is there.
        places = [place for place in (inside, *inside.parents) if root in place.parents]
        found += [(place, *names) for place in (*places, root)]
    return found


def _file_pages(folder: Path) -> int:
    for line in (folder / "memory.stat").read_text().splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0
