"""Finished latents as one safetensors file that says how to go on from there."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sanakit.errors import DataError, WeightsError
from sanakit.shapes import Latent
from sanakit.weights.tensors import read_tensors, write_tensors

KEY = "sanakit_latents"
NAME = "latents"
FORMAT = 1
"""Raised when a reader of the last format would misunderstand the next."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where latents come from: the model, and the settings of each picture where known."""

    model: str | None = None
    model_hash: str = ""
    settings: tuple[Mapping[str, Any], ...] = field(default=())


def write_latents(path: Path, latent: Latent, origin: Origin) -> None:
    """Write scaled latents ``b c h w`` in fp32, whole or not at all.

    Raises:
        DataError: the disk refuses.
    """
    content = {
        "format": FORMAT,
        "model": origin.model,
        "model_hash": origin.model_hash,
        "settings": [dict(one) for one in origin.settings],
    }
    # As text where JSON has no word for a value: a lost note must not lose the latents.
    notes = json.dumps(content, default=str)
    write_tensors(path, {NAME: latent.detach().float()}, {KEY: notes})


def rescue_latents(latent: Latent, origin: Origin) -> Path | None:
    """Write latents to the working folder, else to the temporary one; None where neither takes it.

    The name is made of the content, so that nothing of another is overwritten.
    """
    content = latent.detach().float().cpu().contiguous()
    digest = hashlib.sha256(content.numpy().tobytes()).hexdigest()[:12]
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        path = folder / f"latents-{digest}.safetensors"
        try:
            write_latents(path, content, origin)
        except DataError:
            continue
        return path
    return None


def read_latents(path: str | Path) -> tuple[Latent, Origin]:
    """Give what :func:`write_latents` wrote; a foreign file with one ``b c h w`` tensor also does.

    Raises:
        DataError: no such file, or no latents in it. WeightsError: a damaged file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file", hint="a decode that ran out of memory names it")
    tensors = read_tensors(path)
    name = NAME if NAME in tensors else next(iter(tensors), None)
    if name is None or (name != NAME and len(tensors) != 1) or tensors[name].ndim != 4:
        held = ", ".join(f"{key} {tuple(value.shape)}" for key, value in tensors.items())
        raise DataError(
            f"{path}: holds no latents b c h w, but {held or 'nothing'}",
            hint=f"store scaled latents under the name {NAME!r}",
        )
    latent = tensors[name]
    if not latent.is_floating_point() or not torch.isfinite(latent).all():
        raise DataError(f"{path}: its latents are not finite numbers", hint="draw them again")
    return latent.float(), _origin(path)


def _origin(path: Path) -> Origin:
    with safe_open(path, framework="pt") as file:
        notes = (file.metadata() or {}).get(KEY)
    if notes is None:
        return Origin()
    try:
        content = json.loads(notes)
        stored = content["format"]
        origin = Origin(
            model=content["model"],
            model_hash=content["model_hash"],
            settings=tuple(dict(one) for one in content["settings"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: its notes are damaged ({error})") from error
    if not isinstance(stored, int) or stored > FORMAT:
        raise DataError(
            f"{path}: latents of format {stored!r}; this one reads up to {FORMAT}",
            hint="pip install --upgrade sanakit",
        )
    return origin
