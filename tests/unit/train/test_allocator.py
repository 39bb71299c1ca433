"""Memory that is freed stays with the process that is told to keep it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sanakit.train.distributed import network

# In a process of its own: what is set here cannot be taken back.
FAULTS = """
import resource, sys
import torch
from sanakit.train.distributed.network import keep_freed_memory
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
    monkeypatch.setattr(network.sys, "platform", "darwin")
    monkeypatch.setattr(network.ctypes, "CDLL", None)
    assert not network.keep_freed_memory()
