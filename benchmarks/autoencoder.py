"""Reconstruction of pictures whose concepts were never trained on.

`python -m benchmarks.autoencoder --data data/glyph`: PSNR as the mean over pictures, dB, on white.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from sanakit import Pipeline
from sanakit.data.glyph.pictures import GlyphPictures, compose
from sanakit.train.autoencoder import psnr


@torch.inference_mode()
def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/glyph"))
    parser.add_argument("--size", type=int)
    parser.add_argument("--model", default="glyph")
    parser.add_argument("--split", default="held_concept")
    arguments = parser.parse_args()
    data = GlyphPictures.open(arguments.data, arguments.size)
    autoencoder = Pipeline.load(arguments.model).components.autoencoder
    values = []
    rows = data.indices(arguments.split)
    for part in np.array_split(rows, max(1, len(rows) // 32)):
        image = compose(data.rgba(part), np.ones((len(part), 3)))
        values.append(psnr(autoencoder(image).clamp(-1, 1), image))
    found = torch.cat(values)
    mean = float(found.mean())
    print(json.dumps({"split": arguments.split, "pictures": len(found), "psnr_db": round(mean, 2)}))


if __name__ == "__main__":
    main()
