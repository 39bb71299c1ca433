"""What a loaded model is, and what it prefers where a request is silent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sanakit.models.autoencoder import Autoencoder
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.prompt import COMPLEX_HUMAN_INSTRUCTION, PromptEncoder
from sanakit.pipeline.schedulers import DPMSolverMultistepScheduler, Scheduler

LM_STEM = "model"
NETWORKS = ("transformer", "text_encoder", "vae")
PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
PUBLISHED_SCHEDULER = DPMSolverMultistepScheduler(flow_shift=3.0)


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What a model expects of a caller who says nothing; ``_sanakit`` in ``model_index.json``."""

    instruction: tuple[str, ...] | None = COMPLEX_HUMAN_INSTRUCTION
    guidance_scale: float = 4.5
    scheduler: Scheduler = PUBLISHED_SCHEDULER


@dataclass(frozen=True, kw_only=True)
class Components:
    """The networks of one model, ready to run. Nothing in here changes from call to call."""

    transformer: LinearDiT
    autoencoder: Autoencoder
    prompts: PromptEncoder
    habits: Habits = field(default_factory=Habits)
    name: str = "unnamed"
    fingerprint: str = ""


def habits_of(scheduler: Scheduler, index: Mapping[str, Any]) -> Habits:
    """Read habits from a model's ``model_index.json``."""
    ours = index.get("_sanakit", {})
    instruction = ours.get("instruction", COMPLEX_HUMAN_INSTRUCTION)
    return Habits(
        instruction=None if instruction is None else tuple(instruction),
        guidance_scale=float(ours.get("guidance_scale", 4.5)),
        scheduler=scheduler,
    )


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits that differ between models: size and both ends of every weights file."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}:{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()[:16]
