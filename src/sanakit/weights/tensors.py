"""One safetensors file: read with an account of what is wrong with it, written whole or not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sanakit.errors import WeightsError
from sanakit.weights.atomic import replacing
from sanakit.weights.compact import STORAGE, unpack_int8

CONVERSION = (
    "pickles can run code and are refused; convert it once: sanakit convert {name} {target}"
)


MAPPED_AT_ONCE = 1 << 28
"""Bytes that may be converted before the file is mapped anew, which lets go of what was read."""


def read_tensors(
    path: Path, names: Collection[str] | None = None, *, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Give the tensors of one file, all or those named, on the CPU.

    Memory is mapped, so a large file costs what is touched. Compact storage is undone: its real
    tensors come back as fp32. With ``dtype`` real tensors of another one are converted, one after
    the other: beside the result never more than 256 MB and one tensor are in memory.

    Raises:
        WeightsError: for a damaged, cut-off or disguised file, or a name the file does not have.
    """
    try:
        with safe_open(path, framework="pt") as file:
            held = set(file.keys())
            absent = sorted(set(names or ()) - held)
            if absent:
                raise WeightsError(
                    f"{path}: has no tensor {absent[0]} ({len(absent)} absent), "
                    "which its index promises",
                    hint="files of two different models are mixed: download the folder again",
                )
            metadata = file.metadata() or {}
        storage = metadata.get("storage")
        wanted = sorted(held if names is None else names)
        stored = _stored(path, wanted, dtype if storage is None else None)
    except SafetensorError as error:
        raise _diagnosed(path, str(error)) from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    if storage is None:
        return stored
    if storage != STORAGE:
        raise WeightsError(
            f"{path}: storage {storage!r} is unknown", hint="a newer version of sanakit may read it"
        )
    unpacked = unpack_int8(stored, source=str(path))
    return {name: _as(tensor, dtype) for name, tensor in unpacked.items()}


def write_tensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one file that any safetensors reader opens, by a temporary file and a rename.

    Tensors keep their dtype; those that share memory are written once each.

    Raises:
        WeightsError: when the library refuses; DataError: when the disk does.
    """
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        own = tensor.detach().to("cpu", copy=False).contiguous()
        address = own.untyped_storage().data_ptr()
        tensors[name] = own.clone() if address in seen else own
        seen.add(address)
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {"format": "pt", **metadata})
        except SafetensorError as error:
            raise WeightsError(f"{path}: cannot be written ({error})") from error


def tensor_bytes(tensor: Tensor) -> int:
    """Size at rest; the header of the file comes on top."""
    return tensor.numel() * torch.empty((), dtype=tensor.dtype).element_size()


def _stored(path: Path, names: Iterable[str], dtype: torch.dtype | None) -> dict[str, Tensor]:
    given: dict[str, Tensor] = {}
    waiting = list(names)[::-1]
    while waiting:
        with safe_open(path, framework="pt") as file:
            converted = 0
            while waiting and converted < MAPPED_AT_ONCE:
                name = waiting.pop()
                stored = file.get_tensor(name)
                given[name] = _as(stored, dtype)
                converted += stored.nbytes if given[name] is not stored else 0
    return given


def _as(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def _diagnosed(path: Path, reason: str) -> WeightsError:
    """Look at the first bytes of what safetensors refused; people rename and cut files."""
    with open(path, "rb") as file:
        head = file.read(64)
    size = path.stat().st_size
    # First, because a header length may well begin with a pickle's first bytes.
    genuine = len(head) > 8 and head[4:9] == b"\0\0\0\0{"
    if not genuine and (head.startswith(b"PK\x03\x04") or head[:1] == b"\x80"):
        target = f"converted-{path.name}"
        return WeightsError(
            f"{path}: is a pickle with the name of a safetensors file",
            hint=CONVERSION.format(name=path, target=path.with_name(target)),
        )
    if head.startswith(b"version https://git-lfs"):
        return WeightsError(
            f"{path}: is a Git LFS pointer of {size} bytes, not the weights",
            hint="run: git lfs pull",
        )
    return WeightsError(
        f"{path}: damaged or cut off ({size} bytes; {reason.removeprefix('Error while ')})",
        hint="download or write it again",
    )
