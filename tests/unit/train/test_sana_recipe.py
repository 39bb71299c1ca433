"""What a fine-tune sees: which pictures, captions, noise and levels, and what it reports."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sanakit.data.loader.loader import Loader
from sanakit.errors import ConfigError
from sanakit.pipeline.pixels import from_pixels
from sanakit.pipeline.prompts import PromptCutWarning
from sanakit.train.recipe import Timers
from sanakit.train.recipes.diffusion import DiffusionBatch, DiffusionRecipe
from sanakit.train.recipes.encoders import Encoders
from sanakit.train.sample_schedule import SampleSchedule, generator_of
from tiny_sana import TinySana, tiny_sana

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> TinySana:
    return tiny_sana(tmp_path_factory.mktemp("sana"))


def drawn(recipe: DiffusionRecipe, count: int, **share: int) -> list[DiffusionBatch]:
    settings = {"seed": 0, "batch_size": 4, **share}
    return list(islice(recipe.stream(SampleSchedule(**settings)), count))


def pixels(batch: DiffusionBatch) -> Tensor:
    assert batch.pixels is not None
    return batch.pixels


def test_batches_are_those_of_the_loader_from_where_the_run_stands(sana: TinySana) -> None:
    recipe = sana.recipe()
    loader = Loader(sana.shards, batch_size=4, captions=recipe.objective.choice())
    wanted = list(islice(loader, 6))
    assert [batch.ids for batch in drawn(recipe, 6)] == [batch.ids for batch in wanted]
    later = drawn(recipe, 2, images_seen=16)
    assert [batch.captions for batch in later] == [batch.captions for batch in wanted[4:]]
    assert torch.equal(pixels(later[0]), wanted[4].pixels)
    with pytest.raises(ConfigError, match="no whole number of batches of 4"):
        drawn(recipe, 1, images_seen=18)


@pytest.mark.parametrize(("ranks", "parts"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_ranks_and_parts_split_samples_with_their_noise_and_levels(
    sana: TinySana, ranks: int, parts: int
) -> None:
    recipe = sana.recipe()
    whole = drawn(recipe, 3, images_seen=8)
    split = [
        drawn(recipe, 3 * parts, images_seen=8, rank=rank, ranks=ranks, parts=parts)
        for rank in range(ranks)
    ]
    for number, batch in enumerate(whole):
        pieces = [mine[number * parts + part] for mine in split for part in range(parts)]
        assert [id for piece in pieces for id in piece.ids] == batch.ids
        for field in ("noise", "pixels"):
            joined = torch.cat([getattr(piece, field) for piece in pieces])
            assert torch.equal(joined, getattr(batch, field))
        sigma = torch.cat([piece.level.sigma for piece in pieces])
        assert torch.equal(sigma, batch.level.sigma)


def test_noise_and_level_of_a_sample_are_a_function_of_seed_and_number(sana: TinySana) -> None:
    recipe = sana.recipe("flow_shift=3", "level_mean=0.5", "level_std=2")
    batch = drawn(recipe, 1, seed=7, images_seen=8)[0]
    generator = generator_of(7, 10)
    u = torch.sigmoid(0.5 + 2 * torch.randn((), generator=generator)).double()
    base = (1000 * u).floor() / 1000
    sigma = 3 * base / (1 + 2 * base)
    assert float(batch.level.sigma[2]) == pytest.approx(float(sigma), abs=1e-6)
    assert float(batch.level.timestep[2]) == int(1000 * sigma)
    height, width = (size // 32 for size in pixels(batch).shape[1:3])
    assert torch.equal(batch.noise[2], torch.randn(4, height, width, generator=generator))
    uniform = drawn(sana.recipe("flow_shift=1", "levels=uniform"), 1)[0]
    u = torch.rand((), generator=generator_of(0, 0))
    assert float(uniform.level.sigma[0]) == pytest.approx(float(u), abs=1e-3)


def test_the_flow_shift_is_the_models_own_unless_another_is_asked_for(sana: TinySana) -> None:
    assert sana.recipe().flow_shift == 3.0
    recipe = sana.recipe("flow_shift=1.5")
    assert recipe.flow_shift == recipe.defaults.scheduler.flow_shift == 1.5


def test_latents_are_scaled_and_do_not_depend_on_neighbours_or_on_what_is_known(
    sana: TinySana,
) -> None:
    recipe = sana.recipe()
    batch = drawn(recipe, 1)[0]
    prepared = recipe.prepare(batch, CPU, Timers(CPU))
    autoencoder = recipe.encoders.autoencoder
    image = from_pixels(pixels(batch).numpy())
    with torch.no_grad():
        raw = torch.cat([autoencoder.encode(one[None]).latent for one in image])
    assert prepared.x0 is not None
    assert_close(prepared.x0, 0.5 * raw, atol=1e-6, rtol=0)
    again = recipe.prepare(batch, CPU, Timers(CPU))
    assert torch.equal(again.x0, prepared.x0)
    forgetful = Encoders(autoencoder, recipe.encoders.prompts, latent_bytes=1)
    part = forgetful.latents(batch.ids[1:3], pixels(batch)[1:3], CPU)
    assert torch.equal(part, prepared.x0[1:3])


def test_a_share_of_samples_shows_the_null_prompt_and_it_is_that_of_drawing(
    sana: TinySana,
) -> None:
    recipe = sana.recipe("null_chance=0.5")
    captions = [caption for batch in drawn(recipe, 40) for caption in batch.captions]
    assert 0.35 < captions.count("") / len(captions) < 0.65
    assert "" not in {c for b in drawn(sana.recipe("null_chance=0"), 40) for c in b.captions}
    text, mask = recipe.encoders.texts(["", "a red apple"], CPU)
    null = recipe.encoders.prompts.encode([""], instruction=None)
    length = null.text.shape[1]
    assert mask.sum(dim=1).tolist()[0] == length < mask.shape[1]
    assert torch.equal(text[0, :length], null.text[0])


def test_captions_stand_behind_the_instruction_and_are_cut_at_the_most_tokens(
    sana: TinySana,
) -> None:
    recipe = sana.recipe("max_tokens=3")
    prompts = recipe.encoders.prompts
    with pytest.warns(PromptCutWarning, match="3 tokens of a caption are read"):
        text, mask = recipe.encoders.texts(["a red apple on a table"], CPU)
    wanted = prompts.encode(
        ["a red apple on a table"], instruction=prompts.instruction, max_sequence_length=3
    )
    assert text.shape[1] == 3
    assert torch.equal(text, wanted.text)
    assert torch.equal(mask, wanted.mask)


def test_a_text_encoder_that_learns_along_reads_captions_as_one_that_does_not(
    sana: TinySana,
) -> None:
    recipe = sana.recipe("max_tokens=4", tune_text=True, instruction="draw this: ")
    assert recipe.llm is not None
    captions = ["a red apple on a table", "", "a tree"]
    with pytest.warns(PromptCutWarning):
        wanted, mask = recipe.encoders.texts(captions, CPU)
    found, found_mask = recipe.encoders.texts_with_gradient(recipe.llm, captions, CPU)
    assert torch.equal(found_mask, mask)
    assert_close(found * mask[..., None], wanted, atol=1e-5, rtol=1e-4)
    with pytest.warns(PromptCutWarning):
        plain = sana.recipe("max_tokens=4").encoders.texts(captions, CPU)[0]
    assert not torch.equal(wanted[0], plain[0])  # by the instruction
    assert_close(wanted[1], plain[1], atol=1e-5, rtol=1e-4)  # which the null prompt has not
    recipe.loss(recipe.prepare(drawn(recipe, 1)[0], CPU, Timers(CPU)))["loss"].backward()
    assert all(weight.grad is not None for weight in recipe.llm.parameters())
    assert recipe.frozen == [recipe.encoders.autoencoder]


def test_without_pictures_kept_aside_the_measure_says_that_they_were_seen(sana: TinySana) -> None:
    recipe = sana.recipe()
    with torch.no_grad():
        found = recipe.evaluate(recipe.module)
        assert found.keys() == {"seen_loss"}
        assert recipe.evaluate(recipe.module) == found
        held = sana.recipe(held=str(sana.data))
        assert held.evaluate(held.module) == {"loss": found["seen_loss"]}
    assert all("" not in batch.captions for batch in recipe._fixed())


def test_losses_by_level_are_logged_and_forgotten(sana: TinySana) -> None:
    recipe = sana.recipe()
    batch = recipe.prepare(drawn(recipe, 1)[0], CPU, Timers(CPU))
    loss = float(recipe.loss(batch)["loss"].detach())
    extras = recipe.log_extras()
    counts = torch.histc(batch.level.sigma, bins=10, min=0, max=1)
    weighted = sum(
        extras.get(f"loss_sigma_{i / 10:.3g}", 0.0) * float(n) for i, n in enumerate(counts)
    )
    assert weighted / len(batch.noise) == pytest.approx(loss, abs=1e-3)
    assert recipe.log_extras() == {}


def test_the_grid_has_a_row_for_each_prompt_and_shows_what_pictures_are_drawn_with(
    sana: TinySana,
) -> None:
    recipe = sana.recipe(prompts=["a tree", "a cat"])
    with torch.no_grad():
        grid = recipe.validation_grid(recipe.module)
        assert grid is not None
        assert grid.shape == (128, 128, 3)
        assert not np.array_equal(grid[:64], grid[64:])
        assert not np.array_equal(grid[:, :64], grid[:, 64:])
        from sanakit.pipeline.pipeline import Pipeline
        from sanakit.pipeline.request import GenerateRequest

        pipeline = Pipeline.load(sana.model)
        picture = pipeline.generate(GenerateRequest(prompt="a cat", seed=1)).pictures[0].pixels
        assert np.abs(grid[64:, 64:].astype(int) - picture.astype(int)).max() <= 1
        recipe.prompts = ()
        assert recipe.validation_grid(recipe.module) is None
        recipe.prompts = ("a tree",)
        recipe.module.proj_out.bias.fill_(torch.nan)
        assert recipe.validation_grid(recipe.module) is None


def test_without_prompts_the_grid_shows_captions_of_the_set(sana: TinySana) -> None:
    prompts = sana.run()[2].data["prompts"]
    assert len(prompts) == 3
    assert all(" by " in prompt for prompt in prompts)


def test_what_was_computed_in_advance_is_taken_where_it_is_of_this_model(
    tmp_path: Path,
) -> None:
    from command_line import sanakit

    mine = tiny_sana(tmp_path)
    live = mine.recipe()
    assert live.pictures.latents is None
    wanted = live.prepare(drawn(live, 1)[0], CPU, Timers(CPU))
    (mine.data / "set.json").write_text(
        '{"format": 1, "source": "x", "units": [], "settings": {}}', encoding="utf-8"
    )
    for path in mine.shards.glob("*.tar"):
        _mark(path)
    sanakit("data", "encode", mine.data, "--model", mine.model)
    cached = mine.recipe(states="cached")
    batch = drawn(cached, 1)[0]
    assert batch.pixels is None
    found = cached.prepare(batch, CPU, Timers(CPU))
    assert_close(found.x0, wanted.x0, atol=2e-3, rtol=2e-3)
    assert_close(found.text, wanted.text, atol=5e-3, rtol=5e-3)
    assert torch.equal(found.mask, wanted.mask)
    assert mine.recipe().pictures.text == cached.pictures.text is not None
    assert mine.recipe(states="live").pictures.text is None
    config = mine.model / "vae" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("0.5", "0.25"), encoding="utf-8")
    other = mine.recipe().pictures
    assert other.latents is None
    assert other.text == cached.pictures.text


def _mark(tar: Path) -> None:
    """Mark a shard finished, as `sanakit data build` does."""
    import hashlib
    import json

    unit = tar.name.removesuffix(".tar")
    files = {
        path.name: [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
        for path in tar.parent.glob(f"{unit}.*")
    }
    mark = {"unit": unit, "made_from": "tests", "files": files, "stats": {}}
    (tar.parent / f"{unit}.done.json").write_text(json.dumps(mark), encoding="utf-8")


def test_a_batch_is_prepared_the_same_with_other_null_rows_beside_it(sana: TinySana) -> None:
    recipe = sana.recipe()
    batch = drawn(recipe, 1)[0]
    spoken = replace(batch, captions=["a tree", "a cat", "a dog in the snow", "a tree"])
    text = recipe.prepare(spoken, CPU, Timers(CPU)).text
    assert text is not None
    mixed = recipe.prepare(replace(spoken, captions=["", "a cat", "", "a tree"]), CPU, Timers(CPU))
    assert mixed.text is not None
    assert mixed.mask is not None
    length = int(mixed.mask[1].sum())
    assert torch.equal(mixed.text[1, :length], text[1, :length])
