"""Where a model's folder is: inside this package, on the disk, or in the hub's cache."""

from __future__ import annotations

import difflib
import os
import re
from importlib.resources import files
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from sanakit.errors import MissingModelError
from sanakit.weights.store import listed

EMBEDDED = ("glyph",)
INDEX = "model_index.json"
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# Weights as safetensors, configs, and what tokenizers need: never code, never pickles.
WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "tokenizer/*"]
REFUSED = ["*.bin", "*.pth", "*.pt", "*.ckpt", "*.pkl", "*.pickle", "*.py"]


def embedded_folder(name: str) -> Path:
    """Give the folder of a model that ships inside the package.

    Raises:
        MissingModelError: no such model, or an installation that left its files out.
    """
    if name not in EMBEDDED:
        raise MissingModelError(
            f"{name!r} is not embedded", hint=f"embedded models: {', '.join(EMBEDDED)}"
        )
    folder = Path(str(files("sanakit") / "assets" / name))
    if not (folder / INDEX).is_file():
        raise MissingModelError(
            f"{folder}: the embedded model {name!r} is not in this installation",
            hint="install sanakit again; from a clone, its weights must be checked out",
        )
    return folder


def resolve_model(name_or_folder: str | Path) -> Path:
    """Give the folder of a model from what a user typed.

    In this order: an embedded name; a folder that exists (write ``./glyph`` for a folder of an
    embedded model's name; a ``Path`` is always a folder); a repository ``owner/name`` in the
    hub's local cache; the same, downloaded.

    Raises:
        MissingModelError: nothing of that name, with what there is instead.
    """
    name = os.fspath(name_or_folder)
    if name in EMBEDDED and isinstance(name_or_folder, str):
        return embedded_folder(name)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if not (folder / INDEX).is_file():
            held = sorted(path.name for path in folder.iterdir())
            raise MissingModelError(
                f"{folder}: is no model folder, it has no {INDEX}; it holds {listed(held)}",
                hint=_inner_model(folder)
                or f"a model folder holds {INDEX}, transformer/, vae/ ...",
            )
        return folder
    if name and folder.is_file():
        raise MissingModelError(f"{name}: is a file", hint="name the model's folder")
    if isinstance(name_or_folder, str) and REPOSITORY.fullmatch(name):
        return _from_hub(name)
    if isinstance(name_or_folder, Path) or folder.name != name or name.startswith("~"):
        raise MissingModelError(f"{name}: no such folder", hint="check the path")
    near = difflib.get_close_matches(name.lower(), EMBEDDED, n=1)
    raise MissingModelError(
        f"{name!r} is no model that is here",
        hint=(f"did you mean {near[0]!r}? " if near else "")
        + f"embedded: {', '.join(EMBEDDED)}; or give a folder, or a repository as owner/name",
    )


def _from_hub(repository: str) -> Path:
    try:
        folder = _snapshot(repository, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        folder = _downloaded(repository)
    if not (folder / INDEX).is_file():
        raise MissingModelError(
            f"{repository}: has no {INDEX}", hint="name the variant whose name ends in _diffusers"
        )
    return folder


def _downloaded(repository: str) -> Path:
    try:
        return _snapshot(repository, local_files_only=False)
    except GatedRepoError as error:
        raise MissingModelError(
            f"{repository}: is gated", hint="accept its terms on its page, then: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise MissingModelError(
            f"{repository}: is no folder here and no repository of the hub (or a private one)",
            hint=f"check the spelling; embedded models: {', '.join(EMBEDDED)}",
        ) from error
    except (OSError, HFValidationError) as error:  # network, disk and offline errors are OSErrors
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise MissingModelError(
            f"{repository}: is not in the local cache and cannot be downloaded ({reason})",
            hint=f"embedded models need no network: {', '.join(EMBEDDED)}",
        ) from error


def _snapshot(repository: str, *, local_files_only: bool) -> Path:
    return Path(
        snapshot_download(
            repository,
            allow_patterns=WANTED,
            ignore_patterns=REFUSED,
            local_files_only=local_files_only,
        )
    )


def _inner_model(folder: Path) -> str | None:
    """The usual slip is to name the folder above, or one component of the model."""
    if (folder.parent / INDEX).is_file():
        return f"name the folder above: {folder.parent}"
    inner = sorted(path.parent.name for path in folder.glob(f"*/{INDEX}"))
    return f"models inside it: {listed(inner)}" if inner else None
