"""GGUF files, in which others keep quantized networks: read, with all numbers made real again.

The header is read here, because what it claims decides how much memory a reader takes; the many
kinds of blocks are the `gguf` package's. Source: ggml-org/ggml docs/gguf.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanakit.errors import ConfigError, WeightsError
from sanakit.untrusted import other_readers, shown_text

SUFFIX = ".gguf"
VERSIONS = (2, 3)
LARGEST_HEADER = 1 << 22
"""Bytes; that of the largest transformer takes a twentieth, and to read strings takes time."""
MOST_DIMENSIONS = 4
STRING, ARRAY = 8, 9
FORMATS = dict(zip((*range(8), *range(10, 13)), "BbHhIif?Qqd", strict=True))
"""Of a scalar value by the number of its type, as `struct` has it."""
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
"""Before a tensor's name: the shape of one that was folded to be quantized."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Where a tensor is in the file, and how."""

    shape: tuple[int, ...]
    """As torch has it: the last one is contiguous."""
    kind: int
    """Its number among ggml's types."""
    offset: int
    """From the begin of all tensors."""


def read_gguf(path: Path, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Give all tensors of a file as real numbers, quantized ones in fp32.

    With ``dtype`` all of them are converted, one after the other.

    Raises:
        ConfigError: the `gguf` package is not there. WeightsError: a file that is damaged, cut
            off, or claims more than it has; blocks of a kind that the package cannot read.
    """
    if find_spec("gguf") is None:
        raise ConfigError(f"{path}: reading it needs gguf", hint="pip install 'sanakit[gguf]'")
    with other_readers(path, WeightsError, what="damaged or cut off", hint="download it again"):
        data = np.memmap(path, mode="c") if path.stat().st_size else np.empty(0, np.uint8)
        stored, begin, shapes = _header(data)
        sizes = import_module("gguf").GGML_QUANT_SIZES
        found, claimed = {}, 0
        for name, tensor in stored.items():
            if tensor.kind not in sizes:
                raise ValueError(f"{name} is of the unknown type {tensor.kind}")
            block, block_bytes = sizes[tensor.kind]
            if tensor.shape[-1] % block:
                raise ValueError(f"rows of {name} are no whole blocks of {block}")
            row = tensor.shape[-1] // block * block_bytes
            start, size = begin + tensor.offset, prod(tensor.shape[:-1]) * row
            claimed += size
            # Not each by itself alone: many could lie in one place.
            if start + size > len(data) or claimed > len(data):
                raise ValueError(f"{name} claims bytes that the file does not have")
            raw = data[start : start + size].reshape(*tensor.shape[:-1], row)
            real = _real(raw, tensor.kind)
            if (folded := shapes.get(name)) is not None:
                real = real.reshape(folded)
            found[name] = real if dtype is None else real.to(dtype)
    return found


def _real(raw: np.ndarray[Any, Any], kind: int) -> Tensor:
    types, quants = import_module("gguf").GGMLQuantizationType, import_module("gguf.quants")
    if kind == types.BF16:
        return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
    plain = {types.F32: np.float32, types.F16: np.float16, types.F64: np.float64}
    if kind in plain:
        return torch.from_numpy(raw.view(plain[kind]))
    return torch.from_numpy(np.ascontiguousarray(quants.dequantize(raw, types(kind))))


def _header(
    data: np.ndarray[Any, Any],
) -> tuple[dict[str, Stored], int, dict[str, tuple[int, ...]]]:
    """Tensors by name, where they begin, and shapes that they had before."""
    read = _Cursor(data[:LARGEST_HEADER])
    if read.take(4) != b"GGUF":
        raise ValueError("it does not begin as GGUF does")
    version, tensors, values = read.number("I"), read.number("Q"), read.number("Q")
    if version not in VERSIONS:
        raise ValueError(f"version {version}; known are {VERSIONS}, of little-endian machines")
    alignment, shapes = 32, {}
    for _ in range(values):
        key = read.text()
        value = read.value(keep=key == "general.alignment" or key.startswith(ORIGINAL_SHAPE))
        if key == "general.alignment":
            alignment = value
        elif value is not None:
            shapes[key.removeprefix(ORIGINAL_SHAPE)] = tuple(int(side) for side in value)
    if not isinstance(alignment, int) or alignment not in (8 << n for n in range(12)):
        raise ValueError(f"an alignment of {shown_text(repr(alignment))}")
    found = {}
    for _ in range(tensors):
        name = read.text()
        dimensions = read.number("I")
        if not 0 < dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = tuple(read.number("Q") for _ in range(dimensions))[::-1]
        stored = Stored(shape=shape, kind=read.number("I"), offset=read.number("Q"))
        if not all(shape) or stored.offset % alignment:
            raise ValueError(f"{name} is {shape} at {stored.offset}")
        if name in found:
            raise ValueError(f"{name} is there twice")
        found[name] = stored
    return found, -(-read.at // alignment) * alignment, shapes


class _Cursor:
    """Reads a header from its begin on."""

    def __init__(self, data: np.ndarray[Any, Any]) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ValueError("its header is longer than the file, or than any of a network")
        self.at += count
        return self.data[self.at - count : self.at].tobytes()

    def number(self, form: str) -> Any:
        form = f"<{form}"
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self, *, keep: bool) -> Any:
        """Give a value, of which long ones are passed over unless they are to be kept."""
        kind = self.number("I")
        if kind != ARRAY:
            return self._scalar(kind) if keep else self._pass(kind, 1)
        inner, count = self.number("I"), self.number("Q")
        if not keep:
            return self._pass(inner, count)
        if count > MOST_DIMENSIONS + 4:
            raise ValueError(f"a shape of {count} sides")
        return [self._scalar(inner) for _ in range(count)]

    def _scalar(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind not in FORMATS:
            raise ValueError(f"a value of the unknown type {kind}")
        return self.number(FORMATS[kind])

    def _pass(self, kind: int, count: int) -> None:
        if kind == STRING:
            for _ in range(count):
                self.take(self.number("Q"))
        elif kind in FORMATS:
            self.take(count * struct.calcsize(f"<{FORMATS[kind]}"))
        else:
            raise ValueError(f"a value of the unknown type {kind}")
