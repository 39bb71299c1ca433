"""The diffusion recipe: captions, backgrounds, null prompts, and the loss it minimises."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from recipes.glyph.data.captions import FREE_WORDS, bare
from recipes.glyph.data.mixture import Mixture
from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.research.latent_bank import LatentBank
from recipes.glyph.research.small_trainer import MOST_TOKENS, WIDTHS, DiffusionRecipe, _by_thirds
from torch import Tensor, nn
from torch.testing import assert_close

from sanakit.flow.grids import NoiseLevel, levels_at
from sanakit.models.outputs import Transformer2DModelOutput
from sanakit.pipeline.prompts import PromptEncoder
from sanakit.shapes import Latent, PerSample, Text, TextMask
from tiny import tiny_components
from tiny_pictures import tiny_pictures
from tiny_recipe import drawn

INSTRUCTION = "draw subject, color and place of: "


@pytest.fixture
def pictures(tmp_path: Path) -> GlyphPictures:
    return tiny_pictures(tmp_path / "data", size=4)


def bank_of(pictures: GlyphPictures, count: int = 24) -> LatentBank:
    """Latents that tell which sample they are of; held ones begin at 1,000."""
    mixture = Mixture(pictures, composites=0)
    held = Mixture(pictures, split="held_style", composites=0, white=1)
    rng = np.random.default_rng(0)

    def numbered(count: int, start: int) -> npt.NDArray[np.float16]:
        numbers = np.arange(start, start + count)[:, None, None, None]
        return np.broadcast_to(numbers, (count, 4, 2, 2)).astype(np.float16)

    return LatentBank(
        mixture=mixture,
        samples=mixture.draw(count, rng),
        latents=numbered(count, 0),
        held=held.draw(2, rng),
        held_latents=numbered(2, 1000),
        scaling_factor=1.0,
    )


def recipe_of(pictures: GlyphPictures, **settings: float | str) -> DiffusionRecipe:
    parts = tiny_components()
    llm = parts.prompts.text_encoder.llm
    for module in (parts.transformer, llm):
        module.requires_grad_(True)
    tokenizer = parts.prompts.tokenizer
    return DiffusionRecipe(parts.transformer, llm, tokenizer, bank_of(pictures), **settings)


class Silent(nn.Module):
    """Predicts no velocity, and keeps what it was asked."""

    def forward(
        self,
        x: Latent,
        text: Text,
        time: PerSample,
        encoder_attention_mask: TextMask,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput:
        self.asked = x, time, text, encoder_attention_mask
        return Transformer2DModelOutput(torch.zeros_like(x))


def captions_of(recipe: DiffusionRecipe, ids: Tensor, mask: Tensor) -> list[str]:
    return [
        recipe.tokenizer.decode(row[real], skip_special_tokens=True).strip()
        for row, real in zip(ids, mask, strict=True)
    ]


def test_a_sample_comes_in_words_of_its_own_and_not_always_the_same(
    pictures: GlyphPictures,
) -> None:
    recipe = recipe_of(pictures, null_share=0.0)
    batch = drawn(recipe, 400)
    numbers = batch.x0[:, 0, 0, 0].long().tolist()
    assert set(numbers) == set(range(24))
    said: dict[int, set[str]] = {}
    free, freed = rf"^a ({'|'.join(FREE_WORDS)}) ", 0
    texts = captions_of(recipe, batch.ids, batch.mask)
    for number, text in zip(numbers, texts, strict=True):
        sample = recipe.bank.samples[number]
        assert sample.number is not None
        own = [caption.lower() for caption in pictures.records[sample.number].captions]
        known = re.sub(free, "", text)
        assert bare(known).startswith(tuple(map(bare, own)))
        freed += known != text
        if sample.background != "white":
            assert text.endswith(f" {sample.background} background")
        said.setdefault(number, set()).add(text)
    assert all(len(texts) >= 2 for texts in said.values())
    assert 20 < freed < 100


def test_tokens_are_the_tokenizers_and_padding_is_masked(
    pictures: GlyphPictures, rng: torch.Generator
) -> None:
    recipe = recipe_of(pictures, null_share=0.0)
    batch = drawn(recipe, 20)
    texts = captions_of(recipe, batch.ids, batch.mask)
    expected = recipe.tokenizer(texts)["input_ids"]
    for ids, mask, wanted in zip(batch.ids, batch.mask, expected, strict=True):
        assert ids[mask].tolist() == wanted
        assert mask[: len(wanted)].all()
        assert not ids[len(wanted) :].any()


def test_a_null_share_of_one_empties_every_caption(
    pictures: GlyphPictures, rng: torch.Generator
) -> None:
    recipe = recipe_of(pictures, null_share=1.0)
    batch = drawn(recipe, 8)
    empty = recipe.tokenizer([""])["input_ids"]
    assert batch.ids.shape[1] == batch.mask.shape[1] == WIDTHS
    assert batch.mask.sum(dim=1).tolist() == [1] * 8
    assert batch.ids[batch.mask].tolist() == empty[0] * 8
    told = drawn(recipe_of(pictures, null_share=0.0), 8)
    assert torch.equal(batch.x0, told.x0)  # what is drawn does not depend on what is said


def test_the_null_share_is_kept(pictures: GlyphPictures) -> None:
    batch = drawn(recipe_of(pictures, null_share=0.1), 4000)
    assert float((batch.mask.sum(dim=1) == 1).double().mean()) == pytest.approx(0.1, abs=0.02)


def test_the_loss_is_the_squared_velocity_error_on_the_path(
    pictures: GlyphPictures, rng: torch.Generator
) -> None:
    recipe = recipe_of(pictures, flow_shift=2.0)
    recipe.module["transformer"] = silent = Silent()
    batch = drawn(recipe, 16)
    scalars = recipe.loss(batch)
    level, noise = batch.level, batch.noise
    sigma = level.sigma[:, None, None, None]
    x, time, states, mask = silent.asked
    assert_close(x, batch.x0 + sigma * (noise - batch.x0), atol=1e-5, rtol=0)
    assert torch.equal(time, level.timestep)
    own = batch.mask.shape[1]
    assert torch.equal(mask[:, :own], batch.mask)
    assert not mask[:, own:].any()
    assert mask.shape[1] % WIDTHS == 0
    assert states.shape == (*mask.shape, 8)
    error = (noise - batch.x0).square().mean(dim=(1, 2, 3))
    assert_close(scalars["loss"], error.mean())
    low = level.sigma < 1 / 3
    assert_close(scalars["loss_low"], error[low].mean() if low.any() else error.mean())


def test_the_loss_is_told_by_thirds_of_the_path() -> None:
    error = torch.tensor([1.0, 3.0, 10.0, 30.0, 100.0])
    sigma = torch.tensor([0.0, 0.33, 0.34, 0.66, 1.0])
    assert {k: v.item() for k, v in _by_thirds(error, sigma).items()} == {
        "loss_low": 2.0,
        "loss_middle": 20.0,
        "loss_high": 100.0,
    }
    # Where no sample fell there is nothing to tell but the mean.
    empty = _by_thirds(torch.tensor([2.0, 4.0]), torch.tensor([0.1, 0.2]))
    assert empty["loss_high"].item() == 3.0


@pytest.mark.parametrize("tune", [True, False])
def test_the_text_encoder_learns_along_only_if_asked(
    pictures: GlyphPictures, rng: torch.Generator, tune: bool
) -> None:
    recipe = recipe_of(pictures, tune_text=tune)
    recipe.loss(drawn(recipe, 4))["loss"].backward()
    learnt = {n for n, p in recipe.module.named_parameters() if p.grad is not None}
    assert any(name.startswith("transformer.") for name in learnt)
    assert any(name.startswith("text_encoder.") for name in learnt) == tune


def test_evaluation_uses_held_styles_even_levels_and_the_same_noise(
    pictures: GlyphPictures,
) -> None:
    recipe = recipe_of(pictures)
    module = nn.ModuleDict({"transformer": Silent(), "text_encoder": recipe.module["text_encoder"]})
    with torch.no_grad():
        first, second = recipe.evaluate(module), recipe.evaluate(module)
    assert first == second
    x, time, _, _ = module["transformer"].asked
    noise = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    x0 = torch.tensor([1000.0, 1001.0])[:, None, None, None].expand_as(noise)  # the held ones
    sigma = torch.tensor([0.25, 0.75])[:, None, None, None]
    assert_close(x, (1 - sigma) * x0 + sigma * noise)
    assert time.tolist() == [250, 750]
    assert first["loss"] == pytest.approx(float((noise - x0).square().mean()), rel=1e-5)


def test_blocks_are_the_transformers_and_the_text_encoders(pictures: GlyphPictures) -> None:
    recipe = recipe_of(pictures)
    parts = recipe.module["transformer"].transformer_blocks, recipe.module["text_encoder"].layers
    assert list(recipe.blocks()) == [*parts[0], *parts[1]]


def test_behind_an_instruction_the_transformer_is_told_what_a_prompt_encoder_tells(
    pictures: GlyphPictures,
) -> None:
    recipe = recipe_of(pictures, instruction=INSTRUCTION, null_share=0.3)
    recipe.module["transformer"] = silent = Silent()
    batch = drawn(recipe, 16)
    recipe.loss(batch)
    _, _, states, mask = silent.asked
    encoder = PromptEncoder(recipe.tokenizer, tiny_components().prompts.text_encoder)
    nulls = 0
    for ids, real, state, kept in zip(batch.ids, batch.mask, states, mask, strict=True):
        whole = recipe.tokenizer.decode(ids[real], skip_special_tokens=True)
        text = whole.removeprefix(INSTRUCTION)
        assert (text == whole) == (text == "")
        nulls += text == ""
        lines = (INSTRUCTION,) if text else None
        wanted = encoder.encode([text], instruction=lines)
        assert kept.sum() == wanted.mask.sum()
        assert kept[: int(kept.sum())].all()
        assert_close(state[kept], wanted.text[0], atol=1e-5, rtol=0)
    assert 0 < nulls < 16


@pytest.mark.parametrize("instruction", ["", INSTRUCTION])
def test_a_long_caption_is_cut_where_a_prompt_encoder_cuts_it(
    pictures: GlyphPictures, instruction: str
) -> None:
    recipe = recipe_of(pictures, instruction=instruction)
    recipe.module["transformer"] = silent = Silent()
    long = "a cat left of a dog " * 40
    bank = recipe.bank
    batch = recipe._batch([long, "a cat"], bank.latents[:2], *levels_of(2))
    recipe.loss(batch)
    _, _, states, mask = silent.asked
    assert mask.sum(dim=1)[0] == MOST_TOKENS == mask.shape[1]
    encoder = PromptEncoder(recipe.tokenizer, tiny_components().prompts.text_encoder)
    lines = (instruction,) if instruction else None
    wanted = encoder.encode([long], instruction=lines, max_sequence_length=MOST_TOKENS)
    assert_close(states[0], wanted.text[0], atol=1e-5, rtol=0)


def levels_of(count: int) -> tuple[Tensor, NoiseLevel]:
    return torch.zeros(count, 4, 2, 2), levels_at(torch.full((count,), 0.5), 1.0)
