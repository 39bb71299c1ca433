"""A model's parts: what they are, how a folder becomes them, and how they become a folder."""

from __future__ import annotations

from sanakit.pipeline.components.loading import load_components
from sanakit.pipeline.components.saving import save_components
from sanakit.pipeline.components.types import (
    PARTS,
    Components,
    Habits,
    fingerprint,
)

__all__ = [
    "PARTS",
    "Components",
    "Habits",
    "fingerprint",
    "load_components",
    "save_components",
]
