"""Memory that is freed stays with the process that is told to keep it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from sanakit.nn import processor

# In a process of its own: what is set here cannot be taken back.
FAULTS = """
import resource, sys
import torch
from sanakit.nn.processor import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(12_000_000)
before = faults()
for _ in range(4):
    torch.ones(12_000_000)
print(faults() - before)
"""


def test_a_tensor_that_follows_another_takes_its_memory_and_no_new_pages() -> None:
    found = {}
    for way in ("keep", "return"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", FAULTS, way],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode == 3:
            pytest.skip("not glibc")
        found[way] = int(done.stdout)
    assert found["keep"] < 0.1 * found["return"], found


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor.sys, "platform", "darwin")
    monkeypatch.setattr(processor.ctypes, "CDLL", None)
    assert not processor.keep_freed_memory()


@pytest.mark.parametrize(
    ("told", "work", "threads"),
    [(None, 1e12, [2]), (None, 1e8, [1]), ("3", 1e12, []), ("3", 1e8, [])],
)
def test_a_process_takes_the_threads_that_it_is_granted(
    told: str | None, work: float, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[int] = []
    one = replace(processor.this_processor(), hardware_threads=8, quota=1.5)
    monkeypatch.setattr(processor, "this_processor", lambda: one)
    monkeypatch.setattr(processor, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(processor.torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(processor.torch, "set_num_threads", set_to.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    processor.tune_process(work)
    assert set_to == threads
