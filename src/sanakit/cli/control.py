"""Control images and branches as the command is told of them; refused before torch is loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sanakit.cli.machine import local_folder
from sanakit.cli.options import CONTROL_KINDS
from sanakit.cli.terminal import say
from sanakit.errors import ConfigError, MissingModelError, did_you_mean
from sanakit.files import expanded, read_json, sha256_of

BRANCH = "controlnet"


def control_of(
    image: Path | None, kind: str, scale: float, branch: str | None
) -> dict[str, Any] | None:
    """What a request's control is; None where no picture is to be followed.

    Raises:
        ConfigError: options without a picture, an unknown kind, a scale that is none, a library
            that is not there. DataError: the file is no picture.
    """
    if image is None:
        if (kind, scale, branch) != ("none", 1.0, None):
            raise ConfigError("there is nothing to follow", hint="add --control IMAGE")
        return None
    from sanakit.images.files import digest_of, read_image

    if kind not in CONTROL_KINDS:
        hint = did_you_mean(kind, CONTROL_KINDS)
        if kind == "depth":
            hint = "no depth network comes with sanakit: pass a ready map with --control-kind none"
        raise ConfigError(f"--control-kind {kind!r} is unknown", hint=hint)
    if not math.isfinite(scale):
        raise ConfigError(f"--control-scale {scale} must be a number from 0", hint="1 is usual")
    if kind != "none" and find_spec("skimage") is None:
        raise ConfigError(
            f"--control-kind {kind} needs scikit-image, which is not installed",
            hint="pip install 'sanakit[control]', or pass a ready control image",
        )
    read_image(image)
    digest = digest_of(image)
    return {"image": as_told(image), "image_sha256": digest, "kind": kind, "scale": scale}


def as_told(path: Path) -> str:
    """A path as it goes into pictures, which should not tell where on a disk they were made."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def check_branch_of(model: str | None, named: str | None, *, offline: bool) -> None:
    """Refuse to follow a picture without a control branch, as far as this disk tells.

    Raises:
        ConfigError: the model has none, and none is named. MissingModelError: none is there.
    """
    if named is not None:
        branch_folder(named, offline=offline)
    elif model is not None and (folder := local_folder(model, offline=offline)) is not None:
        from sanakit.weights.layout import INDEX

        if BRANCH not in read_json(folder / INDEX):
            raise ConfigError(
                f"--control: {model} has no control branch", hint="name one with --controlnet"
            )


def remembered(named: str | None) -> dict[str, Any]:
    """What a picture says of the control branch that is not its model's own."""
    if named is None:
        return {}
    place = expanded(named)
    told = as_told(place) if place.exists() else named
    return {"controlnet": told, "controlnet_hash": _branch_hash(named, offline=True)}


def branch_in(settings: Mapping[str, Any], image: Path, *, offline: bool) -> str | None:
    """The control branch that a picture names, with a word if it is another one by now.

    Raises:
        ConfigError: it is no name. MissingModelError: it is not there.
    """
    named, stored = settings.get("controlnet"), settings.get("controlnet_hash")
    if not isinstance(named, str | None):
        raise ConfigError(f"{image}: its setting 'controlnet' is no name")
    if named is None:
        return None
    found = _branch_hash(named, offline=offline, asked=f"{image}: its control branch")
    if None not in (found, stored) and found != stored:
        say(
            f"note: the control branch {named} is not the one that drew it; the picture may differ",
            err=True,
        )
    return named


def _branch_hash(named: str, *, offline: bool, asked: str = "--controlnet") -> str | None:
    """Digest of a control branch that is on this disk; None where it is still to be fetched."""
    folder = branch_folder(named, offline=offline, asked=asked)
    files = [] if folder is None else sorted(folder.glob("*.safetensors"))
    return sha256_of("".join(map(sha256_of, files)))[:16] if files else None


def branch_folder(named: str, *, offline: bool, asked: str = "--controlnet") -> Path | None:
    """Where a branch is on this disk; None where it is still to be fetched."""
    from sanakit.weights.layout import CONFIG
    from sanakit.weights.resolve import refuse_no_branch

    refuse_no_branch(named, asked)
    folder = expanded(named)
    if not (folder / CONFIG).is_file() and not folder.is_dir():
        found = local_folder(named, offline=offline)
        if found is None:
            return None
        folder = found
    for place in (folder, folder / BRANCH):
        if (place / CONFIG).is_file():
            return place
    raise MissingModelError(
        f"{asked} {named}: holds no control branch",
        hint="one is a folder with a config.json, alone or as controlnet/ of a model",
    )
