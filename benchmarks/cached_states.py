"""What 16 bits and compression do to latents and text states of the embedded model.

`python -m benchmarks.cached_states PICTURES.npy CAPTIONS.txt`: uint8 ``n H W 3|4`` pictures, of
which ``--count`` are taken evenly, and as many captions, one a line. For each storage: the largest
and the relative error, how far decoded pictures are from those of fp32 latents (PSNR, dB), bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import ROOT
from sanakit.bench.record import facts
from sanakit.data.encode import STORAGES, CachedStates, Storage, stored, write_states
from sanakit.pipeline.components import load_components
from sanakit.pipeline.pixels import from_pixels

RESULTS = ROOT / "benchmarks" / "results" / "cached_states.jsonl"


def pictures(path: Path, count: int, size: int) -> Tensor:
    """``n 3 size size`` in [-1, 1], transparency over white."""
    from PIL import Image

    every = np.load(path, mmap_mode="r")
    made = []
    for index in np.linspace(0, len(every) - 1, count).astype(int):
        picture = Image.fromarray(np.array(every[index])).convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture).convert("RGB")
        made.append(np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS)))
    return from_pixels(np.stack(made))


def kept(states: list[Tensor], storage: Storage) -> tuple[list[Tensor], dict[str, float]]:
    """States as they come back, with what they take on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "all.npz"
        named = ((f"{number:06}", stored(one, storage)) for number, one in enumerate(states))
        plain = write_states(path, named, {})
        size = path.stat().st_size
        cached = CachedStates(folder, "all")
        back = [cached._tensor("all", f"{n:06}", "").float() for n in range(len(states))]
    return back, {
        "bytes_each": round(size / len(states)),
        "compression": round(plain / size, 3),
    }


def errors(states: list[Tensor], back: list[Tensor]) -> dict[str, float]:
    a, b = torch.cat([s.flatten() for s in states]), torch.cat([s.flatten() for s in back])
    return {
        "largest_value": round(float(a.abs().max()), 3),
        "largest_error": float(f"{float((a - b).abs().max()):.3g}"),
        "relative_rms": float(f"{float((a - b).norm() / a.norm()):.3g}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--size", type=int, default=128)
    settings = parser.parse_args()
    model = load_components("glyph")
    scale = model.autoencoder.config.scaling_factor
    images = pictures(settings.pictures, settings.count, settings.size)
    with torch.inference_mode():
        latents = (
            torch.cat([model.autoencoder.encode(one).latent for one in images.split(8)]) * scale
        )
        reference = torch.cat(
            [model.autoencoder.decode(one / scale).sample for one in latents.split(8)]
        )
    lines = settings.captions.read_text(encoding="utf-8").splitlines()[: settings.count]
    encoded = [model.prompts.encode([x], instruction=model.prompts.instruction) for x in lines]
    texts = [one.text[0][one.mask[0]] for one in encoded]
    result: dict[str, Any] = {
        **facts(),
        "count": settings.count,
        "size": settings.size,
    }
    for storage in STORAGES:
        back, size = kept(list(latents), storage)
        with torch.inference_mode():
            again = torch.cat(
                [model.autoencoder.decode(o / scale).sample for o in torch.stack(back).split(8)]
            )
        error = float((again - reference).square().mean())
        psnr = round(10 * math.log10(4 / error), 1)
        result[f"latents {storage}"] = {**errors(list(latents), back), **size, "psnr_db": psnr}
        back, size = kept(texts, storage)
        result[f"text {storage}"] = {**errors(texts, back), **size}
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    for name, values in result.items():
        print(f"{name}: {values}")


if __name__ == "__main__":
    main()
