"""The only training loop: draws batches, steps the optimizer, averages, logs, saves, resumes.

It knows no model and no data: a recipe gives batches, losses and evaluations. Run under
`torchrun`, it spreads over ranks; everything it decides, all ranks decide alike.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any, Generic

import torch
from PIL import Image
from torch import Tensor, nn

from sanakit.errors import ConfigError, DataError
from sanakit.train.checkpoint import (
    CheckpointWriter,
    checkpoints,
    clear_unfinished,
    contents,
    load_into,
    newest_valid,
    read_manifest,
)
from sanakit.train.config import LoopConfig, learning_rate
from sanakit.train.distributed.loss_scale import LossScale, SkippedSteps
from sanakit.train.distributed.network import Network
from sanakit.train.distributed.ranks import Ranks, Watchdog, join_ranks, leave_ranks
from sanakit.train.ema import EMA
from sanakit.train.mfu import model_share
from sanakit.train.optim.build import build_optimizer, materialise, set_rate
from sanakit.train.recipe import Batch, Recipe, Timers
from sanakit.train.runs.log import RunLog, spoken
from sanakit.train.sample_schedule import Prefetched, SampleSchedule


class Ending(Enum):
    """How a run ended; true where it has seen all of its images."""

    REACHED = "reached"
    INTERRUPTED = "interrupted"
    TERMINATED = "terminated"

    def __bool__(self) -> bool:
        return self is Ending.REACHED


@contextmanager
def noted_signals(
    report: Callable[[str], object] = lambda line: None,
) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that a run ends after its step and not inside it.

    A step may be long: a second Ctrl-C, typed a second after the first, does not wait for it.
    """
    caught: list[int] = []
    first = 0.0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal first
        caught.append(number)
        if len(caught) == 1:
            first = time.monotonic()
            with suppress(RuntimeError):  # the line that it came in the midst of
                report("stopping after this step; Ctrl-C once more does not wait for it")
        elif number == signal.SIGINT and time.monotonic() - first > 1:
            raise KeyboardInterrupt

    previous = {
        number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


Report = Callable[[str], object]
PICTURES = "pictures"
PROGRESS_SECONDS = 10.0
"""Between lines that say how far a run is; the first one comes after the first step."""


class Trainer(Generic[Batch]):
    """A run in motion: what it holds, its steps, its saves."""

    def __init__(
        self, recipe: Recipe[Batch], config: LoopConfig, run: Path, ranks: Ranks, report: Report
    ) -> None:
        self.recipe, self.config, self.run, self.ranks = recipe, config, run, ranks
        self.report: Report = report if ranks.first else lambda line: None
        self.schedule = SampleSchedule(
            seed=config.seed,
            batch_size=config.batch_size,
            rank=ranks.rank,
            ranks=ranks.count,
            parts=config.accumulation,
        )
        if config.gradient_checkpointing:
            recipe.checkpoint_gradients()
        recipe.module.train()
        self.network = Network(recipe.module, list(recipe.blocks()), config, ranks)
        self.parameters = {n: p for n, p in recipe.module.named_parameters() if p.requires_grad}
        self.optimizer = build_optimizer(
            config.optimizer,
            self.parameters.items(),
            lr=config.peak_lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        self.average = (
            None
            if config.average_halflife is None
            else EMA(recipe.module.state_dict(), halflife=config.average_halflife)
        )
        self.scale = LossScale(config.compute_dtype)
        self.skips = SkippedSteps(in_a_row=config.most_skipped, in_total=config.most_skipped)
        self.timers = Timers(ranks.device)
        self.writer = CheckpointWriter(run, ranks)
        self.log = RunLog(run, first=ranks.first, report=self.report)
        self.watchdog = Watchdog(ranks, run, hang_minutes=config.hang_minutes)
        self.images_seen, self.seconds = 0, 0.0

    # What is saved, and how it comes back.

    def tensors(self) -> dict[str, Tensor]:
        """Everything with a shape that the run must remember, by name."""
        named = {f"model.{key}": value for key, value in self.recipe.module.state_dict().items()}
        for name, parameter in self.parameters.items():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                named[f"optimizer.{name}.{slot}"] = value
        if self.average is not None:
            named |= {f"average.{key}": value for key, value in self.average.tensors.items()}
        return named

    def notes(self) -> dict[str, Any]:
        """Everything else."""
        return {
            "images_seen": self.images_seen,
            "seconds": round(self.seconds, 1),
            "ranks": self.ranks.count,
            "loss_scale": self.scale.state_dict(),
            "skipped": self.skips.state_dict(),
            "config": asdict(self.config),
        }

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole, if there is any."""
        if self.ranks.first:
            clear_unfinished(self.run)
        folder = newest_valid(self.run, self.ranks, self.report)
        if folder is None:
            return
        notes, known = read_manifest(folder), contents(folder)
        materialise(self.optimizer)
        wanted = self.tensors()
        # A weight that never had a gradient has no state; an average may be new.
        for name in wanted.keys() - known.keys():
            if name.startswith("optimizer."):
                parameter, slot = name.removeprefix("optimizer.").rsplit(".", 1)
                self.optimizer.state[self.parameters[parameter]].pop(slot)
                del wanted[name]
        averaged = any(name.startswith("average.") for name in known)
        fresh_average = self.average is not None and not averaged
        if fresh_average:
            wanted = {k: v for k, v in wanted.items() if not k.startswith("average.")}
        load_into(folder, wanted, self.ranks)
        if fresh_average and self.average is not None:
            now = self.recipe.module.state_dict()
            self.average = EMA(now, halflife=self.average.halflife)
        self.images_seen, self.seconds = int(notes["images_seen"]), float(notes["seconds"])
        self.scale.load_state_dict(notes["loss_scale"])
        self.skips.load_state_dict(notes["skipped"])
        self.report(f"resumed at {self.images_seen} images from {folder.name}")

    def save(self, *, background: bool = False) -> None:
        """Write a checkpoint; a disk that refuses is reported, and the one before stays."""
        self.settle()
        if self.saved_at == self.images_seen:
            return  # to write it anew, the one in place would have to go first
        self.watchdog.beat("saving")
        self.writer.start(self.tensors(), self.notes(), background=background)
        if not background:
            self.settle()

    def settle(self) -> None:
        """Wait for a checkpoint that is being written and put it in place."""
        if self.writer.pending is None:
            return
        final, fault = self.writer.finish()
        if final is None:
            self.failed_save = fault or "another rank could not write"
            self.report(f"could not save at {self.images_seen} images: {self.failed_save}")
        else:
            self.failed_save, self.saved_at = "", int(self.writer.notes["images_seen"])

    failed_save, saved_at = "", -1

    # One step.

    def step(self, stream: Iterator[Batch]) -> dict[str, Tensor]:
        """One step of the optimizer; gives its losses and the norm of its gradients."""
        config, parts = self.config, self.config.accumulation
        rate = learning_rate(config, self.images_seen)
        set_rate(self.optimizer, rate)
        sums: dict[str, Tensor] = {}
        for part in range(parts):
            self.watchdog.doing = "drawing data"
            with self.timers("data"):
                batch = _next(stream)
            self.watchdog.doing = "encoding"
            batch = self.recipe.prepare(batch, self.ranks.device, self.timers)
            self.watchdog.doing = "computing gradients"
            with (
                self.timers("model"),
                self.network.losses(self.recipe.loss, batch, last=part == parts - 1) as losses,
            ):
                self.scale.scaled(losses["loss"] / parts).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / parts
        self.watchdog.doing = "stepping"
        with self.timers("model"):
            self.scale.unscale(self.parameters.values())
            norm = _whole(nn.utils.clip_grad_norm_(self.parameters.values(), config.grad_clip))
            finite = bool(torch.isfinite(norm))
            if self.skips.record(finite=finite, images_seen=self.images_seen, scale=self.scale):
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.scale.update(finite=finite)
            self.images_seen += config.batch_size
            if self.average is not None:
                self.average.update(
                    self.recipe.module.state_dict(),
                    images_seen=self.images_seen,
                    batch_size=config.batch_size,
                )
        return {**sums, "grad_norm": norm}

    def evaluate(self) -> None:
        """Log held-out measures, of the average where there is one."""
        self.watchdog.beat("evaluating")
        with self.showing():
            found = self.network.call(self.recipe.evaluate, self.recipe.module)
        self.log.line(
            self.images_seen,
            self.seconds,
            {f"held_{name}": round(value, 4) for name, value in found.items()},
        )

    def draw_pictures(self) -> None:
        """Write the validation grid."""
        self.watchdog.beat("drawing pictures")
        with self.showing():
            grid = self.network.call(self.recipe.validation_grid, self.recipe.module)
        if grid is not None and self.ranks.first:
            folder = self.run / PICTURES
            try:
                folder.mkdir(exist_ok=True)
                Image.fromarray(grid).save(folder / f"{self.images_seen:010d}.png")
                self.log.picture(PICTURES, grid, self.images_seen)
            except OSError as error:
                self.report(f"could not write the validation grid: {error}")

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Within the block the module holds its averaged weights and does not learn."""
        module = self.recipe.module
        module.eval()
        try:
            with torch.no_grad():
                if self.average is None:
                    yield
                else:
                    with self.average.swapped_in(module):
                        yield
        finally:
            module.train()

    # The run.

    def go(self) -> Ending:
        """Step until the end, or until a signal."""
        config = self.config
        if self.images_seen >= config.total_images:
            self.log.close()
            return Ending.REACHED
        schedule = SampleSchedule(**{**asdict(self.schedule), "images_seen": self.images_seen})
        stream = Prefetched(lambda: self.recipe.stream(schedule))
        self.watchdog.start()
        started = saved = time.monotonic()
        before, steps, sums = self.seconds, 0, dict[str, Tensor]()
        told, ending = -PROGRESS_SECONDS, None
        try:
            with noted_signals(self.report) as caught:
                while self.images_seen < config.total_images:
                    if (ending := self.agreed(caught)) is not None:
                        break
                    for key, value in self.step(stream).items():
                        sums[key] = sums.get(key, torch.zeros(())) + value.float().cpu()
                    steps += 1
                    now = time.monotonic()
                    self.seconds = before + now - started
                    self.watchdog.beat("between steps")
                    if now - told >= PROGRESS_SECONDS:
                        self.report(self.progress((now - started) / steps))
                        told = now
                    if steps % config.log_every == 0:
                        means = {k: float(v) / config.log_every for k, v in sums.items()}
                        self.log_step(means, steps * config.batch_size / (now - started))
                        sums.clear()
                    if steps % config.evaluate_every == 0:
                        self.evaluate()
                    if config.pictures_every and steps % config.pictures_every == 0:
                        self.draw_pictures()
                    due = self.ranks.first and now - saved > 60 * config.save_minutes
                    ready = self.writer.done()
                    if self.ranks.count > 1:
                        due, ready = _voted(self.ranks, due, ready)
                    if ready:
                        self.settle()
                    if due:
                        self.save(background=config.async_save)
                        saved = now
            if steps:
                self.save()  # first: a scheduler that says stop does not wait long
            if steps and self.images_seen >= config.total_images:
                if steps % config.evaluate_every:
                    self.evaluate()
                self.draw_pictures()
            self.watchdog.beat("ending the data")
            stream.close()
        except BaseException as error:
            if not self.watchdog.fail(error):
                raise SystemExit(1) from error  # another rank has said why
            raise
        finally:
            self.watchdog.stop()
            stream.close(timeout=5)
            self.log.close()
        if self.failed_save:
            raise DataError(
                f"{self.run}: the last checkpoint could not be written: {self.failed_save}",
                hint="make room and run the command again with --resume",
            )
        return Ending.REACHED if ending is None else ending

    def log_step(self, means: dict[str, float], per_second: float) -> None:
        """Log what training saw since the last line, over all ranks."""
        means = self.ranks.means(means) | self.recipe.log_extras()
        values = {key: round(value, 5) for key, value in means.items()}
        values |= {key: round(value, 3) for key, value in self.timers.shares().items()}
        values["lr"] = float(f"{learning_rate(self.config, self.images_seen):.3g}")
        values["per_second"] = round(per_second, 1)
        share = per_second / self.ranks.count, self.ranks.device, self.config.compute_dtype
        if (used := model_share(self.recipe, *share)) is not None:
            values["mfu"] = used
        if self.scale.enabled:
            values["loss_scale"] = self.scale.scale
        if skipped := self.skips.counts["in_total"]:
            values["skipped"] = skipped
        self.log.line(self.images_seen, self.seconds, values)

    def progress(self, seconds: float) -> str:
        """How far the run is, and how long the rest takes at ``seconds`` a step."""
        size, whole = self.config.batch_size, self.config.total_images
        done, steps = -(-self.images_seen // size), -(-whole // size)
        return f"step {done}/{steps}, {spoken(max(0, steps - done) * seconds)} left"

    def agreed(self, caught: Sequence[int]) -> Ending | None:
        """How any rank was told to stop; all leave after the same step, and end alike."""
        told, terminated = self.ranks.total(
            [float(bool(caught)), float(signal.SIGTERM in caught[:1])]
        )
        if not told:
            return None
        return Ending.TERMINATED if terminated else Ending.INTERRUPTED


def _voted(ranks: Ranks, due: bool, ready: bool) -> tuple[bool, bool]:
    """The first rank's clock says when to save; a save is finished when all ranks are ready."""
    votes = ranks.total([float(due), float(ready)])
    return votes[0] > 0, votes[1] == ranks.count


def _next(stream: Iterator[Batch]) -> Batch:
    try:
        return next(stream)
    except StopIteration as error:
        raise DataError(
            "the data ended before the run did", hint="a recipe's stream has no end"
        ) from error


def _whole(value: Tensor) -> Tensor:
    """A number that may be spread over ranks, whole."""
    full = getattr(value, "full_tensor", None)
    return value.detach() if full is None else full().detach()


def train(
    recipe: Recipe[Batch],
    config: LoopConfig,
    run: Path,
    *,
    resume: bool,
    report: Report = print,
    ranks: Ranks | None = None,
) -> Ending:
    """Run a recipe until it has seen ``config.total_images``; true if it got there.

    SIGINT and SIGTERM end it after the step in flight with a checkpoint; ``resume=True`` then goes
    on with the same batches and the same noise as if it had not stopped, with any number of ranks.
    Under ``torchrun`` the batch is split over the ranks; ``ranks`` are those that a caller joined
    already.

    Raises:
        ConfigError: if ``run`` already holds a checkpoint and ``resume`` is False.
        DataError: if the last checkpoint could not be written, or the data ended.
        NumericsError: after more than ``config.most_skipped`` steps with gradients that were not
            finite.
        WeightsError: if there is something to resume and none of it is whole, or it does not fit.
    """
    joined = ranks is None
    # A collective waits longer than the watchdog, which knows more of what happened.
    ranks = ranks or join_ranks(config.device, timeout_minutes=2 * config.hang_minutes + 1)
    try:
        run.mkdir(parents=True, exist_ok=True)
        if checkpoints(run) and not resume:
            raise ConfigError(
                f"{run} already holds a run", hint="pass --resume to go on, or another folder"
            )
        ranks.wait()
        trainer = Trainer(recipe, config, run, ranks, report)
        if resume:
            trainer.resume()
        return trainer.go()
    finally:
        if joined:
            leave_ranks()
