"""Names that stay out of the set: brands and their products, characters, and what harms."""

from __future__ import annotations

import re

from recipes.glyph.data.word_lists import word_list

LICENCES = frozenset(
    {"MIT", "Apache-2.0", "ISC", "BSD-3-Clause", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "Unlicense"}
)

_BRANDS = word_list("suitable-brands")
_HARMFUL = word_list("suitable-harmful")


def _words(table: str) -> re.Pattern[str]:
    """A pattern for any of the words of a table, whole; a line joins what is several words."""
    words = "|".join(table.split()).replace("_", "[ ]")
    return re.compile(rf"\b(?:{words})\b")


_BRAND = _words(_BRANDS)
_HARM = _words(_HARMFUL)
_LOGO = re.compile(r"\b(?:logo|logos|brand|trademark|trade mark|registered|copyright)\b")


def is_brand(name: str) -> bool:
    """Whether a plain name, as words, names a brand, a product, a character or a real person."""
    return bool(_BRAND.search(name) or _LOGO.search(name))


def is_suitable(name: str) -> bool:
    """Whether a plain name, as words, may enter the set: no brand and nothing that harms."""
    return not (is_brand(name) or _HARM.search(name))
