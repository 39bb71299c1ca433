"""How far a command is, from its first second, and Ctrl-C between two steps."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from sanakit.cli.terminal import say
from sanakit.errors import Interrupted


class Progress(Protocol):
    """Told of what is done now, and of steps."""

    def stage(self, name: str) -> None:
        """Something new begins."""

    def step(self, done: int, total: int) -> None:
        """A step of it ended."""


class Silent:
    """Shows nothing."""

    def stage(self, name: str) -> None:
        """Something new begins."""

    def step(self, done: int, total: int) -> None:
        """A step of it ended."""


class Lines:
    """A line for each, for logs and pipes."""

    def __init__(self) -> None:
        self.name = ""

    def stage(self, name: str) -> None:
        """Something new begins."""
        self.name = name
        say(name, err=True)

    def step(self, done: int, total: int) -> None:
        """A step of it ended."""
        say(f"{self.name} {done}/{total}", err=True)


@contextmanager
def progress(*, shown: bool | None) -> Iterator[Progress]:
    """Show progress on standard error: a bar on a terminal, lines elsewhere.

    ``shown`` None shows it on a terminal only.
    """
    terminal = sys.stderr.isatty()
    if shown is False or (shown is None and not terminal):
        yield Silent()
    elif not terminal:
        yield Lines()
    else:
        with _bar() as bar:
            yield bar


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[steps]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("starting", total=None, steps="")

        class Bar:
            def stage(self, name: str) -> None:
                bars.update(task, description=name, steps="")

            def step(self, done: int, total: int) -> None:
                bars.update(task, completed=done, total=total, steps=f"{done}/{total}")

        yield Bar()


class StopFlag:
    """Makes Ctrl-C wait for the end of the step: raises `Interrupted` from :meth:`check`."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> StopFlag:
        self._previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:  # the second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.asked = True

    def check(self, done: int, total: int) -> None:
        """End the run if the user asked for it."""
        if self.asked:
            raise Interrupted(f"stopped after step {done} of {total}; nothing was written")
