"""How well captions agree with their pictures, by CLIP, SigLIP and their kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel

from sanakit.data.captions.vision_models import VisionStage, computing, open_model
from sanakit.data.training_set import CAPTIONS, SCAN, SCORES
from sanakit.data.units import fingerprint
from sanakit.errors import ConfigError, NumericsError
from sanakit.untrusted import other_readers

VERSION = 1
"""Changes when the same model gives other scores because of this file."""
DIGITS = 4
DAMAGED = "download it again, or name another model of CLIP or SigLIP"
SIDE = 1024
"""Pixels that pictures are shrunk to before the model's own processor sees them."""


class DualEncoder:
    """A model with one space for pictures and texts.

    ``limit`` is the most tokens of a text that it reads.
    """

    def __init__(self, folder: Path, *, dtype: str, device: str) -> None:
        """Load it.

        Raises:
            ConfigError: it has no such space, and as `open_model`.
        """
        self._folder = folder
        self._model, self._processor = open_model(AutoModel, folder, dtype=dtype, device=device)
        for method in ("get_image_features", "get_text_features"):
            if not hasattr(self._model, method):
                raise ConfigError(
                    f"{folder}: {type(self._model).__name__} does not compare pictures and texts",
                    hint="use a model of CLIP or SigLIP",
                )
        with self._reading():
            self.limit = int(self._model.config.text_config.max_position_embeddings)
        # These were trained on texts of full length and without a mask; a shorter one scores badly.
        self._full_length = str(self._model.config.model_type).startswith("siglip")

    def tokens(self, text: str) -> int:
        """How many tokens a text has, with the marks around it."""
        with self._reading():
            return len(self._processor.tokenizer(text, verbose=False)["input_ids"])

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Directions ``b d`` of unit length, fp32 on the CPU."""
        with self._reading():
            made = self._processor(images=list(pictures), return_tensors="pt")
        return self._directions(self._model.get_image_features(**self._placed(made)))

    def texts(self, texts: Sequence[str]) -> Tensor:
        """The same of texts, each cut at the limit."""
        with self._reading():
            made = self._processor.tokenizer(
                list(texts),
                padding="max_length" if self._full_length else True,
                truncation=True,
                max_length=self.limit,
                return_tensors="pt",
            )
        known = ("input_ids",) if self._full_length else ("input_ids", "attention_mask")
        inputs = {name: value for name, value in self._placed(made).items() if name in known}
        return self._directions(self._model.get_text_features(**inputs))

    def _reading(self) -> AbstractContextManager[None]:
        """What a processor fails at is what its files say."""
        return other_readers(self._folder, ConfigError, what="its processor fails", hint=DAMAGED)

    def _placed(self, made: Any) -> dict[str, Tensor]:
        device, dtype = self._model.device, self._model.dtype
        return {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in made.items()
        }

    def _directions(self, features: Any) -> Tensor:
        values = features if isinstance(features, Tensor) else features.pooler_output
        unit = functional.normalize(values.float(), dim=-1)
        if not unit.isfinite().all():
            raise NumericsError(
                f"{type(self._model).__name__}: features are not finite",
                hint="run it with --dtype float32",
            )
        return unit.cpu()


@dataclass(frozen=True, kw_only=True)
class Scoring(VisionStage[DualEncoder]):
    """The stage: 100 times the cosine for each caption, in scores/NAME/UNIT.jsonl."""

    batch_size: int = 32

    @property
    def folder(self) -> Path:
        """Where the scores go."""
        return self.training_set.folder.absolute() / SCORES / self.name

    def made_from(self, unit: str) -> str:
        """Identify the model, the samples of the unit, and what all captioners wrote of them."""
        captions = {
            name: self.training_set.hash_of(f"{CAPTIONS}/{name}", unit)
            for name in self.training_set.makers(CAPTIONS)
        }
        return fingerprint(
            "score",
            VERSION,
            self.model_hash,
            self.dtype,
            self.training_set.hash_of(SCAN, unit),
            {name: value for name, value in captions.items() if value is not None},
        )

    def load(self, folder: Path) -> DualEncoder:
        """The model with its processor."""
        return DualEncoder(folder, dtype=self.dtype, device=self.device)

    def process(self, unit: str, staging: Path) -> dict[str, Any]:
        """Score the captions of a unit; equal texts are read once."""
        scorer = self.opened.get()
        samples = [sample for sample in self.training_set.samples(unit) if sample.captions]
        texts = list(dict.fromkeys(c.text for sample in samples for c in sample.captions))
        numbers = {text: number for number, text in enumerate(texts)}
        unreadable: list[str] = []
        lines: list[str] = []
        scores: list[float] = []
        with computing(self.threads, batch_size=self.batch_size):
            chunks = [
                scorer.texts(texts[start : start + self.batch_size])
                for start in range(0, len(texts), self.batch_size)
            ]
            directions = torch.cat(chunks) if chunks else torch.empty(0, 0)
            for batch in self.pictures(samples, SIDE, unreadable):
                seen = scorer.pictures([picture for _, picture in batch])
                for (sample, _), picture in zip(batch, seen, strict=True):
                    of = {}
                    for caption in sample.captions:
                        cosine = float(picture @ directions[numbers[caption.text]])
                        of[caption.captioner] = round(100 * cosine, DIGITS)
                    scores += of.values()
                    lines.append(json.dumps({"id": sample.id, "scores": of}) + "\n")
        (staging / f"{unit}.jsonl").write_text("".join(lines), encoding="utf-8")
        return {
            "scores": len(scores),
            "mean": round(sum(scores) / len(scores), DIGITS) if scores else None,
            "cut": sum(scorer.tokens(text) > scorer.limit for text in texts),
            "unreadable": len(unreadable),
        }
