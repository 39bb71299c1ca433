"""The only training loop: draws batches, steps the optimizer, averages, logs, saves, resumes.

It knows no model and no data: a recipe gives batches, losses and evaluations.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from inspect import formatannotation
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sanakit.errors import ConfigError, NumericsError
from sanakit.train.state import (
    checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)

Batch = TypeVar("Batch")
BatchOut = TypeVar("BatchOut", covariant=True)
Report = Callable[[str], None]
__all__ = ["LoopConfig", "Recipe", "learning_rate", "optimizer_tensors", "train", "with_overrides"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """Everything about a run that is not the model, the data or the loss."""

    batch_size: int
    total_images: int
    """Samples to see in all; may be changed when a run is resumed."""
    peak_lr: float
    warmup_images: int = 0
    decay_share: float = 0.3
    """Last share of the run over which the rate falls linearly to 2 % of its peak."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    grad_clip: float = 1.0
    average_halflife: int | None = None
    """Images after which an old weight counts half in the moving average; None: no average."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    compile_blocks: bool = False
    seed: int = 0
    log_every: int = 50
    """Steps between lines of the log."""
    evaluate_every: int = 500
    """Steps between evaluations on held-out data."""
    save_minutes: float = 5.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "total_images", "log_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.decay_share <= 1:
            raise ConfigError(f"decay_share={self.decay_share} must be in (0, 1]")
        if self.average_halflife is not None and self.average_halflife < 1:
            raise ConfigError(f"average_halflife={self.average_halflife} must be at least 1")


class Recipe(Protocol[Batch]):
    """One way to train one module."""

    @property
    def module(self) -> nn.Module:
        """What is trained."""

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Give a batch of ``size`` samples; all its randomness comes from ``generator``."""

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Give scalars; ``loss`` is minimised, the others are logged."""

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Measure ``module`` (the average, where there is one) on held-out data."""

    def blocks(self) -> Iterator[nn.Module]:
        """Give the sub-modules that are worth compiling; repeated shapes compile once."""


def learning_rate(config: LoopConfig, images_seen: int) -> float:
    """Warm up linearly, hold, and fall linearly over the last ``decay_share`` of the run."""
    warm = min(1.0, (images_seen + config.batch_size) / max(1, config.warmup_images))
    left = (config.total_images - images_seen) / (config.decay_share * config.total_images)
    return config.peak_lr * warm * max(0.02, min(1.0, left))


def with_overrides(config: LoopConfig, pairs: list[str]) -> LoopConfig:
    """Apply ``key=value`` texts to a config.

    Raises:
        ConfigError: for a key the config does not have or a value of the wrong type.
    """
    kinds = get_type_hints(LoopConfig)
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        if key not in kinds:
            raise ConfigError(
                f"--set {pair}: no setting {key!r}", hint=f"known: {', '.join(kinds)}"
            )
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, kinds[key]):
            raise ConfigError(
                f"--set {pair}: {key} takes a value like {getattr(config, key)!r}",
                hint=f"its type is {formatannotation(kinds[key])}",
            )
        changes[key] = value
    return replace(config, **changes)


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of a setting's type; a whole number serves as a real one."""
    options = get_args(kind)
    if get_origin(kind) is Literal:
        return value in options
    if get_origin(kind) is tuple:
        return (
            isinstance(value, tuple)
            and len(value) == len(options)
            and all(map(_fits, value, options))
        )
    if options:
        return any(_fits(value, option) for option in options)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that a run ends after its step and not inside it."""
    caught: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    previous = {
        number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _generator(seed: int, images_seen: int) -> torch.Generator:
    """All randomness of one step: a function of the run's seed and of its progress alone."""
    return torch.Generator().manual_seed((seed * 1_000_003 + images_seen) & 0x7FFF_FFFF_FFFF_FFFF)


