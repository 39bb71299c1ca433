"""A judge on disk: weights, shapes, tokenizer, and which pictures it was taught on."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from recipes.glyph.evaluate.judge import Judge, JudgeConfig
from recipes.glyph.evaluate.visual_features import Sight
from sanakit.errors import ConfigError, DataError, MissingModelError, WeightsError
from sanakit.files import read_json, write_atomically
from sanakit.weights.store import (
    load_strict,
    read_config,
    read_weights,
    write_config,
    write_weights,
)

STEM = "judge"
TOKENIZER = "tokenizer"
SEEN = "seen.txt"
ORIGIN = "origin.json"  # written last: without it the judge is unfinished
HINT = "train one on this data: python -m recipes.glyph eval train-judge"


@dataclass(frozen=True, kw_only=True)
class JudgeOrigin:
    """What a judge was made from, and what that cost."""

    data: str
    """The revision of the data: `data_revision`."""
    sight: str
    """The fingerprint of what it sees with."""
    size: int
    """Of the pictures that it was taught on, px."""
    pictures: int
    """How many different samples it was taught on, composites among them."""
    images_seen: int
    seed: int
    seconds: float
    """CPU time of looking and learning."""


@dataclass(frozen=True, kw_only=True)
class SavedJudge:
    """A judge with all that is needed to ask it."""

    judge: Judge
    tokenizer: PreTrainedTokenizerBase
    origin: JudgeOrigin
    seen: frozenset[str]
    """Ids of all records that it was taught on."""

    def check(self, *, data: str, sight: Sight, ids: Collection[str]) -> None:
        """Refuse to judge pictures of other data, through other eyes, or known from training.

        Raises:
            DataError: data of another revision, or a picture that it was taught on.
            WeightsError: another network to see with.
        """
        if self.origin.data != data:
            raise DataError(
                f"the judge was trained on data {self.origin.data}, and this is {data}", hint=HINT
            )
        if self.origin.sight != sight.fingerprint:
            raise WeightsError(
                f"the judge sees with {self.origin.sight}, and this is {sight.fingerprint}",
                hint="install the package of the network that it was trained with, or " + HINT,
            )
        if known := sorted(self.seen.intersection(ids)):
            raise DataError(
                f"the judge was taught on {len(known)} of these pictures, {known[0]} among them",
                hint=HINT,
            )


def save_judge(folder: Path, saved: SavedJudge) -> None:
    """Write a judge's folder; weights are stored as fp16.

    Raises:
        DataError: the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ORIGIN).unlink(missing_ok=True)
    state = {name: tensor.half() for name, tensor in saved.judge.state_dict().items()}
    write_weights(folder, state, stem=STEM)
    write_config(folder, saved.judge.config, "Judge")
    saved.tokenizer.save_pretrained(folder / TOKENIZER)
    write_atomically(folder / SEEN, "".join(f"{one}\n" for one in sorted(saved.seen)).encode())
    origin = json.dumps(asdict(saved.origin), indent=2)
    write_atomically(folder / ORIGIN, f"{origin}\n".encode())


def load_judge(folder: Path) -> SavedJudge:
    """Read a judge's folder; fp32, frozen.

    Raises:
        MissingModelError: a file is absent: it is no judge, or its training did not end.
        WeightsError: the weights are damaged or do not fit. ConfigError: another file is damaged.
    """
    values = read_json(folder / ORIGIN)
    try:
        origin = JudgeOrigin(**values)
    except TypeError as error:
        raise ConfigError(f"{folder / ORIGIN}: {error}", hint=HINT) from error
    judge = Judge(read_config(folder, JudgeConfig))
    weights = read_weights(folder, stem=STEM, dtype=torch.float32)
    load_strict(judge, weights, source=str(folder))
    seen = folder / SEEN
    for path in (seen, folder / TOKENIZER / "tokenizer.json"):
        if not path.is_file():
            raise MissingModelError(f"{path} is missing: this is no whole judge", hint=HINT)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder / TOKENIZER))
    return SavedJudge(
        judge=judge.eval().requires_grad_(False),
        tokenizer=tokenizer,
        origin=origin,
        seen=frozenset(seen.read_text(encoding="utf-8").split("\n")) - {""},
    )
