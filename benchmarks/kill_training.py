"""Kills a training that saves at every step: `python -m benchmarks.kill_training [--points 200]`.

Half of the points lie before a change of the disk, evenly spread over all changes that a run makes
(files opened for writing, renamed, removed, synced; folders made and removed); the other half at
seeded random moments. Saves are written in turn in the foreground and in the background. Then the
run is resumed: it has to go on from the last save that was told to be finished, or a later one, to
the end, and every tensor of the last checkpoint has to equal that of an undisturbed run. Bar: no
point at which it does not.

With ``--ranks 2`` one of two ranks is killed; the other has to end by itself. Weights are copied or
sharded in turn, and the run goes on with two ranks, to the same bits, or with one, to the same
weights but for the order of sums.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sanakit.train.checkpoint import CheckpointWriter, checkpoints, read_tensors, what_is_wrong
from sanakit.train.config import LoopConfig, Strategy
from sanakit.train.distributed.ranks import join_ranks
from sanakit.train.loop import train
from sanakit.train.recipe import Recipe, Timers
from sanakit.train.sample_schedule import SampleSchedule, generator_of, normal_of

KILLED = 137
STEPS = 4
BATCH = 4
PATIENCE = 120.0
"""Seconds in which the ranks that were not killed have to end."""
ORDER = 1e-5
"""How far sums may be apart that were taken in another order, over four steps of AdamW."""
CHANGING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}


class Halving(Recipe[Tensor]):
    """Two layers learn to halve their input."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4))

    def stream(self, schedule: SampleSchedule) -> Iterator[Tensor]:
        """Give noise."""
        for span in schedule.spans():
            yield normal_of([generator_of(schedule.seed, number) for number in span], 4)

    def prepare(self, batch: Tensor, device: torch.device, timers: Timers) -> Tensor:
        """Leave it as it is."""
        return batch.to(device)

    def loss(self, batch: Tensor) -> dict[str, Tensor]:
        """Give the squared error."""
        return {"loss": (self.module(batch).float() - batch / 2).square().mean()}

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Measure nothing."""
        return {}

    def blocks(self) -> Iterator[nn.Module]:
        """The first layer."""
        yield self.module[0]


def settings(*, background: bool, steps: int, strategy: Strategy = "ddp") -> LoopConfig:
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
        strategy=strategy,
        hang_minutes=0.5,
    )


@dataclass(frozen=True)
class Life:
    """What became of the processes of one training."""

    codes: tuple[int | None, ...]
    """How each rank ended; None: it did not, within `PATIENCE`."""
    changes: int
    """Of the disk, by the rank that is or would be killed."""
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
    ranks: int = 1,
    victim: int = 0,
    die_at: int | None = None,
    die_after: float | None = None,
) -> Life:
    """Train in forked processes; one dies before its change ``die_at`` of the disk, or later on."""
    port = free_port()
    children, pipes = [], []
    for rank in range(ranks):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            if ranks > 1:
                places = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
                places |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
                os.environ.update({name: str(value) for name, value in places.items()})
                os.environ["MASTER_ADDR"] = "127.0.0.1"
                sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            be_a_rank(run, config, writing, resume, die_at if rank == victim else None)
        os.close(writing)
        children.append(child)
        pipes.append(reading)
    # Before it has joined the others, they wait for it, as long as a launcher lets them.
    while os.read(pipes[victim], 1) not in (b"\n", b""):
        pass
    started = time.monotonic()
    if die_after is not None:
        time.sleep(die_after)
        os.kill(children[victim], signal.SIGKILL)
    codes = ended(children)
    found: dict[str, list[Any]] = {"saved": [0], "told": []}
    changes = 0
    for rank, reading in enumerate(pipes):
        with os.fdopen(reading) as file:
            for line in file:
                if not line.endswith("\n"):
                    continue
                kind, value = json.loads(line)
                if kind == "changes":
                    changes = value if rank == victim else changes
                else:
                    found[kind].append(value)
    return Life(
        codes=codes,
        changes=changes,
        saved=max(found["saved"]),
        told=tuple(found["told"]),
        seconds=time.monotonic() - started,
    )


def be_a_rank(
    run: Path, config: LoopConfig, writing: int, resume: bool, die_at: int | None
) -> NoReturn:
    """Train, tell what happens, end this process."""
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
        joined = join_ranks(config.device, timeout_minutes=1)
        tell("told", "joined")
        report: Callable[[str], object] = lambda line: tell("told", line)  # noqa: E731
        done = train(Halving(), config, run, resume=resume, report=report, ranks=joined)
        tell("changes", len(changes))
        code = 0 if done else 2
    except BaseException as error:
        tell("told", f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def ended(children: list[int]) -> tuple[int | None, ...]:
    """Wait for processes; those that outlast the patience are killed."""
    codes: dict[int, int | None] = {}
    until = time.monotonic() + PATIENCE
    while len(codes) < len(children):
        late = time.monotonic() > until
        for child in children:
            if child in codes:
                continue
            if late:
                os.kill(child, signal.SIGKILL)
            done, status = os.waitpid(child, 0 if late else os.WNOHANG)
            if done:
                codes[child] = None if late else os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return tuple(codes[child] for child in children)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


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
    """What the last checkpoint holds."""
    last = checkpoints(run)[-1]
    # Files may hold the same tensors in another order, or parts of them.
    tensors = {
        f"{group}.{name}": tensor
        for group in ("model", "optimizer", "average")
        for name, tensor in read_tensors(last, group).items()
    }
    return {"name": last.name, "fault": what_is_wrong(last), "tensors": tensors}


def differs(found: dict[str, Any], wanted: dict[str, Any], *, exact: bool) -> str:
    """In what two last checkpoints differ, or nothing."""
    if (found["name"], found["fault"]) != (wanted["name"], wanted["fault"]):
        return f"{found['name']}, {found['fault']}"
    one, other = found["tensors"], wanted["tensors"]
    if one.keys() != other.keys():
        return f"other tensors: {sorted(one.keys() ^ other.keys())}"
    for name, tensor in one.items():
        if exact and not torch.equal(tensor, other[name]):
            return f"other bits in {name}"
        # Two ranks add the gradients of their halves, one rank those of all samples.
        if not torch.allclose(tensor, other[name], rtol=ORDER, atol=ORDER):
            return f"{name}: {float((tensor - other[name]).abs().max()):.2g} apart"
    return ""


def judge(
    run: Path, killed: Life, config: LoopConfig, expected: dict[str, Any], *, ranks: int = 1
) -> str:
    """Resume a killed run; what is wrong with how it goes on, or nothing."""
    if None in killed.codes:
        return f"a rank did not end: {killed.codes}, {killed.told[-2:]}"
    if 0 in killed.codes and (fault := differs(last_of(run), expected, exact=True)):
        return f"a rank ended well before the end: {killed.codes}, {fault}"
    again = live(run, config, resume=True, ranks=ranks)
    if again.codes != (0,) * ranks:
        return f"resumed run ended with {again.codes}: {again.told[-2:]}"
    if again.resumed < killed.saved:
        return f"saved at {killed.saved} images, resumed at {again.resumed}"
    if fault := differs(last_of(run), expected, exact=ranks == len(killed.codes)):
        return f"another last checkpoint: {fault}"
    if left := [path.name for path in run.iterdir() if path.name.startswith(".checkpoint")]:
        return f"left behind: {left}"
    return ""


@dataclass(frozen=True)
class Kind:
    """A way to train and to save."""

    background: bool
    steps: int = STEPS
    strategy: Strategy = "ddp"

    @property
    def settings(self) -> LoopConfig:
        return settings(background=self.background, steps=self.steps, strategy=self.strategy)


def kinds_for(ranks: int) -> list[Kind]:
    if ranks == 1:
        # A run of one step has no checkpoint before its first: nothing to fall back on.
        return [Kind(background, steps) for steps in (1, STEPS) for background in (False, True)]
    ways: tuple[tuple[bool, Strategy], ...]
    ways = (False, "ddp"), (True, "fsdp"), (False, "fsdp"), (True, "ddp")
    return [Kind(background, STEPS, strategy) for background, strategy in ways]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=1, choices=(1, 2))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    # A forked process has no pool of threads, and would wait for that of its parent for ever.
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp())
    wrong, killed_in_time, saves = [], 0, set()
    kinds, ranks = kinds_for(options.ranks), options.ranks
    try:
        # Imports what a run imports late, so that the forked ones need not.
        first = settings(background=False, steps=1)
        train(Halving(), first, work / "warm", resume=False, report=lambda line: None)
        whole: dict[tuple[Kind, int], tuple[Life, dict[str, Any]]] = {}
        for point in range(options.points):
            kind = kinds[point // 2 % len(kinds)]
            # All pairs of kind, victim and ranks afterwards come up in turn.
            victim = (point // 2 + point // 8) % ranks
            after = ranks if point % 4 in (0, 3) else 1
            if (kind, victim) not in whole:
                run = work / f"whole-{len(whole)}"
                life = live(run, kind.settings, resume=False, ranks=ranks, victim=victim)
                assert life.codes == (0,) * ranks, life
                whole[kind, victim] = life, last_of(run)
            undisturbed, expected = whole[kind, victim]
            share = (point + rng.random()) / options.points
            if ranks > 1:  # few points, and several kinds of them: each sees all of its run
                share = rng.random()
            run = work / "run"
            shutil.rmtree(run, ignore_errors=True)
            death: dict[str, Any] = {}
            if point % 2 or not undisturbed.changes:
                death["die_after"] = share * undisturbed.seconds
            else:
                death["die_at"] = int(share * undisturbed.changes)
            life = live(run, kind.settings, resume=False, ranks=ranks, victim=victim, **death)
            killed_in_time += life.codes[victim] in (KILLED, -signal.SIGKILL)
            saves.add(life.saved)
            if fault := judge(run, life, kind.settings, expected, ranks=after):
                place = f"rank {victim} of {ranks}, {death} of {undisturbed.changes}, on {after}"
                wrong.append(f"{kind}, {place}: {fault}")
                print(wrong[-1], flush=True)
        changes = {
            f"{kind.background}-{kind.steps}-{kind.strategy}-{victim}": life.changes
            for (kind, victim), (life, _) in whole.items()
        }
        print(
            json.dumps(
                {
                    "points": options.points,
                    "ranks": ranks,
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
