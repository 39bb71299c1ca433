"""Drawing many at once is drawing one by one; differences of paired distances; equal compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recipes.glyph.research.autoencoders import f8, f32, halved, operations, runs
from recipes.glyph.research.compression import SYSTEMS, samples_for
from recipes.glyph.research.sampling import Way, apart, distances, frechet, latents_by
from recipes.glyph.research.short_run import economy

from sanakit.evaluate.frechet import Reference
from sanakit.models.config import AUTOENCODERS
from sanakit.pipeline.components import GenerationDefaults
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.pixels import to_pixels
from sanakit.pipeline.request import GenerateRequest
from tiny import tiny_components

PROMPTS = ["a red fish", "two trees", "a blue square on a white background"]


@pytest.mark.parametrize(
    "way",
    [
        Way(steps=4, scale=3.0),
        Way(steps=4, scale=1.0),
        Way(solver="flow-euler", steps=5, scale=3.0, interval=(0.2, 0.8), flow_shift=3.0),
    ],
    ids=str,
)
def test_many_at_once_are_those_of_the_pipeline(way: Way) -> None:
    parts = tiny_components(GenerationDefaults(instruction=None))
    pipeline = Pipeline(parts)
    text = parts.prompts.encode(PROMPTS, instruction=None)
    null = parts.prompts.encode_null([""] * len(PROMPTS), text)
    shape = pipeline.latent_shape(64, 64)
    exact = latents_by(way, parts.transformer, text, null, shape, exact=True)
    for seed, prompt in enumerate(PROMPTS):
        request = GenerateRequest(
            prompt=prompt,
            seed=seed,
            height=64,
            width=64,
            num_steps=way.steps,
            guidance_scale=way.scale,
            guidance_interval=way.interval,
            solver=way.solver,
            flow_shift=way.flow_shift,
        )
        drawn = pipeline.generate(request).pictures[0].pixels.astype(int)
        ours = to_pixels(pipeline.decode(exact[seed : seed + 1]))[0]
        assert np.abs(drawn - ours).max() <= 1
    rough = latents_by(way, parts.transformer, text, null, shape)
    assert max(distances(rough, exact)) < 0.05 * float(exact.std())


def test_ways_have_names_of_their_own() -> None:
    ways = [Way(), Way(steps=10), Way(scale=1), Way(interval=(0.2, 1)), Way(solver="flow-euler")]
    assert len({way.name for way in ways}) == len(ways)


def test_distances_are_root_mean_squares() -> None:
    assert distances(torch.full((2, 1, 2, 2), 3.0), torch.ones(2, 1, 2, 2)) == [2.0, 2.0]


def test_paired_distances_are_told_apart_where_single_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    reference = Reference(rng.standard_normal((400, 6)))
    base = 1.3 * rng.standard_normal((100, 6))
    near, far = frechet(base, reference), frechet(1.04 * base, reference)
    value, low, high = apart(far, near)
    assert 0 < low < value < high
    assert value == pytest.approx(far["fd"] - near["fd"])
    assert np.quantile(far["resampled"], 0.03) < np.quantile(near["resampled"], 0.97)
    assert apart(near, near) == (0, 0, 0)


def test_the_two_autoencoders_cost_the_same() -> None:
    assert f32(16) == AUTOENCODERS["glyph"]
    assert (f32(12).spatial_factor, f8(12).spatial_factor) == (32, 8)
    spent = {name: samples * operations(config) for name, (config, samples) in runs().items()}
    assert spent["autoencoder-f8-12"] == pytest.approx(spent["autoencoder-f32-12"], rel=0.01)


def test_the_systems_cost_the_same() -> None:
    spent = {name: samples_for(one) * one.operations() for name, one in SYSTEMS.items()}
    assert max(spent.values()) < 1.03 * min(spent.values())
    tokens = [(one.side // one.patch) ** 2 for one in SYSTEMS.values()]
    assert sorted(tokens) == [16, 16, 64, 256]


def test_halves_are_means_of_four_pixels() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(halved(image)[0, 0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))


def test_economy_ends() -> None:
    with economy():
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")
