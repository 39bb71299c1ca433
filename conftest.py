"""Fixtures of all tests; checks shapes of the tensor layers at run time in every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# One thread a process, those that tests start included: as many workers as there are cores fill the
# machine, and sums are of the same order on every one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# No test reads or leaves files in the cache of the user who runs it.
os.environ["SANAKIT_CACHE"] = "off"

# Before any test imports them: a module that is loaded already stays unchecked.
install_import_hook(["sanakit.flow", "sanakit.nn"], "runtime_types.check")

# Every run tries the same examples, leaves no files and does not mind a busy machine.
settings.register_profile("sanakit", derandomize=True, database=None, deadline=None)
settings.load_profile("sanakit")


@pytest.fixture
def rng() -> torch.Generator:
    """A generator that starts every test alike."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model small enough for every test, in the published layout; it is only read."""
    from tiny import write_tiny  # noqa: PLC0415 - after the hook

    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(folder: Path) -> str:
    """The same as a command is told of it."""
    return str(folder)
