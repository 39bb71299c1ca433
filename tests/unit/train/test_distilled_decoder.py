"""A tiny decoder learns what an autoencoder's own makes of the same latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.tiny_decoder import TinyDecoderConfig
from sanakit.pipeline.networks import AutoencoderDC
from sanakit.train.config import LoopConfig
from sanakit.train.loop import train
from sanakit.train.recipe import Timers
from sanakit.train.recipes.autoencoder import AutoencoderObjective, AutoencoderRecipe
from sanakit.train.recipes.autoencoder_run import finish_autoencoder, new_decoder, new_run
from sanakit.train.sample_schedule import SampleSchedule
from tiny import AUTOENCODER
from tiny_autoencoder import TinySource
from tiny_recipe import weights

SMALL = TinyDecoderConfig(
    block_out_channels=(2, 4, 4, 8, 8, 8), layers_per_block=(0, 1, 1, 0, 1, 2)
)
CONFIG = LoopConfig(batch_size=2, total_images=4, peak_lr=1e-2, compute_dtype="float32")


def distillation(**settings: float) -> AutoencoderRecipe:
    torch.manual_seed(0)
    network = Autoencoder(AUTOENCODER)
    teacher, network.decoder = network.decoder, new_decoder(AUTOENCODER, SMALL)
    objective = AutoencoderObjective(phase="distill", **settings)
    return AutoencoderRecipe(network, TinySource(), objective, teacher=teacher)


def test_a_distilled_decoder_learns_what_the_teacher_makes_of_the_same_latent() -> None:
    recipe = distillation(l1=0.25, l2=2.0)
    image = next(recipe.source.held(2))
    cpu = torch.device("cpu")
    batch = next(recipe.stream(SampleSchedule(seed=0, batch_size=2)))
    batch = recipe.prepare(batch._replace(image=image), cpu, Timers(cpu))
    loss = recipe.loss(batch)["loss"]
    z = recipe.autoencoder.encode(batch.image).latent
    assert recipe.teacher is not None
    wanted, made = recipe.teacher(z).clamp(-1, 1), recipe.autoencoder.decoder(z)
    error = made - wanted
    assert_close(loss, 0.25 * error.abs().mean() + 2 * error.square().mean())
    loss.backward()
    learning = {n for n, p in recipe.autoencoder.named_parameters() if p.grad is not None}
    own = recipe.autoencoder.decoder.named_parameters()
    assert learning == {f"decoder.{name}" for name, _ in own}
    assert all(p.grad is None for p in recipe.teacher.parameters())


def test_a_run_moves_the_tiny_decoder_alone_and_writes_it_alone(tmp_path: Path) -> None:
    recipe = distillation(latent_noise=0.1)
    assert recipe.teacher is not None
    before = weights(recipe.autoencoder), weights(recipe.teacher)
    train(recipe, CONFIG, tmp_path / "run", resume=False, report=lambda line: None)
    after = recipe.autoencoder.state_dict()
    moved = {name for name, tensor in before[0].items() if not torch.equal(tensor, after[name])}
    assert moved == {name for name in after if name.startswith("decoder.")}
    assert all(torch.equal(before[1][n], t) for n, t in recipe.teacher.state_dict().items())
    said: list[object] = []
    folder = finish_autoencoder(recipe, tmp_path / "run", report=said.append)
    assert said == [f"draw with it: sanakit generate PROMPT --decoder {tmp_path / 'run'}"]
    vae = AutoencoderDC(AUTOENCODER)
    vae.load_decoder(tmp_path / "run")
    assert folder == tmp_path / "run" / "decoder"
    assert_close(dict(vae.decoder.state_dict()), dict(recipe.autoencoder.decoder.state_dict()))


def test_how_near_a_decoder_is_is_told_of_the_teacher_s_pictures() -> None:
    recipe = distillation()
    assert recipe.teacher is not None
    with torch.no_grad():
        near = recipe.evaluate(recipe.autoencoder)["psnr"]
        recipe.autoencoder.decoder = recipe.teacher  # type: ignore[assignment]
        assert recipe.evaluate(recipe.autoencoder)["psnr"] > near + 20


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"phase": "distill"}, "never trained"),
        ({"phase": "decoder", "start": "glyph", "decoder": "tiny"}, "is of --phase distill"),
        ({"phase": "distill", "start": "glyph", "decoder": "large"}, "no shape of a decoder"),
    ],
)
def test_a_distillation_that_cannot_be_is_refused(typed: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        new_run({"data": "set", **typed})


def test_a_teacher_is_there_where_there_is_something_to_distill() -> None:
    network = Autoencoder(AUTOENCODER)
    with pytest.raises(ConfigError, match="a teacher is not there"):
        AutoencoderRecipe(network, TinySource(), AutoencoderObjective(phase="distill"))
    with pytest.raises(ConfigError, match="enlarges 2 times"):
        new_decoder(AUTOENCODER, replace(SMALL, block_out_channels=(4, 4), layers_per_block=(1, 1)))
