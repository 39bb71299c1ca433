"""Runs one command of a stage, and has it save and end when this process is to end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from sanakit.train.loop import noted_signals

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A module with its arguments, by itself or on several ranks of one thread each."""

    module: str
    arguments: Sequence[str]
    ranks: int = 1

    @property
    def line(self) -> list[str]:
        """What is run."""
        together = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.ranks}"]
        start = together if self.ranks > 1 else []
        return [sys.executable, *start, "-m", self.module, *self.arguments]

    def __str__(self) -> str:
        start = f"torchrun --standalone --nproc-per-node {self.ranks} " if self.ranks > 1 else ""
        if self.module == "sanakit" and not start:
            return " ".join(["sanakit", *self.arguments])
        return " ".join([f"{start or 'python '}-m {self.module}", *self.arguments])


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended: its exit code, and whether it was told to end."""

    code: int
    interrupted: bool = False


def execute(command: Command) -> Ended:
    """Run it; when this process gets SIGINT or SIGTERM, the command gets SIGTERM and may save."""
    environment = {**os.environ}
    paths = [str(ROOT / "src"), str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if command.ranks > 1:
        environment["OMP_NUM_THREADS"] = "1"
    with noted_signals() as caught:
        # A group of its own: Ctrl-C would otherwise reach the ranks and torchrun at once.
        process = subprocess.Popen(command.line, env=environment, start_new_session=True)
        told = False
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
            if caught and not told:
                told = True
                _tell_to_end(process, command)
    return Ended(code=process.returncode, interrupted=bool(caught))


def _tell_to_end(process: subprocess.Popen[bytes], command: Command) -> None:
    """Send SIGTERM to the process; of several ranks to each, who then save and end in peace.

    torchrun itself, if told, would wait for thirty seconds only, and end with a traceback.
    """
    ranks = []
    if command.ranks > 1:
        with suppress(psutil.Error):
            ranks = psutil.Process(process.pid).children()
    for one in ranks or [process]:
        with suppress(psutil.Error):
            one.terminate()
