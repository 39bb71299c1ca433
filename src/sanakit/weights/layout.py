"""The published layout: names of files, which of a repository a model needs, which are missing."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from sanakit.errors import MissingModelError, SanakitError, WeightsError
from sanakit.files import names_in, read_json

INDEX = "model_index.json"
CONFIG = "config.json"
QUANTIZATION = "quantization_config"
"""In a config: how weights are stored that are no real numbers."""
STEM, LM_STEM = "diffusion_pytorch_model", "model"
PLAIN = "plain"
"""As a variant: the files without one in their name, which are fp32 in most repositories."""
PARTS = ("controlnet", "scheduler", "text_encoder", "tokenizer", "transformer", "vae")
NETWORKS = ("text_encoder", "transformer", "vae")
ABOUT = ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt")
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")

# Writers put the variant before or after the number of the shard.
_WEIGHTS = re.compile(
    r"(?P<stem>\w+)(?:\.(?P<early>\w+))?(?P<shard>-\d+-of-\d+)?(?:\.(?P<late>\w+))?"
    r"\.(?P<kind>safetensors|bin)(?P<index>\.index(?:\.(?P<last>\w+))?\.json)?"
)
_PLAIN_NAME = re.compile(r"\w[\w.+-]*")
_TEXT = (".json", ".txt", ".model", ".jinja")


class WeightsName(NamedTuple):
    """What the name of a weights file says."""

    stem: str
    variant: str | None
    """``fp16`` and the like; None is plain."""
    kind: str
    """``safetensors`` or ``bin``, a pickle."""
    role: Literal["whole", "shard", "index"]


def weights_name(name: str) -> WeightsName | None:
    """Take a file name apart; None: not a weights file, nor an index of some."""
    if not (match := _WEIGHTS.fullmatch(name)):
        return None
    role: Literal["whole", "shard", "index"] = "shard" if match["shard"] else "whole"
    return WeightsName(
        stem=match["stem"],
        variant=match["early"] or match["late"] or match["last"],
        kind=match["kind"],
        role="index" if match["index"] else role,
    )


def whole_name(stem: str, variant: str | None, kind: str = "safetensors") -> str:
    """Name the single file of a component's weights."""
    return f"{_with(stem, variant)}.{kind}"


def index_name(stem: str, variant: str | None, kind: str = "safetensors") -> str:
    """Name the index of a component's shards."""
    return f"{_with(f'{stem}.{kind}.index', variant)}.json"


