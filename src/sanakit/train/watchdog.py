"""Ends a job that hangs or has lost a rank: every stack is printed, the cause once.

A thread in each rank looks at two things: whether this rank still finishes steps, and whether some
rank has left a cause of the end. It needs no collective, which is what hangs then.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path

from sanakit.train.ranks import Ranks

EXIT_CODE = 70
"""Of a process that the watchdog ends."""
HANG = "the job hangs, "


class Watchdog:
    """Beat it after every step; leave it with :meth:`stop`."""

    def __init__(
        self, ranks: Ranks, run: Path, *, hang_minutes: float, look_seconds: float = 1.0
    ) -> None:
        self.ranks, self.run = ranks, run
        self.hang_seconds = 60 * hang_minutes
        self.look_seconds = look_seconds
        self.doing = "starting"
        self._beaten = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def beat(self, doing: str) -> None:
        """Say that this rank is alive, and what it does next."""
        self.doing, self._beaten = doing, time.monotonic()

    def stop(self) -> None:
        """End the watch."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def fail(self, error: BaseException) -> bool:
        """Leave an error of this rank as the cause for all; True if it is the first."""
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return self._blame(f"rank {self.ranks.rank}, {self.doing}: {text}")

    def _watch(self) -> None:
        while not self._stopped.wait(self.look_seconds):
            try:
                self.ranks.tell(self.doing)
                silent = time.monotonic() - self._beaten
                if silent > self.hang_seconds:
                    where = "; ".join(self.ranks.told())
                    cause = f"{HANG}no step for {silent:.0f} s: {where}"
                    if self._blame(cause):
                        print(f"error: {cause}", file=sys.stderr, flush=True)
                cause = self.ranks.blamed() or ""
            except (RuntimeError, OSError):
                cause = "the launcher or the first rank is gone"
                print(f"error: rank {self.ranks.rank}: {cause}", file=sys.stderr, flush=True)
            # A rank that failed by an error ends by itself; the others sit in a collective.
            if cause and not self._stopped.wait(self.look_seconds):
                if cause.startswith(HANG):
                    self._write_stacks()
                os._exit(EXIT_CODE)

    def _blame(self, cause: str) -> bool:
        try:
            return self.ranks.blame(cause)
        except (RuntimeError, OSError):  # the store is gone: so is the first rank or its launcher
            return True

    def _write_stacks(self) -> None:
        path = self.run / f"stacks-rank-{self.ranks.rank}.txt"
        try:
            with path.open("w", encoding="utf-8") as file:
                file.write(f"rank {self.ranks.rank}, {self.doing}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            text = f"rank {self.ranks.rank}: no stacks ({error})\n"
        print(text, file=sys.stderr, flush=True)
