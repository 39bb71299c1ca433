"""What frozen networks made of samples in advance, read for the samples and captions of a batch."""

from __future__ import annotations

import json
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanakit.data.encode import CachedStates
from sanakit.data.loader.folders import ShardFolder
from sanakit.data.samples import Caption
from sanakit.data.shards import Keys, ShardFile, Span, read_keys
from sanakit.errors import DataError

_REBUILD = "build again: sanakit data build"


class DamagedSample(DataError):
    """One sample cannot be had while its shard can: another one may stand in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSample:
    """A sample as the shard holds it.

    ``original_size`` is (height, width) before anything was done to the picture; ``crop`` is what
    was cut above and to the left, in pixels of that size, and the scale after that.
    """

    id: str
    image: bytes
    captions: tuple[Caption, ...]
    original_size: tuple[int, int]
    crop: tuple[float, float, float]


class ShardReader:
    """Reads samples of shards, and keeps the shards open that were used last."""

    def __init__(self, folder: ShardFolder, *, most_open: int = 64) -> None:
        self._folder = folder
        self._most_open = most_open
        self._open: OrderedDict[str, tuple[FileIO, Keys]] = OrderedDict()
        weakref.finalize(self, _close, self._open)

    def id(self, shard: ShardFile, row: int) -> str:
        """The id of a shard's sample number ``row``.

        Raises:
            DataError: the shard is missing, or is not the one the index lists.
        """
        return self._opened(shard)[1].keys[row]

    def read(self, shard: ShardFile, row: int, *, image: bool = True) -> StoredSample:
        """Read a sample, without its picture's bytes if ``image`` is False.

        Raises:
            DataError: the shard is missing, or is not the one the index lists.
            DamagedSample: the sample's record is damaged.
        """
        file, keys = self._opened(shard)
        identity = keys.keys[row]
        where = f"{self._folder.name}: {shard.file}: sample {identity!r}"
        data = _span(file, keys.images[row], where) if image else b""
        try:
            value = json.loads(_span(file, keys.meta[row], where))["sanakit"]
            sample = StoredSample(
                id=str(value["id"]),
                image=data,
                captions=tuple(_caption(caption) for caption in value["captions"]),
                original_size=_pair(value["original_size"]),
                crop=_triple(value["crop"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedSample(f"{where} has a damaged record ({error})", hint=_REBUILD) from error
        if sample.id != identity:
            raise DataError(
                f"{where} is {sample.id!r} in the tar: the list of keys is of another shard",
                hint=_REBUILD,
            )
        return sample

    def _opened(self, shard: ShardFile) -> tuple[FileIO, Keys]:
        if shard.file not in self._open:
            folder = self._folder.holding(shard)
            keys = read_keys(folder, shard.unit)
            lengths = {len(keys.keys), len(keys.images), len(keys.meta)}
            if lengths != {shard.samples}:
                raise DataError(
                    f"{self._folder.name}: the list of keys of {shard.file} has other than "
                    f"{shard.samples} samples",
                    hint=_REBUILD,
                )
            try:
                # Unbuffered: each read is one known span, and read-ahead would be thrown away.
                file = (folder / shard.file).open("rb", buffering=0)
            except OSError as error:
                raise DataError(
                    f"{folder / shard.file} cannot be read ({error.strerror or error})",
                    hint=_REBUILD,
                ) from error
            while len(self._open) >= self._most_open:
                self._open.popitem(last=False)[1][0].close()
            self._open[shard.file] = (file, keys)
        self._open.move_to_end(shard.file)
        return self._open[shard.file]


def _close(shards: OrderedDict[str, tuple[FileIO, Keys]]) -> None:
    while shards:
        shards.popitem()[1][0].close()


def _span(file: FileIO, span: Span, where: str) -> bytes:
    start, length = span
    try:
        file.seek(start)
        data: bytes = file.read(length) or b""
        while len(data) < length and (more := file.read(length - len(data))):
            data += more
    except OSError as error:  # a disk that fails, a network share that went away
        raise DataError(
            f"{where} cannot be read ({error.strerror or error})", hint="check the disk"
        ) from error
    if len(data) != length:
        raise DataError(f"{where}: the shard ends before byte {start + length}", hint=_REBUILD)
    return data


def _caption(value: dict[str, Any]) -> Caption:
    score = value["score"]
    return Caption(
        text=str(value["text"]),
        captioner=str(value["captioner"]),
        score=None if score is None else float(score),
        weight=float(value["weight"]),
    )


def _pair(value: Any) -> tuple[int, int]:
    height, width = value
    return int(height), int(width)


def _triple(value: Any) -> tuple[float, float, float]:
    top, left, scale = value
    return float(top), float(left), float(scale)


class StateReader:
    """Reads one folder that `sanakit data encode` made, and keeps the shards open used last."""

    def __init__(self, folder: Path, *, most_open: int = 64) -> None:
        self._folder = folder
        self._most_open = most_open
        self._open: OrderedDict[str, CachedStates] = OrderedDict()

    def latent(self, shard: ShardFile, id: str) -> Tensor:
        """The latent of a sample, ``c h w``.

        Raises:
            DataError: the shard was not encoded since it was built.
            DamagedSample: it was, without this sample.
        """
        states = self._opened(shard)
        try:
            return states.latent(id)
        except DataError as error:
            raise DamagedSample(error.message, hint=error.hint) from error

    def text(self, shard: ShardFile, caption: str) -> Tensor:
        """The states of a caption of the shard, or of the null prompt for "", ``l d``.

        Raises:
            DataError: the shard was not encoded since it was built.
            DamagedSample: it was, without this caption.
        """
        states = self._opened(shard)
        try:
            return states.text(caption)
        except DataError as error:
            raise DamagedSample(error.message, hint=error.hint) from error

    def _opened(self, shard: ShardFile) -> CachedStates:
        if shard.file not in self._open:
            states = CachedStates(self._folder, shard.unit)
            found = states.about.get("shard_sha256")
            if found != shard.sha256:
                raise DataError(
                    f"{self._folder} has states of another {shard.file} (SHA-256 {found}, and the "
                    f"shard has {shard.sha256})",
                    hint="run `sanakit data encode` again",
                )
            while len(self._open) >= self._most_open:
                self._open.popitem(last=False)[1].close()
            self._open[shard.file] = states
        self._open.move_to_end(shard.file)
        return self._open[shard.file]


def open_states(folder: str | Path | None) -> StateReader | None:
    """A reader of a folder's states; None for None.

    Raises:
        DataError: there is no such folder.
    """
    if folder is not None and not Path(folder).is_dir():
        raise DataError(f"{folder} is no folder", hint="make it: sanakit data encode")
    return None if folder is None else StateReader(Path(folder))


def stacked(latents: list[Tensor]) -> Tensor:
    """Latents of one batch as ``b c h w``.

    Raises:
        DataError: they differ in shape or type.
    """
    kinds = {(tuple(latent.shape), latent.dtype) for latent in latents}
    if len(kinds) > 1:
        raise DataError(
            "latents of one bucket differ in shape or type: "
            f"{', '.join(f'{shape} {dtype}' for shape, dtype in sorted(kinds, key=str))}",
            hint="run `sanakit data encode` again",
        )
    return torch.stack(latents)


def padded(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Texts ``l d`` as one ``b l d`` with zeros at the ends, and which are real, ``b l``.

    Raises:
        DataError: they differ in width or type.
    """
    kinds = {(text.shape[1], text.dtype) for text in texts}
    if len(kinds) > 1:
        raise DataError(
            "text states differ in width or type: "
            f"{', '.join(f'{width} {dtype}' for width, dtype in sorted(kinds, key=str))}",
            hint="run `sanakit data encode` again",
        )
    lengths = torch.tensor([text.shape[0] for text in texts])
    batch = texts[0].new_zeros(len(texts), int(lengths.max()), texts[0].shape[1])
    for row, text in zip(batch, texts, strict=True):
        row[: text.shape[0]] = text
    return batch, torch.arange(batch.shape[1])[None] < lengths[:, None]
