"""Which files of a repository a model needs, and whether a folder has them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from sanakit.errors import MissingModelError, WeightsError

INDEX = "model_index.json"
PLAIN = "plain"
"""As a variant: the files without one in their name, which are fp32 in most repositories."""
PARTS = ("controlnet", "scheduler", "text_encoder", "tokenizer", "transformer", "vae")
NETWORKS = ("text_encoder", "transformer", "vae")
ABOUT = ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt")

_STEM = r"(?P<stem>diffusion_pytorch_model|model)"
# Writers put the variant before or after the number of the shard.
_WEIGHTS = re.compile(
    rf"{_STEM}(?:\.(?P<early>\w+))?(?P<shard>-\d+-of-\d+)?(?:\.(?P<late>\w+))?\.safetensors"
)
_SHARDS = re.compile(rf"{_STEM}\.safetensors\.index(?:\.(?P<early>\w+))?\.json")
_PLAIN_NAME = re.compile(r"\w[\w.+-]*")
_PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")
_TEXT = (".json", ".txt", ".model", ".jinja")


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
    found = [_WEIGHTS.fullmatch(name) for name in names]
    return {match["early"] or match["late"] for match in found if match}


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
        texts = (INDEX, "config.json", *ABOUT) if is_root else _texts_in(own_names)
        files += [f"{folder}/{own}".lstrip("/") for own in (*taken, *texts) if own in own_names]
    if not variants:
        raise _without_weights(names, source, subfolder)
    return Selection(files=tuple(sorted(files)), variants=variants)


def _weights_in(names: list[str], variant: str | None) -> list[str]:
    """The index and its shards where there are both those and a single file."""
    shards: list[str] = []
    whole: list[str] = []
    for name in names:
        if (match := _SHARDS.fullmatch(name)) and match["early"] == variant:
            shards.append(name)
        elif (match := _WEIGHTS.fullmatch(name)) and (match["early"] or match["late"]) == variant:
            (shards if match["shard"] else whole).append(name)
    return shards if any(_SHARDS.fullmatch(name) for name in shards) else whole


def _texts_in(names: list[str]) -> list[str]:
    """Configs and vocabularies, without the indexes of weights."""
    return [name for name in names if name.endswith(_TEXT) and not _SHARDS.fullmatch(name)]


def _without_weights(
    names: Collection[str], source: str, subfolder: str | None
) -> WeightsError | MissingModelError:
    where = source if subfolder is None else f"{source}: {subfolder}"
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
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


STEMS = {"text_encoder": "model"}
NETWORK_STEM = "diffusion_pytorch_model"


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
        if (folder / "config.json").is_file() and subfolder is None:
            return _missing_weights(folder, "", variant)
        return [INDEX]
    index = _json(folder / INDEX)
    parts = [
        name
        for name, kind in index.items()
        if isinstance(kind, list) and kind and kind[0] and subfolder in (None, name)
    ]
    missing: list[str] = []
    for part in sorted(parts):
        if part in NETWORKS:
            if not (folder / part / "config.json").is_file():
                missing.append(f"{part}/config.json")
            missing += _missing_weights(folder, part, variant)
        elif part == "scheduler" and not (folder / part / "scheduler_config.json").is_file():
            missing.append(f"{part}/scheduler_config.json")
        elif part == "tokenizer" and not _held(folder / part):
            missing.append(f"{part}/tokenizer.json")
    return missing


def stored_variant(folder: Path, wanted: str | None) -> str | None:
    """Give the variant in which to read a component's folder; None is plain.

    The wanted one where the folder has it, else plain, else what there is: a repository is fetched
    by the same rule.
    """
    return choose_variant(variants_of(_held(folder)), wanted)


def _missing_weights(folder: Path, part: str, variant: str | None) -> list[str]:
    here = folder / part if part else folder
    prefix = f"{part}/" if part else ""
    chosen = (None if variant == PLAIN else variant) if variant else stored_variant(here, None)
    stem = STEMS.get(part, NETWORK_STEM)
    index = here / f"{stem}.safetensors.index{'' if chosen is None else f'.{chosen}'}.json"
    if index.is_file():
        places = _json(index).get("weight_map")
        shards = sorted(set(places.values())) if isinstance(places, dict) else []
        return [f"{prefix}{name}" for name in shards if not (here / str(name)).is_file()]
    whole = f"{stem}{'' if chosen is None else f'.{chosen}'}.safetensors"
    return [] if (here / whole).is_file() else [f"{prefix}{whole}"]


def _held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _json(path: Path) -> dict[str, object]:
    """Read an index; one that is damaged names nothing, and its loader will say so."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
