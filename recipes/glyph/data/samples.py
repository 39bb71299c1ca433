"""Samples of the set as pictures with captions: tars that `sanakit data scan` reads."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.glyph.data.captions import freely
from recipes.glyph.data.mixture import COMPOSITE_SHARE, EVERYDAY, Mixture, Sample
from recipes.glyph.data.pictures import GlyphPictures
from sanakit.files import replacing
from sanakit.pipeline.pixels import to_pixels

PER_TAR = 512
CAPTIONS = 6
"""Wordings of a sample; training shows one of them each time."""
HELD = 512
AT_A_TIME = 64


def write_samples(
    data: Path,
    out: Path,
    *,
    count: int,
    size: int | None = None,
    captions: int = CAPTIONS,
    composites: float = COMPOSITE_SHARE,
    everyday: float = EVERYDAY,
    held: bool = False,
    seed: int = 0,
    workers: int = 1,
    report: Callable[[str], object] = lambda line: None,
) -> None:
    """Write ``count`` samples of a set into ``out``; tars that are there already stay.

    What lies in a tar is a function of the set, the seed and its number: the first samples of a
    longer run are those of a shorter one. ``composites`` and ``everyday`` are as `Mixture` takes
    them. ``held`` are pairs of concept and style that training never shows, on white and without
    composites.

    Raises:
        ConfigError, DataError: as `GlyphPictures.open` and `Mixture`.
    """
    mixed = partial(_mixture, data, size, held, composites=composites, everyday=everyday)
    mixed()  # what is wrong with the set is said before processes start
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(first, min(PER_TAR, count - first)) for first in range(0, count, PER_TAR)]
    jobs = [job for job in jobs if not _tar(out, job[0]).is_file()]
    write = partial(_write, mixed, out, captions=captions, seed=seed)
    if workers <= 1:
        done: Iterator[Path] = map(write, jobs)
    else:
        pool = ProcessPoolExecutor(workers)
        done = pool.map(write, jobs)
    for number, path in enumerate(done):
        report(f"{path}: {number + 1} of {len(jobs)}")


def _write(
    mixed: Callable[[], Mixture], out: Path, job: tuple[int, int], *, captions: int, seed: int
) -> Path:
    first, count = job
    mixture = mixed()
    # As many are drawn for a last, shorter tar: the next run may have more of them.
    rng = np.random.default_rng((seed, first))
    samples = mixture.draw(PER_TAR, rng)[:count]
    path = _tar(out, first)
    with replacing(path) as temporary, tarfile.open(temporary, "w") as tar:
        for start in range(0, count, AT_A_TIME):
            some = samples[start : start + AT_A_TIME]
            for place, pixels in enumerate(to_pixels(mixture.images(some))):
                key = f"{first + start + place:07d}"
                png = io.BytesIO()
                Image.fromarray(pixels).save(png, "PNG")
                _add(tar, f"{key}.png", png.getvalue())
                said = _captions(mixture, some[place], captions, first + start + place, seed)
                _add(tar, f"{key}.json", json.dumps({"captions": said}).encode())
    return path


def _captions(
    mixture: Mixture, sample: Sample, count: int, number: int, seed: int
) -> Sequence[str]:
    rng = np.random.default_rng((seed, number, 1))
    return list(dict.fromkeys(freely(mixture.words(sample, rng), rng) for _ in range(count)))


def _mixture(
    data: Path, size: int | None, held: bool, *, composites: float, everyday: float
) -> Mixture:
    pictures = GlyphPictures.open(data, size)
    if held:
        return Mixture(pictures, split="held_style", composites=0, white=1)
    return Mixture(pictures, composites=composites, everyday=everyday)


def _tar(out: Path, first: int) -> Path:
    return out / f"samples-{first:07d}.tar"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
