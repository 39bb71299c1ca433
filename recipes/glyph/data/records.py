"""From art to drawings: what to show of each, its colour word, its split, where it vanishes."""

from __future__ import annotations

import numpy as np

from recipes.glyph.data.backgrounds import BACKGROUNDS
from recipes.glyph.data.captions import MOST, coloured
from recipes.glyph.data.colours import OPAQUE, dominant_colour, hidden_share, is_pale
from recipes.glyph.data.drawing import Drawing, compact
from recipes.glyph.data.pictures import Record
from recipes.glyph.data.rasterize import Pixels, Probe, probe_icon, probe_picture
from recipes.glyph.data.rows.row import Art
from recipes.glyph.data.split import split_of
from recipes.glyph.data.styles import STYLE_WORDS

PALE_WEIGHT = 0.2  # they only show on the rarer, darker backgrounds
SAMPLE = 1500  # pixels that are looked at: colour is a matter of areas
HIDDEN = 0.7  # part of a thing's pixels that hardly show, from which it is hidden
MOST_SVG = 2_000_000  # characters; nothing that large is an icon


def drawing_of(art: Art, licence: str) -> Drawing | str | None:
    """The drawing of a piece of art; None if nothing of it is visible, or what went wrong.

    Its weight is the one within its row.
    """
    try:
        if art.icon is None:
            encoded = compact(art.encoded)
            probe = probe_picture(encoded)
        else:
            encoded = b""
            if len(art.icon.body) > MOST_SVG:
                return f"{len(art.icon.body)} characters of SVG, more than {MOST_SVG}"
            probe = probe_icon(art.icon, colour=art.shade or None)
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    if probe is None:
        return None
    return Drawing(
        record=_record(art, probe, licence),
        view=probe.view,
        icon=art.icon,
        shade=art.shade,
        encoded=encoded,
    )


def _record(art: Art, probe: Probe, licence: str) -> Record:
    sample = _sample(probe.pixels)
    pale = is_pale(sample)
    colour = dominant_colour(sample) if art.colour == "" else art.colour
    captions = list(art.captions)
    if art.colour == "" and colour and (tinted := coloured(colour, art.concept)):
        # Third: after the plain name and the name with its style.
        captions = list(dict.fromkeys([*captions[:2], tinted, *captions[2:]]))[:MOST]
    return Record(
        id=art.id,
        name=art.concept,
        style=art.style,
        style_words=list(STYLE_WORDS[art.style]),
        captions=captions,
        source=art.source,
        licence=licence,
        split=split_of(art.concept, art.variant),
        weight=art.weight * (PALE_WEIGHT if pale else 1),
        colour=colour or "",
        pale=pale,
        cutout=art.cutout,
        painted=bool(art.shade),
        box=probe.box,
        hidden_on=tuple(
            name for name, rgb in BACKGROUNDS.items() if hidden_share(sample, rgb) > HIDDEN
        ),
    )


def _sample(pixels: Pixels) -> Pixels:
    """Evenly spread opaque pixels, ``1 n 4``; all of them if none is opaque."""
    flat = pixels.reshape(-1, 4)
    opaque = flat[flat[:, 3] >= OPAQUE]
    chosen = opaque if len(opaque) else flat
    return np.ascontiguousarray(chosen[:: max(1, len(chosen) // SAMPLE)])[None]
