"""Captions from the web, freed of what alt texts drag along."""

from __future__ import annotations

import html
import re

_CAPTION_NOISE = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"<[^<>]*>", " "),  # markup
        (r"\b(?:https?://|www\.)\S+", " "),
        (r"@\w+", " "),  # mentions
        (r"\S+\.(?:png|jpe?g|gif|bmp|webp|tiff?|svg|eps|pdf|mp4)\b", " "),  # file names
        (r"#?\b\d{6,}\b|#\d+\b", " "),  # article numbers
        (r"[\u2010-\u2015\u2212]", "-"),
        (r"[\u2018\u2019]", "'"),
        (r"[\u201c\u201d\u00ab\u00bb]", '"'),
        (r"[#\u00ae\u2122\u00a9|*{}\[\]\\]+", " "),
        (r"\s+", " "),
    )
)


def cleaned(caption: str) -> str:
    """Remove markup, addresses, mentions, file names and article numbers; even out quotes.

    Our own rules: unlike the reference's they keep every script, Chinese among them.
    """
    caption = html.unescape(caption)
    for pattern, replacement in _CAPTION_NOISE:
        caption = pattern.sub(replacement, caption)
    return caption.strip()
