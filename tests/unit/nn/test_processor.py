"""What a processor is and what of it a process may use, on machines made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from sanakit.nn import processor
from sanakit.nn.processor import Processor, cores_of, quota_of, units_of

ZEN_4 = {
    **dict.fromkeys(("avx2", "avx512_f", "avx512_vnni", "avx512_bf16"), True),
    **dict.fromkeys(("amx_int8", "amx_bf16", "avx512_fp16"), False),
    "cpu_name": "a name",
    "l2_cache_size": 1048576,
}


@pytest.mark.parametrize(
    ("limit", "units"),
    [
        ("", ("AVX2", "AVX-512", "VNNI", "AVX-512 bf16")),
        ("ALL", ("AVX2", "AVX-512", "VNNI", "AVX-512 bf16")),
        ("avx512_core_vnni", ("AVX2", "AVX-512", "VNNI")),
        ("AVX512_CORE", ("AVX2", "AVX-512", "VNNI")),
        ("AVX2", ("AVX2",)),
        ("SSE41", ()),
    ],
)
def test_units_are_those_that_the_library_may_use(limit: str, units: tuple[str, ...]) -> None:
    assert units_of(ZEN_4, limit) == units


def test_units_of_other_processors() -> None:
    assert units_of({"avx2": True, "avx_vnni": True}) == ("AVX2", "VNNI")
    sapphire = dict.fromkeys(("avx2", "avx512_f", "amx_int8", "amx_bf16"), True)
    assert units_of(sapphire) == ("AVX2", "AVX-512", "AMX int8", "AMX bf16")
    assert units_of({"neon": True, "sve": True, "architecture": "aarch64"}) == ("NEON", "SVE")
    assert units_of({}) == ()


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")


GROUPS = {
    "v2": {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "150000 100000"},
    "v2, around it": {
        "proc/self/cgroup": "0::/a/b",
        "sys/fs/cgroup/a/cpu.max": "150000 100000",
        "sys/fs/cgroup/a/b/cpu.max": "800000 100000",
    },
    "v2, in a container": {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"},
    "v1": {
        "proc/self/cgroup": "3:cpuset:/\n2:cpu,cpuacct:/a\n1:memory:/z",
        "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "150000",
        "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
    },
    "v1, the container's own is the root": {
        "proc/self/cgroup": "2:cpu:/docker/abc",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "75000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000",
    },
}
UNLIMITED = {
    "v2 without": {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "max 100000"},
    "v1 without": {
        "proc/self/cgroup": "2:cpu:/",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    },
    "another system": {},
    "a group of memory": {
        "proc/self/cgroup": "4:memory:/a",
        "sys/fs/cgroup/memory/a/cpu.max": "1 2",
    },
    "odd text": {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "much of it"},
}


@pytest.mark.parametrize("name", GROUPS)
def test_a_control_group_grants_one_and_a_half(name: str, tmp_path: Path) -> None:
    write(tmp_path, **GROUPS[name])
    assert quota_of(tmp_path) == 1.5


@pytest.mark.parametrize("name", UNLIMITED)
def test_no_limit_is_none(name: str, tmp_path: Path) -> None:
    write(tmp_path, **UNLIMITED[name])
    assert quota_of(tmp_path) is None


def test_siblings_are_one_core(tmp_path: Path) -> None:
    for number in range(4):
        path = f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
        write(tmp_path, **{path: f"{number % 2},{number % 2 + 2}"})
    assert cores_of(tmp_path, frozenset(range(4))) == 2
    assert cores_of(tmp_path, frozenset({0, 2})) == 1
    assert cores_of(tmp_path / "nowhere", frozenset(range(4))) == 4


@pytest.mark.parametrize(
    ("hardware", "quota", "threads"),
    [(64, None, 64), (64, 2.0, 2), (64, 1.5, 2), (2, 8.0, 2), (4, 0.2, 1), (1, None, 1)],
)
def test_no_more_threads_than_are_granted(hardware: int, quota: float | None, threads: int) -> None:
    one = Processor(
        name="",
        architecture="x86_64",
        units=(),
        hardware_threads=hardware,
        cores=hardware,
        quota=quota,
    )
    assert one.most_threads == threads


def test_this_one_is_known() -> None:
    one = processor.this_processor()
    assert one.name
    assert 1 <= one.cores <= one.hardware_threads == len(processor.usable())
