"""The real pictures that figures are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sanakit.data.images.decode import BadPicture, decode
from sanakit.data.images.resize_and_crop import fitted
from sanakit.data.samples import Refusal, Sample
from sanakit.data.sources.opening import open_source
from sanakit.data.sources.places import read_place
from sanakit.errors import DataError
from sanakit.evaluate.features import PictureSet
from sanakit.files import sha256_of
from sanakit.pipeline.images import Pixels

RESTORED_SIDE = 256


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
    data: Path, *, size: int = RESTORED_SIDE, count: int | None = None
) -> FilePictures:
    """A fixed sample of a source's pictures, in squares of ``size`` px, to measure with.

    Raises:
        DataError: there are no pictures.
    """
    source = open_source(data)
    found: list[Sample] = []
    for unit in source.units():
        found += [one for one in source.read(unit) if not isinstance(one, Refusal)]
    if not found:
        raise DataError(f"{data} holds no pictures that can be read")
    chosen = np.sort(np.random.default_rng(0).permutation(len(found))[:count])
    return FilePictures(source.root, [found[row] for row in chosen], size)
