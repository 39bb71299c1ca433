"""What a model folder lacks, told from its own index.

For models that other programs put into the cache, whose listing was never pinned.
"""

from __future__ import annotations

import json
from pathlib import Path

from sanakit.weights.selection import INDEX, NETWORKS, PLAIN, choose_variant, variants_of

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
