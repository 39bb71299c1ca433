"""Worker processes of the loader: they end when they should, and nobody waits for a dead one."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from sanakit.data.loader.loader import Loader
from sanakit.errors import DataError
from tiny_shards import write_shards

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
SECONDS = 60


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", {(32, 32): [8, 8]})


def workers_of(loader: Loader) -> list[psutil.Process]:
    """The worker processes that have begun to read."""
    return [psutil.Process(row[0]) for row in loader._reader.doing.tolist() if row[0]]


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=SECONDS)[1]


def children() -> set[int]:
    """Processes of ours, but for the fork server and the tracker of shared memory."""
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if child.parent() is not None and child.parent().pid != os.getpid()
    }


@pytest.mark.parametrize("way", ["closed", "left by an error", "iterated anew", "dropped"])
def test_workers_end_with_their_iteration(shards: Path, way: str) -> None:
    before = children()
    loader = Loader(shards, batch_size=4, workers=2)
    batches = iter(loader)
    next(batches)
    processes = [psutil.Process(pid) for pid in children() - before]
    assert len(processes) == 2
    if way == "closed":
        loader.close()
    elif way == "left by an error":
        with pytest.raises(ZeroDivisionError), loader:
            raise ZeroDivisionError
    elif way == "iterated anew":
        iter(loader)
    else:
        del batches
        gc.collect()
    assert gone(processes)


def test_a_worker_that_dies_is_an_error_that_names_its_shard(shards: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    loader = Loader(f"file://{shards}", batch_size=4, workers=1, cache=cache)
    shard = loader._order.contents.buckets[0].shards[0]
    cache.mkdir()
    with FileLock(cache / f".{shard.sha256}.lock"):  # so that it waits in the middle of a batch
        begun = time.monotonic()
        batches = iter(loader)

        def kill() -> None:
            while not workers_of(loader) and time.monotonic() < begun + SECONDS:
                time.sleep(0.02)
            time.sleep(0.3)
            workers_of(loader)[0].kill()

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(DataError, match=r"sample \d of 32x32-00000\.tar \(batch \d\)"):
            list(islice(batches, 8))
        thread.join()
    assert time.monotonic() < begun + SECONDS


SCRIPT = """
import sys
from sanakit.data.loader.loader import Loader

if __name__ == "__main__":
    for batch in Loader(sys.argv[1], batch_size=4, workers=2):
        print(batch.number, flush=True)
"""


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_a_stopped_program(
    shards: Path, tmp_path: Path, signal_: signal.Signals
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    program = subprocess.Popen(
        [sys.executable, str(script), str(shards)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert program.stdout is not None
        for _ in range(3):
            program.stdout.readline()
        family = psutil.Process(program.pid).children(recursive=True)
        assert len(family) >= 3  # two workers and the server that they are copies of
        if signal_ is signal.SIGINT:
            os.killpg(program.pid, signal_)  # as a terminal does for Ctrl-C
        else:
            program.kill()
        program.communicate(timeout=SECONDS)
        assert gone(family)
    finally:
        program.kill()
        program.communicate()
