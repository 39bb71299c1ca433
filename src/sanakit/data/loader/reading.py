"""What frozen networks made of samples in advance, read for the samples and captions of a batch."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from sanakit.data.encode import CachedStates
from sanakit.data.loader.folders import ShardFolder
from sanakit.data.samples import Caption
from sanakit.data.shards import Keys, ShardFile, Span, read_keys
from sanakit.errors import DataError
from sanakit.untrusted import open_file, parse_json

_MOST_OPEN = 64  # shards of a reader
_REBUILD = "build again: sanakit data build"


class _Closes(Protocol):
    def close(self) -> None: ...


_Open = TypeVar("_Open", bound=_Closes)


class DamagedSample(DataError):
    """One sample cannot be had while its shard can: another one may stand in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSample:
    """A sample as the shard holds it."""

    id: str
    image: bytes
    captions: tuple[Caption, ...]


class _KeepsOpen(Generic[_Open]):
    """Keeps what it opened of the shards that were used last."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Open] = OrderedDict()
        weakref.finalize(self, _close_all, self._open)

    def _opened(self, shard: ShardFile) -> _Open:
        if shard.file not in self._open:
            made = self._make(shard)
            while len(self._open) >= _MOST_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[shard.file] = made
        self._open.move_to_end(shard.file)
        return self._open[shard.file]

    def _make(self, shard: ShardFile) -> _Open:
        raise NotImplementedError


def _close_all(opened: OrderedDict[str, Any]) -> None:
    while opened:
        opened.popitem()[1].close()


class _Shard(NamedTuple):
    """An open tar with the list of what it holds."""

    file: RawIOBase
    keys: Keys

    def close(self) -> None:
        self.file.close()


class ShardReader(_KeepsOpen[_Shard]):
    """Reads samples of shards."""

    def __init__(self, folder: ShardFolder) -> None:
        super().__init__()
        self._folder = folder

    def id(self, shard: ShardFile, row: int) -> str:
        """The id of a shard's sample number ``row``."""
        return self._opened(shard).keys.keys[row]

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
            value = parse_json(_span(file, keys.meta[row], where))["sanakit"]
            sample = StoredSample(
                id=str(value["id"]),
                image=data,
                captions=tuple(Caption(**caption) for caption in value["captions"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedSample(f"{where} has a damaged record ({error})", hint=_REBUILD) from error
        if sample.id != identity:
            raise DataError(
                f"{where} is {sample.id!r} in the tar: the list of keys is of another shard",
                hint=_REBUILD,
            )
        return sample

    def _make(self, shard: ShardFile) -> _Shard:
        folder = self._folder.holding(shard)
        keys = read_keys(folder, shard.unit)
        if {len(keys.keys), len(keys.images), len(keys.meta)} != {shard.samples}:
            raise DataError(
                f"{self._folder.name}: the list of keys of {shard.file} has other than "
                f"{shard.samples} samples",
                hint=_REBUILD,
            )
        try:
            # Unbuffered: each read is one known span, and read-ahead would be thrown away.
            return _Shard(open_file(folder / shard.file).detach(), keys)
        except OSError as error:
            raise DataError(
                f"{folder / shard.file} cannot be read ({error.strerror or error})", hint=_REBUILD
            ) from error


def _span(file: RawIOBase, span: Span, where: str) -> bytes:
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


class StateReader(_KeepsOpen[CachedStates]):
    """Reads one folder that `sanakit data encode` made."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def latent(self, shard: ShardFile, id: str) -> Tensor:
        """The latent of a sample, ``c h w``."""
        return _unless_damaged(self._opened(shard).latent, id)

    def text(self, shard: ShardFile, caption: str) -> Tensor:
        """The states of a caption of the shard, or of the null prompt for "", ``l d``."""
        return _unless_damaged(self._opened(shard).text, caption)

    def _make(self, shard: ShardFile) -> CachedStates:
        states = CachedStates(self._folder, shard.unit)
        found = states.about.get("shard_sha256")
        if found != shard.sha256:
            raise DataError(
                f"{self._folder} has states of another {shard.file} (SHA-256 {found}, and the "
                f"shard has {shard.sha256})",
                hint="run `sanakit data encode` again",
            )
        return states


def _unless_damaged(read: Callable[[str], Tensor], what: str) -> Tensor:
    try:
        return read(what)
    except DataError as error:
        raise DamagedSample(error.message, hint=error.hint) from error


def open_states(folder: str | Path | None) -> StateReader | None:
    """A reader of a folder's states; None for None."""
    if folder is not None and not Path(folder).is_dir():
        raise DataError(f"{folder} is no folder", hint="make it: sanakit data encode")
    return None if folder is None else StateReader(Path(folder))


def stacked(latents: list[Tensor]) -> Tensor:
    """Latents of one batch as ``b c h w``."""
    _of_one_kind("latents of one bucket", {(tuple(one.shape), one.dtype) for one in latents})
    return torch.stack(latents)


def _of_one_kind(what: str, kinds: set[tuple[Any, torch.dtype]]) -> None:
    if len(kinds) > 1:
        found = ", ".join(f"{size} {dtype}" for size, dtype in sorted(kinds, key=str))
        raise DataError(
            f"{what} differ in size or type: {found}", hint="run `sanakit data encode` again"
        )


def padded(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Texts ``l d`` as one ``b l d`` with zeros at the ends, and which are real, ``b l``."""
    _of_one_kind("text states", {(text.shape[1], text.dtype) for text in texts})
    lengths = torch.tensor([text.shape[0] for text in texts])
    batch = texts[0].new_zeros(len(texts), int(lengths.max()), texts[0].shape[1])
    for row, text in zip(batch, texts, strict=True):
        row[: text.shape[0]] = text
    return batch, torch.arange(batch.shape[1])[None] < lengths[:, None]
