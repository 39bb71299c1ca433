"""Captions by models: any image-text-to-text model of `transformers`, unit by unit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from sanakit.data.captions.vision_models import VisionStage, computing, open_model, safe_name
from sanakit.data.training_set import CAPTIONS, SCAN
from sanakit.data.units import fingerprint
from sanakit.errors import ConfigError, DataError

VERSION = 1
"""Changes when the same model writes other captions because of this file."""
PROMPT = "Describe the picture in one sentence."
"""The default question to models that chat; others begin their caption with no prefix."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How captions are written. ``prompt`` None is `PROMPT` for models that chat, else nothing.

    A ``temperature`` of 0 takes the likeliest token; above it tokens are drawn, from the ``top_p``
    likeliest, by a random stream that ``seed`` and the sample's id decide. Pictures are shrunk to
    ``side`` pixels before the model's own processor sees them.
    """

    prompt: str | None = None
    max_new_tokens: int = 120
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    side: int = 1024

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"{self.max_new_tokens} new tokens: at least 1 is needed")
        if self.temperature < 0:
            raise ConfigError(f"temperature {self.temperature} is negative", hint="0 is greedy")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p} is not in (0, 1]", hint="1 leaves nothing out")
        if self.side < 1:
            raise ConfigError(f"side {self.side} must be at least 1 pixel", hint="1024 is usual")


class SeededChoice(LogitsProcessor):
    """Draws tokens while generation is greedy: the likeliest after noise is an exact sample.

    The maximum of ``logits + g``, with g of Gumbel's distribution, falls on a token with its
    softmax probability. Each row has a stream of its own, so that it draws the same tokens in any
    batch. Source: the Gumbel-max identity.
    """

    def __init__(self, ids: Sequence[str], writing: Writing) -> None:
        self._warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(writing.temperature)]
        if writing.top_p < 1:
            self._warpers.append(TopPLogitsWarper(writing.top_p))
        self._streams = [_stream(writing.seed, identity) for identity in ids]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits ``b vocabulary`` with noise, fp32."""
        scores = scores.float()
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        uniform = torch.stack(
            [torch.rand(scores.shape[-1], generator=stream) for stream in self._streams]
        ).clamp_(min=torch.finfo(torch.float32).tiny)
        return scores - (-uniform.log()).log().to(scores.device)


def _stream(seed: int, identity: str) -> torch.Generator:
    text = f"{seed}:{identity}".encode("utf-8", "surrogatepass")
    number = int.from_bytes(hashlib.sha256(text).digest()[:8], "little", signed=True)
    return torch.Generator().manual_seed(number)