def shard_names(stem: str, variant: str | None, count: int) -> list[str]:
    """Name the files of weights in ``count`` shards."""
    if count == 1:
        return [whole_name(stem, variant)]
    full = _with(stem, variant)
    return [f"{full}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _with(name: str, variant: str | None) -> str:
    return name if variant is None else f"{name}.{variant}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Files to have, and the components whose wanted variant there is not."""

    files: tuple[str, ...]
    variants: dict[str, str | None]
    """The variant of each component's weights; None is plain. The root's key is empty."""

    def without(self, variant: str | None) -> list[str]:
        """Give the components that are held in another variant than the one wanted."""
        wanted = None if variant == PLAIN else variant
        return sorted(part for part, held in self.variants.items() if held != wanted)


def choose_variant(held: Collection[str | None], wanted: str | None) -> str | None:
    """Pick one variant of a component's weights: the wanted, else plain, else the first by name.

    None is plain, on both sides.
    """
    if wanted == PLAIN:
        wanted = None
    if wanted in held or not held:
        return wanted
    return None if None in held else min(name for name in held if name is not None)


def variants_of(names: Iterable[str]) -> set[str | None]:
    """Give the variants of the weights among the file names of one component's folder."""
    found = map(_network_weights, names)
    return {name.variant for name in found if name is not None and name.role != "index"}


def stored_variant(folder: Path, wanted: str | None) -> str | None:
    """Give the variant in which to read a component's folder, by :func:`choose_variant`."""
    return choose_variant(variants_of(names_in(folder)), wanted)


def _network_weights(name: str) -> WeightsName | None:
    found = weights_name(name)
    known = found and found.kind == "safetensors" and found.stem in (STEM, LM_STEM)
    return found if known else None


def select_files(
    names: Collection[str], *, variant: str | None, source: str, subfolder: str | None = None
) -> Selection:
    """Choose from a repository's file names those that one variant of the model needs.

    Code, pickles, hidden files, other formats and folders that no component has are left out, and
    so is every name that would lead out of the folder.

    Args:
        names: all files, as ``transformer/config.json``.
        variant: preferred for every component, see :func:`choose_variant`; None is plain.
        source: the repository, for the error.
        subfolder: only this component, with the index.

    Raises:
        WeightsError: the weights are there as pickles only. MissingModelError: there are none.
    """
    pipeline = INDEX in names
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, own = name.rpartition("/")
        wanted_folder = folder in PARTS and subfolder in (None, folder)
        if _PLAIN_NAME.fullmatch(own) and (wanted_folder or folder == ""):
            folders.setdefault(folder, []).append(own)
    files: list[str] = []
    variants: dict[str, str | None] = {}
    for folder, own_names in folders.items():
        is_root = folder == ""
        chosen = choose_variant(variants_of(own_names), variant)
        taken = [] if is_root and pipeline else _weights_in(own_names, chosen)
        if taken:
            variants[folder] = chosen
        texts = (INDEX, CONFIG, *ABOUT) if is_root else _texts_in(own_names)
        files += [f"{folder}/{own}".lstrip("/") for own in (*taken, *texts) if own in own_names]
    if not variants:
        raise _without_weights(names, source, subfolder)
    return Selection(files=tuple(sorted(files)), variants=variants)


def _weights_in(names: list[str], variant: str | None) -> list[str]:
    """The index and its shards where there are both those and a single file."""
    found = {name: each for name in names if (each := _network_weights(name))}
    own = {name: each.role for name, each in found.items() if each.variant == variant}
    whole = "index" not in own.values()
    return [name for name, role in own.items() if (role == "whole") == whole]


def _texts_in(names: list[str]) -> list[str]:
    """Configs and vocabularies, without the indexes of weights."""
    return [name for name in names if name.endswith(_TEXT) and not _network_weights(name)]


def _without_weights(
    names: Collection[str], source: str, subfolder: str | None
) -> WeightsError | MissingModelError:
    where = source if subfolder is None else f"{source}: {subfolder}"
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        return WeightsError(
            f"{where}: holds its weights as pickles only ({pickles[0]}), which can run code and "
            "are never loaded",
            hint="if you trust them, download them yourself and run: sanakit convert FILE FOLDER",
        )
    return MissingModelError(
        f"{where}: holds no weights in the published layout",
        hint=f"a model has {INDEX} and folders of safetensors; name another repository",
    )


def missing_by_structure(
    folder: Path, *, variant: str | None = None, subfolder: str | None = None
) -> list[str]:
    """Name the files that a loader would look for in vain; empty means complete.

    Args:
        folder: of a pipeline, or of a single network whose config lies at the root.
        variant: which the weights must have; None lets any pass.
        subfolder: look at this component only.
    """
    if not (folder / INDEX).is_file():
        if (folder / CONFIG).is_file() and subfolder is None:
            return _missing_weights(folder, "", variant)
        return [INDEX]
    index = _read(folder / INDEX)
    parts = [
        name
        for name, kind in index.items()
        if isinstance(kind, list) and kind and kind[0] and subfolder in (None, name)
    ]
    missing: list[str] = []
    for part in sorted(parts):
        if part in NETWORKS:
            if not (folder / part / CONFIG).is_file():
                missing.append(f"{part}/{CONFIG}")
            missing += _missing_weights(folder, part, variant)
        elif part == "scheduler" and not (folder / part / "scheduler_config.json").is_file():
            missing.append(f"{part}/scheduler_config.json")
        elif part == "tokenizer" and not names_in(folder / part):
            missing.append(f"{part}/tokenizer.json")
    return missing


def _missing_weights(folder: Path, part: str, variant: str | None) -> list[str]:
    here = folder / part
    wanted = None if variant == PLAIN else variant
    chosen = wanted if variant else stored_variant(here, None)
    stem = LM_STEM if part == "text_encoder" else STEM
    names = [whole_name(stem, chosen)]
    if (here / index_name(stem, chosen)).is_file():
        places = _read(here / index_name(stem, chosen)).get("weight_map")
        names = sorted(set(places.values())) if isinstance(places, dict) else []
    return [f"{part}/{name}".lstrip("/") for name in names if not (here / str(name)).is_file()]


def _read(path: Path) -> dict[str, object]:
    """Read an index; one that is damaged names nothing, and its loader will say so."""
    try:
        return read_json(path)
    except SanakitError:
        return {}
