"""What a run must remember to go on as if it had never stopped; written whole or not at all.

A checkpoint is a folder of safetensors files and one JSON file. Random state is not in it: every
draw of a run is a function of (run seed, images seen), so the count of images is enough.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn, optim

from sanakit.errors import WeightsError

KEEP = 2


def optimizer_tensors(optimizer: optim.Optimizer) -> dict[str, Tensor]:
    """Flatten an optimizer's per-parameter state to named tensors."""
    return {
        f"{index}.{name}": value
        for index, slots in optimizer.state_dict()["state"].items()
        for name, value in slots.items()
    }


def restore_optimizer(optimizer: optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo :func:`optimizer_tensors`; the groups' settings stay those of the running config."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    # A fused step walks raw memory: moments must lie in it as their weights do, channels last too.
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if value.shape == parameter.shape:
                slots[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def save_checkpoint(
    run: Path,
    *,
    images_seen: int,
    module: nn.Module,
    optimizer: optim.Optimizer,
    average: Mapping[str, Tensor] | None,
    notes: Mapping[str, Any],
) -> Path:
    """Write ``run/checkpoint-<images>``; older ones go only after the new one is on disk."""
    final = run / f"checkpoint-{images_seen:010d}"
    temporary = run / f".{final.name}.tmp"
    for unfinished in run.glob(".checkpoint-*.tmp"):
        shutil.rmtree(unfinished, ignore_errors=True)
    temporary.mkdir(parents=True)
    files: dict[str, Mapping[str, Tensor]] = {
        "model": module.state_dict(),
        "optimizer": optimizer_tensors(optimizer),
    }
    if average is not None:
        files["average"] = average
    for name, tensors in files.items():
        path = temporary / f"{name}.safetensors"
        save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, path)
        _sync(path)
    state = {"images_seen": images_seen, "files": sorted(files), **notes}
    (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    _sync(temporary / "state.json")
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    for old in checkpoints(run)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(run: Path) -> list[Path]:
    """All finished checkpoints of a run, oldest first."""
    return sorted(path for path in run.glob("checkpoint-*") if (path / "state.json").is_file())


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Read a checkpoint: its notes, and its tensors by file.

    Raises:
        WeightsError: if a file it lists is missing or damaged.
    """
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tensors = {}
    for name in state["files"]:
        path = folder / f"{name}.safetensors"
        try:
            tensors[name] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise WeightsError(
                f"{path}: cannot be read ({error})",
                hint="remove this checkpoint folder to resume from the one before it",
            ) from error
    return state, tensors


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
