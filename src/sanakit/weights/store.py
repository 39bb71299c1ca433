"""Weights and configs on disk: safetensors, sharded or not, read strictly and written whole."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sanakit.errors import ConfigError, MissingModelError, WeightsError
from sanakit.files import listed, names_in, read_json, replacing, write_json
from sanakit.models.config import config_from_dict, config_to_dict
from sanakit.untrusted import other_readers, shown, shown_text
from sanakit.weights.int8_rows import STORAGE, pack_int8, unpack_int8
from sanakit.weights.layout import (
    CONFIG,
    PICKLES,
    QUANTIZATION,
    STEM,
    index_name,
    shard_names,
    variants_of,
    weights_name,
    whole_name,
)

CONVERSION = (
    "pickles can run code and are refused; convert it once: sanakit convert {name} {target}"
)
MAPPED_AT_ONCE = 1 << 28
"""Bytes that may be converted before the file is mapped anew, which lets go of what was read."""


def read_tensors(
    path: Path, names: Collection[str] | None = None, *, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Give the tensors of one file, all or those named, on the CPU.

    Memory is mapped, so a large file costs what is touched. Int8 rows are unpacked: their real
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
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    except WeightsError:
        raise
    except Exception as error:
        # safetensors', and torch's over sizes and types that there are not.
        raise _diagnosed(path, shown_text(str(error))) from error
    if storage is None:
        return stored
    if storage != STORAGE:
        raise WeightsError(
            f"{path}: storage {shown(storage)} is unknown",
            hint="a newer version of sanakit may read it",
        )
    with other_readers(path, WeightsError, hint="download or write it again"):
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


SHOWN = 5


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    filled: Collection[str] = (),
) -> None:
    """Fill every parameter and persistent buffer of ``module``; on a misfit change nothing.

    Tensors are assigned, not copied: a module built on the meta device becomes real, takes dtype
    and device of ``state`` and shares its memory. ``source`` names the file in the error;
    ``filled`` are submodules that have their tensors already, and of which ``state`` has none.

    Raises:
        WeightsError: for missing, unexpected or mis-shaped tensors, and for integers where the
            module has real numbers; the first five are listed.
    """
    wanted = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if not any(name.startswith(f"{owner}.") for owner in filled)
    }
    problems = [f"missing {name}" for name in wanted.keys() - state.keys()]
    problems += [f"unexpected {name}" for name in state.keys() - wanted.keys()]
    for name in wanted.keys() & state.keys():
        given, own = state[name], wanted[name]
        if given.shape != own.shape:
            problems.append(f"shape {name}: file {tuple(given.shape)}, model {tuple(own.shape)}")
        elif given.is_floating_point() != own.is_floating_point():
            problems.append(f"kind {name}: file {given.dtype}, model {own.dtype}")
    if problems:
        raise WeightsError(
            f"{source}: {_counted(problems)} do not fit {type(module).__name__}: "
            + "; ".join([*sorted(problems)[:SHOWN], *_rest(problems)]),
            hint="config.json must be the one these weights were made with",
        )
    fitting = {name: state[name].detach() for name in wanted}
    module.load_state_dict(fitting, strict=not filled, assign=True)


def _counted(problems: list[str]) -> str:
    kinds = [problem.split()[0] for problem in problems]
    parts = [f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))]
    return f"{len(problems)} tensor{'s'[: len(problems) > 1]} ({', '.join(parts)})"


def _rest(problems: list[str]) -> list[str]:
    return [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []


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
    int8 rows come back as fp32.

    Raises:
        MissingModelError: no such folder, or no weights of that name in it.
        WeightsError: only pickles there; a damaged file; an index that points astray.
    """
    folder = Path(folder)
    index = folder / index_name(stem, variant)
    whole = folder / whole_name(stem, variant)
    if index.is_file():
        state: dict[str, Tensor] = {}
        for path, names in read_index(index).items():
            state |= read_tensors(path, names, dtype=dtype)
        return state
    if whole.is_file():
        return read_tensors(whole, dtype=dtype)
    if not folder.is_dir():
        raise MissingModelError(f"{folder}: no such folder", hint=f"it should hold {whole.name}")
    held = names_in(folder)
    pickles = [name for name in held if Path(name).suffix in PICKLES]
    if pickles and not any(name.endswith(".safetensors") for name in held):
        raise WeightsError(
            f"{folder / pickles[0]}: pickle refused, and there is no {whole.name}",
            hint=CONVERSION.format(name=folder, target=f"{folder}-safetensors"),
        )
    others = ", ".join(sorted(map(str, variants_of(held))))
    raise MissingModelError(
        f"{folder}: has no {whole.name}; it holds {listed(held)}",
        hint=f"variants there: {others}" if others else "download it again, or name another folder",
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
    old = [name for name in names_in(folder) if _is_of(name, stem, variant)]
    index = folder / index_name(stem, variant)
    shards = _split(state, max_shard_bytes)
    metadata: dict[str, str] = {}
    if storage == STORAGE:
        # After the split, so that values and their scales share a file.
        packed = [pack_int8(shard) for shard in shards]
        shards, metadata = [tensors for tensors, _ in packed], packed[0][1]
    new = shard_names(stem, variant, len(shards))
    # The index is what a reader looks for first: an old one must not see new shards.
    if len(shards) > 1:
        index.unlink(missing_ok=True)
    for name, shard in zip(new, shards, strict=True):
        write_tensors(folder / name, shard, metadata)
    if len(shards) > 1:
        total = sum(tensor_bytes(tensor) for shard in shards for tensor in shard.values())
        places = {name: file for file, shard in zip(new, shards, strict=True) for name in shard}
        content = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(index, content)
        new.append(index.name)
    for name in sorted(set(old) - set(new), key=lambda name: name != index.name):
        (folder / name).unlink(missing_ok=True)


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
    """What ``config.json`` says of weights that are stored quantized; None where they are not."""
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
    write_json(Path(folder) / CONFIG, content)


def read_index(index: Path, *, kind: str = "safetensors") -> dict[Path, list[str]]:
    """Give the shards that an index names, each with its tensors.

    Raises:
        WeightsError: no map from tensors to files, or a shard that is absent or elsewhere.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise WeightsError(f"{index}: has no weight_map from tensors to files")
    shards: dict[Path, list[str]] = {}
    for name, file in sorted(places.items(), key=lambda item: item[1]):
        shards.setdefault(index.parent / file, []).append(name)
    for path, names in shards.items():
        _check_shard(path, places[names[0]], index, kind)
    return shards


def _check_shard(path: Path, file: str, index: Path, kind: str) -> None:
    """An index comes from others and may not name files elsewhere."""
    home = index.parent.resolve()
    # In the hub's cache every file is a link from snapshots/REVISION/... to the same model's blobs.
    homes = [home] + [p.parent / "blobs" for p in home.parents if p.name == "snapshots"]
    plain = file not in ("", ".", "..") and not set(file) & set("/\\:\0")
    if not plain or not any(path.resolve().is_relative_to(place) for place in homes):
        raise WeightsError(
            f"{index}: names the file {file!r}, which leads out of its folder",
            hint="do not use this model: its index was tampered with",
        )
    if path.suffix != f".{kind}":
        raise WeightsError(f"{index}: names {file!r}, which is not a {kind} file")
    if not path.is_file():
        raise WeightsError(
            f"{index}: names {file}, which is not there",
            hint="the download is incomplete: repeat it",
        )


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


def _is_of(name: str, stem: str, variant: str | None) -> bool:
    found = weights_name(name)
    return found is not None and found[:3] == (stem, variant, "safetensors")
