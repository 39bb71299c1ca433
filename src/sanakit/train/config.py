"""Everything about a run that is not the model, the data or the loss; and `--set key=value`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from inspect import formatannotation
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from sanakit.errors import ConfigError
from sanakit.train.distributed.loss_scale import ComputeDtype
from sanakit.train.optim.build import OptimizerName

BatchRule = Literal["sqrt", "linear", "none"]
ScheduleName = Literal["constant", "linear-end", "cosine", "cosine-then-constant"]
PUBLISHED_BATCH = 256
"""The batch that published rates are meant for."""


def warm_up(images_seen: int, *, batch_size: int, warmup_images: int) -> float:
    """Rise linearly; the first step already moves, and the last of the warm-up is whole."""
    return min(1.0, (images_seen + batch_size) / max(1, warmup_images))


def constant(images_seen: int, *, batch_size: int, warmup_images: int = 0) -> float:
    """Warm up, then hold: the published recipes."""
    return warm_up(images_seen, batch_size=batch_size, warmup_images=warmup_images)


def linear_end(
    images_seen: int,
    *,
    batch_size: int,
    total_images: int,
    warmup_images: int = 0,
    decay_share: float = 0.3,
    floor: float = 0.02,
) -> float:
    """Warm up, hold, and fall linearly to ``floor`` over the last ``decay_share`` of the run."""
    _check(total_images, decay_share, floor)
    left = (total_images - images_seen) / (decay_share * total_images)
    warm = warm_up(images_seen, batch_size=batch_size, warmup_images=warmup_images)
    return warm * max(floor, min(1.0, left))


def cosine(
    images_seen: int,
    *,
    batch_size: int,
    total_images: int,
    warmup_images: int = 0,
    floor: float = 0.0,
) -> float:
    """Warm up, then fall as half a cosine to ``floor`` at the end of the run."""
    _check(total_images, 1.0, floor)
    return _half_cosine(images_seen, batch_size, total_images, warmup_images, floor)


def cosine_then_constant(
    images_seen: int,
    *,
    batch_size: int,
    total_images: int,
    warmup_images: int = 0,
    decay_share: float = 0.667,
    floor: float = 0.1,
) -> float:
    """Warm up, fall as half a cosine over the first ``decay_share`` of the run, hold ``floor``."""
    _check(total_images, decay_share, floor)
    end = decay_share * total_images
    return _half_cosine(images_seen, batch_size, end, warmup_images, floor)


SCHEDULES: Mapping[str, Callable[..., float]] = MappingProxyType(
    {
        "constant": constant,
        "linear-end": linear_end,
        "cosine": cosine,
        "cosine-then-constant": cosine_then_constant,
    }
)


def batch_factor(rule: BatchRule, batch_size: int) -> float:
    """What a peak rate for batches of 256 is multiplied by; all ranks' micro-batches count.

    Raises:
        ConfigError: an unknown rule, an empty batch.
    Source: NVlabs/Sana diffusion/utils/optimizer.py.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be at least 1")
    if rule == "none":
        return 1.0
    if rule == "linear":
        return batch_size / PUBLISHED_BATCH
    if rule == "sqrt":
        return math.sqrt(batch_size / PUBLISHED_BATCH)
    raise ConfigError(
        f"the batch rule {rule!r} is unknown", hint=f"known: {', '.join(get_args(BatchRule))}"
    )


def _half_cosine(
    images_seen: int, batch_size: int, end: float, warmup_images: int, floor: float
) -> float:
    warm = warm_up(images_seen, batch_size=batch_size, warmup_images=warmup_images)
    gone = max(0.0, images_seen - warmup_images) / max(1.0, end - warmup_images)
    return warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, gone))))


def _check(total_images: int, decay_share: float, floor: float) -> None:
    if total_images < 1:
        raise ConfigError(f"total_images={total_images} must be at least 1")
    if not 0 < decay_share <= 1:
        raise ConfigError(f"decay_share={decay_share} must be in (0, 1]")
    if not 0 <= floor <= 1:
        raise ConfigError(f"floor={floor} must be in [0, 1]")


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
    """linear-end: last share of the run over which the rate falls linearly to 2 % of its peak."""
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
    """The rate of the step that begins at ``images_seen``."""
    given = {
        "warmup_images": config.warmup_images,
        "total_images": config.total_images,
        "decay_share": config.decay_share,
    }
    wanted = {"constant": 1, "cosine": 2}.get(config.schedule, 3)
    settings = dict(list(given.items())[:wanted])
    share = SCHEDULES[config.schedule](images_seen, batch_size=config.batch_size, **settings)
    return config.peak_lr * batch_factor(config.lr_rule, config.batch_size) * share


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
    return replace(config, **changes)  # type: ignore[type-var]


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of a setting's type; a whole number serves as a real one."""
    options = get_args(kind)
    if get_origin(kind) is Literal:
        return value in options
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        if options[-1] is Ellipsis:
            return all(_fits(one, options[0]) for one in value)
        return len(value) == len(options) and all(map(_fits, value, options))
    if options:
        return any(_fits(value, option) for option in options)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)
