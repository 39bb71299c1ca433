"""Kills a training that saves at every step: `python -m benchmarks.kill_training [--points 200]`.

Half of the points lie before a change of the disk, evenly spread over all changes that a run makes
(files opened for writing, renamed, removed, synced; folders made and removed); the other half at
seeded random moments. Saves are written in turn in the foreground and in the background. Then the
run is resumed: it has to go on from the last save that was told to be finished, or a later one, to
the end, and every file of the last checkpoint has to equal that of an undisturbed run. Bar: no
point at which it does not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sanakit.train.checkpoint import CheckpointWriter, checkpoints, what_is_wrong
from sanakit.train.loop import train
from sanakit.train.recipe import Recipe
from sanakit.train.settings import LoopConfig
from sanakit.train.shares import Share, generator_of, normal_of
from sanakit.train.timers import Timers

KILLED = 137
STEPS = 4
BATCH = 4
CHANGING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}


class Halving(Recipe[Tensor]):
    """Two layers learn to halve their input."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4))

    def stream(self, share: Share) -> Iterator[Tensor]:
        """Give noise."""
        for span in share.spans():
            yield normal_of([generator_of(share.seed, number) for number in span], 4)

    def prepare(self, batch: Tensor, device: torch.device, timers: Timers) -> Tensor:
        """Leave it as it is."""
        return batch.to(device)

    def loss(self, batch: Tensor) -> dict[str, Tensor]:
        """Give the squared error."""
        return {"loss": (self.module(batch).float() - batch / 2).square().mean()}

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Measure nothing."""
        return {}


def settings(*, background: bool, steps: int) -> LoopConfig:
    return LoopConfig(
        batch_size=BATCH,
        total_images=BATCH * steps,
        peak_lr=1e-2,
        average_halflife=8,
        compute_dtype="float32",
        device="cpu",
        save_minutes=1e-9,
        async_save=background,
        evaluate_every=1000,
    )


@dataclass(frozen=True)
class Life:
    """What became of one process that trained."""

    code: int
    changes: int
    saved: int
    """Images in the newest checkpoint that the run was told to be finished; 0: none."""
    told: tuple[str, ...]
    seconds: float

    @property
    def resumed(self) -> int:
        """Images at which it went on; 0: at the beginning."""
        found = [re.match(r"resumed at (\d+)", line) for line in self.told]
        return max((int(match[1]) for match in found if match), default=0)


def live(
    run: Path,
    config: LoopConfig,
    *,
    resume: bool,
    die_at: int | None = None,
    die_after: float | None = None,
) -> Life:
    """Train in a forked process that dies before its change ``die_at``, or after some seconds."""
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        tell: Callable[..., object] = lambda *words: os.write(  # noqa: E731
            writing, (json.dumps(words) + "\n").encode()
        )
        code = 1
        try:
            changes = watch_changes(run, die_at)
            finish = CheckpointWriter.finish

            def finish_and_tell(writer: CheckpointWriter) -> tuple[Path | None, str]:
                final, fault = finish(writer)
                if final is not None:
                    tell("saved", writer.notes["images_seen"])
                return final, fault

            CheckpointWriter.finish = finish_and_tell  # type: ignore[method-assign]
            done = train(
                Halving(), config, run, resume=resume, report=lambda line: tell("told", line)
            )
            tell("changes", len(changes))
            code = 0 if done else 2
        except BaseException as error:
            tell("told", f"{type(error).__name__}: {error}")
        finally:
            os._exit(code)
    os.close(writing)
    if die_after is not None:
        time.sleep(die_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as file:
        words = [json.loads(line) for line in file if line.endswith("\n")]
    _, status = os.waitpid(child, 0)
    found: dict[str, list[Any]] = {"saved": [0], "changes": [0], "told": []}
    for kind, value in words:
        found[kind].append(value)
    return Life(
        code=os.waitstatus_to_exitcode(status),
        changes=found["changes"][-1],
        saved=found["saved"][-1],
        told=tuple(found["told"]),
        seconds=time.monotonic() - started,
    )


def watch_changes(run: Path, die_at: int | None) -> list[str]:
    """List from now on what this process changes under ``run``; die before a number of them."""
    changes: list[str] = []

    def change(what: str) -> None:
        if len(changes) == die_at:
            os._exit(KILLED)
        changes.append(what)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            if not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in CHANGING:
            return
        # Trees are removed relative to an open folder: a bare name may lie under the run.
        path = os.fspath(arguments[0]) if isinstance(arguments[0], str | os.PathLike) else ""
        if not os.path.isabs(path) or path.startswith(str(run)):
            change(event)

    sync = os.fsync

    def counted_sync(descriptor: int) -> None:
        change("os.fsync")
        sync(descriptor)

    sys.addaudithook(hook)
    os.fsync = counted_sync
    return changes


def last_of(run: Path) -> dict[str, Any]:
    """What the last checkpoint holds: the SHA-256 of the bits of each tensor."""
    last = checkpoints(run)[-1]
    # Files may hold the same tensors in another order.
    bits = {
        name: sha256(tensor.contiguous().flatten().view(torch.uint8).numpy()).hexdigest()
        for shard in sorted(last.glob("*.safetensors"))
        for name, tensor in load_file(shard).items()
    }
    return {"name": last.name, "fault": what_is_wrong(last), "bits": bits}


def judge(run: Path, killed: Life, config: LoopConfig, expected: dict[str, Any]) -> str:
    """Resume a killed run; what is wrong with how it goes on, or nothing."""
    again = live(run, config, resume=True)
    if again.code != 0:
        return f"resumed run ended with {again.code}: {again.told[-1:]}"
    if again.resumed < killed.saved:
        return f"saved at {killed.saved} images, resumed at {again.resumed}"
    if last_of(run) != expected:
        return "another last checkpoint"
    if left := [path.name for path in run.iterdir() if path.name.startswith(".checkpoint")]:
        return f"left behind: {left}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    # A forked process has no pool of threads, and would wait for that of its parent for ever.
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp())
    wrong, killed_in_time, saves = [], 0, set()
    try:
        # Imports what a run imports late, so that the forked ones need not.
        train(
            Halving(),
            settings(background=False, steps=1),
            work / "warm",
            resume=False,
            report=lambda line: None,
        )
        # A run of one step has no checkpoint before its first: nothing to fall back on.
        kinds = [(background, steps) for steps in (1, STEPS) for background in (False, True)]
        whole = {}
        for background, steps in kinds:
            run = work / f"whole-{background}-{steps}"
            life = live(run, settings(background=background, steps=steps), resume=False)
            assert life.code == 0, life
            whole[background, steps] = life, last_of(run)
        for point in range(options.points):
            background, steps = kinds[point // 2 % len(kinds)]
            config = settings(background=background, steps=steps)
            undisturbed, expected = whole[background, steps]
            share = (point + rng.random()) / options.points
            run = work / "run"
            shutil.rmtree(run, ignore_errors=True)
            if point % 2:
                moment = share * undisturbed.seconds
                life = live(run, config, resume=False, die_after=moment)
                place = f"{moment:.3f} s"
            else:
                at = int(share * undisturbed.changes)
                life = live(run, config, resume=False, die_at=at)
                place = f"change {at} of {undisturbed.changes}"
            killed_in_time += life.code in (KILLED, -signal.SIGKILL)
            saves.add(life.saved)
            if fault := judge(run, life, config, expected):
                wrong.append(
                    f"{steps} steps, {'back' if background else 'fore'}ground, {place}: {fault}"
                )
                print(wrong[-1], flush=True)
        changes = {f"{b}-{s}": life.changes for (b, s), (life, _) in whole.items()}
        print(
            json.dumps(
                {
                    "points": options.points,
                    "killed": killed_in_time,
                    "lost": len(wrong),
                    "last_saves": sorted(saves),
                    "changes": changes,
                }
            )
        )
        return bool(wrong)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main())
