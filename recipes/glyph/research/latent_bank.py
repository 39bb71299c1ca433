"""Latents of samples of the glyph mixture, computed once; captions are drawn anew each time.

What lies in a bank is a function of the data set, a seed and an autoencoder; how much, of a count.
It is made in pieces, by all ranks; an interrupted one goes on, and one that is there may grow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recipes.glyph.data.mixture import Mixture, Sample
from recipes.glyph.data.pictures import GlyphPictures
from sanakit.errors import ConfigError, DataError
from sanakit.files import replacing
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AUTOENCODERS
from sanakit.train.distributed.ranks import Ranks
from sanakit.train.recipes.autoencoder_run import channels_last, start_autoencoder

PIECE = 512
"""Samples in a file."""
AT_A_TIME = 8  # more do not fit into the caches of a core
HELD = 512
FACTS, SCALE = "bank.json", "scale.json"
Latents = npt.NDArray[np.float16]  # N c h w


@dataclass(frozen=True, kw_only=True)
class LatentBank:
    """Samples to train on and held-out ones, with latents of unit mean square over the former."""

    mixture: Mixture
    samples: Sequence[Sample]
    latents: Latents
    held: Sequence[Sample]
    held_latents: Latents
    scaling_factor: float
    """What the autoencoder's latents were multiplied by."""


def open_bank(
    autoencoder: Autoencoder,
    mixture: Mixture,
    held: Mixture,
    folder: Path,
    *,
    count: int,
    seed: int = 0,
    ranks: Ranks,
    report: Callable[[str], object] = lambda line: None,
) -> LatentBank:
    """Read a bank of ``count`` samples from ``folder``, or make what is missing of it.

    Every rank calls it and makes its share of the pieces. The samples of a small bank are the first
    ones of a larger one, and the scale is that of the count that was finished first: whatever was
    learned from a bank keeps the scale that it was learned at.

    Raises:
        ConfigError: the folder holds a bank of other samples, or of another autoencoder.
        DataError: latents without a scale.
    """
    samples = _drawn(mixture, count, seed)
    held_samples = _drawn(held, min(HELD, count), seed)
    folder.mkdir(parents=True, exist_ok=True)
    weights = autoencoder.cpu().state_dict().values()
    facts = {
        "seed": seed,
        "size": mixture.pictures.size,
        "samples": _digest(repr([_drawn(one, PIECE, seed) for one in (mixture, held)]).encode()),
        "autoencoder": _digest(*(tensor.numpy().tobytes() for tensor in weights)),
    }
    _same_facts(folder, facts, ranks)
    autoencoder.to(ranks.device).eval()
    parts = [(mixture, samples, "train"), (held, held_samples, "held")]
    jobs = [
        (source, some[first : first + PIECE], folder / f"{name}-{first:07d}.npy")
        for source, some, name in parts
        for first in range(0, len(some), PIECE)
    ]
    for number, (source, some, path) in enumerate(jobs):
        if number % ranks.count == ranks.rank and not _is_made(path, len(some)):
            latents = _encoded(autoencoder, source, some, ranks.device)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, latents)
            report(f"{folder}: piece {number + 1} of {len(jobs)}")
    ranks.wait()
    halves = [
        np.concatenate([np.load(path)[: len(some)] for source, some, path in jobs if source is one])
        for one in (mixture, held)
    ]
    fresh = not (folder / SCALE).is_file()
    scale = 1 / _rms(halves[0]) if fresh else size_and_scale(folder)[1]
    ranks.wait()  # until all have seen whether it was there
    for half in halves:
        for rows in np.array_split(half, max(1, len(half) // PIECE)):
            rows *= scale
    if ranks.first and fresh:
        with replacing(folder / SCALE) as temporary:
            temporary.write_text(json.dumps({"scaling_factor": scale}) + "\n", encoding="utf-8")
    return LatentBank(
        mixture=mixture,
        samples=samples,
        latents=halves[0],
        held=held_samples,
        held_latents=halves[1],
        scaling_factor=scale,
    )


def glyph_bank(
    pictures: GlyphPictures,
    folder: Path,
    *,
    autoencoder: str,
    samples: int,
    ranks: Ranks,
    report: Callable[[str], object],
) -> LatentBank:
    """Latents of the mixture, and of concept-style pairs that are not trained on."""
    return open_bank(
        channels_last(start_autoencoder(autoencoder, config=AUTOENCODERS["glyph"])),
        Mixture(pictures),
        Mixture(pictures, split="held_style", composites=0, white=1),
        folder,
        count=samples,
        ranks=ranks,
        report=report,
    )


def size_and_scale(folder: Path) -> tuple[int, float]:
    """The pictures' side, px, and the scaling factor of a finished bank.

    Raises:
        DataError: it is not finished.
    """
    found: dict[str, Any] = {}
    for name in (SCALE, FACTS):
        path = folder / name
        if not path.is_file():
            raise DataError(
                f"{path} is missing", hint="run `python -m recipes.glyph diffusion` first"
            )
        found |= json.loads(path.read_text(encoding="utf-8"))
    return int(found["size"]), float(found["scaling_factor"])


def _rms(latents: Latents) -> float:
    """In fp64, and piece by piece: squares of half a billion numbers in fp16 do not sum.

    Raises:
        DataError: all are zero, or some are not finite.
    """
    pieces = np.array_split(latents, max(1, len(latents) // PIECE))
    total = sum(float(np.square(some, dtype=np.float64).sum()) for some in pieces)
    if not 0 < total < float("inf"):
        raise DataError(f"the squares of {latents.size} values of latents sum to {total}")
    return (total / latents.size) ** 0.5


def _drawn(mixture: Mixture, count: int, seed: int) -> list[Sample]:
    """Piece by piece, each of a generator of its own."""
    samples: list[Sample] = []
    for first in range(0, count, PIECE):
        samples += mixture.draw(PIECE, np.random.default_rng((seed, first)))
    return samples[:count]


def _is_made(path: Path, count: int) -> bool:
    """Whether a piece is there, and was not the last, shorter one of a smaller bank."""
    return path.is_file() and len(np.load(path, mmap_mode="r")) >= count


def _digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


def _same_facts(folder: Path, facts: dict[str, Any], ranks: Ranks) -> None:
    path = folder / FACTS
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != facts:
            raise ConfigError(
                f"{folder} holds latents of {found}, not of {facts}",
                hint="remove that folder, or give the settings that it was made with",
            )
    elif ranks.first:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    ranks.wait()


@torch.inference_mode()
def _encoded(
    autoencoder: Autoencoder, mixture: Mixture, samples: Sequence[Sample], device: torch.device
) -> Latents:
    parts = []
    for first in range(0, len(samples), AT_A_TIME):
        image = mixture.images(samples[first : first + AT_A_TIME]).to(device)
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            latent = autoencoder.encode(image).latent
        parts.append(latent.float().cpu().contiguous().numpy().astype(np.float16))
    return np.concatenate(parts)
