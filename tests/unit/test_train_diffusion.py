"""The diffusion recipe: captions, backgrounds, null prompts, and the loss it minimises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sanakit.data.glyph.backgrounds import BACKGROUNDS
from sanakit.data.glyph.pictures import GlyphPictures, compose
from sanakit.data.glyph.split import PROTECTED
from sanakit.models.autoencoder import Autoencoder
from sanakit.shapes import Latent, PerSample, Text, TextMask
from sanakit.train.diffusion import CachedLatents, DiffusionRecipe, _by_thirds, cache_latents
from tiny import AUTOENCODER, tiny_components
from tiny_pictures import tiny_pictures, tiny_record, write_pictures
from tiny_recipe import drawn


@pytest.fixture
def pictures(tmp_path: Path) -> GlyphPictures:
    return tiny_pictures(tmp_path / "data", size=4)


def latents_of(pictures: GlyphPictures) -> CachedLatents:
    """Latents that tell which picture they are of and which background they are on."""
    count = len(pictures.records)
    shape = (count, 4, 2, 2)
    white = np.broadcast_to(np.arange(count)[:, None, None, None], shape).astype(np.float16)
    backgrounds = 1 + np.arange(count) % (len(BACKGROUNDS) - 1)
    return CachedLatents(
        white=white, other=white + 100, backgrounds=backgrounds, scaling_factor=1.0
    )


def recipe_of(pictures: GlyphPictures, **settings: float) -> DiffusionRecipe:
    parts = tiny_components()
    llm = parts.prompts.text_encoder.llm
    for module in (parts.transformer, llm):
        module.requires_grad_(True)
    return DiffusionRecipe(
        parts.transformer,
        llm,
        parts.prompts.tokenizer,
        pictures,
        latents_of(pictures),
        **settings,
    )


class Silent(nn.Module):
    """Predicts no velocity, and keeps what it was asked."""

    def forward(self, x: Latent, time: PerSample, text: Text, mask: TextMask) -> Latent:
        self.asked = x, time, text, mask
        return torch.zeros_like(x)


def captions_of(recipe: DiffusionRecipe, ids: Tensor, mask: Tensor) -> list[str]:
    return [
        recipe.tokenizer.decode(row[real], skip_special_tokens=True).strip()
        for row, real in zip(ids, mask, strict=True)
    ]


def test_a_caption_is_one_of_its_pictures_own_in_lower_case(
    pictures: GlyphPictures, rng: torch.Generator
) -> None:
    recipe = recipe_of(pictures, null_share=0.0, other_share=0.0)
    batch = drawn(recipe, 200)
    numbers = batch.x0[:, 0, 0, 0].long().tolist()
    assert set(numbers) == set(range(6))  # the training split
    seen = set()
    texts = captions_of(recipe, batch.ids, batch.mask)
    for number, text in zip(numbers, texts, strict=True):
        own = [caption.lower() for caption in pictures.records[number].captions]
        assert text in own
        seen.add(own.index(text))
    assert seen == {0, 1}


def test_tokens_are_the_tokenizers_and_padding_is_masked(
    pictures: GlyphPictures, rng: torch.Generator
) -> None:
    recipe = recipe_of(pictures, null_share=0.0, other_share=0.0)
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
    recipe = recipe_of(pictures, null_share=1.0, other_share=1.0)
    batch = drawn(recipe, 8)
    empty = recipe.tokenizer([""])["input_ids"]
    assert batch.ids.tolist() == empty * 8
    assert batch.mask.all()
    assert (batch.x0 >= 100).all()  # what is drawn does not depend on what is said


def test_another_background_is_drawn_and_said(
    pictures: GlyphPictures, rng: torch.Generator
) -> None:
    recipe = recipe_of(pictures, null_share=0.0, other_share=1.0)
    batch = drawn(recipe, 100)
    names = list(BACKGROUNDS)
    texts = captions_of(recipe, batch.ids, batch.mask)
    for value, text in zip(batch.x0[:, 0, 0, 0].tolist(), texts, strict=True):
        assert value >= 100
        number = int(value) - 100
        assert text.endswith(f" {names[recipe.latents.backgrounds[number]]} background")
        assert text.startswith(tuple(c.lower() for c in pictures.records[number].captions))


def test_shares_are_kept(pictures: GlyphPictures, rng: torch.Generator) -> None:
    recipe = recipe_of(pictures, null_share=0.1, other_share=0.25)
    batch = drawn(recipe, 4000)
    null, other = batch.mask.sum(dim=1) == 1, batch.x0[:, 0, 0, 0] >= 100
    assert float(null.double().mean()) == pytest.approx(0.1, abs=0.02)
    assert float(other.double().mean()) == pytest.approx(0.25, abs=0.03)
    assert float((null & other).double().mean()) == pytest.approx(0.025, abs=0.015)


def test_a_picture_comes_by_its_weight(tmp_path: Path, rng: torch.Generator) -> None:
    records = [tiny_record(i, weight=weight) for i, weight in enumerate([1.0, 3.0, 0.0])]
    pictures = GlyphPictures.open(write_pictures(tmp_path / "data", records, size=4))
    found = drawn(recipe_of(pictures, other_share=0.0), 2000).x0[:, 0, 0, 0].long()
    shares = torch.bincount(found, minlength=3) / 2000
    assert shares.tolist() == pytest.approx([0.25, 0.75, 0.0], abs=0.04)


def test_everyday_things_come_more_often_except_as_silhouettes(tmp_path: Path) -> None:
    usual = sorted(PROTECTED)[0]
    records = [
        replace(tiny_record(0), name="no such thing"),
        replace(tiny_record(1, weight=2.0), name=usual),
        replace(tiny_record(2), name=usual, style="silhouette"),
    ]
    pictures = GlyphPictures.open(write_pictures(tmp_path / "data", records, size=4))
    chances = recipe_of(pictures, everyday_weight=3.0).chances
    assert chances.tolist() == pytest.approx([1 / 8, 7 / 8, 1.0])


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
    assert torch.equal(mask, batch.mask)
    assert states.shape == (*batch.ids.shape, 8)
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
    x0 = torch.tensor([8.0, 9.0])[:, None, None, None].expand_as(noise)  # the two of held_style
    sigma = torch.tensor([0.25, 0.75])[:, None, None, None]
    assert_close(x, (1 - sigma) * x0 + sigma * noise)
    assert time.tolist() == [250, 750]
    assert first["loss"] == pytest.approx(float((noise - x0).square().mean()), rel=1e-5)


def test_blocks_are_the_transformers(pictures: GlyphPictures) -> None:
    recipe = recipe_of(pictures)
    assert list(recipe.blocks()) == list(recipe.module["transformer"].transformer_blocks)


def test_cached_latents_are_of_unit_size_and_know_their_background(tmp_path: Path) -> None:
    pictures = tiny_pictures(tmp_path / "data")
    torch.manual_seed(0)
    autoencoder = Autoencoder(AUTOENCODER).eval()
    cached = cache_latents(autoencoder, pictures, seed=3)
    assert cached.white.shape == cached.other.shape == (10, 4, 2, 2)
    train = pictures.indices("train")
    both = np.concatenate([cached.white[train], cached.other[train]]).astype(np.float64)
    assert np.sqrt(np.square(both).mean()) == pytest.approx(1.0, abs=1e-2)
    assert cached.backgrounds.min() >= 1  # never white
    assert len(set(cached.backgrounds.tolist())) > 1
    again = cache_latents(autoencoder, pictures, seed=3)
    np.testing.assert_array_equal(cached.other, again.other)
    colours = np.array(list(BACKGROUNDS.values()))
    with torch.no_grad():
        for half, numbers in ((cached.white, 0 * cached.backgrounds), (cached.other, None)):
            behind = colours[cached.backgrounds if numbers is None else numbers]
            image = compose(pictures.rgba(range(10)), behind)
            exact = autoencoder.encode(image) * cached.scaling_factor
            error = torch.from_numpy(half.astype(np.float32)) - exact
            assert error.square().mean().sqrt() < 0.03  # encoded in bf16, kept in fp16
