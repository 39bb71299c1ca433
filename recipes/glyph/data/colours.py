"""The colour word of a picture: which of eleven basic words clearly names most of it, if any."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

WORDS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "gray", "white",
)  # fmt: skip
UNNAMED = len(WORDS)  # skin, sand, turquoise, slate, pastel: colours no basic word fits
HUES = 8  # words that name a hue; the rest are neutral

CLEAR = 0.42  # part of the visible area one word must name
RIVAL = 0.5  # part of that, from which another hue leaves the picture without one word
# Words a shadow or a highlight of one colour may fall under: they are no rivals.
RELATED = (
    {"red", "pink"}, {"orange", "yellow"}, {"orange", "brown"}, {"blue", "purple"},
    {"pink", "purple"},
)  # fmt: skip
NEUTRAL = 0.8  # CLEAR for black, gray and white, which outlines and highlights also have
OPAQUE = 128


def name_pixels(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Index into ``WORDS``, or ``UNNAMED``, for each pixel of ``... 3`` uint8.

    The borders in hue (degrees), saturation and value were set by eye on emoji: brown is dark
    orange, pink is light or bluish red, and what lies between two words has none.
    """
    c = rgb.astype(np.float32) / 255
    value, low = c.max(axis=-1), c.min(axis=-1)
    chroma = value - low
    safe = np.where(chroma > 0, chroma, 1)
    r, g, b = c[..., 0], c[..., 1], c[..., 2]
    hue = 60 * np.select(
        [value == r, value == g], [((g - b) / safe) % 6, (b - r) / safe + 2], (r - g) / safe + 4
    )
    saturation = chroma / np.where(value > 0, value, 1)
    cool = (hue >= 165) & (hue < 260)
    rosy = (hue < 16) | (hue >= 335)
    violet = (hue >= 245) & (hue < 315)
    tan = (hue >= 10) & (hue < 60)
    rules: list[tuple[str, npt.NDArray[np.bool_]]] = [
        ("black", (value < 0.18) | ((value < 0.32) & (saturation < 0.45))),
        ("black", violet & (value < 0.32)),
        ("", violet & (value < 0.48) & (saturation < 0.45)),
        ("white", (value > 0.88) & (saturation < 0.12)),
        ("gray", (saturation < 0.13) | (cool & (saturation < 0.3) & (value < 0.75))),
        ("", cool & (saturation < 0.28)),
        ("", cool & (((value < 0.45) & (saturation < 0.5)) | (saturation < 0.42)) & (value < 0.65)),
        ("", tan & (saturation < 0.5) & (value > 0.72)),
        ("pink", rosy & (value > 0.8) & (saturation > 0.2) & (saturation < 0.56)),
        ("", (saturation < 0.25) & (value > 0.7)),
        ("brown", (hue >= 8) & (hue < 46) & (value < 0.7)),
        ("brown", rosy & (value < 0.5) & (saturation < 0.7)),
        ("brown", tan & (hue < 46) & (value < 0.78) & (saturation < 0.68)),
        ("", tan & (hue < 36) & (value < 0.95) & (saturation < 0.68)),
        ("", (hue >= 338) & (hue < 348) & (saturation > 0.7)),
        ("red", (hue < 14) | (hue >= 346)),
        ("orange", (hue < 34.5) | ((hue < 40) & (saturation > 0.88))),
        ("yellow", (hue < 63) & (value >= 0.7)),
        ("", hue < 68),
        ("green", hue < 164),
        ("", hue < 178),
        ("blue", hue < 246),
        ("purple", (hue < 292) | ((hue < 330) & (value < 0.62))),
        ("pink", hue < 348),
    ]
    return np.select(
        [rule for _, rule in rules],
        [np.int8(WORDS.index(word) if word else UNNAMED) for word, _ in rules],
        np.int8(UNNAMED),
    ).astype(np.int8)


def colour_shares(rgba: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The part of the opaque pixels of ``H W 4`` that each word names; the last has no word."""
    drawn = rgba[..., :3][rgba[..., 3] >= OPAQUE]
    counts = np.bincount(name_pixels(drawn), minlength=len(WORDS) + 1)
    return counts / max(len(drawn), 1)


def dominant_colour(rgba: npt.NDArray[np.uint8]) -> str | None:
    """The word that clearly names the colour of a ``H W 4`` picture, or None if it has several."""
    shares = colour_shares(rgba)
    best = int(shares[:HUES].argmax())
    if shares[best] < CLEAR:
        best = int(shares[: len(WORDS)].argmax())
        if best < HUES or shares[best] < NEUTRAL:
            return None
    rivals = [
        shares[other]
        for other in range(HUES)
        if other != best and {WORDS[best], WORDS[other]} not in RELATED
    ]
    return None if max(rivals) >= RIVAL * shares[best] else WORDS[best]


# How much a difference in red, green and blue is seen: black hardly shows on dark blue.
_SEEN = np.array([1.0, 1.0, 0.6], dtype=np.float32)
CLOSE = 0.2  # a colour no farther than this from its background hardly shows


def distance(rgb: npt.ArrayLike, background: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """How far colours ``... 3`` are from another as the eye sees it; all in [0, 1]."""
    apart = np.abs(np.asarray(rgb, dtype=np.float32) - np.asarray(background, dtype=np.float32))
    return (apart * _SEEN).max(axis=-1)


def hidden_share(rgba: npt.NDArray[np.uint8], background: npt.ArrayLike) -> float:
    """The part of the opaque pixels of ``H W 4`` that hardly shows on a colour ``3`` in [0, 1]."""
    drawn = rgba[..., :3][rgba[..., 3] >= OPAQUE].astype(np.float32) / 255
    return float((distance(drawn, background) <= CLOSE).sum() / max(len(drawn), 1))


def is_pale(rgba: npt.NDArray[np.uint8]) -> bool:
    """Whether a picture would nearly vanish on white: almost all it shows is close to white."""
    alpha = rgba[..., 3].astype(np.float32) / 255
    ink = alpha * (1 - rgba[..., :3].min(axis=-1).astype(np.float32) / 255)
    return float((ink > 0.15).sum()) < 0.12 * max(float((alpha > 0.5).sum()), 1.0)
