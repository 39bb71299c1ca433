"""The way every stage of `sanakit data` runs: unit by unit, resumable, on any engine.

A unit is the smallest piece that is finished or not. Its files are written in a folder of their
own and renamed when they are whole and on disk; its mark, `UNIT.done.json`, is written last and
says what the unit was made from. A unit with a valid mark is never computed twice; what a killed
one leaves behind does not count and is cleared away by the next run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from sanakit.errors import ConfigError, DataError
from sanakit.files import disk_errors, sha256_of, write_atomically
from sanakit.untrusted import parse_json, read_file, shown, whole

Report: TypeAlias = Callable[[str], object]
MARK = ".done.json"
SET = "set.json"
"""The file that makes a folder a training set."""
_STAGING = ".unfinished-"


class Stage(Protocol):
    """One kind of work; pickled to other processes before :meth:`open`, so it holds settings only.

    A frozen dataclass with a cache outside its fields serves.
    """

    @property
    def folder(self) -> Path:
        """Where the files of the units go."""

    def made_from(self, unit: str) -> str:
        """Identify everything the result depends on: settings, models, the unit's input."""

    def open(self) -> None:
        """Load models and read indices: once in each process, before its first unit."""

    def process(self, unit: str, staging: Path) -> dict[str, Any]:
        """Write the unit's files into the empty folder ``staging``; returns statistics as JSON.

        The same unit must give the same bytes in any process, at any time.
        """


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What the mark of a finished unit says.

    ``files`` are sizes in bytes and SHA-256 by name; ``fresh`` is False for a unit that was found
    finished.
    """

    unit: str
    made_from: str
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    fresh: bool = True

    def count(self, name: str) -> int:
        """A number among the statistics.

        Raises:
            DataError: there is none, in a mark that no stage wrote so.
        """
        return self._whole(name, self.stats.get(name))

    def counts(self, name: str) -> dict[str, int]:
        """Numbers by name among the statistics; raises as :meth:`count`."""
        found = self.stats.get(name)
        if not isinstance(found, dict):
            raise self._other(name, found)
        return {key: self._whole(f"{name}.{shown(key)}", value) for key, value in found.items()}

    def _whole(self, name: str, value: object) -> int:
        try:
            return whole(value, name=name)
        except ConfigError as error:
            raise self._other(name, value) from error

    def _other(self, name: str, value: object) -> DataError:
        return DataError(
            f"{self.unit}{MARK}: {name}={shown(value)} is no count",
            hint="remove the file and run the same command again",
        )


class Engine(Protocol):
    """Runs units of a stage somewhere and gives their marks as they finish, in any order."""

    def run(self, stage: Stage, units: Sequence[str]) -> Iterator[Mark]:
        """Finish the units."""


def fingerprint(*values: Any) -> str:
    """The SHA-256 of JSON values, the same for equal values on every machine."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return sha256_of(text)


