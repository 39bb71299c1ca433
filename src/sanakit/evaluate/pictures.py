"""The pictures that figures are of: real ones of any source, and what a model generates."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sanakit.data.resize_and_crop import fitted
from sanakit.data.samples import Refusal, Sample
from sanakit.data.sources.opening import open_source
from sanakit.data.sources.places import read_place
from sanakit.data.training_set import SHARDS
from sanakit.data.units import SET
from sanakit.errors import DataError
from sanakit.evaluate.features import PictureSet
from sanakit.files import expanded, replacing, sha256_of
from sanakit.images.decode import BadPicture, decode
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.pixels import Pixels
from sanakit.pipeline.request import GenerateRequest

RESTORED_SIDE = 256
CHUNK = 32
"""Pictures in a file: what an interruption loses at most."""


class Pictures(PictureSet, Protocol):
    """Pictures with names, which a cache can know again."""

    @property
    def labels(self) -> list[str]:
        """What to write beside each."""
        ...

    @property
    def asked(self) -> list[str]:
        """What tells these pictures from others: for the name of a cache."""
        ...


@dataclass(frozen=True)
class FilePictures:
    """Pictures of a source, decoded when asked for: resized to cover a square, the middle taken."""

    root: Path
    listed: Sequence[Sample]
    size: int

    def __len__(self) -> int:
        return len(self.listed)

    def __getitem__(self, part: slice) -> Pixels:
        return np.stack([self._one(sample) for sample in self.listed[part]])

    @property
    def labels(self) -> list[str]:
        """The ids."""
        return [sample.id for sample in self.listed]

    @property
    def captions(self) -> list[str]:
        """The first caption of each."""
        return [sample.captions[0].text for sample in self.listed]

    @property
    def asked(self) -> list[str]:
        """What tells these pictures from others: for the name of a cache."""
        told = "\n".join(f"{sample.id} {sample.place}" for sample in self.listed)
        digest = sha256_of(told)
        return [str(self.root.resolve()), str(self.size), digest]

    def _one(self, sample: Sample) -> Pixels:
        square = (self.size, self.size)
        try:
            return fitted(decode(read_place(self.root, sample.place), cover=square).pixels, square)
        except BadPicture as error:
            raise DataError(
                f"{sample.id}: {error.message}", hint="take it out of the folder, then go on"
            ) from error


def pictures_to_restore(
    data: Path, *, size: int = RESTORED_SIDE, count: int | None = None, captioned: bool = False
) -> FilePictures:
    """A fixed sample of a source's pictures, in squares of ``size`` px, to measure with.

    Of a training set these are the pictures in its shards; ``captioned`` takes those with a text.

    Raises:
        DataError: there are no pictures, or none with a caption.
    """
    folder = expanded(data)
    source = open_source(folder / SHARDS if (folder / SET).is_file() else folder)
    found: list[Sample] = []
    for unit in source.units():
        found += [one for one in source.read(unit) if not isinstance(one, Refusal)]
    if not found:
        raise DataError(f"{data} holds no pictures that can be read")
    if captioned and not (found := [one for one in found if one.captions]):
        raise DataError(
            f"{data}: no picture has a caption",
            hint="put NAME.txt beside NAME.png, name a table, or --held OTHER-SET",
        )
    chosen = np.sort(np.random.default_rng(0).permutation(len(found))[:count])
    return FilePictures(source.root, [found[row] for row in chosen], size)


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How pictures are generated; None means the model's own default. Sizes in px."""

    seed: int = 0
    """Of the first prompt; prompt i is generated with seed + i, so that noise differs."""
    num_steps: int | None = None
    guidance_scale: float | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    solver: str | None = None
    flow_shift: float | None = None
    height: int | None = None
    width: int | None = None

    def request(self, prompt: str, index: int) -> GenerateRequest:
        """The request for prompt ``index`` of a list."""
        return GenerateRequest(prompt=prompt, **{**asdict(self), "seed": self.seed + index})


def generate_pictures(
    pipeline: Pipeline,
    prompts: Sequence[str],
    settings: GenerationSettings,
    *,
    cache: Path,
    report: Callable[[str], object] = lambda line: None,
) -> Pixels:
    """One picture a prompt, in order, ``n h w 3`` uint8; none is left out or generated twice.

    ``cache`` is a folder; what lies in it for this very model, list and settings is read again,
    and an interrupted call goes on where it was.
    """
    folder = cache / _key(pipeline, prompts, settings)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for first in range(0, len(prompts), CHUNK):
        path = folder / f"{first:06d}.npy"
        if not path.is_file():
            pictures = [
                pipeline.generate(settings.request(prompt, first + index)).pictures[0].pixels
                for index, prompt in enumerate(prompts[first : first + CHUNK])
            ]
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, np.stack(pictures))
            report(f"generated {min(first + CHUNK, len(prompts))} of {len(prompts)}")
        found.append(np.load(path))
    return np.concatenate(found)


def _key(pipeline: Pipeline, prompts: Sequence[str], settings: GenerationSettings) -> str:
    told = [pipeline.components.fingerprint, list(prompts), asdict(settings)]
    return sha256_of(json.dumps(told))[:16]
