"""What this processor computes fast, how much of it this process may use, and what follows."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

HALF = (torch.float16, torch.bfloat16)
SHARED_FROM = 1e9
"""Operations of a block from which on several threads are faster than one: of fewer, what a thread
saves is lost in waiting for the others. The embedded model at 512 px has 0.5e9, at 1024 px 2e9."""
ROOT = Path("/")
UNITS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "AVX2": (("avx2",), "AVX2"),
    "AVX-512": (("avx512_f",), "AVX512_CORE"),
    "VNNI": (("avx512_vnni", "avx_vnni"), "AVX2_VNNI"),
    "AVX-512 bf16": (("avx512_bf16",), "AVX512_CORE_BF16"),
    "AVX-512 fp16": (("avx512_fp16",), "AVX512_CORE_FP16"),
    "AMX int8": (("amx_int8",), "AVX512_CORE_AMX"),
    "AMX bf16": (("amx_bf16",), "AVX512_CORE_AMX"),
    "AMX fp16": (("amx_fp16",), "AVX512_CORE_AMX_FP16"),
    "AVX10": (("avx10_1", "avx10_2"), "AVX512_CORE_FP16"),
    "NEON": (("neon",), ""),
    "SVE": (("sve",), ""),
    "Arm bf16": (("bf16", "arm_bf16"), ""),
    "Arm int8": (("i8mm", "arm_i8mm"), ""),
}
"""Units of a processor: what torch calls them, and the first limit of oneDNN that lets them be."""
# Names of glibc's <malloc.h>.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_NEVER = 2**31 - 1
KEPT = (32 << 20) - (1 << 16)
"""Bytes of a block that glibc just not asks the system for once and for all."""
ISA_LIMIT = "ONEDNN_MAX_CPU_ISA"
LIMITS = (
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"),
    *("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX512_CORE_AMX_FP16"),
)
"""Values of that limit in rising order; its other values let everything be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Processor:
    """What a processor is, and what of it a process may use."""

    name: str
    architecture: str
    units: tuple[str, ...]
    """Those of `UNITS` that it has and its library may use."""
    hardware_threads: int
    """Those that the process may run on."""
    cores: int
    """Real ones among them."""
    quota: float | None
    """Processors' worth of time that its control group grants it; None: all."""

    @property
    def most_threads(self) -> int:
        """How many threads can run at a time: more would be made to wait, each for all others."""
        granted = self.hardware_threads if self.quota is None else math.ceil(self.quota)
        return max(1, min(self.hardware_threads, granted))


@cache
def this_processor() -> Processor:
    """Learn about this processor, once."""
    known = torch.cpu.get_capabilities()
    return Processor(
        name=str(known.get("cpu_name", "unknown")),
        architecture=platform.machine(),
        units=units_of(known, os.environ.get(ISA_LIMIT, "")),
        hardware_threads=len(usable()),
        cores=cores_of(ROOT, usable()),
        quota=quota_of(ROOT),
    )


def units_of(known: Mapping[str, Any], limit: str = "") -> tuple[str, ...]:
    """Name the units among torch's capabilities that a limit of oneDNN lets be used."""
    limit = limit.upper()
    allowed = LIMITS[: LIMITS.index(limit) + 1] if limit in LIMITS else (*LIMITS, "")
    return tuple(
        unit
        for unit, (names, first) in UNITS.items()
        if any(known.get(name) is True for name in names) and first in (*allowed, "")
    )


@cache
def has_units(dtype: torch.dtype) -> bool:
    """Whether this processor has units for products of ``dtype``, and its library may use them.

    Without them 16-bit products are emulated: 3x3 convolutions take twenty to a hundred times as
    long as in fp32, matrix products five times. fp16 has them on few processors.
    """
    if dtype not in HALF:
        return True
    kind = {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    # What the library answers heeds its limit, but calls emulation on AVX-512 support.
    library = getattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported", None)
    if library is None or not library():
        return False
    known = torch.cpu.get_capabilities()
    if known.get("architecture") != "x86_64":
        return True
    return any(known.get(f"{family}_{kind}") for family in ("avx512", "amx", "avx10"))


def usable() -> frozenset[int]:
    """Numbers of the hardware threads that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def cores_of(root: Path, threads: frozenset[int]) -> int:
    """Count the real cores of some hardware threads; where that is unknown, each is one."""
    topology = root / "sys/devices/system/cpu"
    siblings = (
        _text(topology / f"cpu{number}/topology/thread_siblings_list") or str(number)
        for number in threads
    )
    return len({*siblings})


def quota_of(root: Path) -> float | None:
    """Processors' worth of time that control groups, v1 or v2, grant this process; None: all.

    The narrowest of a group and those around it. In a container its own group is the root.
    """
    granted = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = ("cpu", "cpu,cpuacct") if controllers else ("", "unified")
        inside = [*Path(path.lstrip("/")).parents, Path(path.lstrip("/"))]
        for group in (root / "sys/fs/cgroup" / mount / one for mount in mounts for one in inside):
            limits = _text(group / "cpu.max").split() or [
                _text(group / "cpu.cfs_quota_us"),
                _text(group / "cpu.cfs_period_us"),
            ]
            if len(limits) == 2 and all(each.isdecimal() for each in limits):
                granted.append(int(limits[0]) / int(limits[1]))
    return min(granted, default=None)


def _text(path: Path) -> str:
    """Of a small file of the system; nothing where it is absent or not to be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def tune_process(work: float = math.inf) -> None:
    """Have a process that nobody else shares compute as fast as this processor allows.

    It takes no more threads than it is granted processors, and one where that is as fast, unless it
    was told how many; and it keeps the memory that it frees.

    Args:
        work: operations of a block of the network that is to run.
    """
    threads = this_processor().most_threads if work >= SHARED_FROM else 1
    if "OMP_NUM_THREADS" not in os.environ and threads < torch.get_num_threads():
        torch.set_num_threads(threads)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Have this process reuse freed memory rather than return it; whether that could be set.

    By default glibc maps each large tensor anew, and the system fills its pages with zeros before
    the first write: for tensors of tens of megabytes, two thirds of the time of an activation
    function. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(option, value) == 1 for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER))
    )


@cache
def keep_freed_blocks() -> None:
    """Have the C library keep blocks up to 32 MB that are freed, as glibc does from itself.

    It adapts to the largest block freed so far, up to that size. A network's blocks are of a few
    sizes, and memory that is given back after each layer is filled with zeros for the next.
    """
    torch.empty(KEPT, dtype=torch.uint8)


def _compute_alone() -> None:
    """Have a forked process compute with its one thread.

    Those of its parent are not there, and GNU OpenMP would wait for them forever.
    """
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_compute_alone)
