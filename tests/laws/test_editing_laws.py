"""What holds of every edit: its two ends, what a mask keeps, and the loop written out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sanakit import Pipeline
from sanakit.errors import ConfigError
from sanakit.flow.grids import SigmaGrid
from sanakit.pipeline.aspect_ratios import nearest_size
from sanakit.pipeline.editing import FEATHER, Edit, feathered, on_canvas
from sanakit.pipeline.pixels import cut_to, from_pixels, to_pixels
from sanakit.pipeline.request import Call
from sanakit.pipeline.sampler import Denoiser
from sanakit.pipeline.schedulers import Scheduler, scheduler_named
from tiny import tiny_components, write_sprint

SIDE = 64
SOLVERS = ("flow-dpm-solver", "flow-dpm-solver-3", "flow-unipc", "flow-euler", "flow-heun")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline.load(folder)


@pytest.fixture
def image(rng: torch.Generator) -> torch.Tensor:
    pixels = torch.randint(0, 256, (1, SIDE, SIDE, 3), generator=rng, dtype=torch.uint8)
    return from_pixels(pixels.numpy())


def half() -> torch.Tensor:
    """A mask of the right half, which no border of latents falls on."""
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 40:] = 1
    return mask


def call(edit: Edit | None = None, **more: object) -> Call:
    arguments = {"prompt": "a tree", "num_inference_steps": 6, "guidance_scale": 3.0}
    arguments |= {"height": SIDE, "width": SIDE, "generator": torch.Generator().manual_seed(3)}
    return Call(**arguments | {"edit": edit} | more)


@pytest.mark.parametrize("solver", SOLVERS)
def test_full_strength_draws_what_the_prompt_alone_draws(
    solver: str, pipeline: Pipeline, image: torch.Tensor
) -> None:
    scheduler = scheduler_named(solver, 3.0)
    drawn = pipeline.generate(call(scheduler=scheduler)).pictures[0].pixels
    for mask in (None, torch.ones(1, 1, SIDE, SIDE)):
        edit = Edit(image=image, strength=1.0, mask=mask)
        edited = pipeline.generate(call(edit, scheduler=scheduler)).pictures[0].pixels
        np.testing.assert_array_equal(edited, drawn)


def test_the_least_strength_gives_the_picture_as_the_autoencoder_has_it(
    pipeline: Pipeline, image: torch.Tensor
) -> None:
    latent = pipeline.encode(image)
    scheduler = scheduler_named("flow-dpm-solver", 1.0)
    away = []
    for steps in (10, 100, 1000):
        edit = Edit(image=image, strength=1 / steps)
        small = call(edit, num_inference_steps=steps, scheduler=scheduler, output_type="latent")
        drawn = pipeline.generate(small).tensors
        assert drawn is not None
        away.append(float((drawn - latent).abs().max()))
    assert away[0] > 5 * away[1] > 25 * away[2]
    assert away[2] < 0.02


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("masked", [False, True])
def test_latents_are_those_of_the_loop_written_out(
    solver: str, masked: bool, pipeline: Pipeline, image: torch.Tensor
) -> None:
    scheduler = scheduler_named(solver, 3.0)
    edit = Edit(image=image, strength=0.7, mask=half() if masked else None)
    asked = call(edit, scheduler=scheduler, output_type="latent")
    found = pipeline.generate(asked).tensors

    latent = pipeline.encode(image)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    whole = scheduler.grid(6)
    assert len(whole.cut(0.7).timesteps) == 4
    grid = SigmaGrid(whole.sigmas[2:], whole.timesteps[2:])
    positive, negative = pipeline.texts(asked, guided=True)
    ask = Denoiser.prepare(pipeline.components.transformer, positive, negative, asked.guidance(1.0))
    x, past = (1 - grid.sigmas[0]) * latent + grid.sigmas[0] * noise, ()
    with torch.no_grad():
        for leg in grid.legs():
            stepped = scheduler.solver.step(ask, x, leg, past)
            if masked:  # columns 40 to 63 touch the second of two columns of latents
                level = leg.there.sigma
                stepped.x[..., :1] = ((1 - level) * latent + level * noise)[..., :1]
            past, x = (*past, stepped), stepped.x
    assert found is not None
    torch.testing.assert_close(found, x, atol=1e-5, rtol=0)
    if masked:
        torch.testing.assert_close(found[..., :1], latent[..., :1], atol=0, rtol=0)


@pytest.mark.parametrize("strength", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_what_a_mask_keeps_comes_back_bit_for_bit(
    strength: float, output_type: str, pipeline: Pipeline, image: torch.Tensor
) -> None:
    edit = Edit(image=image, strength=strength, mask=half())
    result = pipeline.generate(call(edit, output_type=output_type))
    kept = half()[0, 0].numpy() == 0
    if result.tensors is None:
        edited = result.pictures[0].pixels
        np.testing.assert_array_equal(edited[kept], to_pixels(image)[0][kept])
        assert (edited[~kept] != to_pixels(image)[0][~kept]).any()
    else:
        assert torch.equal(result.tensors[..., :40], image[..., :40])


def test_every_latent_that_a_mask_touches_is_drawn(pipeline: Pipeline, image: torch.Tensor) -> None:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 31, 32] = 1
    noise = torch.zeros(1, 4, 2, 2)
    grid = scheduler_named("flow-dpm-solver", 3.0).grid(6)
    begun = Edit(image=image, mask=mask, strength=1.0).begin(
        pipeline.encode, (SIDE, SIDE), noise, grid
    )
    assert begun.free is not None
    assert begun.free[0, 0].tolist() == [[0, 1], [0, 0]]


def test_latents_are_those_that_the_decoder_takes(pipeline: Pipeline, image: torch.Tensor) -> None:
    autoencoder = pipeline.components.autoencoder
    assert autoencoder.config.scaling_factor == 0.5
    latent = pipeline.encode(image)
    with torch.no_grad():
        torch.testing.assert_close(latent, autoencoder.encode(image).latent * 0.5)
        torch.testing.assert_close(pipeline.decode(latent), autoencoder(image).sample)


@pytest.mark.filterwarnings("ignore:the mask is black everywhere")
def test_an_empty_mask_gives_the_picture_itself(pipeline: Pipeline, image: torch.Tensor) -> None:
    edit = Edit(image=image, strength=1.0, mask=torch.zeros(1, 1, SIDE, SIDE))
    edited = pipeline.generate(call(edit)).pictures[0].pixels
    np.testing.assert_array_equal(edited, to_pixels(image)[0])


def test_each_of_several_pictures_is_the_one_that_is_edited_alone(
    pipeline: Pipeline, image: torch.Tensor
) -> None:
    both = torch.cat([image, image.flip(-1)])
    masks = torch.cat([half(), half().flip(-1)])
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    edit = Edit(image=both, mask=masks, strength=0.7)
    drawn = pipeline.generate(call(edit, prompt=["a tree", "a cat"], generator=seeds)).pictures
    for row, prompt in enumerate(("a tree", "a cat")):
        own = Edit(image=both[row : row + 1], mask=masks[row : row + 1], strength=0.7)
        seed = torch.Generator().manual_seed(row + 1)
        alone = pipeline.generate(call(own, prompt=prompt, generator=seed)).pictures[0]
        np.testing.assert_array_equal(drawn[row].pixels, alone.pixels)


def test_pictures_that_stand_for_no_number_of_prompts_are_refused(
    pipeline: Pipeline, image: torch.Tensor
) -> None:
    edit = Edit(image=torch.cat([image] * 2))
    with pytest.raises(ConfigError, match="2 of image for 3 pictures"):
        pipeline.generate(call(edit, prompt=["a", "b", "c"]))


@pytest.mark.parametrize("strength", [0, -0.1, 1.01, float("nan"), True, "0.5", None])
def test_a_strength_that_is_none_is_refused(strength: object, image: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="strength="):
        Edit(image=image, strength=strength)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_strengths(image: torch.Tensor) -> None:
    assert Edit(image=image, strength=np.float32(0.5)).strength == 0.5  # type: ignore[arg-type]


def test_a_strength_too_small_for_any_step_is_refused_before_work(
    pipeline: Pipeline, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "texts", lambda *_, **__: pytest.fail("text was encoded"))
    with pytest.raises(ConfigError, match=r"strength=0.1 of 6 steps"):
        pipeline.generate(call(Edit(image=image, strength=0.1)))


@pytest.mark.parametrize("canvas", [(64, 64), (64, 128), (96, 64), (480, 832)])
@pytest.mark.parametrize("size", [(64, 64), (70, 130), (33, 100), (301, 517)])
def test_a_picture_lies_on_the_canvas_where_it_is_cut_out(
    canvas: tuple[int, int], size: tuple[int, int]
) -> None:
    down, across = torch.linspace(-0.9, 0.9, size[0]), torch.linspace(-0.9, 0.9, size[1])
    image = torch.stack([*torch.meshgrid(down, across, indexing="ij"), torch.zeros(size)])[None]
    back = cut_to(on_canvas(image, *canvas), *size)
    pixel = 1.8 / (min(size) - 1) * max(1, size[0] / canvas[0], size[1] / canvas[1])
    inner = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(back[inner], image[inner], atol=1.01 * pixel, rtol=0)


def test_pictures_of_any_size_keep_it(pipeline: Pipeline, rng: torch.Generator) -> None:
    image = torch.rand(1, 3, 50, 81, generator=rng) * 2 - 1
    mask = torch.zeros(1, 1, 50, 81)
    mask[..., 10:20, 10:30] = 1
    edit = Edit(image=image, mask=mask, strength=1.0)
    result = pipeline.generate(call(edit, height=None, width=None, output_type="pt"))
    assert result.tensors is not None
    assert result.tensors.shape == image.shape
    kept = (mask == 0).expand_as(image)
    assert torch.equal(result.tensors[kept], image[kept])
    assert not torch.equal(result.tensors, image)


def test_models_of_trained_sizes_edit_any_picture(rng: torch.Generator) -> None:
    parts = tiny_components()
    parts.transformer.config = replace(parts.transformer.config, sample_size=16)
    pipeline = Pipeline(parts)
    image = torch.rand(1, 3, 210, 333, generator=rng) * 2 - 1
    mask = torch.zeros(1, 1, 210, 333)
    mask[..., 100:120, 30:230] = 1
    few = {"num_inference_steps": 2, "height": None, "width": None, "output_type": "pt"}
    edited = pipeline.generate(call(Edit(image=image, mask=mask, strength=1.0), **few)).tensors
    assert edited is not None
    assert torch.equal(edited[(mask == 0).expand_as(image)], image[(mask == 0).expand_as(image)])
    whole = pipeline.generate(call(Edit(image=image, strength=1.0), **few)).tensors
    drawn = pipeline.generate(call(**few | {"height": 210, "width": 333})).tensors
    assert drawn is not None
    assert whole is not None
    assert torch.equal(whole, drawn)
    # The edited picture lies on the canvas where the drawn one is cut out of it.
    assert pipeline.sizes(call(Edit(image=image), **few)) == ((210, 333), (384, 640))


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_models_of_few_steps_keep_what_a_mask_keeps(
    strength: float, tmp_path: Path, image: torch.Tensor
) -> None:
    pipeline = Pipeline.load(write_sprint(tmp_path))
    edit = Edit(image=image, strength=strength, mask=half())
    more = {"num_inference_steps": 2, "guidance_scale": None}
    latents = pipeline.generate(call(edit, **more, output_type="latent")).tensors
    assert latents is not None
    torch.testing.assert_close(latents[..., :1], pipeline.encode(image)[..., :1])
    edited = pipeline.generate(call(edit, **more, output_type="pt")).tensors
    assert edited is not None
    assert torch.equal(edited[..., :40], image[..., :40])


@pytest.mark.parametrize("size", [(50, 81), (256, 256), (3000, 4000), (10, 4000), (1, 9000)])
def test_the_nearest_size_has_about_the_area_and_the_proportions(size: tuple[int, int]) -> None:
    height, width = nearest_size(*size, 256, 64)
    assert height % 64 == width % 64 == 0
    assert height * width < 1.4 * 256**2
    if size[0] / size[1] > 1 / 8:
        assert height * width > 0.7 * 256**2
        assert abs(np.log(height / width * size[1] / size[0])) < 0.3


def test_a_feather_stays_inside_of_the_mask_and_rises_inwards() -> None:
    weight = feathered(half())
    assert (weight[half() == 0] == 0).all()
    row = weight[0, 0, 10, 40:]
    assert (row.diff()[: FEATHER - 1] > 0).all()
    assert (row[FEATHER:] == 1).all()
    narrow = torch.zeros(1, 1, SIDE, SIDE)
    narrow[..., 20:23] = 1
    assert feathered(narrow)[0, 0, 10, 20:23].tolist() == [0.5, 1.0, 0.5]


def test_a_larger_canvas_holds_the_picture_and_frees_the_rest(image: torch.Tensor) -> None:
    grown = Edit(image=image, strength=1.0).expanded((3, 5, 7, 11))
    assert grown.size == (SIDE + 16, SIDE + 10)
    assert grown.mask is not None
    assert torch.equal(grown.image[..., 5 : 5 + SIDE, 3 : 3 + SIDE], image)
    assert (grown.mask[..., 5 : 5 + SIDE, 3 : 3 + SIDE] == 0).all()
    assert int(grown.mask.sum()) == (SIDE + 16) * (SIDE + 10) - SIDE**2
    assert torch.equal(grown.image[..., 0, 3], image[..., 0, 0])
    both = replace(grown, mask=None).expanded((0, 0, 0, 0))
    assert both.mask is not None
    assert not both.mask.any()


@pytest.mark.parametrize("expand", [(-1, 0, 0, 0), (0, 0, 0, 1.5), (True, 0, 0, 0)])
def test_sides_that_are_no_pixels_are_refused(expand: tuple, image: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="expand="):
        Edit(image=image).expanded(expand)


def test_schedulers_know_nothing_of_edits() -> None:
    grid = Scheduler.grid(scheduler_named("flow-dpm-solver", 3.0), 20)
    assert torch.equal(grid.after(0).sigmas, grid.sigmas)
    assert len(grid.after(8).timesteps) == 12
    noise, clean = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    assert float(grid.mixed(20, clean, noise)) == 0.0
    assert float(grid.mixed(8, clean, noise)) == float(grid.sigmas[8])
