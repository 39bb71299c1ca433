"""The family "standard": published prompts drawn into the folders that published scorers read.

GenEval and DPG-Bench are scored by their own programs, with a detector and an answering model that
nobody may change; for CLIP score and FID see `standard_scores`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sanakit.errors import ConfigError
from sanakit.evaluate.drawn import DrawSettings
from sanakit.evaluate.standard_prompts import Benchmark, Prompt
from sanakit.pipeline.generate import Pipeline
from sanakit.pipeline.images import Pixels
from sanakit.pipeline.png_settings import encode_png
from sanakit.weights.atomic import write_atomically

PICTURES, DRAWN = "pictures", "drawing.json"
USUAL = {"geneval": 4, "dpg": 4, "clip": 1, "fid": 1}
"""Pictures a prompt, as published figures have them."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One prompt and what is drawn of it: files, relative, and the seed of each picture.

    DPG-Bench has one file of all pictures of a prompt, side by side in rows of two.
    """

    prompt: Prompt
    files: tuple[str, ...]
    seeds: tuple[int, ...]
    metadata: str = ""


def jobs_of(
    prompts: Sequence[Prompt], benchmark: Benchmark, *, each: int, seed: int = 0
) -> list[Job]:
    """What to draw of a list, ``each`` pictures a prompt; picture k of prompt i has its own seed.

    Raises:
        ConfigError: fewer than one picture, or more than four for DPG-Bench.
    """
    if each < 1 or (benchmark == "dpg" and each > 4):
        raise ConfigError(
            f"{each} pictures a prompt", hint=f"{benchmark} is usually {USUAL[benchmark]}"
        )
    found = []
    for number, prompt in enumerate(prompts):
        name = prompt.name
        if benchmark == "geneval":
            files = [f"{name}/samples/{k:04d}.png" for k in range(each)]
        elif benchmark == "dpg":
            files = [f"{name}.png"]
        else:
            files = [f"{name}.png" if each == 1 else f"{name}-{k}.png" for k in range(each)]
        found.append(
            Job(
                prompt=prompt,
                files=tuple(files),
                seeds=tuple(seed + number * each + k for k in range(each)),
                metadata=f"{name}/metadata.jsonl" if benchmark == "geneval" else "",
            )
        )
    return found


def draw_jobs(
    pipeline: Pipeline,
    jobs: Sequence[Job],
    settings: DrawSettings,
    out: Path,
    *,
    report: Callable[[str], object] = lambda line: None,
) -> Path:
    """Draw into ``out/pictures``, and give that folder; files that are there are not drawn again.

    Raises:
        ConfigError: the folder holds pictures of another model, list or settings.
        ConfigError, NumericsError: as `Pipeline.generate`.
    """
    told = {
        "model": pipeline.components.fingerprint,
        "drawing": asdict(settings),
        "prompts": [[job.prompt.name, job.prompt.text, *job.seeds] for job in jobs],
    }
    folder = out / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    note = out / DRAWN
    text = json.dumps(told) + "\n"
    if not note.is_file():
        if any(folder.iterdir()):
            raise ConfigError(
                f"{folder} holds pictures, and nothing says of what", hint="name another --out"
            )
        write_atomically(note, text.encode())
    elif note.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{out} holds pictures of another model, list or settings", hint="name another --out"
        )
    for number, job in enumerate(jobs):
        paths = [folder / file for file in job.files]
        if all(path.is_file() for path in paths):
            continue
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        if job.metadata:
            write_atomically(folder / job.metadata, f"{job.prompt.line}\n".encode())
        drawn = [
            pipeline.generate(settings.request(job.prompt.text, seed - settings.seed)).pictures[0]
            for seed in job.seeds
        ]
        if len(paths) < len(drawn):
            pixels = in_rows_of_two([one.pixels for one in drawn])
            told_inside = {"prompt": job.prompt.text, "seeds": list(job.seeds)}
            write_atomically(paths[0], encode_png(pixels, told_inside))
        else:
            for path, one in zip(paths, drawn, strict=True):
                write_atomically(path, encode_png(one.pixels, one.settings))
        report(f"drawn {number + 1} of {len(jobs)} prompts")
    return folder


def in_rows_of_two(pictures: Sequence[Pixels]) -> Pixels:
    """Pictures of one size as DPG-Bench's scorer cuts them: left, right, then the row below."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // 2)
    found = np.zeros((rows * height, min(2, len(pictures)) * width, 3), dtype=np.uint8)
    for number, one in enumerate(pictures):
        top, left = number // 2 * height, number % 2 * width
        found[top : top + height, left : left + width] = one
    return found
