"""Rules about files that no single file can break alone: layers, lengths, names, paths, links."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src" / "sanakit").rglob("*.py"))
LONGEST = 700

# What is written by hand: tokenizers and weights may hold any string.
FOLDERS = ("src", "recipes", "tests", "docs", "benchmarks", "scripts", "examples", ".ci")
SUFFIXES = {".py", ".md", ".toml", ".txt", ".yaml", ".sh", ".json", ""}
GENERATED = {"tokenizer.json", "vocab.json"}
# The home or work folder of one machine, POSIX or Windows.
OF_ONE_MACHINE = re.compile(
    r"(?<![\w.~/-])/(?:home|root|Users|work|workspace|mnt|scratch)/\w|\b[A-Z]:\\\w"
)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def written_by_hand() -> list[Path]:
    nested = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return [
        path
        for path in [*ROOT.iterdir(), *nested]
        if path.is_file()
        and path.suffix in SUFFIXES
        and path.name not in GENERATED
        and not any(part.endswith((".egg-info", "__pycache__")) for part in path.parts)
    ]


def test_every_import_points_down() -> None:
    # In a process of its own: the linter looks at the working folder and changes the import path.
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_is_short_enough_to_be_read_at_once(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_a_file_is_named_for_what_it_holds() -> None:
    nameless = {"utils", "util", "helpers", "helper", "misc", "common"}
    named = {path: {path.stem, path.parent.name} & nameless for path in SOURCES}
    assert not [path for path, found in named.items() if found]


def test_nothing_mentions_a_folder_of_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in written_by_hand()
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1)
        if OF_ONE_MACHINE.search(line)
    ]
    assert not found


def test_every_link_of_a_page_leads_somewhere() -> None:
    found = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in written_by_hand()
        if page.suffix == ".md"
        for target in LINK.findall(page.read_text("utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not found
