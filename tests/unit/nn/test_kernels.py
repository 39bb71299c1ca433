"""Triton kernels give what their twins give, compile without a GPU, and give way where told to."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kernel_cases
from sanakit.errors import ConfigError
from sanakit.nn import gpu

with_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is there on Linux")
BOUNDS = {"fp32": 1e-5, "bf16": 2**-7}
"""Of the largest value. A result of 16 bits is rounded once; the interpreter cuts it off."""


def run_cases(*arguments: str, cache: Path) -> Any:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, kernel_cases.__file__, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_cases(cache=tmp_path_factory.mktemp("triton"))


def check_errors(errors: dict[str, list[float]]) -> None:
    assert len(errors) == len(list(kernel_cases.cases("cpu")))
    for name, (of_kernel, of_twin) in errors.items():
        bound = BOUNDS[name.rpartition(" ")[2]]
        # Rounded between its steps, the twin is the coarser one in 16 bits.
        assert of_kernel <= max(bound, 2 * of_twin), (name, of_kernel, of_twin)


@with_triton
def test_kernels_give_what_their_twins_give(interpreted: Any) -> None:
    check_errors(interpreted["errors"])


@with_triton
def test_kernels_leave_to_their_twins_what_they_do_not_know(interpreted: Any) -> None:
    assert interpreted["unknown"] == []


@with_triton
def test_kernels_compile_to_machine_code_where_no_gpu_is(tmp_path: Path) -> None:
    sizes = run_cases("compile", cache=tmp_path)
    assert len(sizes) == 4
    assert all(size > 1000 for size in sizes.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_give_what_their_twins_give_on_a_gpu() -> None:
    check_errors(kernel_cases.errors("cuda"))


@gpu.with_kernel
def doubled(x: Tensor) -> Tensor:
    return 2 * x


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Kernels of a test, as if every tensor were on a GPU."""
    stand_in = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "sanakit.nn.kernels", stand_in)
    monkeypatch.setattr(gpu, "on_gpu", lambda x: True)
    monkeypatch.setattr(gpu, "available", lambda: True)
    monkeypatch.setattr(gpu, "failed", set())
    return stand_in


def test_a_kernel_runs_in_the_place_of_its_twin(kernels: SimpleNamespace) -> None:
    kernels.doubled = lambda x: x + 100
    assert doubled(torch.ones(1)) == 101
    kernels.doubled = lambda x: None
    assert doubled(torch.ones(1)) == 2


def test_a_kernel_that_fails_is_told_of_once_and_not_tried_again(
    kernels: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def broken(x: Tensor) -> Tensor:
        calls.append(x)
        raise RuntimeError("no such instruction")

    kernels.doubled = broken
    with caplog.at_level(logging.WARNING):
        assert [float(doubled(torch.ones(1))) for _ in range(3)] == [2, 2, 2]
    assert len(calls) == 1
    assert [each.message for each in caplog.records] == [
        "kernel doubled failed, and is not tried again: no such instruction"
    ]


def test_memory_that_is_short_is_no_fault_of_a_kernel(kernels: SimpleNamespace) -> None:
    def starved(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    kernels.doubled = starved
    with pytest.raises(torch.OutOfMemoryError):
        doubled(torch.ones(1))
    assert not gpu.failed


def test_where_gradients_are_recorded_the_twin_runs(
    kernels: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels.doubled = lambda x: x + 100
    x = torch.ones(1, requires_grad=True)
    assert doubled(x) == 2
    with torch.no_grad():
        assert doubled(x) == 101
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    with torch.no_grad():
        assert doubled(x) == 2


def test_weights_of_a_layer_that_learn_count_as_recorded(kernels: SimpleNamespace) -> None:
    layer = nn.Linear(1, 1)
    assert not gpu._is_for_kernels((torch.ones(1), layer))
    assert gpu._is_for_kernels((torch.ones(1), layer.requires_grad_(False)))


def test_tensors_that_are_not_plain_ones_go_to_the_twin(kernels: SimpleNamespace) -> None:
    class Packed(Tensor):
        pass

    kernels.doubled = lambda x: x + 100
    assert doubled(torch.ones(1).as_subclass(Packed)) == 2


def test_without_a_gpu_no_kernel_is_asked_for() -> None:
    assert doubled(torch.ones(1)) == 2
    assert "sanakit.nn.kernels" not in sys.modules


def test_the_switch_is_zero_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "find_spec", lambda name: object())
    for value, there in (("0", False), ("1", True)):
        gpu.available.cache_clear()
        monkeypatch.setenv(gpu.SWITCH, value)
        assert gpu.available() is there
    gpu.available.cache_clear()
    monkeypatch.setenv(gpu.SWITCH, "off")
    with pytest.raises(ConfigError, match="neither 0 nor 1"):
        gpu.available()
    gpu.available.cache_clear()
