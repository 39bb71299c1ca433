"""The experiments of docs/research/claims.md: variants differ in what they say alone."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes.glyph.data.mixture import Mixture
from recipes.glyph.research.blocks import SoftmaxAttention, transformer_of
from recipes.glyph.research.diffusion import VARIANTS, Material, Variant, rounded, train_variant
from recipes.glyph.research.figures import paired
from recipes.glyph.research.latent_bank import LatentBank
from recipes.glyph.research.short_run import PlainAverage, keep, read, tenths
from recipes.glyph.research.small_trainer import DiffusionRecipe
from recipes.glyph.research.text_recipe import LEVELS_EACH, TextRecipe, plain_words
from torch.testing import assert_close

from sanakit.errors import ConfigError
from sanakit.models.config import TransformerConfig
from sanakit.models.text_encoder import TextEncoder
from sanakit.pipeline.prompts import PromptEncoder
from tiny import TRANSFORMER, tiny_components
from tiny_pictures import tiny_pictures
from tiny_recipe import drawn

INSTRUCTION = "a red tree with two blue fish: "


@pytest.fixture
def bank(tmp_path: Path) -> LatentBank:
    pictures = tiny_pictures(tmp_path / "data", size=4)
    mixture = Mixture(pictures, composites=0)
    held = Mixture(pictures, split="held_style", composites=0, white=1)
    rng = np.random.default_rng(0)
    return LatentBank(
        mixture=mixture,
        samples=mixture.draw(24, rng),
        latents=rng.standard_normal((24, 4, 2, 2)).astype(np.float16),
        held=held.draw(6, rng),
        held_latents=rng.standard_normal((6, 4, 2, 2)).astype(np.float16),
        scaling_factor=1.0,
    )


def recipe_of(bank: LatentBank, **choices: Any) -> TextRecipe:
    parts = tiny_components()
    llm = parts.prompts.text_encoder.llm
    return TextRecipe(parts.transformer, llm, parts.prompts.tokenizer, bank, **choices)


def inputs(config: TransformerConfig, side: int = 4) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    latent = torch.randn(2, config.in_channels, side, side)
    return latent, torch.tensor([100.0, 900.0]), torch.randn(2, 3, config.caption_channels)


# Blocks.


def test_softmax_attention_has_the_same_weights_and_another_answer() -> None:
    linear, softmax = (
        transformer_of(TRANSFORMER, attention=kind) for kind in ("linear", "softmax")
    )
    ours, theirs = linear.state_dict(), softmax.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    one, other = (model.velocity(*inputs(TRANSFORMER), None) for model in (linear, softmax))
    assert (one - other).abs().max() > 1e-3


def test_softmax_attention_is_a_weighted_mean_of_values() -> None:
    torch.manual_seed(0)
    attention = SoftmaxAttention(2, 4, bias=False, qk_norm=False, dropout=0.0)
    x = torch.randn(1, 5, 8)
    heads = [one(x).view(5, 2, 4) for one in (attention.to_q, attention.to_k, attention.to_v)]
    q, k, v = heads
    weights = (torch.einsum("nhd,mhd->hnm", q, k) / 2).softmax(dim=-1)
    mixed = torch.einsum("hnm,mhd->nhd", weights, v).reshape(1, 5, 8)
    assert_close(attention(x), attention.to_out[0](mixed), atol=1e-6, rtol=1e-5)


def test_a_plain_ffn_is_as_large_and_sees_no_neighbours() -> None:
    config = replace(TRANSFORMER, mlp_ratio=3.0)
    mix, plain = (transformer_of(config, ffn=kind) for kind in ("mix", "plain"))
    sizes = [sum(p.numel() for p in model.parameters()) for model in (mix, plain)]
    one_channel = 2 * config.width + 1
    assert abs(sizes[0] - sizes[1]) <= config.num_layers * one_channel
    x = torch.randn(1, config.width, 3, 3)
    touched = x.clone()
    touched[:, :, 1, 1] += 1
    changed = {}
    for kind, model in (("mix", mix), ("plain", plain)):
        ffn = model.transformer_blocks[0].ff
        changed[kind] = int(((ffn(touched) - ffn(x)).abs().sum(dim=1) > 1e-6).sum())
    assert changed == {"mix": 9, "plain": 1}


@pytest.mark.parametrize("kinds", [("softmax", "mix"), ("linear", "plain"), ("softmax", "plain")])
def test_what_two_transformers_share_begins_alike(kinds: tuple[Any, Any]) -> None:
    base = transformer_of(TRANSFORMER).state_dict()
    other = transformer_of(TRANSFORMER, attention=kinds[0], ffn=kinds[1]).state_dict()
    shared = base.keys() & other.keys()
    assert len(shared) > 30
    assert all(torch.equal(base[name], other[name]) for name in shared)


# What differs from run to run.


def test_each_variant_differs_from_its_base_in_what_its_name_says() -> None:
    changed = {}
    for name, variant in VARIANTS.items():
        base = VARIANTS["words-anew" if variant.patch == 2 else "block-linear-mix"]
        mine, theirs = asdict(variant), asdict(base)
        changed[name] = {key for key in mine if mine[key] != theirs[key]}
    of_block = {"block-linear-mix": set(), "block-softmax-mix": {"attention"}}
    assert {name: changed[name] for name in of_block} == of_block
    assert changed["block-linear-plain"] == {"ffn", "positions"}
    assert changed["words-anew"] == set()
    assert changed["words-plain"] == {"words"}
    assert changed["layer-middle"] == changed["layer-embeddings"] == {"layer"}
    assert changed["instruction-frozen"] == {"instruction"}
    assert changed["tuned"] == {"tune_text"}
    assert changed["instruction-tuned"] == {"tune_text", "instruction"}
    assert changed["levels-uniform"] == {"levels"}
    assert changed["levels-shift-3"] == changed["levels-shift-0.5"] == {"flow_shift"}


def test_without_choices_it_is_the_recipe_of_the_package(bank: LatentBank) -> None:
    parts = tiny_components()
    llm, tokenizer = parts.prompts.text_encoder.llm, parts.prompts.tokenizer
    usual = DiffusionRecipe(parts.transformer, llm, tokenizer, bank, tune_text=False)
    ours = recipe_of(bank)
    one, other = drawn(usual, 32), drawn(ours, 32)
    for name in ("x0", "noise", "ids", "mask"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert torch.equal(one.level.sigma, other.level.sigma)
    assert_close(usual.loss(one)["loss"], ours.loss(other)["loss"])


CHOICES: list[dict[str, Any]] = [
    {"words": "plain"},
    {"levels": "uniform"},
    {"flow_shift": 3.0},
    {"layer": "middle"},
    {"layer": "embeddings"},
    {"instruction": INSTRUCTION},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_pictures_and_noise_are_the_same_whatever_the_choice(
    bank: LatentBank, choice: dict[str, Any]
) -> None:
    base, other = drawn(recipe_of(bank), 32), drawn(recipe_of(bank, **choice), 32)
    assert torch.equal(base.x0, other.x0)
    assert torch.equal(base.noise, other.noise)
    same_levels = torch.equal(base.level.sigma, other.level.sigma)
    assert same_levels == (not choice.keys() & {"levels", "flow_shift"})
    same_loss = torch.isclose(
        recipe_of(bank).loss(base)["loss"], recipe_of(bank, **choice).loss(other)["loss"]
    )
    assert not same_loss


def test_uniform_levels_are_uniform_and_rise_with_the_others(bank: LatentBank) -> None:
    base, other = (
        drawn(recipe_of(bank, levels=levels), 2_000).level.sigma
        for levels in ("logit-normal", "uniform")
    )
    assert (other[base.argsort()].diff() > -0.004).all()  # levels are rounded to thousandths
    assert torch.histc(other, 4, 0, 1).sub(500).abs().max() < 80
    assert torch.histc(base, 4, 0, 1)[0] < 350


def test_plain_words_are_always_the_same(bank: LatentBank) -> None:
    recipe = recipe_of(bank, words="plain")
    mixture = bank.mixture
    for sample in bank.samples:
        said = {recipe.caption(sample, np.random.default_rng(seed)) for seed in range(8)}
        assert said == {plain_words(mixture, sample)}
        text = said.pop()
        assert text.startswith(mixture.pictures.records[sample.number].captions[0])
        assert (sample.background in text) == (sample.background != "white")


@pytest.mark.parametrize("instruction", [INSTRUCTION, ""])
def test_the_transformer_reads_what_the_prompt_encoder_gives(
    bank: LatentBank, instruction: str
) -> None:
    recipe = recipe_of(bank, instruction=instruction)
    texts = ["a red square", "a tree, green number 7", ""]
    level = drawn(recipe, 3).level
    batch = recipe._batch(texts, bank.latents[:3], torch.zeros(3, 4, 2, 2), level)
    llm = recipe.module.get_submodule("text_encoder")
    states, mask = recipe._kept(recipe.states(llm, batch)), recipe._kept(batch.mask)
    lines = [instruction] if instruction else None
    encoder = PromptEncoder(recipe.tokenizer, TextEncoder(llm), instruction=lines)
    told = encoder.encode(texts[:2], instruction=lines)
    assert mask[:2].sum(dim=1).tolist() == told.mask.sum(dim=1).tolist()
    assert_close(states[:2][mask[:2]], told.text[told.mask], atol=1e-5, rtol=1e-4)
    null = encoder.encode_null([""], told)
    assert mask[2].sum() == 1
    assert_close(states[2][mask[2]], null.text[null.mask], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", ["middle", "embeddings"])
def test_states_of_other_layers_are_of_unit_size(bank: LatentBank, layer: Any) -> None:
    recipe = recipe_of(bank, layer=layer)
    batch = drawn(recipe, 8)
    sizes = recipe.states(recipe.module.get_submodule("text_encoder"), batch).square().mean(dim=-1)
    assert_close(sizes[batch.mask], torch.ones(int(batch.mask.sum())), atol=1e-3, rtol=0)


def test_what_a_frozen_encoder_said_is_kept_for_those_who_ask_the_same(bank: LatentBank) -> None:
    known: dict[bytes, torch.Tensor] = {}
    choices: list[dict[str, Any]] = [{}, {"layer": "embeddings"}, {"instruction": INSTRUCTION}]
    for number, choice in enumerate(choices, 1):
        alone, sharing = recipe_of(bank, **choice), recipe_of(bank, **choice, known=known)
        batch = drawn(alone, 8)
        wanted = alone.loss(batch)["loss"]
        for _ in range(2):
            assert_close(sharing.loss(batch)["loss"], wanted)
        assert len(known) == number
    learning = recipe_of(bank, tune_text=True, known=known)
    learning.loss(drawn(learning, 8))["loss"].backward()
    llm = learning.module.get_submodule("text_encoder")
    assert any(each.grad is not None for each in llm.parameters())
    assert len(known) == len(choices)


# Measuring.


def test_held_errors_are_at_even_levels_the_same_for_every_recipe(
    bank: LatentBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    errors = TextRecipe._errors

    def watched(self: TextRecipe, module: Any, batch: Any) -> Any:
        seen.append(torch.cat([batch.level.sigma[:, None], batch.noise.flatten(1)], dim=1))
        return errors(self, module, batch)

    monkeypatch.setattr(TextRecipe, "_errors", watched)
    with torch.no_grad():
        first = recipe_of(bank).held_errors()
        mine = torch.cat(seen)
        seen.clear()
        second = recipe_of(bank, instruction=INSTRUCTION, flow_shift=3.0).held_errors()
    assert first.shape == (6, LEVELS_EACH)
    assert torch.equal(mine, torch.cat(seen))
    assert_close(mine[:, 0].sort().values, (torch.arange(18) + 0.5) / 18)
    assert not np.allclose(first, second)
    assert np.allclose(rounded(first), first.round(5))


def test_paired_runs_are_told_apart_where_unpaired_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(1.0, 0.5, 200)
    better = base - 0.02 + rng.normal(0, 0.02, 200)
    found = paired(better, base)
    assert found.told_apart
    assert found.low < found.value < found.high < 0
    assert found.relative == pytest.approx(-0.02, abs=0.005)
    assert not paired(better, rng.permutation(base)).told_apart
    same = paired(base, base)
    assert (same.low, same.high) == (0, 0)
    assert not same.told_apart


def test_pairs_are_needed() -> None:
    with pytest.raises(ConfigError, match="pairs"):
        paired([1.0, 2.0], [1.0, 2.0, 3.0])


def test_an_average_is_as_long_as_it_says() -> None:
    average = PlainAverage({"w": torch.zeros(1)}, halflife=100)
    average.update({"w": torch.ones(1)}, images_seen=100, batch_size=100)
    assert_close(average.tensors["w"], torch.tensor([0.5]))


def test_tenths_are_means_of_parts_in_order() -> None:
    assert tenths([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    assert tenths([float(n) for n in range(20)]) == [0.5 + 2 * n for n in range(10)]


def test_a_run_is_kept_and_a_finished_one_skipped(bank: LatentBank, tmp_path: Path) -> None:
    parts = tiny_components().prompts
    material = Material(bank=bank, llm=parts.text_encoder.llm, tokenizer=parts.tokenizer)
    variant = Variant(samples=8, batch=4, halflife=4, patch=2, tune_text=True)
    lines: list[str] = []
    for _ in range(2):
        train_variant("words-anew", variant, material, tmp_path, report=lines.append)
    assert len(lines) == 2
    found = read("words-anew", tmp_path)
    assert np.array(found["held"]).shape == (6, 3)
    assert found["after_decay"].keys() >= {"0", "800"}
    assert found["before_decay"] != found["after_decay"]
    assert 2e6 < found["parameters"] < 3e6
    keep("other", {"a": 1}, tmp_path)
    assert read("other", tmp_path)["a"] == 1
