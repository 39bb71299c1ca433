"""What training draws: a contact sheet of samples with their captions, and what each costs.

`python -m benchmarks.mixture --data data/glyph --out sheet.png [--composites 1] [--size 256]`
Times are of one process, milliseconds a sample, reading from the store included.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import process_time

import numpy as np
from recipes.glyph.data.mixture import COMPOSITE_SHARE, Mixture
from recipes.glyph.data.pictures import GlyphPictures

from benchmarks.sheet import sheet


def main() -> None:
    """Draw, save and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/glyph"))
    parser.add_argument("--out", type=Path, default=Path("sheet.png"))
    parser.add_argument("--composites", type=float, default=COMPOSITE_SHARE)
    parser.add_argument("--held", action="store_true", help="composites training never shows")
    parser.add_argument("--size", type=int)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pictures = GlyphPictures.open(arguments.data, arguments.size)
    mixture = Mixture(pictures, composites=arguments.composites)
    rng = np.random.default_rng(arguments.seed)
    mixture.images(mixture.draw(4, rng))  # opens files
    start = process_time()
    draw = mixture.held_scenes if arguments.held else mixture.draw
    samples = draw(arguments.count, rng)
    planned = process_time()
    images = mixture.images(samples)
    drawn = process_time()
    pixels = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    captions = [one.caption for one in samples]
    sheet(list(pixels), captions, arguments.columns).save(arguments.out)
    count = len(samples)
    print(
        json.dumps(
            {
                "size": pictures.size,
                "samples": count,
                "draw_ms": round(1e3 * (planned - start) / count, 2),
                "picture_ms": round(1e3 * (drawn - planned) / count, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
