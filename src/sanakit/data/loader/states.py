"""What frozen networks made of samples in advance, read for the samples and captions of a batch."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from sanakit.data.cached_states import CachedStates
from sanakit.data.loader.reading import DamagedSample
from sanakit.data.shards import ShardFile
from sanakit.errors import DataError


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
