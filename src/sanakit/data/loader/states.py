"""What frozen networks made of a sample in advance: latents, one zip of arrays a shard.

SHARD.npz       an entry a sample, named as in the tar; uint16 holds the bits of bfloat16
"""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sanakit.data.loader.reading import DamagedSample
from sanakit.data.shards import ShardFile, key_of
from sanakit.errors import DataError

ENDING = ".npz"
_ENCODE = "make them: sanakit data encode"


class LatentReader:
    """Reads latents from a folder that `sanakit data encode` made for one autoencoder."""

    def __init__(self, folder: Path, *, most_open: int = 64) -> None:
        self._folder = folder
        self._most_open = most_open
        self._open: OrderedDict[str, zipfile.ZipFile] = OrderedDict()

    def read(self, shard: ShardFile, id: str) -> Tensor:
        """The latent of a sample, ``c h w``.

        Raises:
            DataError: the shard was not encoded.
            DamagedSample: the sample was not, or its entry is damaged.
        """
        archive = self._opened(shard)
        where = f"{self._folder / shard.unit}{ENDING}: {id!r}"
        try:
            with archive.open(f"{key_of(id)}.npy") as entry:
                array = np.lib.format.read_array(entry, allow_pickle=False)
        except KeyError as error:
            raise DamagedSample(f"{where} is not encoded", hint=_ENCODE) from error
        except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
            raise DamagedSample(f"{where} is damaged ({error})", hint=_ENCODE) from error
        if array.ndim != 3 or array.dtype not in (np.uint16, np.float16, np.float32):
            raise DamagedSample(
                f"{where} is {array.dtype} {array.shape}, not a latent", hint=_ENCODE
            )
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor

    def _opened(self, shard: ShardFile) -> zipfile.ZipFile:
        if shard.file not in self._open:
            path = self._folder / f"{shard.unit}{ENDING}"
            try:
                archive = zipfile.ZipFile(path)
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"{path} cannot be read ({error})", hint=_ENCODE) from error
            while len(self._open) >= self._most_open:
                self._open.popitem(last=False)[1].close()
            self._open[shard.file] = archive
        self._open.move_to_end(shard.file)
        return self._open[shard.file]
