"""The autoencoder's recipe: what it draws, what it minimises, what it leaves alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.autoencoder_blocks import ResBlock
from sanakit.models.discriminator import PatchDiscriminator
from sanakit.nn.resample import Downsample, Upsample
from sanakit.train.recipes import autoencoder
from sanakit.train.recipes.adversarial import hinge_of_discriminator, hinge_of_judged
from sanakit.train.recipes.autoencoder import (
    AutoencoderBatch,
    AutoencoderObjective,
    AutoencoderRecipe,
    psnr,
    squares,
)
from sanakit.train.sample_schedule import SampleSchedule
from tiny import AUTOENCODER
from tiny_autoencoder import TinySource, recipe_of
from tiny_recipe import drawn

ALL_LOSSES = AutoencoderObjective(
    pooled=0.7, l2=0.3, perceptual=0.5, perceptual_side=24, adversarial=0.4, equivariance=0.2
)


@pytest.fixture
def source() -> TinySource:
    return TinySource()


def test_psnr_is_its_closed_form() -> None:
    black = torch.full((3, 3, 4, 4), -1.0)
    image = black.clone()
    image[0] += 2.0  # white against black: the error is the peak, 0 dB
    image[1] += 0.2  # a tenth of the peak: 20 dB
    assert_close(psnr(image, black), torch.tensor([0.0, 20.0, 10 * math.log10(4e10)]))
    half = black.clone()
    half[:, :, :2] += 0.2  # in half of the pixels: half the squared error
    assert_close(psnr(half, black), torch.full((3,), 20 + 10 * math.log10(2)))


# What is drawn.


def test_half_of_the_pictures_are_mirrored_and_all_as_the_source_gives_them(
    source: TinySource,
) -> None:
    given = next(source.batches(SampleSchedule(seed=0, batch_size=64)))
    batch = drawn(recipe_of(source), 64).image
    assert batch.is_contiguous(memory_format=torch.channels_last)
    plain = [torch.equal(one, other) for one, other in zip(batch, given, strict=True)]
    mirrored = [torch.equal(one, o.flip(-1)) for one, o in zip(batch, given, strict=True)]
    assert all(a != b for a, b in zip(plain, mirrored, strict=True))
    assert 20 <= sum(mirrored) <= 44
    unmirrored = recipe_of(source, AutoencoderObjective(mirror=False))
    assert_close(drawn(unmirrored, 64).image, given)


def test_larger_pictures_are_cut_at_a_place_of_their_own(source: TinySource) -> None:
    recipe = recipe_of(source, AutoencoderObjective(side=32, mirror=False))
    given = next(source.batches(SampleSchedule(seed=0, batch_size=16)))
    cut = drawn(recipe, 16).image
    assert cut.shape == (16, 3, 32, 32)
    places = set()
    for one, whole in zip(cut, given, strict=True):
        windows = whole.unfold(1, 32, 1).unfold(2, 32, 1)
        same = (windows == one[:, None, None]).all(dim=-1).all(dim=-1).all(dim=0).nonzero()
        assert len(same)
        places.add(tuple(same[0].tolist()))
    assert all(len(set(along)) > 5 for along in zip(*places, strict=True))
    ramp = torch.arange(25.0).view(1, 1, 5, 5)
    assert squares(ramp, torch.tensor([[0.99, 0.0]]), 2)[0, 0, 0].tolist() == [15.0, 16.0]
    with pytest.raises(ConfigError, match="side=65, and a picture has 64 x 64 px"):
        drawn(recipe_of(source, AutoencoderObjective(side=65)), 1)


def test_a_batch_is_a_function_of_seed_and_numbers_whatever_the_parts(source: TinySource) -> None:
    settings = replace(ALL_LOSSES, latent_noise=0.3, side=32, adversarial_delay=10)
    recipe = recipe_of(source, settings)
    whole, again = drawn(recipe, 8), drawn(recipe, 8)
    assert_close(tuple(whole), tuple(again), rtol=0, atol=0)
    assert not torch.equal(whole.image, drawn(recipe, 8, seed=1).image)
    assert len(whole.place.unique()) == 16
    assert 0 <= whole.place.min() < 0.4
    assert 0.6 < whole.place.max() < 1
    parts = []
    for rank in range(2):
        stream = recipe.stream(SampleSchedule(seed=0, batch_size=8, ranks=2, rank=rank, parts=2))
        parts += [next(stream), next(stream)]
    joined = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    assert_close(joined, list(whole), rtol=0, atol=0)


def test_the_discriminator_is_heard_more_and_more(source: TinySource) -> None:
    recipe = recipe_of(source, replace(ALL_LOSSES, adversarial_delay=4))
    assert drawn(recipe, 6).heard.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert drawn(recipe_of(source), 2).heard.tolist() == [1.0, 1.0]


# What is minimised.


def test_the_loss_is_the_sum_of_its_terms(source: TinySource) -> None:
    recipe = recipe_of(source, replace(ALL_LOSSES, adversarial_delay=4))
    batch = drawn(recipe, 2)
    scalars = recipe.loss(batch)
    assert recipe.perceptual is not None
    assert recipe.discriminator is not None
    image = batch.image
    with torch.no_grad():
        latent = recipe.autoencoder.encode(image).latent
        restored = recipe.autoencoder.decode(latent).sample
        error = restored - image
        wanted = {"l1": error.abs().mean(), "l2": error.square().mean()}
        pooled = error.unflatten(3, (16, 4)).unflatten(2, (16, 4)).mean(dim=(3, 5))
        wanted["pooled"] = pooled.abs().mean()
        cut = [squares(x, batch.place, 24) for x in (restored, image)]
        wanted["perceptual"] = recipe.perceptual(*cut).mean()
        small = F.interpolate(image, scale_factor=0.5, mode="area")
        halved = recipe.autoencoder.decode(latent.mean(dim=(2, 3), keepdim=True)).sample
        wanted["equivariance"] = (halved - small).abs().mean()
        scores = hinge_of_judged(recipe.discriminator(restored))
        wanted["adversarial"] = scores.mean()
        judge = hinge_of_discriminator(recipe.discriminator, image, restored).mean()
        wanted["discriminator"] = judge
        total = wanted["l1"] + 0.7 * wanted["pooled"] + 0.3 * wanted["l2"]
        total = total + 0.5 * wanted["perceptual"] + 0.2 * wanted["equivariance"]
        total = total + 0.4 * (scores * torch.tensor([0.0, 0.25])).mean() + judge
    assert_close(scalars.pop("loss").detach(), total)
    assert_close(scalars, wanted)
    assert not any(value.requires_grad for value in scalars.values())


def gradients(recipe: AutoencoderRecipe, *batches: AutoencoderBatch) -> dict[str, Tensor]:
    recipe.module.zero_grad()
    for batch in batches:
        (recipe.loss(batch)["loss"] / len(batches)).backward()
    named = recipe.module.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def test_parts_of_a_batch_have_the_gradient_of_the_whole(source: TinySource) -> None:
    recipe = recipe_of(source, replace(ALL_LOSSES, latent_noise=0.5, adversarial_delay=4))
    batch = drawn(recipe, 4)
    halves = [AutoencoderBatch(*(x[i : i + 2] for x in batch)) for i in (0, 2)]  # type: ignore[index]
    summed, wanted = gradients(recipe, *halves), gradients(recipe, batch)
    assert summed.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (summed[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def test_autoencoder_and_discriminator_have_gradients_of_their_own_losses(
    source: TinySource,
) -> None:
    recipe = recipe_of(source, replace(ALL_LOSSES, adversarial=1e3))
    batch = drawn(recipe, 2)
    found = gradients(recipe, batch)
    recipe.module.zero_grad()
    assert recipe.discriminator is not None
    with torch.no_grad():
        made = recipe.autoencoder(batch.image).sample
    hinge_of_discriminator(recipe.discriminator, batch.image, made).mean().backward()
    judge = {f"discriminator.{n}": p.grad for n, p in recipe.discriminator.named_parameters()}
    assert_close({n: g for n, g in found.items() if n in judge}, judge)
    recipe.objective = replace(recipe.objective, adversarial=1e-9)
    quiet = gradients(recipe, batch)
    moved = [n for n in found if not torch.allclose(found[n], quiet[n], rtol=0.1)]
    assert any(n.startswith("autoencoder.encoder") for n in moved)
    assert not any(n.startswith("discriminator.") for n in moved)


def test_a_balanced_judge_is_as_loud_as_the_other_losses(source: TinySource) -> None:
    settings = AutoencoderObjective(adversarial=1.0, adversarial_balance=True)
    recipe = recipe_of(source, settings)
    batch = drawn(recipe, 2)
    last = "autoencoder.decoder.conv_out.conv.weight"
    both = gradients(recipe, batch)[last]
    silent = batch._replace(heard=torch.zeros(2))
    alone = gradients(recipe, silent)[last]
    assert_close((both - alone).norm(), alone.norm(), rtol=1e-4, atol=0)


def test_a_decoder_meets_latents_with_up_to_so_much_noise(
    source: TinySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(source, AutoencoderObjective(phase="decoder", latent_noise=0.5))
    met: list[Tensor] = []
    decode = recipe.autoencoder.decode
    monkeypatch.setattr(recipe.autoencoder, "decode", lambda z: (met.append(z), decode(z))[1])
    batch = drawn(recipe, 64)
    recipe.loss(batch)
    clean = recipe.autoencoder.encode(batch.image).latent
    over = (1, 2, 3)
    shares = ((met[0] - clean).square().mean(over) / clean.square().mean(over)).sqrt()
    assert 0.5 < float(shares.max()) / 0.5 < 1.7  # 16 values each
    assert float(shares.min()) < 0.1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"l1": -1.0}, "l1=-1.0 must not be negative"),
        ({"l1": 0.0}, "nothing asks for the picture"),
        ({"held": 0}, "held=0 must be at least 1"),
        ({"equivariance": 1.0, "phase": "decoder"}, "the encoder is frozen"),
        ({"head_stages": 2}, "head_stages=2 does nothing without phase latent or refine"),
        ({"perceptual_side": 64}, "does nothing without perceptual above 0"),
        ({"adversarial_delay": 9}, "does nothing without adversarial above 0"),
        (
            {"adversarial_balance": True, "adversarial": 1.0, "phase": "latent"},
            "does nothing without the decoder's head trained",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AutoencoderObjective(**settings)


def test_a_loss_and_its_network_come_together(source: TinySource) -> None:
    module = Autoencoder(AUTOENCODER)
    with pytest.raises(ConfigError, match=r"perceptual=1\.0, and its network is not there"):
        AutoencoderRecipe(module, source, AutoencoderObjective(perceptual=1.0))
    with pytest.raises(ConfigError, match=r"adversarial=0\.0, and its network is there"):
        AutoencoderRecipe(module, source, discriminator=PatchDiscriminator(4))
    odd = recipe_of(source, AutoencoderObjective(equivariance=1.0, side=32))
    with pytest.raises(ConfigError, match="a latent of 1 x 1 has no half"):
        odd.loss(drawn(odd, 1))


# What is measured.


def test_evaluation_measures_held_pictures(
    source: TinySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoencoder, "PERCEIVED", 1)
    recipe = recipe_of(source, ALL_LOSSES)
    recipe.module.eval()
    assert recipe.perceptual is not None
    with torch.no_grad():
        found = recipe.evaluate(recipe.module)
        image = torch.cat(list(source.held(2)))
        latent = recipe.autoencoder.encode(image).latent
        restored = recipe.autoencoder.decode(latent).sample.clamp(-1, 1)
        distance = recipe.perceptual(restored[:1], image[:1])
    assert found == {
        "psnr": pytest.approx(float(psnr(restored, image).mean()), rel=1e-5),
        "perceptual": pytest.approx(float(distance), rel=1e-5),
        "scaling_factor": pytest.approx(float(latent.square().mean() ** -0.5), rel=1e-5),
    }


def test_measures_of_pictures_that_were_trained_on_are_called_so(
    source: TinySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinySource, "unseen", False)
    recipe = recipe_of(source)
    with torch.no_grad():
        assert recipe.evaluate(recipe.module).keys() == {"seen_psnr", "scaling_factor"}


def test_the_grid_is_held_pictures_above_reconstructions(source: TinySource) -> None:
    recipe = recipe_of(source, AutoencoderObjective(side=32))
    with torch.no_grad():
        grid = recipe.validation_grid(recipe.module)
    assert grid.shape == (64, 64, 3)
    middle = next(source.held(1))[:, :, 16:48, 16:48]
    above = torch.from_numpy(grid[:32, :32]).movedim(-1, 0)
    assert_close(above.float() / 127.5 - 1, middle[0], rtol=0, atol=1 / 255)


def test_blocks_are_the_convolutional_ones(source: TinySource) -> None:
    recipe = recipe_of(source)
    blocks = list(recipe.blocks())
    assert {type(block) for block in blocks} == {ResBlock, Upsample, Downsample}
    inside: list[Tensor] = [p for block in blocks for p in block.parameters()]
    assert len({id(p) for p in inside}) == len(inside)  # none is inside another
