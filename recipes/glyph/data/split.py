"""Which pictures a model never sees in training: whole concepts, and styles of known concepts."""

from __future__ import annotations

import hashlib
import re

from recipes.glyph.data.word_lists import word_list

HELD_PART = 0.05

# What everybody asks for first: never held out as a concept.
_PROTECTED = word_list("split-protected")
PROTECTED = frozenset(re.split(r"\s*[|\n]\s*", _PROTECTED.strip()))


def fraction(key: str) -> float:
    """A number in [0, 1) that depends on the key alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def is_protected(concept: str) -> bool:
    """Whether a concept is never held out: a flag that was never seen cannot be guessed."""
    return concept in PROTECTED or concept.startswith("flag of ")


def split_of(concept: str, variant: str) -> str:
    """The split of a picture of ``concept`` in a style or colour ``variant``.

    A held concept is held in every variant; of the others, each pair is held by itself.
    """
    if not is_protected(concept) and fraction(f"concept:{concept}") < HELD_PART:
        return "held_concept"
    return "held_style" if fraction(f"pair:{concept}:{variant}") < HELD_PART else "train"
