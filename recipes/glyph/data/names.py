"""English for concepts: what people call them for short, and how a sentence puts them."""

from __future__ import annotations

from collections.abc import Mapping

from recipes.glyph.data.word_lists import word_list

# Concept: other everyday names, the best one first.
_ALIASES = word_list("names-aliases")

# Concept: the words for it in a sentence, where its name is no noun or needs more than "a".
_PHRASES = word_list("names-phrases")


def _rows(table: str) -> dict[str, str]:
    """Lines of "concept: text" as a dictionary."""
    pairs = (line.partition(": ") for line in table.strip().splitlines())
    return {concept: text for concept, _, text in pairs}


ALIASES: Mapping[str, tuple[str, ...]] = {
    concept: tuple(text.split(", ")) for concept, text in _rows(_ALIASES).items()
}
PHRASES: Mapping[str, str] = _rows(_PHRASES)
