"""The ten colours that drawings are painted in, so that colour words bind."""

from __future__ import annotations

from collections.abc import Mapping

from recipes.glyph.data.split import fraction

# Three shades of each colour word, as an icon set would choose them. White is left out: it would
# vanish on the usual background.
SHADES: Mapping[str, tuple[str, ...]] = {
    "red": ("#e0242d", "#c8161d", "#f03a3a"),
    "orange": ("#f58a1f", "#ef7300", "#ff9a2e"),
    "yellow": ("#f9cf1c", "#ffd93b", "#efc000"),
    "green": ("#2f9e44", "#1f8a3a", "#43b050"),
    "blue": ("#1f66d6", "#1750b5", "#3b82f0"),
    "purple": ("#7d3cc9", "#6a2fb0", "#9254de"),
    "pink": ("#f472a8", "#ff8fbf", "#ec5f9b"),
    "brown": ("#7b4a25", "#8a5a33", "#663b1c"),
    "black": ("#141414", "#1e1e1e", "#0a0a0a"),
    "gray": ("#888c91", "#7a7d82", "#9a9ea3"),
}


def shade(colour: str, key: str) -> str:
    """One of the shades of a colour word, always the same for the same key."""
    options = SHADES[colour]
    return options[int(fraction(f"shade:{key}") * len(options))]


def mixed_colours(key: str) -> list[str]:
    """The colour words in an order that depends on the key, so that many keys use all alike."""
    return sorted(SHADES, key=lambda colour: fraction(f"colour:{key}:{colour}"))
