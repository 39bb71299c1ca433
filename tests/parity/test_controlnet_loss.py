"""The loss of a control branch and its gradients, against diffusers' branch and transformer."""

from __future__ import annotations

import diffusers
import pytest
import torch
from parity.test_sana_loss import fixed, reference_text
from torch import Tensor
from torch.testing import assert_close

from sanakit.models.config import config_to_dict
from sanakit.train.recipes.controlnet import ControlNetRecipe, build, new_run
from sanakit.train.recipes.diffusion import DiffusionBatch
from tiny_sana import FAST, TinySana, tiny_sana


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> TinySana:
    return tiny_sana(tmp_path_factory.mktemp("sana"))


def recipe_of(sana: TinySana) -> ControlNetRecipe:
    given = {"data": str(sana.data), "start": str(sana.model), "condition": "canny"}
    return build(new_run(given, FAST), report=lambda line: None)[0]


def batch_of(recipe: ControlNetRecipe) -> tuple[DiffusionBatch, Tensor]:
    drawn, u = fixed(1.0)
    text, mask = reference_text(recipe)
    assert drawn.x0 is not None
    control = torch.randn(drawn.x0.shape, generator=torch.Generator().manual_seed(8))
    given = {"noise": drawn.noise, "level": drawn.level, "x0": drawn.x0}
    return DiffusionBatch(**given, text=text, mask=mask.bool(), control=control), u


def test_loss_and_gradients_are_those_of_the_reference_networks(sana: TinySana) -> None:
    recipe = recipe_of(sana)
    rng = torch.Generator().manual_seed(4)
    with torch.no_grad():  # as if it had learned
        for weight in recipe.branch.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=rng))
    config = config_to_dict(recipe.transformer.config)
    base = diffusers.SanaTransformer2DModel(**config)
    base.load_state_dict(recipe.transformer.state_dict())
    base.requires_grad_(False)
    known = config_to_dict(recipe.branch.config)
    known = {name: value for name, value in known.items() if not name.startswith("_")}
    theirs = diffusers.SanaControlNetModel(**known)
    theirs.load_state_dict(recipe.branch.state_dict())
    batch, u = batch_of(recipe)
    assert batch.x0 is not None
    assert batch.mask is not None
    sigma = ((1000 * u).floor() / 1000)[:, None, None, None]
    x = (1 - sigma) * batch.x0 + sigma * batch.noise
    given = (batch.text, (1000 * u).floor().long())
    mask = batch.mask.float()
    residuals = theirs(
        x, *given, controlnet_cond=batch.control, encoder_attention_mask=mask, return_dict=False
    )[0]
    found = base(x, *given, encoder_attention_mask=mask, controlnet_block_samples=residuals)
    expected = ((found.sample - (batch.noise - batch.x0)) ** 2).mean()
    expected.backward()
    loss = recipe.loss(batch)["loss"]
    loss.backward()
    assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    wanted = {name: p.grad for name, p in theirs.named_parameters()}
    gradients = {name: p.grad for name, p in recipe.module.named_parameters()}
    assert gradients.keys() == wanted.keys()
    assert all(each is not None and each.abs().max() > 0 for each in wanted.values())
    assert_close(gradients, wanted, atol=1e-5, rtol=1e-5)


def test_a_branch_that_begins_gives_the_loss_of_its_model_to_the_bit(sana: TinySana) -> None:
    plain, recipe = sana.recipe(), recipe_of(sana)
    batch, _ = batch_of(recipe)
    assert torch.equal(recipe.loss(batch)["loss"], plain.loss(batch)["loss"])
