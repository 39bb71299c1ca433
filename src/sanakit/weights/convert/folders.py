"""Folders of a converted model: what is read of one, and how one is put together whole."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanakit.errors import ConfigError, DataError, MissingModelError, WeightsError
from sanakit.files import check_parent, write_json
from sanakit.models.config import AutoencoderConfig, TransformerConfig, config_to_dict
from sanakit.weights.convert.original_format import read_file, unwrapped
from sanakit.weights.convert.parts import BRANCH, Part
from sanakit.weights.resolve import INDEX
from sanakit.weights.store import (
    CONFIG,
    PICKLES,
    STEM,
    listed,
    read_json,
    read_weights,
    write_weights,
)

MARKS = ("config.json", "model_index.json")


def check_folder(path: Path, *, force: bool) -> None:
    """Refuse a target folder that must not be written, before anything is.

    Raises:
        DataError: no parent folder; a file; a folder and no ``force``; a folder that holds other
            things than a model, which is never replaced.
    """
    check_parent(path)
    if path.is_symlink() or path.is_file():
        raise DataError(f"{path} is there and is no folder", hint="name another folder")
    if not path.exists():
        return
    held = sorted(each.name for each in path.iterdir())
    if held and not force:
        raise DataError(f"{path} is there already", hint="--force replaces it as a whole")
    if held and not any(mark in held for mark in MARKS):
        raise DataError(
            f"{path} holds no model but {', '.join(held[:4])}: it is not replaced",
            hint="name another folder",
        )


def check_file(path: Path, *, force: bool) -> None:
    """Say now what writing a file would refuse.

    Raises:
        DataError: no parent folder; a folder of that name; a file and no ``force``.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a file", hint="name a file inside it")
    if path.exists() and not force:
        raise DataError(f"{path} is there already", hint="--force replaces it")
    check_parent(path)


def check_apart(source: Path, target: Path, what: str, *, inside: bool = False) -> None:
    """Make sure that ``target`` neither is nor holds what it is made from, nor lies in it.

    A target may lie ``inside`` where it is one file.

    Raises:
        ConfigError: it does.
    """
    theirs, ours = source.resolve(), target.resolve()
    if theirs == ours:
        raise ConfigError(f"{target}: {what} and OUT are the same", hint="name another OUT")
    if ours in theirs.parents:
        raise ConfigError(
            f"{target}: holds {what} ({source}), replacing it would lose that",
            hint="name another OUT",
        )
    if theirs in ours.parents and theirs.is_dir() and not inside:
        raise ConfigError(f"{target}: lies inside {what} ({source})", hint="name another OUT")


def check_room(path: Path, size: int) -> None:
    """Make sure that the disk of ``path`` has ``size`` bytes left.

    Raises:
        DataError: it has not.
    """
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise DataError(
            f"{path}: needs {size / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left",
            hint="free some, or name another OUT",
        )


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


SCHEDULER, SCHEDULER_CONFIG = "scheduler", "scheduler_config.json"
# What a transformer's config has and a published control branch's has not.
NOT_OF_BRANCHES = ("guidance_embeds", "guidance_embeds_scale", "qk_norm", "timestep_scale")
# Published shifts by the side of the latent grid; source: diffusers
# scripts/convert_sana_to_diffusers.py.
FLOW_SHIFTS = {16: 3.0, 32: 3.0, 64: 3.0, 128: 6.0}
SPRINT, CONTROLLED = "SanaSprintPipeline", "SanaControlNetPipeline"
SCM: Mapping[str, Any] = {
    "_class_name": "SCMScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "trigflow",
    "sigma_data": 0.5,
}


def write_part_config(folder: Path, part: Part) -> None:
    """Write ``config.json`` with the fields that its published class has."""
    fields = config_to_dict(part.config)
    if part.class_name == BRANCH:
        fields = {name: value for name, value in fields.items() if name not in NOT_OF_BRANCHES}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, {"_class_name": part.class_name, **fields})


def assembled(
    base: Path,
    folder: Path | None,
    parts: tuple[Part, ...],
    *,
    variant: str | None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Fill ``folder``, which holds ``parts`` already, with what else a model needs, from ``base``.

    The scheduler becomes that of the transformer: its published shift, or SCM for Sprint models.
    With ``folder`` None only check that base and parts fit together.

    Raises:
        ConfigError: widths of text or latent that differ, or a base of another sampler.
    """
    index = read_json(base / INDEX)
    new = {part.folder: part for part in parts}
    _check_fit(base, index, new)
    components = {
        name: value
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and all(value)
    }
    files = {name: weight_files(base / name) for name in components if name not in new}
    if folder is None:
        return
    for name, weights in files.items():
        report(f"copying {name}")
        copy_other_files(base / name, folder / name)
        if weights is not None:
            write_variant(folder / name, weights.read(), stem=weights.stem, variant=variant)
    index |= {name: ["diffusers", part.class_name] for name, part in new.items()}
    if "controlnet" in new:
        index["_class_name"] = CONTROLLED
    if "transformer" in new:
        _write_scheduler(folder, index, new["transformer"])
    write_json(folder / INDEX, index)


def _write_scheduler(folder: Path, index: dict[str, Any], transformer: Part) -> None:
    config = transformer.config
    assert isinstance(config, TransformerConfig)
    path = folder / SCHEDULER / SCHEDULER_CONFIG
    if config.guidance_embeds:
        index["_class_name"] = SPRINT
        index[SCHEDULER] = ["diffusers", SCM["_class_name"]]
        write_json(path, SCM)
        return
    scheduler = read_json(path)
    shift = FLOW_SHIFTS.get(config.sample_size)
    if shift is not None and transformer.presets:
        scheduler |= {key: shift for key in ("flow_shift", "shift") if key in scheduler}
        write_json(path, scheduler)


def _check_fit(base: Path, index: Mapping[str, Any], new: Mapping[str, Part]) -> None:
    transformer = new["transformer"].config if "transformer" in new else None
    if isinstance(transformer, TransformerConfig):
        text = read_json(base / "text_encoder" / CONFIG).get("hidden_size")
        if text != transformer.caption_channels:
            raise ConfigError(
                f"{base}: its text encoder gives {text} channels, the transformer takes "
                f"{transformer.caption_channels}",
                hint="give a base with the text encoder that the model was trained with",
            )
        sprint = index.get("_class_name") == SPRINT
        if sprint and not transformer.guidance_embeds:
            raise ConfigError(
                f"{base}: is a Sprint model, its scheduler cannot sample this transformer",
                hint="give a base that is not distilled",
            )
        channels = transformer.in_channels
    else:
        channels = int(read_json(base / "transformer" / CONFIG).get("in_channels", 32))
    vae = new["vae"].config if "vae" in new else None
    latent = (
        vae.latent_channels
        if isinstance(vae, AutoencoderConfig)
        else read_json(base / "vae" / CONFIG).get("latent_channels")
    )
    if latent != channels:
        raise ConfigError(
            f"{base}: its autoencoder has {latent} latent channels, its transformer {channels}"
            if not new.keys() & {"vae", "transformer"}
            else f"the autoencoder has {latent} latent channels, the transformer {channels}",
            hint="give a base of the same family",
        )
