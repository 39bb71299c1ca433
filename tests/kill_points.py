"""Ends a build at every point at which it touches the disk, as `kill -9` does, and ends it anew.

Run as a process of its own: `python kill_points.py PICTURES WORK [STEP]`. It forks for every
point, or every STEP-th, and prints one line of JSON: how many points there were, and what went
wrong at which.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sanakit.data.build import build_shards
from sanakit.data.report.page import write_report
from sanakit.data.scan import scan_source
from sanakit.data.shard_plan import BuildSettings
from sanakit.data.shards import read_index
from sanakit.data.sources.opening import open_source
from sanakit.data.stages import MARK, LocalEngine
from sanakit.data.training_set import TrainingSet

KILLED = 9
CHANGING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}


def make(pictures: Path, folder: Path, resolution: int) -> None:
    """The whole way of `sanakit data build PICTURES --out FOLDER`."""
    engine = LocalEngine()
    source = open_source(pictures)
    scan_source(source, folder, engine, given=pictures, report=lambda line: None)
    training_set = TrainingSet.open(folder)
    settings = BuildSettings(resolution=resolution, shard_samples=3)
    build_shards(training_set, settings, engine=engine, report=lambda line: None)
    write_report(training_set)


def tree(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def forked(work: Callable[[], object], die_at: int | None = None) -> tuple[int, int]:
    """Do something in a process that dies before its change number ``die_at`` of the disk.

    Gives its exit code and how many changes it made.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        changes = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal changes
            if event == "open":
                flags = arguments[2] if isinstance(arguments[2], int) else 0
                if not flags & (os.O_WRONLY | os.O_RDWR):
                    return
            elif event not in CHANGING:
                return
            if changes == die_at:
                os._exit(KILLED)
            changes += 1

        code = 1
        try:
            sys.addaudithook(hook)
            work()
            code = 0
        finally:
            os.write(writing, str(changes).encode())
            os._exit(code)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as file:
        count = int(file.read() or -1)
    return os.waitstatus_to_exitcode(status), count


def lies(folder: Path) -> list[str]:
    """What a folder claims to be whole and is not."""
    found = []
    for mark in folder.glob(f"*/*{MARK}"):
        for name, (_, digest) in json.loads(mark.read_text())["files"].items():
            path = mark.parent / name
            if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                found.append(f"{mark.name} vouches for {name}")
    shards = folder / "shards"
    index = read_index(shards)
    for shard in index.shards if index else ():
        path = shards / shard.file
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != shard.sha256:
            found.append(f"the index lists {shard.file}")
    return found


def main() -> int:
    """Kill, look, run again, compare: from nothing, and from a set built with other settings."""
    pictures, work = Path(sys.argv[1]), Path(sys.argv[2])
    step = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    result: dict[str, Any] = {"points": {}, "wrong": []}
    make(pictures, work / "before" / "set", 64)
    make(pictures, work / "expected" / "set", 96)
    expected = tree(work / "expected" / "set")
    for start in ("nothing", "other settings"):
        point = 0
        while True:
            folder = work / "run" / "set"
            shutil.rmtree(work / "run", ignore_errors=True)
            (work / "run").mkdir()
            if start != "nothing":
                shutil.copytree(work / "before" / "set", folder)
            code, changes = forked(lambda at=folder: make(pictures, at, 96), point)
            if code == 0 and changes <= point:
                break
            if code != KILLED:
                result["wrong"].append(f"{start}, {point}: exit code {code}")
                break
            result["wrong"] += [f"{start}, {point}: {lie}" for lie in lies(folder)]
            code, _ = forked(lambda at=folder: make(pictures, at, 96))
            if code != 0 or tree(folder) != expected:
                now = tree(folder)
                names = sorted(
                    name for name in {*now, *expected} if now.get(name) != expected.get(name)
                )
                result["wrong"].append(f"{start}, {point}: exit code {code}, other files {names}")
            point += step
        result["points"][start] = point
    print(json.dumps(result))
    return bool(result["wrong"])


if __name__ == "__main__":
    sys.exit(main())
