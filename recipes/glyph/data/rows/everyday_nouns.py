"""The nouns everybody asks for first, and the single-colour drawings that show them best."""

from __future__ import annotations

from collections.abc import Mapping

from recipes.glyph.data.word_lists import word_list

# Noun -> icons that draw it. White is left out: it would vanish on the usual background.
_NOUNS = word_list("everyday-nouns-nouns")


def _parse(table: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """Rows of "noun set:icon set:icon", parted by bars and line ends, as a dictionary."""
    nouns: dict[str, tuple[tuple[str, str], ...]] = {}
    for row in table.replace("\n", "|").split("|"):
        words = row.split()
        icons = [tuple(word.split(":", 1)) for word in words if ":" in word]
        if icons:
            noun = " ".join(word for word in words if ":" not in word)
            nouns[noun] = tuple((prefix, name) for prefix, name in icons)
    return nouns


NOUNS: Mapping[str, tuple[tuple[str, str], ...]] = _parse(_NOUNS)
