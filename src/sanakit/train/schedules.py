"""Learning rates as pure functions of the images seen: nothing to save, nothing to step.

Each gives the share of the peak rate, in [0, 1], of the step that begins at ``images_seen``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, get_args

from sanakit.errors import ConfigError

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
    Source: reference 4.3.
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
