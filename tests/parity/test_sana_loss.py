"""The loss of a fine-tune and all its gradients, against diffusers' model and ten lines of flow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sanakit.flow.grids import levels_at
from sanakit.models.config import config_to_dict
from sanakit.train.recipe import Timers
from sanakit.train.recipes.diffusion import DiffusionBatch, DiffusionRecipe
from sanakit.train.recipes.diffusion_run import export_run
from tiny_sana import TinySana, tiny_sana

CPU = torch.device("cpu")
CAPTIONS = ("a red apple on a table", "", "A Tree", "")


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> TinySana:
    return tiny_sana(tmp_path_factory.mktemp("sana"))


def fixed(shift: float) -> tuple[DiffusionBatch, Tensor]:
    """A batch whose second and fourth rows show the null prompt, and the places u of its levels."""
    rng = torch.Generator().manual_seed(3)
    u = torch.rand(len(CAPTIONS), generator=rng)
    x0, noise = torch.randn(2, len(CAPTIONS), 4, 3, 2, generator=rng)
    batch = DiffusionBatch(x0=x0, noise=noise, level=levels_at(u, shift), captions=CAPTIONS)
    return batch, u


def reference_text(recipe: DiffusionRecipe) -> tuple[Tensor, Tensor]:
    """Captions behind the instruction; an empty text of one token, bos, where there is none."""
    prompts = recipe.encoders.prompts
    llm, width = prompts.text_encoder.llm, 32
    text, mask = torch.zeros(len(CAPTIONS), width, 8), torch.zeros(len(CAPTIONS), width)
    for row, caption in enumerate(CAPTIONS):
        if caption:
            states = prompts.encode([caption], instruction=prompts.instruction).text[0]
        else:
            ids = torch.tensor(prompts.tokenizer([""])["input_ids"])
            assert ids.shape == (1, 1)
            with torch.no_grad():
                states = llm(input_ids=ids, use_cache=False).last_hidden_state[0]
        text[row, : len(states)], mask[row, : len(states)] = states, 1
    return text, mask


def reference_loss(
    model: torch.nn.Module, x0: Tensor, noise: Tensor, u: Tensor, shift: float, *text: Tensor
) -> Tensor:
    sigma = (1000 * u).floor().double() / 1000
    sigma = shift * sigma / (1 + (shift - 1) * sigma)
    timestep = (1000 * sigma).long()
    mix = sigma.float()[:, None, None, None]
    states, mask = text
    found = model((1 - mix) * x0 + mix * noise, states, timestep, encoder_attention_mask=mask)
    return ((found.sample - (noise - x0)) ** 2).mean()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_loss_and_gradients_are_those_of_the_reference_also_with_dropped_captions(
    sana: TinySana, shift: float
) -> None:
    recipe = sana.recipe(f"flow_shift={shift}")
    batch, u = fixed(shift)
    theirs = diffusers.SanaTransformer2DModel(**config_to_dict(recipe.module.config))
    theirs.load_state_dict(recipe.module.state_dict())
    text = reference_text(recipe)
    assert batch.x0 is not None
    expected = reference_loss(theirs, batch.x0, batch.noise, u, shift, *text)
    expected.backward()
    prepared = recipe.prepare(batch, CPU, Timers(CPU))
    found = recipe.loss(prepared)["loss"]
    found.backward()
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradients = {name: p.grad for name, p in recipe.module.named_parameters()}
    wanted = {name: p.grad for name, p in theirs.named_parameters()}
    assert gradients.keys() == wanted.keys()
    assert all(each is not None and each.abs().max() > 0 for each in wanted.values())
    assert_close(gradients, wanted, atol=1e-5, rtol=1e-5)


def test_a_lora_that_begins_has_the_loss_of_its_base_to_the_bit(sana: TinySana) -> None:
    whole, lora = sana.recipe(), sana.recipe(lora=2)
    batch, _ = fixed(3.0)
    losses = [
        recipe.loss(recipe.prepare(batch, CPU, Timers(CPU)))["loss"] for recipe in (whole, lora)
    ]
    assert torch.equal(*losses)


def test_diffusers_draws_with_an_exported_lora_as_we_do(sana: TinySana, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from sanakit.train.loop import train
    from sanakit.train.runs.run_config import save_run

    targets = 'lora_targets=["to_q","to_v","to_out.0","caption_projection.linear_1"]'
    settings = ("lora_alpha=3", targets, "peak_lr=0.3")
    recipe, config, run = sana.run(*settings, lora=2)
    train(recipe, config, tmp_path / "run", resume=False, report=lambda line: None)
    save_run(run, tmp_path / "run", resume=True)
    export_run(tmp_path / "run", tmp_path / "lora")
    pipe = diffusers.SanaPipeline.from_pretrained(sana.model)
    batch, _ = fixed(1.0)
    assert batch.x0 is not None
    text, mask = reference_text(recipe)
    before = pipe.transformer(batch.x0, text, batch.level.timestep, encoder_attention_mask=mask)
    pipe.load_lora_weights(tmp_path / "lora")
    after = pipe.transformer(batch.x0, text, batch.level.timestep, encoder_attention_mask=mask)
    with torch.no_grad():
        ours = recipe.module.velocity(batch.x0, batch.level.timestep, text, mask.bool())
    assert (after.sample - before.sample).abs().max() > 1e-2
    assert_close(after.sample, ours, atol=1e-5, rtol=1e-5)
    export_run(tmp_path / "run", tmp_path / "whole", merged=True)
    merged = diffusers.SanaTransformer2DModel.from_pretrained(tmp_path / "whole" / "transformer")
    drawn = merged(batch.x0, text, batch.level.timestep, encoder_attention_mask=mask)
    assert_close(drawn.sample, ours, atol=1e-5, rtol=1e-5)


def test_the_null_prompt_has_its_own_mask_whatever_stands_beside_it(sana: TinySana) -> None:
    """A null row must not read the padding up to its neighbour's length."""
    recipe = sana.recipe()
    batch, _ = fixed(3.0)
    assert batch.x0 is not None
    errors = recipe._errors(recipe.module, recipe.prepare(batch, CPU, Timers(CPU)))
    alone = replace(
        batch,
        x0=batch.x0[1:2],
        noise=batch.noise[1:2],
        level=type(batch.level)(*(each[1:2] for each in batch.level)),
        captions=CAPTIONS[1:2],
    )
    prepared = recipe.prepare(alone, CPU, Timers(CPU))
    assert prepared.mask is not None
    assert prepared.mask.shape == (1, 1)
    assert_close(recipe._errors(recipe.module, prepared), errors[1:2], atol=1e-6, rtol=0)
