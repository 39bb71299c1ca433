"""Runs one command of a stage, tells it to save and end when time is up, and says how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from sanakit.train.loop import noted_signals

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds that a command has to save, after which it is killed."""


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
    """How a command ended: its exit code, whether it was told to, and what it said if asked."""

    code: int
    stopped: bool
    interrupted: bool = False
    said: str = ""


def execute(command: Command, *, until: float | None = None, listen: bool = False) -> Ended:
    """Run it; at ``until``, seconds of the monotonic clock, it gets SIGTERM and time to save.

    So it does when this process gets SIGINT or SIGTERM. ``listen`` keeps what it says to standard
    output instead of showing it.
    """
    environment = {**os.environ}
    paths = [str(ROOT / "src"), str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if command.ranks > 1:
        environment["OMP_NUM_THREADS"] = "1"
    stdout = subprocess.PIPE if listen else None
    with noted_signals() as caught:
        # A group of its own: Ctrl-C would otherwise reach the ranks and torchrun at once.
        process = subprocess.Popen(
            command.line, env=environment, stdout=stdout, text=True, start_new_session=True
        )
        stopped, said = False, ""
        while True:
            try:
                said = process.communicate(timeout=0.2)[0] or ""
                break
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            if not stopped and (caught or (until is not None and now >= until)):
                stopped, told = True, now
                _tell_to_end(process, command)
            elif stopped and now > told + PATIENCE:
                os.killpg(process.pid, signal.SIGKILL)
    return Ended(code=process.returncode, stopped=stopped, interrupted=bool(caught), said=said)


def _tell_to_end(process: subprocess.Popen[str], command: Command) -> None:
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
