"""Tensors that took time to compute, kept in a folder under a hash of what they came from.

A cache never fails: what is damaged, foreign or unwritable is as if it were not there.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sanakit.errors import SanakitError
from sanakit.weights.store import tensor_bytes, write_tensors

FORMAT = "sanakit-cache-1"
SUFFIX = ".safetensors"
HOUR = 3600.0


class TensorCache:
    """One folder of files, at most ``max_bytes`` together; the least recently used go first.

    Several processes may share it: files appear whole, and a reader holds on to what it opened.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def read(self, key: str) -> dict[str, Tensor] | None:
        """Give what was kept under a key of hex digits, on the CPU; None: nothing that is sound."""
        path = self.folder / (key + SUFFIX)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                # A copy: another process may remove the file, and some file systems then take the
                # mapped memory with it.
                tensors = {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
        except (OSError, SafetensorError, RuntimeError, ValueError):
            return None
        whole = metadata.get("cache") == FORMAT and metadata.get("key") == key
        if not whole or metadata.get("sha256") != tensors_hash(tensors):
            return None
        with suppress(OSError):  # the folder of somebody else, to be read only
            os.utime(path)
        return tensors

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> bool:
        """Keep tensors under a key of hex digits and say whether that was possible."""
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        size = sum(tensor_bytes(tensor) for tensor in own.values())
        if size > self.max_bytes:
            return False
        metadata = {"cache": FORMAT, "key": key, "sha256": tensors_hash(own)}
        try:
            # Others need not know what was computed.
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(size)
            write_tensors(self.folder / (key + SUFFIX), own, metadata)
        except (OSError, SanakitError):
            return False
        return True

    def _make_room(self, size: int) -> None:
        held = []
        for path in self.folder.iterdir():
            status = path.stat()
            # A temporary file of a process that was killed; a living one is minutes old at most.
            if path.suffix == ".tmp" and time.time() - status.st_mtime > HOUR:
                path.unlink(missing_ok=True)
            elif path.suffix == SUFFIX:
                held.append((status.st_mtime, status.st_size, path))
        room = self.max_bytes - size
        for _, taken, path in sorted(held, reverse=True):
            room -= taken
            if room < 0:
                path.unlink(missing_ok=True)


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Give 64 hex digits that differ where a name, a shape, a dtype or a single bit does."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().tobytes())
    return digest.hexdigest()
