"""Where a model's folder is: inside this package, on the disk, or in the hub's cache."""

from __future__ import annotations

import logging
import os
import re
from importlib.resources import files
from pathlib import Path

from sanakit.errors import ConfigError, MissingModelError, nearest_names
from sanakit.files import check_parent, expanded, listed, names_in
from sanakit.weights.catalog import Checkpoint, find_checkpoint, nearest_models
from sanakit.weights.layout import CONFIG, INDEX

__all__ = [
    "EMBEDDED",
    "INDEX",
    "component_folder",
    "decoder_folder",
    "embedded_folder",
    "resolve_model",
]

EMBEDDED = ("glyph",)
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\S+)?")
ADDRESS = re.compile(
    r"(https?://)?(www\.)?(huggingface\.co|hf\.co)/(?P<id>[\w.-]+/[\w.-]+)"
    r"(/(tree|blob|resolve)/(?P<revision>[^/?#]+))?([/?#].*)?"
)
logger = logging.getLogger(__name__)


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


def resolve_model(
    name_or_folder: str | Path,
    *,
    variant: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    offline: bool = False,
) -> Path:
    """Give the folder of a model from what a user typed.

    In this order: an embedded name; a folder that exists (write ``./glyph`` for a folder of an
    embedded model's name; a ``Path`` is always a folder); an alias such as ``sana-1.6b`` or a
    repository ``owner/name``, both also with ``@revision``, in the local cache; the same,
    downloaded. What the caller should know of a download is logged as a warning.

    Args:
        name_or_folder: as above.
        variant: see :func:`sanakit.weights.hub.fetch`; for a folder it is its reader's business.
        revision: of a repository; see there. What is on this disk has none, and it is said.
        subfolder: of a repository: fetch this component only. The model's folder is given, not the
            component's.
        offline: never ask the network.

    Raises:
        ConfigError: neither a string nor a path.
        MissingModelError: nothing of that name, with what there is instead.
        WeightsError: a repository that holds pickles only, or a file that was tampered with.
    """
    if not isinstance(name_or_folder, str | os.PathLike):
        raise ConfigError(
            f"the model is of type {type(name_or_folder).__name__}",
            hint="a name, owner/name, or the path of a folder",
        )
    name = os.fspath(name_or_folder)
    place = _local(name_or_folder, name)
    if place is not None:
        if revision is not None:
            logger.warning("revision=%r decides nothing here: %s is on this disk", revision, name)
        return place
    checkpoint = find_checkpoint(name) if isinstance(name_or_folder, str) else None
    if checkpoint is not None:
        _refuse_other_formats(checkpoint)
    elif not isinstance(name_or_folder, str) or not REPOSITORY.fullmatch(name):
        raise _unknown(name_or_folder, name)
    at = name.partition("@")[1:]
    repository = name if checkpoint is None else checkpoint.repository + "".join(at)
    from sanakit.weights import hub  # noqa: PLC0415 - slow, and not read for what is on this disk

    folder = hub.fetch(
        repository,
        variant=variant,
        revision=revision,
        subfolder=subfolder,
        offline=offline,
        report=logger.warning,
    )
    is_pipeline = checkpoint is None or checkpoint.kind == "pipeline"
    if is_pipeline and subfolder is None and not (folder / INDEX).is_file():
        raise MissingModelError(
            f"{name}: has no {INDEX}", hint="name the variant whose name ends in _diffusers"
        )
    return folder


def _local(given: str | Path, name: str) -> Path | None:
    """An embedded model or a folder; None where neither is meant."""
    if name in EMBEDDED and isinstance(given, str):
        return embedded_folder(name)
    folder = expanded(name)
    if name and folder.is_dir():
        if not (folder / INDEX).is_file():
            held = names_in(folder)
            raise MissingModelError(
                f"{folder}: is no model folder, it has no {INDEX}; it holds {listed(held)}",
                hint=_inner_model(folder)
                or f"a model folder holds {INDEX}, transformer/, vae/ ...",
            )
        return folder
    if name and folder.is_file():
        raise MissingModelError(f"{name}: is a file", hint="name the model's folder")
    return None


