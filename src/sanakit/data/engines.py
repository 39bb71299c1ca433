"""What finishes the units of a stage: this process, several, or a Ray cluster; by name."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sanakit.data.units import Engine, LocalEngine, Mark, Stage, finish_unit, read_mark
from sanakit.errors import (
    ConfigError,
    DataError,
    SanakitError,
    did_you_mean,
)

ADDRESS = "RAY_ADDRESS"
# Before Ray is imported: no statistics are sent, its core says fatal things only, and workers have
# the priority of their command: at Ray's own, another busy process leaves them next to nothing.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Runs units in ``workers`` actors, each with a core, and a GPU where the stage wants one.

    With ``RAY_ADDRESS`` set, they run on that cluster; else Ray is started on this machine for the
    run, and stopped after it. A Ray that the caller started is used, and left running.
    """

    workers: int = 1

    def run(self, stage: Stage, units: Sequence[str]) -> Iterator[Mark]:
        """Finish the units; an error of one ends the run, and the finished ones stay.

        Raises:
            ConfigError: Ray is not installed, or has no GPU for a stage on one.
            DataError: the stage's folder is not shared with the machines of the cluster.
        """
        if not units:
            return
        with running_ray(self.workers) as ray:
            gpus = int(str(getattr(stage, "device", "cpu")).startswith("cuda"))
            found = ray.cluster_resources()
            if gpus > found.get("GPU", 0):
                raise ConfigError(
                    "the stage runs on a GPU, and Ray has none", hint="--device cpu runs it without"
                )
            most = int(found["GPU"] if gpus else found.get("CPU", 1))
            actor = ray.remote(num_cpus=1, num_gpus=gpus)(_Worker)
            held = ray.put(stage)
            size = max(1, min(self.workers, len(units), most))
            idle = [actor.remote(held) for _ in range(size)]
            busy: dict[Any, Any] = {}
            waiting = list(reversed(units))
            try:
                while waiting or busy:
                    while waiting and idle:
                        worker = idle.pop()
                        busy[worker.finish.remote(waiting.pop())] = worker
                    (done, *_), _ = ray.wait(list(busy))
                    idle.append(busy.pop(done))
                    yield _checked(stage, _result(ray, stage, done))
            finally:
                for worker in (*idle, *busy.values()):
                    ray.kill(worker)


@contextmanager
def running_ray(workers: int) -> Iterator[Any]:
    """Give the module ``ray``, started if it was not, and then stopped at the end."""
    ray = _imported()
    started = not ray.is_initialized()
    if started:
        address = os.environ.get(ADDRESS)
        local = {"num_cpus": workers, "include_dashboard": False}
        try:
            with _silenced(), _without_stderr():
                ray.init(
                    address=address or "local",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **({} if address else local),
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"Ray does not start ({str(error).strip().splitlines()[0]})",
                hint=f"{ADDRESS} is {address!r}" if address else "try --engine local",
            ) from error
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


class _Worker:
    """An actor: opens the stage once, then finishes units; our errors come back as values."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._opened = False

    def finish(self, unit: str) -> Mark | SanakitError:
        try:
            if not self._opened:
                self._stage.open()
                self._opened = True
            return finish_unit(self._stage, unit)
        except SanakitError as error:  # any other is a bug, and Ray shows it with its traceback
            return error


def _result(ray: Any, stage: Stage, done: Any) -> Mark:
    try:
        result: Mark | SanakitError = ray.get(done)
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
        raise DataError(
            f"{stage.folder}: a process that worked on it was killed",
            hint="if memory ran out, use fewer --workers; the same command goes on",
        ) from error
    if isinstance(result, SanakitError):
        raise result
    return result


def _checked(stage: Stage, mark: Mark) -> Mark:
    """Look for the unit where the driver is: elsewhere it would be lost, and done again forever."""
    here = read_mark(stage.folder, mark.unit)
    if here is None or here.made_from != mark.made_from:
        raise DataError(
            f"{stage.folder}: unit {mark.unit} was finished by a worker, and is not there",
            hint="on a cluster the set must be on storage that all machines share under one path",
        )
    return replace(here, fresh=True)


def _imported() -> Any:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        with _silenced():
            import ray  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "--engine ray needs Ray, which is not installed",
            hint='pip install "sanakit[ray]", or use --engine local',
        ) from error
    return ray


@contextmanager
def _without_stderr() -> Iterator[None]:
    """What Ray's core says while it starts goes past Python; what is wrong it raises as well."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _silenced() -> Iterator[None]:
    """Ray warns of its own options, which are nothing that a user could change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


ENGINES = ("local", "ray")


def engine_named(name: str, workers: int = 1) -> Engine:
    """The engine ``local`` or ``ray`` with a number of processes."""
    if name not in ENGINES:
        raise ConfigError(f"no engine {name!r}", hint=did_you_mean(name, ENGINES))
    if workers < 1:
        raise ConfigError(f"--workers {workers} must be at least 1")
    return RayEngine(workers=workers) if name == "ray" else LocalEngine(workers=workers)


@contextmanager
def running_engine(name: str, workers: int = 1) -> Iterator[Engine]:
    """The same for several stages in a row: Ray starts once."""
    engine = engine_named(name, workers)
    if isinstance(engine, RayEngine):
        with running_ray(workers):
            yield engine
    else:
        yield engine
