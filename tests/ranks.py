"""Starts the processes of one training as `torchrun` would, from a script of the test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a rank ended."""

    code: int
    out: str
    err: str


def run_ranks(script: Path, count: int, *arguments: str, timeout: float = 240) -> list[Ended]:
    """Run ``count`` ranks of a script to their end, each with one thread."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plain = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    plain |= {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    running = []
    for rank in range(count):
        shared = (
            {}
            if count == 1
            else {
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            }
        )
        running.append(
            subprocess.Popen(
                [sys.executable, str(script), *arguments],
                env={**plain, **shared},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ended = []
    try:
        for process in running:
            out, err = process.communicate(timeout=timeout)
            ended.append(Ended(process.returncode, out, err))
    finally:
        for process in running:
            process.kill()
    return ended
