"""STAND-IN until the branch optim is merged."""

from __future__ import annotations
from sanakit.train.settings import LoopConfig


def learning_rate(config: LoopConfig, images_seen: int) -> float:
    warm = min(1.0, (images_seen + config.batch_size) / max(1, config.warmup_images))
    left = (config.total_images - images_seen) / (config.decay_share * config.total_images)
    return config.peak_lr * warm * max(0.02, min(1.0, left))
