"""Prompt lists as their authors publish them: GenEval, DPG-Bench, MJHQ-30K, and plain ones."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sanakit.errors import ConfigError, DataError

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
    path = path.expanduser()
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
            found = _named(json.loads(path.read_text(encoding="utf-8")))
        else:
            texts = path.read_text(encoding="utf-8").splitlines()
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
        Prompt(name=path.stem, text=" ".join(path.read_text(encoding="utf-8").split()))
        for path in files
    ]


def _rows(path: Path, *, published: bool) -> list[Prompt]:
    """Rows of objects; the number of a row is its name, as GenEval's scorer wants it."""
    found = []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, line in enumerate(lines):
        value = json.loads(line)
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
