"""The lists of words, which lie as text files in `words/`."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "words"


def word_list(name: str) -> str:
    """The text of a list; the caller knows how its entries are parted."""
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
