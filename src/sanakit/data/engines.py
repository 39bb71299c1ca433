"""Engines by the name that a user types."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager

from sanakit.data.ray_engine import RayEngine, running_ray
from sanakit.data.stages import Engine, LocalEngine
from sanakit.errors import ConfigError

ENGINES = ("local", "ray")


def engine_named(name: str, workers: int = 1) -> Engine:
    """The engine ``local`` or ``ray`` with a number of processes.

    Raises:
        ConfigError: another name, or no worker.
    """
    if name not in ENGINES:
        near = difflib.get_close_matches(name, ENGINES, n=1)
        raise ConfigError(
            f"no engine {name!r}",
            hint=(f"did you mean {near[0]!r}? " if near else "") + f"one of {', '.join(ENGINES)}",
        )
    if workers < 1:
        raise ConfigError(f"--workers {workers} must be at least 1")
    return RayEngine(workers=workers) if name == "ray" else LocalEngine(workers=workers)


@contextmanager
def running_engine(name: str, workers: int = 1) -> Iterator[Engine]:
    """The same for several stages in a row: Ray starts once.

    Raises:
        ConfigError: as there, or Ray is not installed.
    """
    engine = engine_named(name, workers)
    if isinstance(engine, RayEngine):
        with running_ray(workers):
            yield engine
    else:
        yield engine