class _Trainer(Generic[Batch]):
    def __init__(
        self, recipe: Recipe[Batch], config: LoopConfig, run: Path, report: Report
    ) -> None:
        self.recipe, self.config, self.run, self.report = recipe, config, run, report
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.ranks = dist.get_world_size() if dist.is_initialized() else 1
        if config.batch_size % self.ranks:
            raise ConfigError(
                f"batch_size={config.batch_size} does not split over {self.ranks} ranks"
            )
        self.parameters = [p for p in recipe.module.parameters() if p.requires_grad]
        matrices = [p for p in self.parameters if p.ndim > 1]
        vectors = [p for p in self.parameters if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=config.peak_lr,
            betas=config.betas,
            fused=True,
        )
        self.average: dict[str, Tensor] | None = None
        if config.average_halflife is not None:
            self.average = {k: v.detach().clone() for k, v in recipe.module.state_dict().items()}
        self.images_seen = 0
        self.seconds = 0.0
        self.skipped = 0

    def resume(self) -> None:
        found = checkpoints(self.run)
        if not found:
            return
        notes, tensors = load_checkpoint(found[-1])
        self.recipe.module.load_state_dict(tensors["model"], strict=True)
        restore_optimizer(self.optimizer, tensors["optimizer"])
        if self.average is not None:  # a run that had none starts it at its weights of now
            self.average = tensors.get("average", tensors["model"])
        self.images_seen = notes["images_seen"]
        self.seconds = notes["seconds"]
        self.report(f"resumed at {self.images_seen} images from {found[-1].name}")

    def save(self) -> None:
        if self.rank:
            return
        save_checkpoint(
            self.run,
            images_seen=self.images_seen,
            module=self.recipe.module,
            optimizer=self.optimizer,
            average=self.average,
            notes={"seconds": round(self.seconds, 1), "config": asdict(self.config)},
        )

    def step(self) -> dict[str, Tensor]:
        config = self.config
        share = config.batch_size // self.ranks
        generator = _generator(config.seed, self.images_seen + self.rank * share)
        batch = self.recipe.draw(share, generator)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.images_seen)
        # Autocast is used in training alone: matmuls in compute_dtype, weights and sums in fp32.
        with torch.autocast(
            "cpu", torch.bfloat16, enabled=config.compute_dtype == "bfloat16", cache_enabled=True
        ):
            losses = self.recipe.loss(batch, generator)
        losses["loss"].backward()
        self._average_gradients()
        norm = nn.utils.clip_grad_norm_(self.parameters, config.grad_clip)
        if torch.isfinite(norm):
            self.optimizer.step()
        else:
            self.skipped += 1
            if self.skipped > 20:
                raise NumericsError(
                    f"gradients were not finite in {self.skipped} steps, "
                    f"the last at {self.images_seen} images",
                    hint="lower peak_lr, or use compute_dtype=float32",
                )
        self.optimizer.zero_grad(set_to_none=True)
        self.images_seen += config.batch_size
        self._update_average()
        return {name: value.detach() for name, value in {**losses, "grad_norm": norm}.items()}

    def _average_gradients(self) -> None:
        """Make every rank's gradient that of the whole batch, in one message."""
        if self.ranks == 1:
            return
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.ranks
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None or self.config.average_halflife is None:
            return
        # Short at first, so that the average does not remember the random start.
        halflife = min(self.config.average_halflife, max(1, self.images_seen // 10))
        weight = 1 - 0.5 ** (self.config.batch_size / halflife)
        now = self.recipe.module.state_dict()
        floats = [k for k, v in self.average.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.average[k] for k in floats], [now[k] for k in floats], weight)

    def log(self, **values: Any) -> None:
        if self.rank:
            return
        line = {"images": self.images_seen, "seconds": round(self.seconds, 1), **values}
        with (self.run / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.report("  ".join(f"{key} {value}" for key, value in line.items()))

    @torch.no_grad()
    def evaluate(self) -> None:
        if self.rank:
            return
        module = self.recipe.module
        kept = None
        if self.average is not None:
            kept = {key: value.clone() for key, value in module.state_dict().items()}
            module.load_state_dict(self.average)
        module.eval()
        self.log(**{f"held_{k}": round(v, 4) for k, v in self.recipe.evaluate(module).items()})
        module.train()
        if kept is not None:
            module.load_state_dict(kept)

    def _agreed(self, stop: bool) -> bool:
        """Whether any rank was told to stop; all leave after the same step."""
        if self.ranks == 1:
            return stop
        votes = torch.tensor(float(stop))
        dist.all_reduce(votes)
        return votes.item() > 0

    def go(self) -> bool:
        config = self.config
        started = saved = time.monotonic()
        before, steps, sums = self.seconds, 0, dict[str, float]()
        with _stop_on_signal() as caught:
            while self.images_seen < config.total_images and not self._agreed(bool(caught)):
                scalars = self.step()
                steps += 1
                for key, value in scalars.items():
                    sums[key] = sums.get(key, 0.0) + float(value)
                now = time.monotonic()
                self.seconds = before + now - started
                if steps % config.log_every == 0:
                    means = {k: round(v / config.log_every, 5) for k, v in sums.items()}
                    rate = steps * config.batch_size / (now - started)
                    lr = learning_rate(config, self.images_seen)
                    self.log(**means, lr=float(f"{lr:.3g}"), per_second=round(rate, 1))
                    sums.clear()
                if steps % config.evaluate_every == 0:
                    self.evaluate()
                if now - saved > 60 * config.save_minutes:
                    self.save()
                    saved = now
        if steps:
            self.evaluate()
            self.save()
        return self.images_seen >= config.total_images


def train(
    recipe: Recipe[Batch], config: LoopConfig, run: Path, *, resume: bool, report: Report = print
) -> bool:
    """Run a recipe until it has seen ``config.total_images``; True if it got there.

    SIGINT and SIGTERM end it after the step in flight with a checkpoint; ``resume=True`` then goes
    on with the same batches and the same noise as if it had not stopped. Under ``torchrun`` the
    batch is split over the ranks and gradients are averaged (CPU, gloo).

    Raises:
        ConfigError: if ``run`` already holds a checkpoint and ``resume`` is False.
        NumericsError: after more than 20 steps with gradients that were not finite.
    """
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo")  # as `torchrun` launched it
    run.mkdir(parents=True, exist_ok=True)
    if checkpoints(run) and not resume:
        raise ConfigError(
            f"{run} already holds a run", hint="pass --resume to go on, or another folder"
        )
    if config.compile_blocks:
        # Every width and grid of an autoencoder's blocks is a shape of its own; the default stops
        # compiling at the eighth.
        torch._dynamo.config.recompile_limit = 64
        for block in recipe.blocks():
            block.compile(dynamic=False)
    recipe.module.train()
    trainer = _Trainer(recipe, config, run, report)
    if resume:
        trainer.resume()
    settings = json.dumps(asdict(config), indent=2)
    (run / "loop.json").write_text(settings + "\n", encoding="utf-8")
    return trainer.go()
