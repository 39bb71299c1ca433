"""Pictures that a model draws for a list of prompts, kept on disk: every family judges the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sanakit.files import replacing, sha256_of
from sanakit.pipeline.images import Pixels
from sanakit.pipeline.pipeline import GenerateRequest, Pipeline

CHUNK = 32
"""Pictures in a file: what an interruption loses at most."""


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """How pictures are drawn; None means the model's own default. Sizes in px."""

    seed: int = 0
    """Of the first prompt; prompt i is drawn with seed + i, so that noise differs."""
    num_steps: int = 20
    guidance_scale: float | None = None
    sigma_interval: tuple[float, float] = (0.0, 1.0)
    solver: str | None = None
    flow_shift: float | None = None
    height: int | None = None
    width: int | None = None

    def request(self, prompt: str, index: int) -> GenerateRequest:
        """The request for prompt ``index`` of a list."""
        return GenerateRequest(prompt=prompt, **{**asdict(self), "seed": self.seed + index})


def draw_prompts(
    pipeline: Pipeline,
    prompts: Sequence[str],
    settings: DrawSettings,
    *,
    cache: Path,
    report: Callable[[str], object] = lambda line: None,
) -> Pixels:
    """One picture a prompt, in order, ``n h w 3`` uint8; none is left out or drawn twice.

    ``cache`` is a folder; what lies in it for this very model, list and settings is read again,
    and an interrupted call goes on where it was.

    Raises:
        ConfigError, NumericsError: as `Pipeline.generate`.
    """
    folder = cache / _key(pipeline, prompts, settings)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for first in range(0, len(prompts), CHUNK):
        path = folder / f"{first:06d}.npy"
        if not path.is_file():
            pictures = [
                pipeline.generate(settings.request(prompt, first + index)).pictures[0].pixels
                for index, prompt in enumerate(prompts[first : first + CHUNK])
            ]
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, np.stack(pictures))
            report(f"drawn {min(first + CHUNK, len(prompts))} of {len(prompts)}")
        found.append(np.load(path))
    return np.concatenate(found)


def _key(pipeline: Pipeline, prompts: Sequence[str], settings: DrawSettings) -> str:
    told = [pipeline.components.fingerprint, list(prompts), asdict(settings)]
    return sha256_of(json.dumps(told))[:16]
