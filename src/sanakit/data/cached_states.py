"""States of frozen networks on disk, one file a shard, and their reader; NumPy alone can read them.

    latents/KEY/SHARD.npz    scaled latents ``c h w``, named like the samples in the tar
    text/KEY/SHARD.npz       text states ``l d`` of real tokens, named by the SHA-256 of the caption
    text/KEY/null.npz        those of the null prompt, under the hash of the empty text

An array is float16, or the bits of bfloat16 as uint16; the member `about.json` says which, and
which shard and encoder it was made from. The same states give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sanakit.data.shards import key_of
from sanakit.errors import ConfigError, DataError, NumericsError

Storage: TypeAlias = Literal["float16", "bfloat16"]
Stored: TypeAlias = NDArray[np.float16] | NDArray[np.uint16]
STORAGES: tuple[Storage, ...] = ("float16", "bfloat16")
ENDING = ".npz"
ABOUT = "about.json"
NULL = "null"
FORMAT = 1
_LEVEL = 6
_UNIX = 3
_THEN = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can hold


def text_key(caption: str) -> str:
    """The name of a caption's states."""
    return hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest()


def stored(states: Tensor, storage: Storage) -> Stored:
    """Round states to 16 bits, as they are kept.

    Raises:
        NumericsError: a value is not finite, or too large for float16.
    """
    if storage not in STORAGES:
        raise ConfigError(f"storage {storage!r} is unknown", hint=f"one of {', '.join(STORAGES)}")
    rounded = states.detach().to("cpu", torch.float16 if storage == "float16" else torch.bfloat16)
    if not rounded.isfinite().all():
        largest = float(states.abs().max())
        raise NumericsError(
            f"states of up to {largest:g} cannot be kept as {storage}",
            hint="bfloat16 holds all that is finite: --store bfloat16",
        )
    return (rounded if storage == "float16" else rounded.view(torch.uint16)).numpy()


def write_states(path: Path, states: Iterable[tuple[str, Stored]], about: dict[str, Any]) -> int:
    """Write arrays by name, in the order given; gives their bytes before compression."""
    plain = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as file:
        for name, array in states:
            held = io.BytesIO()
            np.lib.format.write_array(held, np.ascontiguousarray(array), version=(1, 0))
            file.writestr(_member(f"{name}.npy"), held.getvalue(), compresslevel=_LEVEL)
            plain += array.nbytes
        text = json.dumps({"format": FORMAT, **about}, sort_keys=True)
        file.writestr(_member(ABOUT), text.encode(), compresslevel=_LEVEL)
    return plain


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _THEN)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.create_system = _UNIX
    member.external_attr = 0o644 << 16
    return member


class CachedStates:
    """The states of one shard; opened at the first question, again in each process.

    ``folder`` is latents/KEY or text/KEY of a set, ``shard`` the name of a shard without ending.
    """

    def __init__(self, folder: str | Path, shard: str) -> None:
        self.folder = Path(folder)
        self.shard = shard
        self._files: dict[str, tuple[int, zipfile.ZipFile]] = {}

    @property
    def about(self) -> dict[str, Any]:
        """What the file says of itself: ``shard_sha256``, ``storage``, ``encoder`` and more.

        Raises:
            DataError: the file is missing or damaged.
        """
        return json.loads(self._bytes(self.shard, ABOUT))

    def latent(self, identity: str) -> Tensor:
        """The scaled latent ``c h w`` of a sample, in the dtype that is stored.

        Raises:
            DataError: the sample has none (its picture could not be read), or the file is damaged.
        """
        return self._tensor(self.shard, key_of(identity), f"sample {identity!r}")

    def text(self, caption: str) -> Tensor:
        """The states ``l d`` of a caption's real tokens; those of the null prompt for "".

        Raises:
            DataError: the shard has no such caption, or the file is damaged.
        """
        return self._tensor(
            self.shard if caption else NULL, text_key(caption), f"caption {caption[:60]!r}"
        )

    def close(self) -> None:
        """Close the files; the next question opens them again."""
        for _, file in self._files.values():
            file.close()
        self._files.clear()

    def __reduce__(self) -> tuple[type[CachedStates], tuple[Path, str]]:
        return CachedStates, (self.folder, self.shard)

    def _tensor(self, name: str, member: str, what: str) -> Tensor:
        data = self._bytes(name, f"{member}.npy", what)
        try:
            array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        except ValueError as error:
            raise self._damaged(name, error) from error
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor

    def _bytes(self, name: str, member: str, what: str = "description") -> bytes:
        try:
            return self._open(name).read(member)
        except KeyError as error:
            raise DataError(
                f"{self.folder / name}{ENDING} has no states of {what}",
                hint="run `sanakit data encode` again",
            ) from error
        except (OSError, zipfile.BadZipFile, EOFError, ValueError) as error:
            raise self._damaged(name, error) from error

    def _open(self, name: str) -> zipfile.ZipFile:
        owner, file = self._files.get(name, (0, None))
        if file is None or owner != os.getpid():  # a fork shares the place in its parent's file
            file = zipfile.ZipFile(self.folder / f"{name}{ENDING}")
            self._files[name] = (os.getpid(), file)
        return file

    def _damaged(self, name: str, error: Exception) -> DataError:
        return DataError(
            f"{self.folder / name}{ENDING} is missing or damaged ({error})",
            hint="run `sanakit data encode` again",
        )