class Captioner:
    """A model with its processor, ready to describe pictures."""

    def __init__(self, folder: Path, writing: Writing, *, dtype: str, device: str) -> None:
        """Load it."""
        self.writing = writing
        self._model, self._processor = open_model(
            AutoModelForImageTextToText, folder, dtype=dtype, device=device
        )
        self._tokenizer = getattr(self._processor, "tokenizer", self._processor)
        self._tokenizer.padding_side = "left"  # generation goes on at the right
        settings = self._model.generation_config
        settings.do_sample, settings.num_beams = False, 1
        settings.temperature = settings.top_p = settings.top_k = None
        if settings.pad_token_id is None:
            settings.pad_token_id = self._tokenizer.pad_token_id
        eos = settings.eos_token_id
        self._ends = set(eos if isinstance(eos, list) else [eos])
        self._prompt = self._behind_template(writing.prompt)

    def write(self, pictures: Sequence[Image.Image], ids: Sequence[str]) -> list[tuple[str, bool]]:
        """Texts, "" where the model said nothing, and whether each was cut at the most tokens."""
        inputs = self._inputs(pictures)
        drawn = LogitsProcessorList()
        if self.writing.temperature > 0:
            drawn.append(SeededChoice(ids, self.writing))
        out: Tensor = self._model.generate(
            **inputs, max_new_tokens=self.writing.max_new_tokens, logits_processor=drawn
        )
        asked = inputs.get("input_ids")
        # Decoder-only models give the prompt back; where it is the caption's beginning, as with
        # BLIP, it comes with other marks around it, and stays.
        if asked is not None and torch.equal(out[:, : asked.shape[1]], asked):
            out = out[:, asked.shape[1] :]
        return [self._text(row) for row in out.tolist()]

    def _text(self, tokens: list[int]) -> tuple[str, bool]:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        text = "".join(mark if mark.isprintable() else " " for mark in text)
        cut = len(tokens) >= self.writing.max_new_tokens and not self._ends & set(tokens)
        return (" ".join(text.split()) if any(map(str.isalnum, text)) else ""), cut

    def _inputs(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        nested = [[picture] for picture in pictures]
        texts = {"text": [self._prompt] * len(nested), "padding": True} if self._prompt else {}
        made = self._processor(images=nested, return_tensors="pt", **texts)
        device, dtype = self._model.device, self._model.dtype
        return {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in made.items()
            if isinstance(value, Tensor)
        }

    def _behind_template(self, prompt: str | None) -> str:
        if getattr(self._processor, "chat_template", None):
            asked = PROMPT if prompt is None else prompt
            content = [{"type": "image"}, {"type": "text", "text": asked}]
            return self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        mark = getattr(self._processor, "image_token", None) or ""
        text = prompt or ""
        return text if not mark or mark in text else f"{mark}\n{text}"


@dataclass(frozen=True, kw_only=True)
class Captioning(VisionStage[Captioner]):
    """The stage: captions of one model and prompt, in captions/NAME/UNIT.jsonl."""

    writing: Writing = field(default_factory=Writing)

    @property
    def folder(self) -> Path:
        """Where the captions go."""
        return self.training_set.folder.absolute() / CAPTIONS / self.name

    def made_from(self, unit: str) -> str:
        """Identify the model, how it writes, and the samples of the unit."""
        scanned = self.training_set.hash_of(SCAN, unit)
        return fingerprint(
            "caption", VERSION, self.model_hash, vars(self.writing), self.dtype, scanned
        )

    def load(self, folder: Path) -> Captioner:
        """The model with its processor."""
        return Captioner(folder, self.writing, dtype=self.dtype, device=self.device)

    def process(self, unit: str, staging: Path) -> dict[str, Any]:
        """Describe the pictures of a unit."""
        samples = self.training_set.scanned(unit)
        for sample in samples:
            if any(caption.captioner == self.name for caption in sample.captions):
                raise DataError(
                    f"sample {sample.id!r} has a caption of its source named {self.name!r} already",
                    hint="choose another name with --name",
                )
        unreadable: list[str] = []
        stats = {"captions": 0, "empty": 0, "cut": 0}
        lines = []
        with computing(self.threads, batch_size=self.batch_size):
            for batch in self.pictures(samples, self.writing.side, unreadable):
                ids = [sample.id for sample, _ in batch]
                written = self.opened.get().write([picture for _, picture in batch], ids)
                for identity, (text, cut) in zip(ids, written, strict=True):
                    stats["captions" if text else "empty"] += 1
                    stats["cut"] += cut
                    if text:
                        lines.append(json.dumps({"id": identity, "text": text}) + "\n")
        (staging / f"{unit}.jsonl").write_text("".join(lines), encoding="utf-8")
        return {**stats, "unreadable": len(unreadable)}


def captioner_names(
    models: Sequence[str], prompts: Sequence[str | None], names: Sequence[str]
) -> list[tuple[str, str | None, str]]:
    """(model, prompt, name) of each captioner: every model with every prompt.

    Without ``names`` the first prompt of a model has its name, the next ones -2, -3.

    Raises:
        ConfigError: no model, a wrong number of names, or two of one name.
    """
    pairs = [(model, prompt) for model in models for prompt in prompts]
    if not pairs:
        raise ConfigError("no model was named", hint="--model FOLDER, or --model owner/name")
    if names and len(names) != len(pairs):
        raise ConfigError(
            f"{len(names)} names for {len(models)} x {len(prompts)} models and prompts",
            hint=f"give --name {len(pairs)} times, or not at all",
        )
    made = [
        safe_name(model) + (f"-{number + 1}" if number else "")
        for model in models
        for number in range(len(prompts))
    ]
    chosen = list(names) or made
    for name in chosen:
        if name != safe_name(name):
            raise ConfigError(f"--name {name!r} is no safe folder", hint=f"try {safe_name(name)}")
        if chosen.count(name) > 1:
            raise ConfigError(
                f"two captioners would be named {name!r}", hint="tell them apart with --name"
            )
    return [(*pair, name) for pair, name in zip(pairs, chosen, strict=True)]
