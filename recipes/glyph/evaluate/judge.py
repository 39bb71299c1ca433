"""A small dual encoder that learns which caption goes with which picture, and its files."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from recipes.glyph.evaluate.judge_samples import GRID, Looks, Sight
from sanakit.errors import ConfigError, DataError, MissingModelError, WeightsError
from sanakit.files import read_json, write_atomically
from sanakit.models.config import Fields
from sanakit.pipeline.language_models import open_tokenizer
from sanakit.shapes import TextMask, TokenIds
from sanakit.weights.store import (
    load_strict,
    read_config,
    read_weights,
    write_config,
    write_weights,
)

Embeddings = Float[Tensor, "b width"]
"""Of unit length: the cosine of two is how well they agree."""
MOST_TOKENS = 48
MOST_SCALE = 100.0


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(Fields):
    """Shapes of both towers."""

    whole_width: int
    cell_width: int
    """Of what `Sight` gives: the part without place, and a cell."""
    vocab_size: int
    width: int = 256
    """Of the embeddings."""
    text_width: int = 128
    cell_channels: int = 96
    text_layers: int = 2
    text_heads: int = 4
    dropout: float = 0.2

    def __post_init__(self) -> None:
        for name in ("whole_width", "cell_width", "vocab_size", "width", "text_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must be in [0, 1)")


class ImageTower(nn.Module):
    """Looks to embeddings: each cell by the same weights, then all that is seen at once."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        cells = GRID * GRID
        self.split = config.whole_width, config.cell_width
        seen = config.whole_width + cells * config.cell_width
        self.mean = nn.Buffer(torch.zeros(seen))
        self.scale = nn.Buffer(torch.ones(seen))
        self.cell = nn.Linear(config.cell_width, config.cell_channels)
        self.place = nn.Parameter(torch.zeros(cells, config.cell_channels))
        self.mix = nn.Linear(config.whole_width + cells * config.cell_channels, 2 * config.width)
        self.out = nn.Linear(2 * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    @torch.no_grad()
    def standardise(self, looks: Looks) -> None:
        """Set what is subtracted and multiplied so that these looks get mean 0 and deviation 1.

        A cell's channel has one mean and one deviation for all places.
        """
        whole, cells = self._parts(looks.float())
        for values, place in ((whole, slice(None, self.split[0])), (cells, None)):
            flat = values.reshape(-1, values.shape[-1])
            mean, deviation = flat.mean(dim=0), flat.std(dim=0, unbiased=False)
            # What hardly varies would be blown up.
            scale = 1 / (deviation + 0.05 * deviation.mean() + 1e-6)
            where = place or slice(self.split[0], None)
            self.mean[where] = mean if place else mean.repeat(cells.shape[1])
            self.scale[where] = scale if place else scale.repeat(cells.shape[1])

    def forward(self, looks: Looks) -> Embeddings:
        """Embed what `Sight` gave."""
        whole, cells = self._parts((looks.float() - self.mean) * self.scale)
        told = F.gelu(self.cell(self.dropout(cells)) + self.place).flatten(1)
        mixed = F.gelu(self.mix(torch.cat([self.dropout(whole), told], dim=1)))
        return F.normalize(self.out(self.dropout(mixed)), dim=1)

    def _parts(self, looks: Tensor) -> tuple[Tensor, Tensor]:
        whole, cells = looks.split([self.split[0], looks.shape[1] - self.split[0]], dim=1)
        return whole, cells.unflatten(1, (-1, self.split[1]))


class TextTower(nn.Module):
    """Token ids to embeddings: neighbours are mixed, so that order counts; then pooled."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        width, heads = config.text_width, config.text_heads
        self.embed = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(
            nn.Conv1d(width, width, 3, padding=1) for _ in range(config.text_layers)
        )
        self.heed = nn.Linear(width, heads)
        self.out = nn.Linear(heads * width, config.width)
        self.dropout = nn.Dropout(config.dropout / 2)

    def forward(self, ids: TokenIds, mask: TextMask) -> Embeddings:
        """Embed captions; what padding holds does not matter."""
        real = mask.unsqueeze(-1).float()
        x = self.dropout(self.embed(ids))
        for layer in self.layers:
            x = x + F.gelu(layer((x * real).mT).mT)
        weights = self.heed(x).masked_fill(~mask.unsqueeze(-1), -torch.inf).softmax(dim=1)
        return F.normalize(self.out((weights.mT @ x).flatten(1)), dim=1)


class Judge(nn.Module):
    """Both towers, and the learned sharpness that training uses."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageTower(config)
        self.text = TextTower(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(14.0)))

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by in the loss, at most 100."""
        return self.log_scale.exp().clamp(max=MOST_SCALE)

    def agreement(
        self, looks: Looks, ids: TokenIds, mask: TextMask
    ) -> Float[Tensor, "pictures captions"]:
        """Cosines of all pictures with all captions."""
        return self.image(looks) @ self.text(ids, mask).T


def contrastive_loss(
    agreement: Float[Tensor, "b b"], scale: Tensor, also_true: Tensor | None = None
) -> Tensor:
    """The symmetric InfoNCE of a batch whose captions belong to the pictures of their number.

    ``also_true`` marks (picture, caption) pairs that are true by chance: they are no mistakes to
    learn from. Source: Radford et al. 2021, figure 3.
    """
    logits = agreement * scale
    if also_true is not None:
        others = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(also_true & others, -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


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
        """Refuse to judge pictures of other data, with other features, or known from training.

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
    tokenizer: Any = open_tokenizer(folder / TOKENIZER, by_transformers=True)
    return SavedJudge(
        judge=judge.eval().requires_grad_(False),
        tokenizer=tokenizer,
        origin=origin,
        seen=frozenset(seen.read_text(encoding="utf-8").split("\n")) - {""},
    )


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[TokenIds, TextMask]:
    """Ids and mask of captions, padded to the longest; at most 48 tokens of each count."""
    found = tokenizer(
        list(texts), padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt"
    )
    return found["input_ids"], found["attention_mask"].bool()
