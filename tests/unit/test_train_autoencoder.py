"""The autoencoder's recipe: what it draws, what it minimises, what it leaves alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sanakit.data.glyph.backgrounds import BACKGROUNDS
from sanakit.data.glyph.pictures import GlyphPictures, compose, store_folder
from sanakit.data.glyph.store import write_index, write_pack
from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.autoencoder_blocks import ResBlock
from sanakit.nn.resample import Downsample, Upsample
from sanakit.train.autoencoder import AutoencoderRecipe, Phase, backgrounds_of, psnr
from sanakit.train.loop import train
from sanakit.train.settings import LoopConfig
from tiny import AUTOENCODER
from tiny_pictures import tiny_pictures, tiny_record, write_pictures
from tiny_recipe import drawn, weights

CONFIG = LoopConfig(batch_size=2, total_images=4, peak_lr=1e-2, compute_dtype="float32")


@pytest.fixture
def pictures(tmp_path: Path) -> GlyphPictures:
    return tiny_pictures(tmp_path / "data")


def recipe_of(pictures: GlyphPictures, phase: Phase = "full") -> AutoencoderRecipe:
    torch.manual_seed(0)
    return AutoencoderRecipe(Autoencoder(AUTOENCODER), pictures, phase=phase)


def test_psnr_is_its_closed_form() -> None:
    black = torch.full((3, 3, 4, 4), -1.0)
    image = black.clone()
    image[0] += 2.0  # white against black: the error is the peak, 0 dB
    image[1] += 0.2  # a tenth of the peak: 20 dB
    assert_close(psnr(image, black), torch.tensor([0.0, 20.0, 10 * math.log10(4e10)]))
    half = black.clone()
    half[:, :, :2] += 0.2  # in half of the pixels: half the squared error
    assert_close(psnr(half, black), torch.full((3,), 20 + 10 * math.log10(2)))


def test_a_background_is_white_or_a_named_one_or_any(rng: torch.Generator) -> None:
    drawn = backgrounds_of(torch.rand(4000, 5, generator=rng))
    assert drawn.shape == (4000, 3)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    named = np.array(list(BACKGROUNDS.values()), dtype=np.float32)
    matches = (drawn[:, None] == named[None]).all(axis=2)
    shares = matches.mean(axis=0)
    # White is half, and one of the named ones as well.
    assert shares[0] == pytest.approx(0.5 + 0.25 / len(named), abs=0.03)
    assert shares[1:].min() > 0.5 * 0.25 / len(named)
    assert matches.any(axis=1).mean() == pytest.approx(0.75, abs=0.03)


def test_a_batch_is_pictures_of_the_training_split_half_of_them_mirrored(
    pictures: GlyphPictures, rng: torch.Generator
) -> None:
    batch = drawn(recipe_of(pictures), 64).image
    assert batch.shape == (64, 3, 64, 64)
    assert batch.abs().max() <= 1
    assert batch.is_contiguous(memory_format=torch.channels_last)
    # Far from the square a picture is its background; there it tells which one it was put on.
    found = []
    for image in batch:
        for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            behind = ((image[:, corner[0], corner[1]] + 1) / 2).numpy()[None]
            composed = [compose(pictures.rgba([i]), behind)[0] for i in range(10)]
            both = [(i, flip) for flip in (False, True) for i in range(10)]
            near = [
                (i, flip)
                for i, flip in both
                if torch.allclose(composed[i].flip(-1) if flip else composed[i], image, atol=1e-5)
            ]
            if near:
                found.append(near[0])
                break
    assert len(found) == 64
    assert {index for index, _ in found} == set(range(6))  # those of the training split
    assert 20 <= sum(flip for _, flip in found) <= 44


def test_a_batch_is_a_function_of_the_seed(pictures: GlyphPictures) -> None:
    recipe = recipe_of(pictures)
    first, second, other = (drawn(recipe, 4, seed).image for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_picture_comes_by_the_root_of_its_weight(tmp_path: Path, rng: torch.Generator) -> None:
    records = [tiny_record(i, weight=weight) for i, weight in enumerate([1.0, 9.0])]
    recipe = recipe_of(GlyphPictures.open(write_pictures(tmp_path / "data", records, size=4)))
    rgba = np.zeros((2, 4, 4, 4), dtype=np.uint8)
    rgba[0, ..., 3] = 255  # the first is black, the second only background, which is never black
    store = store_folder(tmp_path / "data", 4)
    write_pack(store, "both", rgba)
    write_index(store, 4, [("both", 2)])
    recipe.pictures = GlyphPictures.open(tmp_path / "data")
    black = (drawn(recipe, 4000).image == -1).flatten(1).all(dim=1)
    assert float(black.double().mean()) == pytest.approx(1 / (1 + 3), abs=0.03)


def test_the_loss_is_absolute_pooled_and_squared_error(
    pictures: GlyphPictures, rng: torch.Generator
) -> None:
    recipe = recipe_of(pictures)
    batch = drawn(recipe, 2)
    scalars = recipe.loss(batch)
    with torch.no_grad():
        error = recipe.module.decode(recipe.module.encode(batch.image)) - batch.image
    pooled = error.unflatten(3, (16, 4)).unflatten(2, (16, 4)).mean(dim=(3, 5)).abs().mean()
    assert_close(scalars["l1"], error.abs().mean())
    assert_close(scalars["l2"], error.square().mean())
    assert_close(scalars["loss"].detach(), error.abs().mean() + pooled + error.square().mean())
    assert scalars["loss"].requires_grad
    assert not scalars["l1"].requires_grad


@pytest.mark.parametrize("phase", ["full", "decoder"])
def test_the_second_phase_leaves_every_weight_of_the_encoder(
    pictures: GlyphPictures, tmp_path: Path, phase: Phase
) -> None:
    recipe = recipe_of(pictures, phase)
    assert all(p.requires_grad == (phase == "full") for p in recipe.module.encoder.parameters())
    before = weights(recipe.module)
    train(recipe, CONFIG, tmp_path / "run", resume=False, report=lambda line: None)
    after = recipe.module.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    encoder = {name for name in before if name.startswith("encoder.")}
    decoder = {name for name in before if name.startswith("decoder.")}
    assert encoder
    assert decoder <= moved
    assert encoder & moved == (encoder if phase == "full" else set())


def test_a_decoder_meets_latents_with_up_to_so_much_noise(
    pictures: GlyphPictures, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(pictures, "decoder")
    recipe.latent_noise = 0.5
    met: list[Tensor] = []
    decode = recipe.module.decode
    monkeypatch.setattr(recipe.module, "decode", lambda z: (met.append(z), decode(z))[1])
    batch = drawn(recipe, 64)
    recipe.loss(batch)
    clean = recipe.module.encode(batch.image)
    noise = (met[0] - clean).detach() / clean.square().mean().sqrt()
    shares = noise.square().mean(dim=(1, 2, 3)).sqrt()
    assert 0.5 < float(shares.max()) / 0.5 < 1.7  # 16 values each
    assert float(shares.min()) < 0.1
    with pytest.raises(ConfigError, match=r"latent_noise=0.5 in phase full"):
        AutoencoderRecipe(recipe.module, pictures, latent_noise=0.5)


def test_evaluation_measures_unseen_concepts_on_white(pictures: GlyphPictures) -> None:
    recipe = recipe_of(pictures)
    recipe.module.eval()
    with torch.no_grad():
        found = recipe.evaluate(recipe.module)
        image = compose(pictures.rgba([6, 7]), np.ones((2, 3)))  # the two of held_concept
        latent = recipe.module.encode(image)
        restored = recipe.module.decode(latent).clamp(-1, 1)
    assert found["psnr"] == pytest.approx(float(psnr(restored, image).mean()), rel=1e-5)
    assert found["scaling_factor"] == pytest.approx(float(latent.square().mean() ** -0.5), rel=1e-5)


def test_held_pictures_are_a_fixed_sample(pictures: GlyphPictures) -> None:
    module = Autoencoder(AUTOENCODER)
    one, again = (AutoencoderRecipe(module, pictures, held=1).held for _ in range(2))
    assert one.tolist() == again.tolist()
    assert len(one) == 1
    assert set(recipe_of(pictures).held.tolist()) == {6, 7}


def test_blocks_are_the_convolutional_ones(pictures: GlyphPictures) -> None:
    recipe = recipe_of(pictures)
    blocks = list(recipe.blocks())
    assert {type(block) for block in blocks} == {ResBlock, Upsample, Downsample}
    inside: list[Tensor] = [p for block in blocks for p in block.parameters()]
    assert len({id(p) for p in inside}) == len(inside)  # none is inside another
