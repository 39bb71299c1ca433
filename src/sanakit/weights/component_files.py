"""The weight files of a published component folder, in whatever format and variant they are."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sanakit.errors import ConfigError, MissingModelError, WeightsError
from sanakit.weights.native import read_file, unwrapped
from sanakit.weights.store import PICKLES, STEM, listed, read_json, read_weights, write_weights

LM_STEM = "model"
# Pickled stems, and what their safetensors are called.
STEMS = {"diffusion_pytorch_model": STEM, "pytorch_model": LM_STEM}
NAMED = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+?))?"
    r"(?:-\d+-of-\d+)?\.(?P<kind>safetensors|bin)(?:\.index(?:\.(?P<index_variant>\w+))?\.json)?"
)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """One set of weights in a folder: safetensors where there are some, else a pickle."""

    folder: Path
    stem: str
    """Of the safetensors: ``diffusion_pytorch_model``, or a language model's ``model``."""
    variant: str | None
    pickled: bool

    def read(self) -> dict[str, Tensor]:
        """Give all tensors, in their stored dtype.

        Raises:
            WeightsError: damaged or incomplete files, or a pickle that holds more than tensors.
        """
        if not self.pickled:
            return read_weights(self.folder, stem=self.stem, variant=self.variant)
        stem = next(name for name, ours in STEMS.items() if ours == self.stem)
        inner = "" if self.variant is None else f".{self.variant}"
        whole, index = f"{stem}{inner}.bin", f"{stem}.bin.index{inner}.json"
        if not (self.folder / index).is_file():
            return unwrapped(read_file(self.folder / whole), source=str(self.folder / whole))[0]
        state: dict[str, Tensor] = {}
        for shard in sorted(set(_places(self.folder / index).values())):
            path = self.folder / shard
            if os.path.basename(shard) != shard or path.suffix != ".bin":
                raise WeightsError(
                    f"{self.folder / index}: names the file {shard!r}, which leads astray",
                    hint="do not use this model: its index was tampered with",
                )
            state |= unwrapped(read_file(path), source=str(path))[0]
        if absent := sorted(_places(self.folder / index).keys() - state.keys()):
            raise WeightsError(f"{self.folder / index}: {absent[0]} is in none of its files")
        return state


def weight_files(folder: Path, *, variant: str | None = None) -> WeightFiles | None:
    """Find a component's weights; None where it has none (a scheduler, a tokenizer).

    Without ``variant``: those without one, or the only variant there.

    Raises:
        MissingModelError: no such folder or variant. ConfigError: several variants to choose from.
    """
    if not folder.is_dir():
        raise MissingModelError(f"{folder}: no such folder", hint="the model is incomplete")
    found: dict[str | None, WeightFiles] = {}
    for name in sorted(path.name for path in folder.iterdir()):
        if not (match := NAMED.fullmatch(name)):
            continue
        pickled = match["kind"] == "bin"
        own = match["index_variant"] or match["variant"]
        stem = STEMS.get(match["stem"], match["stem"])
        if own not in found or (found[own].pickled and not pickled):
            found[own] = WeightFiles(folder=folder, stem=stem, variant=own, pickled=pickled)
    if not found and variant is None:
        return None
    if variant in found:
        return found[variant]
    if variant is None and len(found) == 1:
        return next(iter(found.values()))
    there = listed(sorted(str(name) for name in found))
    if variant is None:
        raise ConfigError(f"{folder}: holds the variants {there}", hint="choose with --variant")
    raise MissingModelError(f"{folder}: has no variant {variant}", hint=f"variants there: {there}")


def write_variant(
    folder: Path, state: Mapping[str, Tensor], *, stem: str, variant: str | None
) -> None:
    """Write weights under the published name of a variant, in shards where they are large."""
    write_weights(folder, state, stem=stem if variant is None else f"{stem}.{variant}")
    if variant is not None:
        index = folder / f"{stem}.{variant}.safetensors.index.json"
        if index.is_file():  # shards carry the variant in front of the ending, their index behind
            index.rename(folder / f"{stem}.safetensors.index.{variant}.json")


def copy_other_files(source: Path, target: Path) -> None:
    """Copy what is beside the weights: configs, vocabularies; never weights, pickles or code."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        refused = path.suffix in PICKLES | {".py", ".safetensors"} or path.name.startswith(".")
        if path.is_file() and not refused and not NAMED.fullmatch(path.name):
            shutil.copyfile(path, target / path.name)


def cast(state: Mapping[str, Tensor], dtype: str | None, *, source: str) -> dict[str, Tensor]:
    """Store real tensors in another dtype; integers stay.

    Raises:
        WeightsError: for a value that does not fit, such as 70000 in fp16.
    """
    if dtype is None:
        return dict(state)
    wanted = DTYPES[dtype]
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.dtype == wanted:
            result[name] = tensor
            continue
        result[name] = tensor.to(wanted)
        if bool(tensor.isfinite().all()) and not bool(result[name].isfinite().all()):
            raise WeightsError(
                f"{source}: {name} holds {tensor.abs().max():.3g}, too large for {dtype}",
                hint="bf16 has the range of fp32",
            )
    return result


def _places(index: Path) -> dict[str, str]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise WeightsError(f"{index}: has no weight_map from tensors to files")
    return places
