"""Plain background colours a picture may be put on, and the words that name them."""

from __future__ import annotations

from collections.abc import Mapping

# Words -> red, green, blue in [0, 1]. White is first: it is the usual one.
BACKGROUNDS: Mapping[str, tuple[float, float, float]] = {
    "white": (1.0, 1.0, 1.0),
    "pale yellow": (1.0, 0.96, 0.78),
    "pale blue": (0.82, 0.91, 1.0),
    "pale green": (0.84, 0.95, 0.84),
    "pale pink": (1.0, 0.87, 0.91),
    "lavender": (0.9, 0.87, 0.98),
    "peach": (1.0, 0.89, 0.8),
    "mint": (0.8, 0.96, 0.91),
    "cream": (0.98, 0.95, 0.88),
    "light gray": (0.88, 0.88, 0.89),
    "dark blue": (0.1, 0.15, 0.32),
    "black": (0.07, 0.07, 0.07),
}


def captioned(caption: str, background: str) -> str:
    """A caption that also says what is behind the picture."""
    article = "an" if background[0] in "aeiou" else "a"
    return f"{caption}, on {article} {background} background"
