"""What a loaded model is, and what it prefers where a request is silent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.prompt import COMPLEX_HUMAN_INSTRUCTION, PromptEncoder

LM_STEM = "model"
SCHEDULER_CONFIG = "scheduler_config.json"
NETWORKS = ("transformer", "text_encoder", "vae")
PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
# The scheduler classes of published folders, and the solver that each of them means.
SCHEDULERS = {
    "DPMSolverMultistepScheduler": "flow-dpm-solver",
    "FlowMatchEulerDiscreteScheduler": "flow-euler",
    "FlowMatchHeunDiscreteScheduler": "flow-heun",
}


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What a model expects of a caller who says nothing; ``_sanakit`` in ``model_index.json``."""

    instruction: tuple[str, ...] | None = COMPLEX_HUMAN_INSTRUCTION
    guidance_scale: float = 4.5
    solver: str = "flow-dpm-solver"
    flow_shift: float = 3.0


@dataclass(frozen=True, kw_only=True)
class Components:
    """The networks of one model, ready to run. Nothing in here changes from call to call."""

    transformer: LinearDiT
    autoencoder: Autoencoder
    prompts: PromptEncoder
    habits: Habits = field(default_factory=Habits)
    name: str = "unnamed"
    fingerprint: str = ""


def habits_of(scheduler: Any, index: Mapping[str, Any], *, source: str) -> Habits:
    """Read habits from a scheduler's published config and a model's ``model_index.json``.

    ``scheduler`` is the content of a ``scheduler_config.json``, or a scheduler object that has it
    as ``config``.

    Raises:
        ConfigError: for a scheduler that no solver here stands for.
    """
    settings = getattr(scheduler, "config", scheduler)
    if not isinstance(settings, Mapping):
        raise ConfigError(
            f"scheduler is a {type(scheduler).__name__}",
            hint="pass the content of a scheduler_config.json, or a scheduler with a config",
        )
    kind = settings.get("_class_name")
    if kind is None:
        kind = "DPMSolverMultistepScheduler" if settings is scheduler else type(scheduler).__name__
    if kind not in SCHEDULERS:
        raise ConfigError(
            f"{source}: scheduler {kind} is not known", hint=f"known: {', '.join(SCHEDULERS)}"
        )
    ours = index.get("_sanakit", {})
    instruction = ours.get("instruction", COMPLEX_HUMAN_INSTRUCTION)
    return Habits(
        instruction=None if instruction is None else tuple(instruction),
        guidance_scale=float(ours.get("guidance_scale", 4.5)),
        solver=SCHEDULERS[kind],
        flow_shift=float(settings.get("flow_shift", settings.get("shift", 1.0))),
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
