"""A component's folder on disk: ``config.json`` and safetensors, whole or in shards.

Names and layout are the published ones, so folders move between this package and diffusers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from sanakit.errors import ConfigError, MissingModelError, WeightsError
from sanakit.models.config import config_from_dict, config_to_dict
from sanakit.weights.atomic import write_atomically
from sanakit.weights.compact import STORAGE, pack_int8
from sanakit.weights.tensors import CONVERSION, read_tensors, tensor_bytes, write_tensors

STEM = "diffusion_pytorch_model"
CONFIG = "config.json"
QUANTIZATION = "quantization_config"
PICKLES = {".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle"}
MAX_SHARD_BYTES = 5_000_000_000

Storage = Literal["as-is", "int8-rows"]
T = TypeVar("T")


def read_weights(
    folder: str | Path,
    *,
    stem: str = STEM,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Give all tensors of a component: ``stem[.variant].safetensors`` or the shards of its index.

    Real tensors become ``dtype``, one by one; without it they keep their stored dtype, except that
    compact storage comes back as fp32.

    Raises:
        MissingModelError: no such folder, or no weights of that name in it.
        WeightsError: only pickles there; a damaged file; an index that points astray.
    """
    folder = Path(folder)
    index = folder / _index_name(stem, variant)
    whole = folder / f"{_stem(stem, variant)}.safetensors"
    if index.is_file():
        return _read_shards(folder, index, dtype)
    if whole.is_file():
        return read_tensors(whole, dtype=dtype)
    if not folder.is_dir():
        raise MissingModelError(f"{folder}: no such folder", hint=f"it should hold {whole.name}")
    held = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in held if Path(name).suffix in PICKLES]
    if pickles and not any(name.endswith(".safetensors") for name in held):
        raise WeightsError(
            f"{folder / pickles[0]}: pickle refused, and there is no {whole.name}",
            hint=CONVERSION.format(name=folder, target=f"{folder}-safetensors"),
        )
    raise MissingModelError(
        f"{folder}: has no {whole.name}; it holds {listed(held)}",
        hint=_other_variants(held, stem) or "download the model again, or name another folder",
    )


