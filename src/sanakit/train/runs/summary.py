"""What a run's folder says of the run: how far it is, how it does, what it has saved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from sanakit.errors import DataError, WeightsError
from sanakit.train.checkpoint import checkpoints, read_manifest, what_is_wrong
from sanakit.train.config import LoopConfig
from sanakit.train.recipes.autoencoder import AutoencoderObjective
from sanakit.train.recipes.diffusion import DiffusionObjective
from sanakit.train.runs.log import LOG, read_log, spoken
from sanakit.train.runs.run_config import RUN, is_run, read_run

RECENT = 10
"""Lines of the log that the rate is taken from."""
_NEVER_LOSSES = ("images", "seconds", "grad_norm", "lr", "per_second", "loss_scale", "skipped")
Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """A checkpoint's folder, its bytes, and its first fault in words; None: it is whole."""

    folder: Path
    bytes: int
    fault: str | None


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run as its files show it; None is what they do not tell."""

    run: Path
    images_seen: int
    total_images: int | None
    seconds: float
    per_second: float | None
    """Images a second over the last lines of the log, evaluations and saves included."""
    losses: Mapping[str, float | None]
    held: Mapping[str, float | None]
    held_at: int | None
    """Images seen when the held-out figures were measured."""
    saved: Sequence[SavedState]
    changed: Mapping[str, Any]
    """Settings that are not at their default, or have none."""

    @property
    def seconds_left(self) -> float | None:
        """At the rate of now; None if there is no rate or no target."""
        if not self.per_second or self.total_images is None:
            return None
        return max(0, self.total_images - self.images_seen) / self.per_second

    def lines(self) -> list[str]:
        """The view as text, a line each."""
        total = self.total_images
        share = f" of {total:,} ({self.images_seen / total:.1%})" if total else ""
        found = [f"{self.run}", f"images  {self.images_seen:,}{share}"]
        spent = f"time    {spoken(self.seconds)}"
        if self.per_second:
            spent += f", {self.per_second:.3g} images/s"
        if self.seconds_left:
            spent += f", {spoken(self.seconds_left)} left"
        found.append(spent)
        for name, values in (("loss", self.losses), ("held", self.held)):
            if values:
                words = "  ".join(f"{key} {_number(value)}" for key, value in values.items())
                at = f"  (at {self.held_at:,} images)" if name == "held" else ""
                found.append(f"{name}    {words}{at}")
        for state in self.saved:
            fault = "whole" if state.fault is None else f"DAMAGED: {state.fault}"
            found.append(f"saved   {state.folder.name}  {state.bytes / 1e6:,.1f} MB  {fault}")
        if not self.saved:
            found.append("saved   nothing yet")
        words = "  ".join(f"{key}={json.dumps(value)}" for key, value in self.changed.items())
        return [*found, f"set     {words}"] if words else found


def summary_of_run(run: Path) -> RunSummary:
    """Read a run's log and settings, and compare every checkpoint with its hashes.

    Raises:
        DataError: there is no run in the folder, or its settings are damaged.
    """
    if not any((run / name).is_file() for name in (LOG, RUN)):
        raise DataError(
            f"{run} is no folder of a run: neither {LOG} nor {RUN} is there",
            hint="name the folder that was --out of `sanakit train`",
        )
    settings = _settings(run)
    lines = standing(read_log(run)) if (run / LOG).is_file() else []
    steps = [line for line in lines if "lr" in line]
    held = [line for line in lines if any(key.startswith("held_") for key in line)]
    saved = [_saved(folder) for folder in checkpoints(run)]
    last = lines[-1] if lines else {"images": 0, "seconds": 0.0}
    total = settings.get("total_images")
    return RunSummary(
        run=run,
        images_seen=int(last["images"]),
        total_images=None if total is None else int(total),
        seconds=float(last["seconds"]),
        per_second=_rate(steps),
        losses={key: steps[-1][key] for key in loss_names(steps[-1:])} if steps else {},
        held={k: v for k, v in held[-1].items() if k.startswith("held_")} if held else {},
        held_at=int(held[-1]["images"]) if held else None,
        saved=saved,
        changed=_changed(settings),
    )


def standing(lines: Sequence[Line]) -> list[Line]:
    """The lines that count: a resumed run writes anew what it had logged behind its checkpoint."""
    kept: list[Line] = []
    for line in reversed(lines):
        if not kept or line["images"] <= kept[-1]["images"]:
            kept.append(line)
    return kept[::-1]


def loss_names(lines: Sequence[Line]) -> list[str]:
    """Names of what the recipe's loss gave, ``loss`` first; bins of sigma are not among them."""
    names = dict.fromkeys(key for line in lines if "lr" in line for key in line)
    return [
        name
        for name in names
        if name not in _NEVER_LOSSES
        and name != "mfu"
        and not name.startswith(("time_", "loss_sigma_", "held_"))
    ]


def _settings(run: Path) -> dict[str, Any]:
    """All settings of a run by name; of one that no command began, those of its last checkpoint."""
    if is_run(run):
        file = read_run(run)
        return file["objective"] | file["loop"]
    for folder in reversed(checkpoints(run)):
        with suppress(WeightsError):
            return dict(read_manifest(folder)["config"])
    return {}


def _changed(settings: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {
        field.name: field.default
        for config in (LoopConfig, DiffusionObjective, AutoencoderObjective)
        for field in fields(config)
        if field.default is not MISSING
    }
    plain = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
    return {key: v for key, v in plain.items() if key not in defaults or defaults[key] != v}


def _rate(steps: Sequence[Line]) -> float | None:
    """Images a second since the oldest of the last lines; of a single line, what it says."""
    recent = steps[-RECENT:]
    if not recent:
        return None
    images = recent[-1]["images"] - recent[0]["images"]
    seconds = recent[-1]["seconds"] - recent[0]["seconds"]
    return images / seconds if images > 0 and seconds > 0 else recent[-1].get("per_second")


def _saved(folder: Path) -> SavedState:
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return SavedState(folder=folder, bytes=size, fault=what_is_wrong(folder))


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:g}"
