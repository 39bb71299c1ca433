"""Everything about a run that is not the model, the data or the loss; and `--set key=value`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from inspect import formatannotation
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_type_hints

from sanakit.errors import ConfigError, did_you_mean
from sanakit.train.distributed.loss_scale import ComputeDtype
from sanakit.train.optim.build import OptimizerName
from sanakit.untrusted import fits, frozen, parse_json

BatchRule = Literal["sqrt", "linear", "none"]
ScheduleName = Literal["constant", "linear-end", "cosine", "cosine-then-constant"]
FLOORS: Mapping[ScheduleName, float] = MappingProxyType(
    {"constant": 1.0, "linear-end": 0.02, "cosine": 0.0, "cosine-then-constant": 0.1}
)
"""Shares of the peak rate that a run ends with."""
PUBLISHED_BATCH = 256
"""The batch that published rates are meant for."""


def batch_factor(rule: BatchRule, batch_size: int) -> float:
    """What a peak rate for batches of 256 is multiplied by; all ranks' micro-batches count.

    Source: NVlabs/Sana diffusion/utils/optimizer.py.
    """
    share = batch_size / PUBLISHED_BATCH
    return {"none": 1.0, "linear": share, "sqrt": math.sqrt(share)}[rule]


Strategy = Literal["ddp", "fsdp", "hsdp"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How a run steps, saves and spreads; progress is counted in images (samples) everywhere."""

    batch_size: int
    """Samples a step, over all ranks and accumulated parts."""
    total_images: int
    """Samples to see in all; may be changed when a run is resumed."""
    peak_lr: float
    """Learning rate at the batch size that ``lr_rule`` refers to."""
    lr_rule: BatchRule = "none"
    """Scale the rate with (batch_size / 256): by its root, by itself, or not."""
    schedule: ScheduleName = "linear-end"
    warmup_images: int = 0
    decay_share: float = 0.3
    """linear-end: last share of the run, over which the rate falls linearly to 2 % of its peak;
    cosine-then-constant: first share, over which it falls as half a cosine to 10 %."""
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.01
    betas: tuple[float, ...] = (0.9, 0.99)
    """Two for AdamW; three for CAME."""
    grad_clip: float = 1.0
    accumulation: int = 1
    """Parts that a rank's share of a batch is computed in, one after another."""
    average_halflife: int | None = None
    """Images after which an old weight counts half in the moving average; None: no average."""
    compute_dtype: ComputeDtype = "bfloat16"
    gradient_checkpointing: bool = False
    compile_blocks: bool = False
    strategy: Strategy = "ddp"
    """Over ranks: copies (ddp), shards (fsdp), or shards in a machine, copies between (hsdp)."""
    device: str = "auto"
    seed: int = 0
    log_every: int = 50
    """Steps between lines of the log."""
    evaluate_every: int = 500
    """Steps between evaluations on held-out data."""
    pictures_every: int = 0
    """Steps between validation grids; 0: none but the last."""
    save_minutes: float = 5.0
    async_save: bool = False
    """Write checkpoints beside the training; needs their size in CPU memory once more."""
    hang_minutes: float = 20.0
    """A rank that finishes no step for so long ends the job, with every rank's stack printed."""
    most_skipped: int = 20
    """Steps with gradients that are not finite before the run gives up."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "total_images", "log_every", "evaluate_every", "accumulation"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.decay_share <= 1:
            raise ConfigError(f"decay_share={self.decay_share} must be in (0, 1]")
        if self.average_halflife is not None and self.average_halflife < 1:
            raise ConfigError(f"average_halflife={self.average_halflife} must be at least 1")
        for name in ("warmup_images", "pictures_every", "most_skipped"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("peak_lr", "grad_clip", "save_minutes", "hang_minutes"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be more than 0")
        wanted = 3 if self.optimizer.startswith("came") else 2
        if len(self.betas) != wanted:
            raise ConfigError(
                f"betas={self.betas} are {len(self.betas)}, and {self.optimizer} takes {wanted}",
                hint="came: --set betas=[0.9,0.999,0.9999]"
                if wanted == 3
                else "adamw: --set betas=[0.9,0.99]",
            )


def learning_rate(config: LoopConfig, images_seen: int) -> float:
    """The rate of the step that begins at ``images_seen``: warm-up, then the schedule.

    The warm-up is linear; its first step already moves, and its last is whole.
    """
    warm = min(1.0, (images_seen + config.batch_size) / max(1, config.warmup_images))
    peak = config.peak_lr * batch_factor(config.lr_rule, config.batch_size)
    return peak * (warm * _decay(config, images_seen))


def _decay(config: LoopConfig, images_seen: int) -> float:
    """The share of the peak that the schedule leaves."""
    end, floor = float(config.total_images), FLOORS[config.schedule]
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "linear-end":
        left = (end - images_seen) / (config.decay_share * end)
        return max(floor, min(1.0, left))
    if config.schedule == "cosine-then-constant":
        end = config.decay_share * end
    gone = max(0.0, images_seen - config.warmup_images) / max(1.0, end - config.warmup_images)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, gone)))


SYNONYMS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("lr", "learning_rate", "max_lr", "rate"), "peak_lr"),
        **dict.fromkeys(("max_train_steps", "max_steps", "num_steps", "iterations"), "steps"),
        **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs", "images"), "total_images"),
        **dict.fromkeys(("bs", "batch", "train_batch_size", "batchsize"), "batch_size"),
        **dict.fromkeys(("gradient_accumulation_steps", "grad_accum"), "accumulation"),
        **dict.fromkeys(("mixed_precision", "precision", "dtype"), "compute_dtype"),
        **dict.fromkeys(("lr_scheduler", "scheduler"), "schedule"),
        **dict.fromkeys(("lr_warmup_steps", "warmup_steps", "warmup"), "warmup_images"),
        **dict.fromkeys(("ema", "use_ema", "ema_decay"), "average_halflife"),
        **dict.fromkeys(("max_grad_norm", "clip_grad_norm"), "grad_clip"),
        **dict.fromkeys(("checkpointing_steps", "save_every", "save_steps"), "save_minutes"),
        **dict.fromkeys(("validation_steps", "sample_every"), "pictures_every"),
        **dict.fromkeys(("eval_steps", "eval_every"), "evaluate_every"),
        **dict.fromkeys(("logging_steps", "log_steps"), "log_every"),
        **dict.fromkeys(("rank", "network_dim"), "lora_rank"),
        **dict.fromkeys(("alpha", "network_alpha"), "lora_alpha"),
        **dict.fromkeys(("caption_dropout", "proportion_empty_prompts"), "null_chance"),
    }
)
"""What other trainers call a setting, and its name here."""


def unknown_setting(pair: str, known: Iterable[str]) -> ConfigError:
    """The error of ``--set`` for a key that there is not, with the nearest that there is."""
    known, key = list(known), pair.partition("=")[0]
    meant = SYNONYMS.get(key.strip().lower().replace("-", "_"))
    hint = f"it is {meant} here" if meant in known else did_you_mean(key, known)
    return ConfigError(f"--set {pair}: no setting {key!r}", hint=hint)


C = TypeVar("C")


def with_overrides(config: C, pairs: list[str]) -> C:
    """Apply ``key=value`` texts to a config, a dataclass; values are JSON or plain words.

    Raises:
        ConfigError: for a key the config does not have or a value of the wrong type.
    """
    kinds = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        if key not in kinds:
            raise unknown_setting(pair, kinds)
        try:
            value = parse_json(text)
        except ValueError:
            value = text
        value = frozen(value)
        if not fits(value, kinds[key]):
            raise ConfigError(
                f"--set {pair}: {key} takes a value like {getattr(config, key)!r}",
                hint=f"its type is {formatannotation(kinds[key])}",
            )
        changes[key] = value
    return replace(config, **changes)  # type: ignore[type-var]
