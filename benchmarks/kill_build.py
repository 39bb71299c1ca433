"""Kills `sanakit data build` at random moments: `python -m benchmarks.kill_build [--points 50]`.

Each time from nothing, with `kill -9`, at a moment spread over the time that an undisturbed run
takes; in turn with one process and with two, and in turn the main process alone or all of them.
Then the same command runs again, and every file has to equal, by SHA-256, that of the undisturbed
run. Bar: no difference, and nothing that claims to be whole and is not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from sanakit.files import sha256_of

SIDES = ((200, 200), (150, 300), (300, 150), (240, 320), (128, 128))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    try:
        pictures = work / "pictures"
        write_pictures(pictures, options.pictures)
        expected, seconds = {}, {}
        for workers in (1, 2):
            started = time.monotonic()
            subprocess.run(command(pictures, work / str(workers) / "set", workers), check=True)
            seconds[workers] = time.monotonic() - started
            expected[workers] = tree(work / str(workers) / "set")
        if expected[1] != expected[2]:
            print("one process and two give other files")
            return 1
        rng = random.Random(options.seed)
        reached: dict[str, int] = {}
        wrong = 0
        for point in range(options.points):
            workers, alone = 1 + point % 2, point // 2 % 2 == 0
            share = (point + rng.random()) / options.points
            folder = work / "killed" / "set"
            shutil.rmtree(folder.parent, ignore_errors=True)
            moment = share * seconds[workers]
            # A run that ended before its moment, as the machine was quicker now, does not count.
            while kill(command(pictures, folder, workers), moment, alone=alone):
                shutil.rmtree(folder.parent)
                moment *= rng.uniform(0.3, 0.9)
            stage = how_far(folder)
            reached[stage] = reached.get(stage, 0) + 1
            lies = untrue(folder)
            subprocess.run(command(pictures, folder, workers), check=True)
            same = tree(folder) == expected[1]
            wrong += bool(lies) or not same
            print(
                f"{point:3} at {moment:5.2f} s, {workers} process(es), "
                f"{'main alone' if alone else 'all killed'}, {stage:8} "
                f"{'equal' if same else 'OTHER FILES'} {' '.join(lies)}",
                flush=True,
            )
        print(json.dumps({"points": options.points, "wrong": wrong, "reached": reached}))
        return bool(wrong)
    finally:
        shutil.rmtree(work)


def command(pictures: Path, out: Path, workers: int) -> list[str]:
    return [
        *(sys.executable, "-m", "sanakit", "data", "build", str(pictures), "--out", str(out)),
        *("--resolution", "256", "--shard-samples", "6", "--workers", str(workers)),
    ]


def kill(arguments: list[str], seconds: float, *, alone: bool) -> bool:
    """Run a command for some seconds, then kill it; True if it had ended by itself."""
    with subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            process.wait(seconds)
            return True
        except subprocess.TimeoutExpired:
            send = os.kill if alone else os.killpg
            send(process.pid, signal.SIGKILL)
    return False


def how_far(folder: Path) -> str:
    for stage, sign in (
        ("report", "shards/index.json"),
        ("shards", "shards/plan"),
        ("scan", "set.json"),
    ):
        if (folder / sign).exists():
            return stage
    return "start"


def untrue(folder: Path) -> list[str]:
    """What is listed as whole and is not."""
    index = folder / "shards" / "index.json"
    if not index.exists():
        return []
    buckets = json.loads(index.read_text())["buckets"]
    return [
        shard["file"]
        for bucket in buckets
        for shard in bucket["shards"]
        if digest(index.parent / shard["file"]) != shard["sha256"]
    ]


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def digest(path: Path) -> str:
    return sha256_of(path) if path.exists() else ""


def write_pictures(folder: Path, number: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for each in range(number):
        height, width = SIDES[each % len(SIDES)]
        corners = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
        picture = corners.resize((width, height), Image.Resampling.BICUBIC)
        ending = ("jpg", "png", "webp")[each % 3]
        picture.save(folder / f"thing_{each:03}_of_colour.{ending}")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0broken")


if __name__ == "__main__":
    sys.exit(main())
