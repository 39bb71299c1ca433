"""The call that runs: what ``pipe.guidance_scale`` and its like answer, to each thread its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from sanakit.pipeline.schedulers import Scheduler


@dataclass(kw_only=True, eq=False)
class Run:
    """One call while it runs, and what is told of it afterwards: small values, no states.

    A callback may set ``guidance_scale`` and ``interrupt``; the call reads them after each step.
    """

    guidance_scale: float = 1.0
    num_timesteps: int = 0
    scheduler: Scheduler | None = None
    """At the levels that it walks through; a pipeline shows it to callbacks."""
    attention_kwargs: dict[str, Any] | None = None
    pag_scale: float = 0.0
    pag_adaptive_scale: float = 0.0
    interrupt: bool = False
    of: Runs | None = field(default=None, repr=False)
    outer: Run | None = field(default=None, repr=False)
    """The one, of any pipeline, in whose callback this one began."""


_RUN: ContextVar[Run | None] = ContextVar("sanakit_run", default=None)


class Runs:
    """The runs of one pipeline. A copy of the pipeline begins with none."""

    def __init__(self) -> None:
        self._last = Run()
        self._at_work: list[Run] = []

    def __reduce__(self) -> tuple[Callable[[], Runs], tuple[()]]:
        return Runs, ()

    @property
    def here(self) -> Run:
        """The run of this thread, at work or its last; where it has none, the last of any."""
        run = self._of_this_thread()
        return self._last if run is None else run

    @property
    def at_work_here(self) -> Run | None:
        """The run of this thread, if it is at work."""
        run = self._of_this_thread()
        return run if run is not None and run in self._at_work else None

    def stop(self, stop: bool) -> None:
        """Tell the run at work in this thread to stop; from a thread without one, all at work."""
        here = self.at_work_here
        for run in list(self._at_work) if here is None else [here]:
            run.interrupt = stop

    def _of_this_thread(self) -> Run | None:
        run = _RUN.get()
        while run is not None and run.of is not self:
            run = run.outer
        return run

    @contextmanager
    def begin(self, run: Run) -> Iterator[Run]:
        """Count a run as at work, and as this thread's, within the block."""
        run.of, run.outer = self, _RUN.get()
        if run.outer is not None and run.outer.of is not None and not run.outer.of.holds(run.outer):
            run.outer = None  # it is over, and only told of
        _RUN.set(run)
        self._last = run
        self._at_work.append(run)
        try:
            yield run
        finally:
            self._at_work.remove(run)
            if run.outer is not None:
                _RUN.set(run.outer)

    def holds(self, run: Run) -> bool:
        """Whether a run is at work."""
        return run in self._at_work
