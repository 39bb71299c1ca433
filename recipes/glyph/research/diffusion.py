"""Trainings of a small transformer that differ in one thing each.

A run's result holds the error of every held sample, the same ones for all: two runs are compared
sample by sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.glyph.research.blocks import Attention, FeedForward, transformer_of, with_positions
from recipes.glyph.research.latent_bank import LatentBank
from recipes.glyph.research.short_run import Trained, is_done, keep, short_run
from recipes.glyph.research.text_recipe import Layer, Levels, TextRecipe, Words, plain_words
from sanakit.models.config import TransformerConfig
from sanakit.pipeline.components import load_components
from sanakit.shapes import Text
from sanakit.train.config import LoopConfig

INSTRUCTION = (
    "write down what the picture shows: the thing or things, how many, where, the style, "
    "the colours and the background. picture: "
)
HALFLIVES = (100, 400, 800, 1_600, 3_200)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One run: what is trained, and on what. The defaults are what others are compared with."""

    patch: int = 1
    """2: a quarter of the tokens, and so a quarter of the time, where words are the question."""
    attention: Attention = "linear"
    ffn: FeedForward = "mix"
    positions: bool = False
    words: Words = "anew"
    layer: Layer = "last"
    tune_text: bool = False
    instruction: str = ""
    flow_shift: float = 1.0
    levels: Levels = "logit-normal"
    samples: int = 4_800
    batch: int = 16
    halflife: int = 300
    seed: int = 0
    """Of weights, data and noise."""

    def config(self, channels: int, side: int, caption_channels: int) -> TransformerConfig:
        """About 2.5 M parameters: three blocks, 192 wide."""
        config = TransformerConfig(
            in_channels=channels,
            out_channels=channels,
            num_attention_heads=6,
            num_layers=3,
            num_cross_attention_heads=3,
            cross_attention_head_dim=64,
            cross_attention_dim=192,
            caption_channels=caption_channels,
            sample_size=side,
            patch_size=self.patch,
        )
        return with_positions(config) if self.positions else config

    def loop(self) -> LoopConfig:
        """How it is trained."""
        return LoopConfig(
            batch_size=self.batch,
            total_images=self.samples,
            peak_lr=1e-3,
            warmup_images=self.samples // 10,
            decay_share=0.4,
            weight_decay=0.02,
            betas=(0.9, 0.98),
            seed=self.seed,
        )


_WORDS = Variant(patch=2, samples=8_000, batch=32, halflife=800)
VARIANTS: Mapping[str, Variant] = {
    "block-linear-mix": Variant(),
    "words-anew": _WORDS,
    "block-softmax-mix": Variant(attention="softmax"),
    "block-linear-plain": Variant(ffn="plain", positions=True),
    "words-plain": replace(_WORDS, words="plain"),
    "instruction-frozen": replace(_WORDS, instruction=INSTRUCTION),
    "layer-middle": replace(_WORDS, layer="middle"),
    "layer-embeddings": replace(_WORDS, layer="embeddings"),
    "tuned": replace(_WORDS, tune_text=True),
    "instruction-tuned": replace(_WORDS, tune_text=True, instruction=INSTRUCTION),
    "levels-shift-3": Variant(flow_shift=3.0),
    "levels-uniform": Variant(levels="uniform"),
    "words-anew-seed-1": replace(_WORDS, seed=1),
    "block-linear-mix-seed-1": Variant(seed=1),
    "levels-shift-0.5": Variant(flow_shift=0.5),
    "instruction-frozen-seed-1": replace(_WORDS, instruction=INSTRUCTION, seed=1),
    "layer-middle-seed-1": replace(_WORDS, layer="middle", seed=1),
    "block-softmax-mix-seed-1": Variant(attention="softmax", seed=1),
    "tuned-seed-1": replace(_WORDS, tune_text=True, seed=1),
    "words-plain-seed-1": replace(_WORDS, words="plain", seed=1),
    "block-softmax-plain": Variant(attention="softmax", ffn="plain", positions=True),
    "block-linear-mix-positions": Variant(positions=True),
}
"""In the order they are trained in."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What all runs share."""

    bank: LatentBank
    llm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    known: dict[bytes, Text] = field(default_factory=dict)

    @classmethod
    def with_text_of(cls, model: str, bank: LatentBank) -> Material:
        """With a model's text encoder, in fp32."""
        prompts = load_components(model).prompts
        return cls(
            bank=bank, llm=prompts.text_encoder.published().float(), tokenizer=prompts.tokenizer
        )

    def recipe(self, variant: Variant) -> TextRecipe:
        """A variant's recipe; its text encoder is a copy."""
        _, channels, side, _ = self.bank.latents.shape
        llm = copy.deepcopy(self.llm)
        shape = variant.config(channels, side, llm.config.hidden_size)
        transformer = transformer_of(
            shape, attention=variant.attention, ffn=variant.ffn, seed=variant.seed
        )
        return TextRecipe(
            transformer,
            llm,
            self.tokenizer,
            self.bank,
            tune_text=variant.tune_text,
            flow_shift=variant.flow_shift,
            words=variant.words,
            levels=variant.levels,
            layer=variant.layer,
            instruction=variant.instruction,
            known=self.known,
        )


def train_variant(
    name: str,
    variant: Variant,
    material: Material,
    results: Path,
    *,
    report: Callable[[str], object] = print,
) -> None:
    """Train one, unless it is done, and keep its errors."""
    if is_done(name, results):
        return
    report(f"{name}: {variant.samples} samples")
    recipe = material.recipe(variant)
    found: dict[str, Any] = {}
    halflives: tuple[int, ...] = (variant.halflife,)
    moments: dict[int, Callable[[Trained], object]] = {}
    if name == "words-anew":
        halflives = tuple({variant.halflife, *HALFLIVES})
        before_decay = round(0.6 * variant.samples / variant.batch) * variant.batch
        moments[before_decay] = lambda now: found.update(before_decay=_by_length(recipe, now))
    trained = short_run(recipe, variant.loop(), halflives=halflives, moments=moments, report=report)
    if name == "words-anew":
        found["after_decay"] = _by_length(recipe, trained)
    with trained.shown(recipe.module, variant.halflife):
        found["held"] = rounded(recipe.held_errors())
        if name.startswith("words-"):
            plain = partial(plain_words, material.bank.mixture)
            found["held_plain"] = rounded(recipe.held_errors(plain))
        if variant.patch > 1:
            found["held_null"] = rounded(recipe.held_errors(lambda sample: ""))
    keep(
        name,
        {
            "variant": asdict(variant),
            "parameters": sum(
                p.numel() for p in recipe.module.get_submodule("transformer").parameters()
            ),
            "loss": trained.loss,
            "cpu_seconds": round(trained.cpu_seconds, 1),
            **found,
        },
        results,
    )
    mean = np.mean(found["held"])
    report(f"{name}: held {mean:.4f} in {trained.cpu_seconds:.0f} s of a core")


def _by_length(recipe: TextRecipe, trained: Trained) -> dict[str, list[float]]:
    """Mean errors of each held sample, by the average's half-life."""
    found = {}
    for halflife in trained.averages:
        with trained.shown(recipe.module, halflife):
            errors = recipe.held_errors().mean(axis=1)
        found[str(halflife)] = [round(value, 5) for value in errors.tolist()]
    return found


def rounded(errors: npt.NDArray[np.float64]) -> list[list[float]]:
    """Errors by thirds of the path, ``n 3``: near the data, in the middle, near the noise."""
    thirds = errors.reshape(len(errors), 3, -1).mean(axis=2)
    return [[round(value, 5) for value in row] for row in thirds.tolist()]