def read_mark(folder: Path, unit: str) -> Mark | None:
    """The mark of a unit; None if there is none, it is damaged, or a file it names is not whole.

    Sizes are compared, not hashes: a finished file is on disk before its mark is.
    """
    try:
        value = parse_json(read_file(folder / f"{unit}{MARK}"))
        files = {name: (int(size), str(digest)) for name, (size, digest) in value["files"].items()}
        mark = Mark(
            unit=value["unit"],
            made_from=value["made_from"],
            files=files,
            stats=dict(value["stats"]),
            fresh=False,
        )
        are_whole = all((folder / name).stat().st_size == size for name, (size, _) in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return mark if are_whole and mark.unit == unit else None


def finish_unit(stage: Stage, unit: str) -> Mark:
    """Compute one unit and put it in place: files first, their mark last."""
    folder = stage.folder
    # Never the folder of another process, which may be one that outlived the run that began it.
    staging = folder / f"{_STAGING}{unit}-{secrets.token_hex(4)}"
    try:
        (folder / f"{unit}{MARK}").unlink(missing_ok=True)
        staging.mkdir(parents=True)
        stats = stage.process(unit, staging)
        files = {}
        for path in sorted(staging.iterdir()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            files[path.name] = (path.stat().st_size, sha256_of(path))
        for name in files:
            os.replace(staging / name, folder / name)
        mark = Mark(unit=unit, made_from=stage.made_from(unit), files=files, stats=stats)
        text = json.dumps(
            {key: value for key, value in asdict(mark).items() if key != "fresh"},
            ensure_ascii=False,
        )
        write_atomically(folder / f"{unit}{MARK}", f"{text}\n".encode())
    except OSError as error:
        raise DataError(
            f"{folder}: unit {unit} cannot be written ({error.strerror or error})",
            hint="make room or name another folder, then run the same command again",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return mark


@dataclass(frozen=True, kw_only=True)
class LocalEngine:
    """Runs units in this process, or in ``workers`` processes of this machine."""

    workers: int = 1

    def run(self, stage: Stage, units: Sequence[str]) -> Iterator[Mark]:
        """Finish the units; an error of one ends the run, and the finished ones stay."""
        if not units:
            return  # and no model is loaded
        if self.workers <= 1 or len(units) <= 1:
            stage.open()
            yield from (finish_unit(stage, unit) for unit in units)
            return
        yield from self._spread(stage, units)

    def _spread(self, stage: Stage, units: Sequence[str]) -> Iterator[Mark]:
        """Finish the units in processes; whatever ends this ends them at once.

        Not a `multiprocessing.Pool`: that one waits for ever for a worker that was killed.
        """
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        pool = ProcessPoolExecutor(
            min(self.workers, len(units)), context, initializer=_begin_here, initargs=(stage, stop)
        )
        try:
            tasks = [pool.submit(_finish_here, unit) for unit in units]
            for task in as_completed(tasks):
                yield task.result()
        except BrokenProcessPool as error:
            raise DataError(
                f"{stage.folder}: a process that worked on it was killed",
                hint="if memory ran out, use fewer --workers; the same command goes on",
            ) from error
        except BaseException:
            stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def run_stage(
    stage: Stage,
    units: Sequence[str],
    *,
    engine: Engine,
    report: Report,
    watch: Callable[[Sequence[Mark]], object] = len,
) -> dict[str, Mark]:
    """Finish all units that have no valid mark; gives the marks of all, in order of ``units``.

    ``watch`` is given the marks of units that were finished before, then each new one; what it
    raises ends the run.
    """
    own_folder(stage.folder)
    marks: dict[str, Mark] = {}
    for unit in units:
        mark = read_mark(stage.folder, unit)
        if mark is not None and mark.made_from == stage.made_from(unit):
            marks[unit] = mark
    watch(list(marks.values()))
    missing = [unit for unit in units if unit not in marks]
    if marks:
        report(f"{stage.folder}: {len(marks)} of {len(units)} units were finished before")
    try:
        for mark in engine.run(stage, missing):
            marks[mark.unit] = mark
            watch([mark])
            report(f"{stage.folder}: {len(marks)} of {len(units)} units")
    finally:
        clear_leftovers(stage.folder)  # of processes that were stopped because another one failed
    return {unit: marks[unit] for unit in units}


def own_folder(folder: Path) -> None:
    """Make a folder of a set, or clear away what killed processes left in it.

    Raises:
        DataError: it, or what it lies in up to the set's own folder, is a link or a file: nothing
            is written or removed in places that somebody else's set leads to.
    """
    places = [folder, *folder.parents][:3]
    # The set's own folder may be a link: its user named it.
    own = max((at for at, place in enumerate(places) if at and (place / SET).is_file()), default=1)
    for place in places[:own]:
        if place.is_symlink():
            raise DataError(
                f"{place} is a link, and nothing is written through one",
                hint="make the set where the link leads to, or put a folder in its place",
            )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)


def clear_leftovers(folder: Path) -> None:
    """Remove what processes that were killed left half written in a folder."""
    for left in folder.glob(f"{_STAGING}*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in folder.glob(".*.tmp"):  # a mark that was being written
        left.unlink(missing_ok=True)


_begun: Stage | None = None
_opened = False


def _end_with(stop: Event) -> None:
    """Leave when told to, or when the main process is gone: a killed process sends no message."""
    parent = multiprocessing.parent_process()
    while not stop.wait(0.2):
        if parent is not None and not parent.is_alive():
            break
    os._exit(1)


def _begin_here(stage: Stage, stop: Event) -> None:
    global _begun  # a pool's initializer has no other way to leave something for its process
    # Ctrl-C reaches all processes of a terminal; the main one says so and stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(stop,), daemon=True).start()
    _begun = stage


def _finish_here(unit: str) -> Mark:
    global _opened
    assert _begun is not None
    if not _opened:  # not when the process begins: an error would not find its way back
        _begun.open()
        _opened = True
    return finish_unit(_begun, unit)
