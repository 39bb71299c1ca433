"""Fine-tuning beside pictures of what must not be forgotten."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from command_line import sanakit
from sanakit.errors import ConfigError, DataError
from sanakit.train.recipe import Timers
from sanakit.train.recipes.diffusion import DiffusionBatch, DiffusionRecipe
from sanakit.train.sample_schedule import SampleSchedule
from tiny_sana import FAST, TinySana, tiny_prior, tiny_sana

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> TinySana:
    return tiny_sana(tmp_path_factory.mktemp("sana"))


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_prior(tmp_path_factory.mktemp("prior"))


def first(recipe: DiffusionRecipe, **share: int) -> DiffusionBatch:
    (batch,) = islice(recipe.stream(SampleSchedule(seed=0, batch_size=4, **share)), 1)
    return batch


def gradients(recipe: DiffusionRecipe, batch: DiffusionBatch) -> tuple[Tensor, dict[str, Tensor]]:
    recipe.module.zero_grad()
    loss = recipe.loss(recipe.prepare(batch, CPU, Timers(CPU)))["loss"]
    loss.backward()  # type: ignore[no-untyped-call]
    named = recipe.module.named_parameters()
    return loss.detach(), {name: p.grad.clone() for name, p in named if p.grad is not None}


def test_the_loss_is_the_own_and_the_weighted_one_of_the_prior(sana: TinySana, prior: str) -> None:
    both, alone = sana.recipe("prior_weight=0.3", prior=prior), sana.recipe()
    batch = first(both)
    assert batch.prior is not None
    loss, found = gradients(both, batch)
    own_loss, own = gradients(alone, first(alone))
    prior_loss, other = gradients(alone, batch.prior)
    assert_close(loss, own_loss + 0.3 * prior_loss)
    wanted = {name: own[name] + 0.3 * other[name] for name in own}
    assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    told = both.loss(both.prepare(batch, CPU, Timers(CPU)))
    assert_close((told["own_loss"], told["prior_loss"]), (own_loss, prior_loss))


def test_as_many_of_the_prior_are_seen_in_their_own_order_and_noise(
    sana: TinySana, prior: str
) -> None:
    recipe = sana.recipe(prior=prior)
    assert recipe.prior is not None
    batch = first(recipe, images_seen=8)
    assert batch.prior is not None
    at = SampleSchedule(seed=1, batch_size=4, images_seen=8)
    (wanted,) = islice(recipe.prior.batches(at), 1)
    assert batch.prior.ids == wanted.ids
    assert batch.prior.pixels is not None
    assert batch.prior.pixels.shape[1:3] == (96, 64)
    assert not torch.equal(batch.prior.noise.flatten()[:64], batch.noise.flatten()[:64])
    # A picture of either set that has an id of the other's is remembered as another.
    assert batch.names == list(batch.ids)
    assert not set(batch.prior.names) & set(batch.prior.ids)


def test_the_command_takes_a_prior_and_refuses_what_makes_no_sense(
    sana: TinySana, prior: str, tmp_path: Path
) -> None:
    settings = [each for pair in FAST for each in ("--set", pair)]
    run = tmp_path / "run"
    told = ("train", "diffusion", "--data", sana.data, "--from", sana.model, *settings)
    sanakit(*told, "--prior", prior, "--lora", 2, "--out", run)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {"own_loss", "prior_loss"} <= lines[0].keys()
    with pytest.raises(ConfigError, match="--prior SET"):
        sana.recipe("prior_weight=2")
    with pytest.raises(ConfigError, match="must be more than 0"):
        sana.recipe("prior_weight=0", prior=prior)
    with pytest.raises(DataError, match="no such folder"):
        sana.recipe(prior=str(tmp_path / "none"))
    with pytest.raises(DataError, match="was built anew since the run began"):
        sana.recipe(prior=prior, prior_index="of others")