def write_weights(
    folder: str | Path,
    state: Mapping[str, Tensor],
    *,
    stem: str = STEM,
    variant: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    storage: Storage = "as-is",
) -> None:
    """Write a component's tensors; above ``max_shard_bytes`` in shards with an index.

    The folder is made where missing. Every file appears whole or not at all, and what the folder
    held under the same stem and variant before goes last. ``int8-rows`` is a quarter of fp32 and
    is read by this package only.

    Raises:
        DataError: the disk refuses. WeightsError: a tensor that cannot be stored that way.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    old = [path for path in folder.iterdir() if _is_of(path.name, stem, variant)]
    index = folder / _index_name(stem, variant)
    shards = _split(state, max_shard_bytes)
    metadata: dict[str, str] = {}
    if storage == STORAGE:
        # After the split, so that values and their scales share a file.
        packed = [pack_int8(shard) for shard in shards]
        shards, metadata = [tensors for tensors, _ in packed], packed[0][1]
    full = _stem(stem, variant)
    new = [_shard_name(full, number, len(shards)) for number in range(1, len(shards) + 1)]
    # The index is what a reader looks for first: an old one must not see new shards.
    if len(shards) > 1:
        index.unlink(missing_ok=True)
    for name, shard in zip(new, shards, strict=True):
        write_tensors(folder / name, shard, metadata)
    if len(shards) > 1:
        total = sum(tensor_bytes(tensor) for shard in shards for tensor in shard.values())
        places = {name: file for file, shard in zip(new, shards, strict=True) for name in shard}
        content = {"metadata": {"total_size": total}, "weight_map": places}
        write_atomically(index, _json_bytes(content))
        new.append(index.name)
    for path in sorted(old, key=lambda path: path != index):
        if path.name not in new:
            path.unlink(missing_ok=True)


def read_config(folder: str | Path, kind: type[T]) -> T:
    """Build a component's frozen config from its ``config.json``.

    Raises:
        MissingModelError: no such file. ConfigError: broken JSON, unknown keys, refused values.
    """
    path = Path(folder) / CONFIG
    values = read_json(path)
    values.pop(QUANTIZATION, None)
    try:
        return config_from_dict(kind, values, source=str(path))
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: a value is of the wrong type ({error})") from error


def read_quantization(folder: str | Path) -> dict[str, Any] | None:
    """What ``config.json`` says of weights that are stored quantised; None where they are not."""
    found = read_json(Path(folder) / CONFIG).get(QUANTIZATION)
    return found if isinstance(found, dict) else None


def write_config(
    folder: str | Path,
    config: Any,
    class_name: str,
    *,
    quantization: Mapping[str, Any] | None = None,
) -> None:
    """Write ``config.json`` with the published class name, e.g. ``AutoencoderDC``, inside."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    content = {"_class_name": class_name, **config_to_dict(config)}
    if quantization is not None:
        content[QUANTIZATION] = dict(quantization)
    write_atomically(Path(folder) / CONFIG, _json_bytes(content))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder.

    Raises:
        MissingModelError: no such file. ConfigError: not JSON, or not an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        folder = path.parent
        held = listed(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "not there"
        raise MissingModelError(
            f"{path}: no such file", hint=f"what the folder holds: {held}"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}, not an object")
    return values


def listed(names: list[str], most: int = 6) -> str:
    """Say what a folder holds, in a few words."""
    if not names:
        return "nothing"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _read_shards(folder: Path, index: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise WeightsError(f"{index}: has no weight_map from tensors to files")
    state: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        path = _shard_path(folder, file, index)
        names = [name for name, place in places.items() if place == file]
        state |= read_tensors(path, names, dtype=dtype)
    return state


def _shard_path(folder: Path, file: str, index: Path) -> Path:
    """Where a shard is; an index comes from others and may not name files elsewhere."""
    path = folder / file
    home = folder.resolve()
    # In the hub's cache every file is a link from snapshots/REVISION/... to the same model's blobs.
    homes = [home] + [p.parent / "blobs" for p in home.parents if p.name == "snapshots"]
    plain = file not in ("", ".", "..") and not set(file) & set("/\\:\0")
    if not plain or not any(path.resolve().is_relative_to(place) for place in homes):
        raise WeightsError(
            f"{index}: names the file {file!r}, which leads out of its folder",
            hint="do not use this model: its index was tampered with",
        )
    if path.suffix != ".safetensors":
        raise WeightsError(f"{index}: names {file!r}, which is not a safetensors file")
    if not path.is_file():
        raise WeightsError(
            f"{index}: names {file}, which is not there",
            hint="the download is incomplete: repeat it",
        )
    return path


def _split(state: Mapping[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    """Fill shards in order; a single tensor above the limit has one to itself."""
    shards: list[dict[str, Tensor]] = [{}]
    room = most
    for name, tensor in state.items():
        size = tensor_bytes(tensor)
        if size > room and shards[-1]:
            shards.append({})
            room = most
        shards[-1][name] = tensor
        room -= size
    return shards


def _stem(stem: str, variant: str | None) -> str:
    return stem if variant is None else f"{stem}.{variant}"


def _index_name(stem: str, variant: str | None) -> str:
    return f"{stem}.safetensors.index{'' if variant is None else f'.{variant}'}.json"


def _shard_name(stem: str, number: int, count: int) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05}-of-{count:05}.safetensors"


def _is_of(name: str, stem: str, variant: str | None) -> bool:
    """Whether a file is weights of that stem and variant."""
    shard = rf"{re.escape(_stem(stem, variant))}(-\d+-of-\d+)?\.safetensors"
    return name == _index_name(stem, variant) or re.fullmatch(shard, name) is not None


def _other_variants(held: list[str], stem: str) -> str | None:
    found = [re.fullmatch(rf"{re.escape(stem)}(?:\.(\w+))?\.safetensors", name) for name in held]
    names = [match[1] for match in found if match]
    return f"variants there: {', '.join(str(name) for name in names)}" if names else None


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
