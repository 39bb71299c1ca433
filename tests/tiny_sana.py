"""A training set and a model small enough to fine-tune in a test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sanakit.train.own_pictures import OwnPictures
from sanakit.train.sana import SanaRecipe
from sanakit.train.sana_runs import SanaRun, sana_run
from sanakit.train.sana_start import SanaArguments
from tiny import write_tiny
from tiny_shards import write_shards

FAST = ("compute_dtype=float32", "batch_size=4", "total_images=24", "warmup_images=4")
FAST += ("peak_lr=0.01", "evaluate_every=1000", "pictures_every=0", "log_every=1", "device=cpu")


@dataclass(frozen=True)
class TinySana:
    """A set of two buckets, seven and five pictures, and a model folder."""

    data: Path
    model: Path

    @property
    def shards(self) -> Path:
        return self.data / "shards"

    def run(self, *settings: str, **arguments: Any) -> SanaRun:
        """A run on them, quiet; settings are on top of FAST."""
        given = {"data": str(self.data), "start": str(self.model), **arguments}
        torch.manual_seed(0)
        return sana_run(SanaArguments(**given), [*FAST, *settings], report=lambda line: None)

    def recipe(self, *settings: str, **arguments: Any) -> SanaRecipe:
        return self.run(*settings, **arguments)[0]


def tiny_sana(
    folder: Path, buckets: dict[tuple[int, int], Sequence[int]] | None = None
) -> TinySana:
    shards = folder / "set" / "shards"
    write_shards(shards, buckets or {(64, 64): [5, 2], (64, 96): [5]})
    index = json.loads((shards / "index.json").read_text(encoding="utf-8"))
    (shards / "index.json").write_text(json.dumps({**index, "resolution": 64}), encoding="utf-8")
    return TinySana(data=folder / "set", model=write_tiny(folder / "model"))


def pictures_of(sana: TinySana, **more: Any) -> OwnPictures:
    return OwnPictures(shards=str(sana.shards), **more)
