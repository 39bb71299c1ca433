"""`SanaSprintPipeline` and `SCMScheduler` against those of diffusers: a tiny model, fp32."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch.testing import assert_close

from sanakit import SanaSprintImg2ImgPipeline, SanaSprintPipeline, SCMScheduler
from tiny import write_sprint

CALL: dict[str, Any] = {
    "prompt": "a red apple",
    "height": 64,
    "width": 96,
    "output_type": "latent",
    "use_resolution_binning": False,
}
EVEN = {"intermediate_timesteps": None}
CALLS: dict[str, dict[str, Any]] = {
    "two steps": {},
    "one step": {"num_inference_steps": 1, **EVEN},
    "four even steps": {"num_inference_steps": 4, **EVEN},
    "other times": {"max_timesteps": 1.5683, "intermediate_timesteps": 1.1},
    "strong guidance": {"guidance_scale": 9.0},
    "guidance below one": {"guidance_scale": 0.5},
    "two prompts, one generator": {"prompt": ["a tree", "two cats, and a dog"]},
    "three pictures": {"num_images_per_prompt": 3},
    "a list of generators": {"prompt": ["a tree", "two cats"], "generator": [1, 2]},
    "own noise": {"latents": torch.linspace(-2, 2, 24).reshape(1, 4, 2, 3)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sprint(tmp_path_factory.mktemp("sprint"), num_layers=3)


@pytest.fixture(scope="module")
def pipe(folder: Path) -> SanaSprintPipeline:
    return SanaSprintPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def published(folder: Path) -> diffusers.SanaSprintPipeline:
    found = diffusers.SanaSprintPipeline.from_pretrained(str(folder))
    found.set_progress_bar_config(disable=True)
    return found


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arguments(name: str) -> list[dict[str, Any]]:
    """The same call twice, each with fresh generators."""
    calls = []
    for _ in range(2):
        call = CALL | {"generator": seeded()} | CALLS[name]
        if isinstance(call["generator"], list):
            call["generator"] = [seeded(seed) for seed in call["generator"]]
        calls.append(call)
    return calls


@pytest.mark.parametrize("name", CALLS)
def test_latents_are_those_of_the_reference(
    name: str, pipe: SanaSprintPipeline, published: diffusers.SanaSprintPipeline
) -> None:
    ours, theirs = arguments(name)
    expected = published(**theirs).images
    assert_close(pipe(**ours).images, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1
    # Whoever goes on drawing with the same generators goes on from the same place.
    states = [call["generator"] for call in (ours, theirs)]
    pairs = zip(*states, strict=True) if isinstance(states[0], list) else [tuple(states)]
    for one, other in pairs:
        assert torch.equal(one.get_state(), other.get_state())


def test_a_callback_sees_what_that_of_the_reference_sees(
    pipe: SanaSprintPipeline, published: diffusers.SanaSprintPipeline
) -> None:
    seen: list[list[Any]] = []
    for draw in (pipe, published):
        seen.append([])

        def look(_: Any, index: int, time: Any, shown: dict[str, Any]) -> dict[str, Any]:
            seen[-1].append((index, float(time), shown["latents"].clone()))
            return {"latents": 0.5 * shown["latents"]} if index == 0 else {}

        draw(**CALL, generator=seeded(), callback_on_step_end=look)
    for ours, theirs in zip(*seen, strict=True):
        assert ours[:2] == theirs[:2]
        assert_close(ours[2], theirs[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "asked",
    [
        {"num_inference_steps": 2},
        {"num_inference_steps": 1, **EVEN},
        {"num_inference_steps": 7, "max_timesteps": 1.2, **EVEN},
        {
            "num_inference_steps": 4,
            "timesteps": [1.5683, 1.3, 1.1, 0.6, 0],
            "max_timesteps": None,
            **EVEN,
        },
    ],
)
def test_a_run_by_hand_is_that_of_the_reference(asked: dict[str, Any]) -> None:
    ours, theirs = SCMScheduler(), diffusers.SCMScheduler()
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(**asked)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert ours.num_inference_steps == theirs.num_inference_steps
    generators = seeded(), seeded()
    state = other = torch.randn(2, 4, 3, 3, generator=seeded(1))
    for time in theirs.timesteps[:-1]:
        prediction = torch.randn(state.shape, generator=seeded(2))
        step = ours.step(prediction, time, state, generator=generators[0])
        known = theirs.step(prediction, time, other, generator=generators[1])
        state, other = step.prev_sample, known.prev_sample
        assert_close(state, other, rtol=0, atol=1e-7)
        assert_close(step.pred_original_sample, known.pred_original_sample, rtol=0, atol=1e-7)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_noise_is_added_as_a_run_by_hand_adds_it() -> None:
    scheduler = SCMScheduler()
    scheduler.set_timesteps(2)
    x, noise = torch.randn(2, 2, 4, 3, 3, generator=seeded())
    by_hand = scheduler.step(torch.zeros_like(x), 0.0 + scheduler.timesteps[1], x, seeded(5))
    known = torch.randn(x.shape, generator=seeded(5))
    ahead = scheduler.add_noise(by_hand.pred_original_sample, known, torch.tensor([0.0, 0.0]))
    assert_close(ahead, by_hand.prev_sample)
    each = scheduler.scale_noise(x, torch.tensor([0.4, 1.2]), noise)
    for row, time in enumerate((0.4, 1.2)):
        expected = math.cos(time) * x[row] + 0.5 * math.sin(time) * noise[row]
        assert_close(each[row], expected)


def test_the_schedule_of_the_paper_is_a_call_where_the_reference_fails(
    pipe: SanaSprintPipeline, published: diffusers.SanaSprintPipeline
) -> None:
    times = [1.5683, 1.3, 1.1, 0.6, 0]
    with pytest.raises((TypeError, ValueError)):
        published(**CALL, num_inference_steps=4, timesteps=times)
    with pytest.raises(ValueError, match="not supported when"):
        published(**CALL, num_inference_steps=4)
    by_times = pipe(**CALL, timesteps=times, generator=seeded()).images
    by_count = pipe(**CALL, num_inference_steps=4, generator=seeded()).images
    assert torch.equal(by_times, by_count)
    even = pipe(**CALL, num_inference_steps=4, generator=seeded(), **EVEN).images
    assert (even - by_times).abs().max() > 0.01


PICTURE = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(5)) * 2 - 1
EDITS: dict[str, dict[str, Any]] = {
    "the second of two steps": {"strength": 0.5},
    "little strength of two steps": {"strength": 0.2},
    "three of four even steps": {"num_inference_steps": 4, "strength": 0.7, **EVEN},
    "one of four even steps": {"num_inference_steps": 4, "strength": 0.25, **EVEN},
    "two prompts": {"prompt": ["a tree", "two cats"], "strength": 0.5},
}


@pytest.fixture(scope="module")
def published_edit(published: diffusers.SanaSprintPipeline) -> diffusers.SanaSprintImg2ImgPipeline:
    found = diffusers.SanaSprintImg2ImgPipeline(**published.components)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.mark.parametrize("name", EDITS)
def test_pictures_from_a_picture_are_those_of_the_reference(
    name: str,
    pipe: SanaSprintPipeline,
    published_edit: diffusers.SanaSprintImg2ImgPipeline,
) -> None:
    call = {**CALL, "image": PICTURE, **EDITS[name]}
    expected = published_edit(**call, generator=seeded()).images
    found = SanaSprintImg2ImgPipeline.from_pipe(pipe)(**call, generator=seeded()).images
    assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_picture_counts_by_default_where_the_reference_forgets_it(
    steps: int,
    pipe: SanaSprintPipeline,
    published_edit: diffusers.SanaSprintImg2ImgPipeline,
) -> None:
    def apart(draw: Any, **more: Any) -> float:
        call = {**CALL, "num_inference_steps": steps, **more}
        one, other = (draw(**call, image=p, generator=seeded()).images for p in (PICTURE, -PICTURE))
        return float((one - other).abs().max())

    edit = SanaSprintImg2ImgPipeline.from_pipe(pipe)
    assert apart(edit) > 0.02
    assert apart(edit, strength=1.0) == 0.0
    assert apart(edit, strength=0.1) > apart(edit, strength=0.99)
    if steps <= 2:  # of more, the reference leaves out one, and heeds the picture
        even = EVEN if steps == 1 else {}
        assert apart(published_edit, **even) < 1e-3
