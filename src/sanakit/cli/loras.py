"""LoRA as the command is told of it: a run, a folder or a file, each with a strength."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sanakit.cli.terminal import say
from sanakit.errors import ConfigError, MissingModelError
from sanakit.files import expanded, sha256_of

if TYPE_CHECKING:
    from sanakit.pipeline.pipeline import Pipeline


def strength_of(spec: str) -> tuple[Path, float]:
    """Take ``PATH:STRENGTH`` apart; without a number at the end the strength is one.

    Raises:
        ConfigError: no path, or a strength that is no finite number.
    """
    path, _, text = spec.rpartition(":")
    try:
        found, strength = (path, float(text)) if path else (spec, 1.0)
    except ValueError:
        found, strength = spec, 1.0
    if not found or spec.startswith(":"):
        raise ConfigError(f"--lora {spec!r} names no file", hint="write --lora FILE:0.7")
    if not math.isfinite(strength):
        raise ConfigError(f"--lora {spec!r}: its strength must be finite", hint="1 is usual")
    return expanded(found), strength


def lora_hash(spec: str) -> str | None:
    """Digest of the weights that a LoRA's name means now; None where they are not on this disk."""
    path, _ = strength_of(spec)
    if (path / "run.json").is_file():
        from sanakit.train.checkpoint import checkpoints

        path = next(iter(checkpoints(path)[::-1]), path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        return None
    return sha256_of("".join(map(sha256_of, files)))[:16]


def model_behind(specs: Sequence[str]) -> str | None:
    """The model that a run's LoRA is of, if any.

    Raises:
        ConfigError: the run began with parts of several models, or with another run.
    """
    for spec in specs:
        run, _ = strength_of(spec)
        if (run / "run.json").is_file():
            from sanakit.train.recipes.diffusion_run import begun_with_one_model

            start = begun_with_one_model(run)
            if start is None:
                raise ConfigError(
                    f"{run} did not begin with one model",
                    hint="export it whole: sanakit train export RUN --merged",
                )
            # It goes into pictures, which should not tell where on a disk they were made.
            return os.path.relpath(start) if start.startswith(str(Path.cwd())) else start
    return None


def read_loras(specs: Sequence[str], *, offline: bool) -> list[tuple[Any, float]]:
    """Find the adapters, before a model is loaded for them: a file or tensors, and a strength.

    Raises:
        MissingModelError: no such file, or a run without a checkpoint. ConfigError: a run that
            trained all weights.
    """
    if not specs:
        return []
    from sanakit.train.recipes.diffusion_run import lora_of_run
    from sanakit.weights.lora import find_lora, lora_tensors

    found: list[tuple[Any, float]] = []
    for spec in specs:
        path, strength = strength_of(spec)
        if (path / "run.json").is_file():
            found.append((lora_tensors(lora_of_run(path)), strength))
        else:
            found.append((find_lora(str(path), offline=offline), strength))
    return found


def add_loras(pipeline: Pipeline, adapters: Sequence[tuple[Any, float]]) -> None:
    """Add adapters to the transformer of a pipeline.

    Raises:
        WeightsError: a LoRA of another model.
    """
    if not adapters:
        return
    from sanakit.pipeline.published.base import PublishedPipeline

    pipe = PublishedPipeline(pipeline)  # of whatever kind: Sprint, too
    strengths = {}
    for number, (source, strength) in enumerate(adapters):
        name = f"lora-{number}"
        pipe.load_lora_weights(source, name)
        strengths[name] = strength
    pipe.set_adapters(list(strengths), list(strengths.values()))


def check_loras_of(image: Path, specs: Sequence[str], stored: object) -> None:
    """Say of adapters that they are not those that drew a picture.

    Raises:
        MissingModelError: one was on this disk, and is gone.
    """
    hashes = stored if isinstance(stored, list) else []
    by_then = [(spec, then) for spec, then in zip(specs, hashes, strict=False) if then is not None]
    now = {spec: lora_hash(spec) for spec, _ in by_then}
    for spec, found in now.items():
        if found is None:
            raise MissingModelError(
                f"{image}: its LoRA {strength_of(spec)[0]} is not there",
                hint="put the file back, or draw with it from where it is: sanakit generate --lora",
            )
    for spec, then in by_then:
        if now[spec] != then:
            say(
                f"note: the LoRA at {spec} is not the one that drew it; the picture may differ",
                err=True,
            )
