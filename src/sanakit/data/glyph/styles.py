"""Our own words for every style of picture: two phrases each, the first ends in its kind."""

from __future__ import annotations

from collections.abc import Mapping

STYLE_WORDS: Mapping[str, tuple[str, str]] = {
    "3d": ("glossy 3d emoji", "shiny 3d render"),
    "flat": ("flat vector emoji", "colorful flat emoji"),
    "gradient": ("smooth gradient emoji", "softly shaded emoji"),
    "soft": ("clean cartoon emoji", "rounded vector emoji"),
    "simple": ("minimal flat emoji", "simple flat emoji"),
    "blob": ("retro cartoon emoji", "playful cartoon emoji"),
    "bright": ("bright cartoon emoji", "bold vector emoji"),
    "toy": ("paper cutout emoji", "plain flat emoji"),
    "outline": ("dark outline emoji", "outlined cartoon emoji"),
    "office": ("flat office icon", "flat business icon"),
    "silhouette": ("flat silhouette icon", "solid one-color icon"),
    "contrast": ("high-contrast pictogram icon", "bold stencil icon"),
    "line": ("thin line icon", "simple outline icon"),
    "sketch": ("hand-drawn line icon", "sketched doodle icon"),
    "duotone": ("duotone icon", "two-tone icon"),
    "pixel": ("pixel art icon", "blocky 8-bit icon"),
}
