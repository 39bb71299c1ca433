"""Processes that take steps in turn, so that whatever else a machine does falls on all of them."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from sanakit.errors import ConfigError

Steps = Mapping[str, Sequence[Mapping[str, Any]]]


class Served:
    """A process that takes a step for each line it is given, and answers with a line of JSON.

    It begins with a line that has ``before``, its memory in MB without what it measures; each step
    has seconds of ``wall`` and ``cpu`` and ``peak`` memory in MB.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        threads: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it, with so many threads where that is said."""
        counted = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        started = time.perf_counter()
        # A pipe that nobody reads would fill up.
        self.command = " ".join(command)
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env={**os.environ, **counted, **(environment or {})},
            text=True,
        )
        self.first = self._read()
        self.before = float(self.first["before"])
        self.ready = time.perf_counter() - started
        """Seconds until it could take its first step."""

    def step(self) -> dict[str, Any]:
        """Take one step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.said.close()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        code = self.process.wait()
        self.said.seek(0)
        last = self.said.read().strip().rpartition("\n")[2]
        raise ConfigError(
            f"a process that is measured ended with {code}: {last or 'it said nothing'}",
            hint=f"it was: {self.command}",
        )


def steps_in_turn(servers: Mapping[str, Served], rounds: int) -> Steps:
    """Take ``rounds`` steps of each after a first one, in turn; all processes have ended then."""
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    try:
        for _ in range(rounds + 1):
            for name, server in servers.items():
                taken[name].append(server.step())
    finally:
        for server in servers.values():
            server.close()
    return taken


def compared(taken: Steps) -> dict[str, dict[str, Any]]:
    """Say of each its median seconds, and how much faster it is than the first, round by round."""
    base = next(iter(taken.values()))[1:]
    found = {}
    for name, (_, *steps) in taken.items():
        ratios = {
            clock: sorted(a[clock] / b[clock] for a, b in zip(base, steps, strict=True))
            for clock in ("wall", "cpu")
        }
        found[name] = {
            "seconds": median(step["wall"] for step in steps),
            "least_seconds": min(step["wall"] for step in steps),
            "cpu_seconds": median(step["cpu"] for step in steps),
            "faster": median(ratios["wall"]),
            "faster_from_to": (ratios["wall"][0], ratios["wall"][-1]),
            "faster_cpu": median(ratios["cpu"]),
            "peak_mb": steps[-1]["peak"],
        }
    return found
