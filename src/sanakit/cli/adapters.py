"""`--lora` of the drawing commands: a run, a folder or a file, and how much of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sanakit.errors import ConfigError

if TYPE_CHECKING:
    from sanakit.pipeline.pipeline import Pipeline

EMBEDDED = "glyph"
HELP = "LoRA to draw with: a run, a folder or a file; FILE:0.7 weighs it. May be repeated."


def strength_of(spec: str) -> tuple[str, float]:
    """Take ``PATH:STRENGTH`` apart; without a number at the end the strength is one."""
    path, _, text = spec.rpartition(":")
    try:
        return (path, float(text)) if path else (spec, 1.0)
    except ValueError:
        return spec, 1.0


def model_behind(model: str | None, specs: Sequence[str]) -> str:
    """The model to draw with: the one that was named, else the one that a run's LoRA is of.

    Raises:
        ConfigError: the run began with parts of several models, or with another run.
    """
    if model is not None:
        return model
    for spec in specs:
        run = Path(strength_of(spec)[0]).expanduser()
        if (run / "run.json").is_file():
            from sanakit.train.recipes.diffusion_run import told
            from sanakit.train.runs.run_config import is_run

            arguments = told(run)[0]
            start = arguments.start
            if start is None or is_run(start) or arguments.autoencoder or arguments.text_encoder:
                raise ConfigError(
                    f"{run} did not begin with one model",
                    hint="export it whole: sanakit train export RUN --merged",
                )
            # It goes into pictures, which should not tell where on a disk they were made.
            return os.path.relpath(start) if start.startswith(str(Path.cwd())) else start
    return EMBEDDED


def put_on(pipeline: Pipeline, specs: Sequence[str]) -> None:
    """Add the adapters to the transformer of a pipeline.

    Raises:
        MissingModelError: no such file, or a run without a checkpoint. WeightsError: a LoRA of
            another model. ConfigError: a run that trained all weights.
    """
    from sanakit.pipeline.published.sana import SanaPipeline

    pipe = SanaPipeline(pipeline)
    strengths = {}
    for number, spec in enumerate(specs):
        path, strength = strength_of(spec)
        name = f"lora-{number}"
        if (Path(path).expanduser() / "run.json").is_file():
            from sanakit.train.recipes.diffusion_run import lora_of_run
            from sanakit.weights.lora import lora_tensors

            pipe.load_lora_weights(lora_tensors(lora_of_run(Path(path).expanduser())), name)
        else:
            pipe.load_lora_weights(Path(path).expanduser(), name)
        strengths[name] = strength
    if strengths:
        pipe.set_adapters(list(strengths), list(strengths.values()))
