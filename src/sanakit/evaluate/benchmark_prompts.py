"""The family "standard": published prompts become pictures as their scorers read them.

GenEval and DPG-Bench are scored by their own programs, with a detector and an answering model that
are not ours to change; CLIP score and FID are measured in `clip`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from sanakit.errors import ConfigError, DataError
from sanakit.evaluate.pictures import GenerationSettings
from sanakit.files import expanded, write_atomically
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.pixels import Pixels
from sanakit.pipeline.png import encode_png
from sanakit.untrusted import parse_json, read_file

Benchmark = Literal["geneval", "dpg", "clip", "fid"]
BENCHMARKS: tuple[Benchmark, ...] = get_args(Benchmark)
_PLAIN = "a .txt with a prompt a line, a folder of .txt, a .jsonl with prompt, or a .json of MJHQ"
LISTS = {
    "geneval": "evaluation_metadata.jsonl of GenEval: an object with tag and prompt a line",
    "dpg": "the folder of DPG-Bench's prompts: one .txt a prompt",
    "clip": _PLAIN,
    "fid": _PLAIN,
}
"""What the prompts of each benchmark are read from."""
_NAME = re.compile(r"\w[\w.-]{0,99}")  # becomes the name of a file


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt, with the name its pictures get and, of GenEval, its published line."""

    name: str
    text: str
    line: str = ""


def read_prompts(path: Path, benchmark: Benchmark) -> list[Prompt]:
    """The prompts of a list, in its order; of a folder by the numbers or names of its files.

    Raises:
        ConfigError: no such benchmark.
        DataError: the list is absent, damaged, empty or of another benchmark.
    """
    if benchmark not in BENCHMARKS:
        raise ConfigError(f"no benchmark {benchmark!r}", hint=f"kinds: {', '.join(BENCHMARKS)}")
    path = expanded(path)
    hint = LISTS[benchmark]
    if not path.exists():
        raise DataError(f"{path}: no such file or folder", hint=hint)
    try:
        if path.is_dir():
            found = None if benchmark == "geneval" else _folder(path)
        elif path.suffix == ".jsonl":
            found = None if benchmark == "dpg" else _rows(path, published=benchmark == "geneval")
        elif benchmark in ("geneval", "dpg"):
            found = None
        elif path.suffix == ".json":
            found = _named(parse_json(read_file(path)))
        else:
            texts = read_file(path).decode().splitlines()
            found = _numbered([one.strip() for one in texts if one.strip()])
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})", hint=hint) from error
    if found is None:
        raise DataError(f"{path}: is no prompt list of {benchmark}", hint=hint)
    if not found:
        raise DataError(f"{path}: holds no prompts", hint=hint)
    return found


def _numbered(texts: list[str]) -> list[Prompt]:
    return [Prompt(name=f"{number:05d}", text=text) for number, text in enumerate(texts)]


def _folder(folder: Path) -> list[Prompt]:
    files = [path for path in folder.glob("*.txt") if _NAME.fullmatch(path.stem)]
    # 2.txt before 10.txt.
    files.sort(key=lambda path: (len(path.stem), path.stem) if path.stem.isdigit() else (0, ""))
    return [
        Prompt(name=path.stem, text=" ".join(read_file(path).decode().split())) for path in files
    ]


def _rows(path: Path, *, published: bool) -> list[Prompt]:
    """Rows of objects; the number of a row is its name, as GenEval's scorer wants it."""
    found = []
    lines = [line for line in read_file(path).decode().splitlines() if line.strip()]
    for number, line in enumerate(lines):
        value = parse_json(line)
        text = value.get("prompt") if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise ValueError(f"row {number + 1} has no prompt")
        if published and not isinstance(value.get("tag"), str):
            raise ValueError(f"row {number + 1} has no tag")
        found.append(Prompt(name=f"{number:05d}", text=text, line=line if published else ""))
    return found


def _named(value: Any) -> list[Prompt]:
    """Prompts by name: ``{name: text}``, or ``{name: {"prompt": text}}`` as MJHQ-30K has it."""
    if not isinstance(value, dict):
        raise ValueError("is no object of prompts by name")
    found = []
    for name, entry in value.items():
        text = entry.get("prompt") if isinstance(entry, dict) else entry
        if not isinstance(text, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is no name with a prompt")
        found.append(Prompt(name=name, text=text))
    return found


PICTURES, DRAWN = "pictures", "drawing.json"
USUAL = {"geneval": 4, "dpg": 4, "clip": 1, "fid": 1}
"""Pictures a prompt, as published figures have them."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One prompt and what is generated for it: files, relative, and the seed of each picture.

    DPG-Bench has one file of all pictures of a prompt, side by side in rows of two.
    """

    prompt: Prompt
    files: tuple[str, ...]
    seeds: tuple[int, ...]
    metadata: str = ""


def jobs_of(
    prompts: Sequence[Prompt], benchmark: Benchmark, *, each: int, seed: int = 0
) -> list[Job]:
    """What to generate of a list, ``each`` pictures a prompt; each picture has its own seed.

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


def generate_jobs(
    pipeline: Pipeline,
    jobs: Sequence[Job],
    settings: GenerationSettings,
    out: Path,
    *,
    report: Callable[[str], object] = lambda line: None,
) -> Path:
    """Generate into ``out/pictures``, and give that folder; files that are there are kept.

    Raises:
        ConfigError: the folder holds pictures of another model, list or settings.
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
        generated = [
            pipeline.generate(settings.request(job.prompt.text, seed - settings.seed)).pictures[0]
            for seed in job.seeds
        ]
        if len(paths) < len(generated):
            pixels = in_rows_of_two([one.pixels for one in generated])
            told_inside = {"prompt": job.prompt.text, "seeds": list(job.seeds)}
            write_atomically(paths[0], encode_png(pixels, told_inside))
        else:
            for path, one in zip(paths, generated, strict=True):
                write_atomically(path, encode_png(one.pixels, one.settings))
        report(f"generated {number + 1} of {len(jobs)} prompts")
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
