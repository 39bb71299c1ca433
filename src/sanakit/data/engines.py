"""Engines by the name that a user types."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from sanakit.data.units import Engine, LocalEngine, Mark, Stage, finish_unit, read_mark
from sanakit.errors import (
    ConfigError,
    DataError,
    MissingModelError,
    SanakitError,
    WeightsError,
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
        with running_ray(self.workers) as ray, _quiet(ray):
            done = iter(self._done(ray, stage, units))
            try:
                while True:
                    with _silenced():
                        batch = next(done, None)
                    if batch is None:
                        return
                    if batch["error"][0]:
                        raise _error_from(json.loads(batch["error"][0]))
                    yield _checked(stage, Mark(**json.loads(batch["mark"][0])))
            finally:
                with _silenced():
                    done.close()  # or the other units go on after an error, and outlive Ray

    def _done(self, ray: Any, stage: Stage, units: Sequence[str]) -> Any:
        gpus = int(str(getattr(stage, "device", "cpu")).startswith("cuda"))
        found = ray.cluster_resources()
        if gpus > found.get("GPU", 0):
            raise ConfigError(
                "the stage runs on a GPU, and Ray has none", hint="--device cpu runs it without"
            )
        most = int(found["GPU"] if gpus else found.get("CPU", 1))
        with _silenced():
            data = ray.data.from_items(list(units), override_num_blocks=len(units))
            return data.map_batches(
                _Worker,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(
                    size=max(1, min(self.workers, len(units), most))
                ),
                num_cpus=1,
                num_gpus=gpus,
                fn_constructor_args=(ray.put(stage),),
            ).iter_batches(batch_size=1, prefetch_batches=0)


@contextmanager
def running_ray(workers: int) -> Iterator[Any]:
    """Give the module ``ray``, started if it was not, and then stopped at the end.

    Raises:
        ConfigError: Ray is not installed, or the cluster of ``RAY_ADDRESS`` does not answer.
    """
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
    """An actor: opens the stage once, then finishes units; errors come back as values."""

    def __init__(self, stage: Any) -> None:
        self._reference = stage  # Ray looks actors up by their arguments: a reference has a hash
        self._stage: Stage | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        try:
            if self._stage is None:
                stage: Stage = _imported().get(self._reference)
                stage.open()
                self._stage = stage
            mark = finish_unit(self._stage, str(batch["item"][0]))
        except SanakitError as error:  # any other is a bug, and Ray shows it with its traceback
            said = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
            return {"mark": [""], "error": [json.dumps(said)]}
        return {"mark": [json.dumps(asdict(mark))], "error": [""]}


def _error_from(said: dict[str, Any]) -> SanakitError:
    """The error that a worker met, of the same kind."""
    kinds = {one.__name__: one for one in (ConfigError, DataError, MissingModelError, WeightsError)}
    return kinds.get(said["kind"], SanakitError)(said["message"], hint=said["hint"])


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
            import ray.data  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "--engine ray needs Ray, which is not installed",
            hint='pip install "sanakit[ray]", or use --engine local',
        ) from error
    return ray


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _silenced():
        context = ray.data.DataContext.get_current()
    shown, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield
    finally:
        context.enable_progress_bars = shown


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
    """The engine ``local`` or ``ray`` with a number of processes.

    Raises:
        ConfigError: another name, or no worker.
    """
    if name not in ENGINES:
        raise ConfigError(f"no engine {name!r}", hint=did_you_mean(name, ENGINES))
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