def _refuse_other_formats(checkpoint: Checkpoint) -> None:
    """Say before a download that the files could not be read."""
    if checkpoint.loadable:
        return
    twin = find_checkpoint(checkpoint.twin) if checkpoint.twin else None
    use = f"use {twin.alias} ({twin.repository})" if twin is not None else None
    if checkpoint.kind == "quantized":
        raise MissingModelError(
            f"{checkpoint.repository}: is packed for another engine",
            hint=f"{use or 'use another checkpoint'} and quantize it on loading",
        )
    convert = "download its file and run: sanakit convert FILE FOLDER"
    raise MissingModelError(
        f"{checkpoint.repository}: is in its original format, which is not loaded directly",
        hint=f"{use}, or {convert}" if use else convert,
    )


def _unknown(given: str | Path, name: str) -> MissingModelError:
    if address := ADDRESS.fullmatch(name):
        revision = f"@{address['revision']}" if address["revision"] else ""
        return MissingModelError(
            f"{name}: is a page of the hub", hint=f"name its repository: {address['id']}{revision}"
        )
    plain = isinstance(given, str) and Path(name).name == name and not name.startswith("~")
    if not plain:
        return MissingModelError(f"{name}: no such folder", hint="check the path")
    near = nearest_names(name.lower(), EMBEDDED) or nearest_models(name, most=1)
    return MissingModelError(
        f"{name!r} is no model that is here",
        hint=(f"did you mean {near[0]!r}? " if near else "")
        + f"embedded: {', '.join(EMBEDDED)}; published: `sanakit models list`; or give a folder, "
        "or a repository as owner/name",
    )


def model_to_copy(model: str, target: Path, *, offline: bool, force: bool) -> Path:
    """Give a model's folder, of which ``target`` is to be a changed copy.

    Raises:
        ConfigError: ``target`` is there without ``force``, or is the model. DataError: it cannot be
            made. MissingModelError: no such model.
    """
    if target.exists() and not force:
        raise ConfigError(f"{target} is there already", hint="name another, or pass --force")
    check_parent(target)
    folder = resolve_model(model, offline=offline)
    if target.exists() and target.resolve() == folder.resolve():
        raise ConfigError(f"{target} is the model itself", hint="name another folder")
    return folder


def refuse_no_branch(name: str | Path, asked: str) -> None:
    """Refuse what is neither a path nor a name of the hub as the place of a control branch.

    ``asked`` says what named it.

    Raises:
        MissingModelError: it is neither.
    """
    known = isinstance(name, str) and (REPOSITORY.fullmatch(name) or find_checkpoint(name))
    if not known and name not in EMBEDDED and not expanded(name).exists():
        raise MissingModelError(
            f"{asked} {name}: no such folder", hint="the folder of a control branch, or owner/name"
        )


def _inner_model(folder: Path) -> str | None:
    """The usual slip is to name the folder above, or one component of the model."""
    if (folder.parent / INDEX).is_file():
        return f"name the folder above: {folder.parent}"
    inner = sorted(path.parent.name for path in folder.glob(f"*/{INDEX}"))
    return f"models inside it: {listed(inner)}" if inner else None


def component_folder(
    name: str | Path,
    subfolder: str | None,
    *,
    variant: str | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> Path:
    """Where a network's ``config.json`` is."""
    if subfolder is not None and (Path(subfolder).is_absolute() or ".." in Path(subfolder).parts):
        raise ConfigError(f"subfolder={subfolder!r} leads out of the model", hint="e.g. 'vae'")
    local = expanded(name) / (subfolder or "")
    if (local / CONFIG).is_file():
        return local
    model = resolve_model(
        name, variant=variant, revision=revision, subfolder=subfolder, offline=offline
    )
    folder = model / (subfolder or "")
    if not (folder / CONFIG).is_file():
        raise MissingModelError(
            f"{folder}: holds no {CONFIG}",
            hint='name the part: subfolder="transformer", "controlnet" or "vae"',
        )
    return folder


DECODER = "decoder"
"""The folder in a run of training that holds the decoder it made."""


def decoder_folder(name: str | Path, *, offline: bool = False) -> Path:
    """Where the ``config.json`` of a decoder is, or of an autoencoder that has one.

    Raises:
        MissingModelError: nothing of that name. ConfigError: a file.
    """
    place = expanded(name)
    if place.is_file():
        raise ConfigError(
            f"{place} is a file",
            hint=f"make a folder of it once: sanakit convert {place} {place.with_suffix('')}",
        )
    for folder in (place, place / DECODER):
        if (folder / CONFIG).is_file():
            return folder
    checkpoint = find_checkpoint(name) if isinstance(name, str) else None
    alone = checkpoint is not None and checkpoint.kind == "autoencoder"
    return component_folder(name, None if alone else "vae", offline=offline)
