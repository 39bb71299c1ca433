"""What a figure is worth nothing without: processor, versions, commit; and lines of JSON of it."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanakit.nn.processor import this_processor

PACKAGES = ("sanakit", "torch", "transformers", "numpy")
HERE = Path(__file__).resolve().parent
SIDE = 1024
"""Of the square matrices whose product a rate is measured with."""
Summary = dict[str, dict[str, float]]


def facts(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Say when, of which commit, with which versions and on what a benchmark runs."""
    processor = this_processor()
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(packages),
        "processor": processor.name,
        "units": processor.units,
        "cores": processor.cores,
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def commit() -> str | None:
    """The commit of the source, with ``+`` if the tree differs from it; None outside git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not another's repository
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Python and the packages that decide the speed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def summarise(runs: Sequence[Mapping[str, float]]) -> Summary:
    """Lowest, middle and highest value of every key, in the order of the first run."""
    return {
        key: {
            "min": round(min(run[key] for run in runs), 4),
            "median": round(statistics.median(run[key] for run in runs), 4),
            "max": round(max(run[key] for run in runs), 4),
        }
        for key in runs[0]
    }


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to a file of JSON lines, whole or not at all."""
    line = (json.dumps(record) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write(line)


def product_rate(kind: str, *, seconds: float = 0.4) -> float | None:
    """Measure operations a second of square products; None where torch has none of that kind.

    Args:
        kind: ``float32``, ``bfloat16`` or ``int8``, summed in int32.
        seconds: about how long to measure; the quickest product counts.
    """
    a, b = _operands(kind)
    product = torch._int_mm if kind == "int8" else torch.mm
    took: list[float] = []
    until = time.perf_counter() + seconds
    try:
        while len(took) < 2 or time.perf_counter() < until:
            started = time.perf_counter()
            product(a, b)
            took.append(time.perf_counter() - started)
    except RuntimeError:
        return None
    return 2 * SIDE**3 / min(took)


def _operands(kind: str) -> tuple[Tensor, Tensor]:
    if kind == "int8":
        return tuple(torch.randint(-99, 99, (SIDE, SIDE)).to(torch.int8) for _ in range(2))  # type: ignore[return-value]
    dtype = getattr(torch, kind)
    return torch.randn(SIDE, SIDE).to(dtype), torch.randn(SIDE, SIDE).to(dtype)
