"""Processes that take steps in turn, so that whatever else a machine does falls on all of them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any


class Served:
    """A process that takes a step for each line it is given, and answers with a line of JSON.

    It begins with a line that has ``before``, its memory in MB without what it measures.
    """

    def __init__(self, command: Sequence[str], *, threads: int) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            text=True,
        )
        self.before = float(self._read()["before"])

    def step(self) -> dict[str, float]:
        """One step: its ``loss``, seconds of ``wall`` and ``cpu``, and ``peak`` memory in MB."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise SystemExit(f"a process ended: {' '.join(map(str, self.process.args))}")


def taken_in_turn(servers: Mapping[str, Served], repeats: int) -> dict[str, dict[str, Any]]:
    """``repeats`` steps of each after a first one; speeds against the first named, step by step."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    for _ in range(repeats + 1):
        for name, server in servers.items():
            taken[name].append(server.step())
    base = next(iter(taken.values()))[1:]
    found = {}
    for name, server in servers.items():
        server.close()
        first, *steps = taken[name]  # the first makes an optimizer's state
        ratios = {
            clock: sorted(a[clock] / b[clock] for a, b in zip(base, steps, strict=True))
            for clock in ("wall", "cpu")
        }
        found[name] = {
            "loss": first["loss"],
            "seconds": median(step["wall"] for step in steps),
            "cpu_seconds": median(step["cpu"] for step in steps),
            "faster": median(ratios["wall"]),
            "faster_from_to": (ratios["wall"][0], ratios["wall"][-1]),
            "faster_cpu": median(ratios["cpu"]),
            "peak_mb": steps[-1]["peak"],
            "above_libraries_mb": steps[-1]["peak"] - server.before,
        }
    return found
