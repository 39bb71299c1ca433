"""Blocks that a run skips where its first block did about the same: when, and with what result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sanakit.flow.grids import NoiseLevel
from sanakit.flow.guidance import Guidance
from sanakit.models.init import init_transformer
from sanakit.models.transformer import Block, LinearDiT
from sanakit.nn.step_cache import StepCache
from sanakit.pipeline.prompts import EncodedText
from sanakit.pipeline.sampler import Change, Denoiser, GuardedDenoiser
from tiny import TRANSFORMER

LEVEL = NoiseLevel(torch.tensor(0.6), torch.tensor(600.0))


@pytest.fixture
def model(rng: torch.Generator) -> LinearDiT:
    model = LinearDiT(replace(TRANSFORMER, num_layers=3)).eval().requires_grad_(False)
    init_transformer(model, generator=rng)
    for parameter in model.parameters():  # far from the start, so that each block does something
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=rng))
    return model


def blocks_run(model: LinearDiT) -> list[int]:
    """Grows by the index of each block that runs."""
    run: list[int] = []

    def tell(block: torch.nn.Module, _: object, __: object) -> None:
        run.append(list(model.transformer_blocks).index(block))

    for block in model.transformer_blocks:
        block.register_forward_hook(tell)
    return run


def velocity(model: LinearDiT, x: Tensor, cache: StepCache | None, time: float = 500.0) -> Tensor:
    rng = torch.Generator().manual_seed(7)
    text = torch.randn(1, 3, 8, generator=rng).expand(len(x), -1, -1)
    return model.velocity(x, torch.full((len(x),), time), text, None, cache=cache)


def test_a_state_that_has_hardly_moved_takes_one_block(
    model: LinearDiT, rng: torch.Generator
) -> None:
    run, cache = blocks_run(model), StepCache(0.1)
    x = torch.randn(1, 4, 4, 4, generator=rng)
    first = velocity(model, x, cache)
    assert torch.equal(first, velocity(model, x, None))
    del run[:]
    again = velocity(model, x + 1e-4, cache)
    assert run == [0]
    assert_close(again, first, atol=1e-2, rtol=0)
    assert (cache.evaluations, cache.skipped) == (2, 1)
    del run[:]
    moved = torch.randn(1, 4, 4, 4, generator=rng)
    assert torch.equal(velocity(model, moved, cache), velocity(model, moved, None))
    assert run[:3] == [0, 1, 2]


def test_nearness_is_to_the_last_evaluation_in_full(model: LinearDiT, rng: torch.Generator) -> None:
    # Small moves add up: were each compared with the one before it, none would ever be computed.
    run, cache = blocks_run(model), StepCache(0.1)
    x, way = torch.randn(1, 4, 4, 4, generator=rng), torch.randn(1, 4, 4, 4, generator=rng)
    for step in range(40):
        velocity(model, x + 0.02 * step * way, cache)
    assert 2 < run.count(1) < 20


def test_no_threshold_skips_nothing(model: LinearDiT, rng: torch.Generator) -> None:
    cache, x = StepCache(0.0), torch.randn(1, 4, 4, 4, generator=rng)
    velocity(model, x, cache)
    assert torch.equal(velocity(model, x, cache), velocity(model, x, None))
    assert cache.skipped == 0


def test_a_picture_decides_for_itself(model: LinearDiT, rng: torch.Generator) -> None:
    still, moving = torch.randn(2, 1, 4, 4, 4, generator=rng)
    together, alone = StepCache(0.05, pictures=2), StepCache(0.05)
    velocity(model, torch.cat([still, moving]), together)
    velocity(model, still, alone)
    found = velocity(model, torch.cat([still + 1e-3, -moving]), together)
    assert_close(found[:1], velocity(model, still + 1e-3, alone), atol=1e-5, rtol=1e-5)
    assert_close(found[1:], velocity(model, -moving, None), atol=1e-5, rtol=1e-5)
    assert (together.skipped, alone.skipped) == (0, 1)
    # And goes on from what was computed for it last.
    found = velocity(model, torch.cat([still, -moving]), together)
    assert_close(found[:1], velocity(model, still, alone), atol=1e-5, rtol=1e-5)
    assert together.skipped == 1


def test_all_rows_of_a_picture_are_kept_or_none(model: LinearDiT, rng: torch.Generator) -> None:
    still, moving = torch.randn(2, 1, 4, 4, 4, generator=rng)
    cache = StepCache(0.05)
    velocity(model, torch.cat([still, moving]), cache)
    x = torch.cat([still + 1e-3, -moving])
    assert torch.equal(velocity(model, x, cache), velocity(model, x, None))


def test_another_number_of_passes_is_computed_in_full(
    model: LinearDiT, rng: torch.Generator
) -> None:
    cache, x = StepCache(0.5), torch.randn(1, 4, 4, 4, generator=rng)
    velocity(model, x.expand(2, -1, -1, -1), cache)
    assert torch.equal(velocity(model, x, cache), velocity(model, x, None))


def test_processes_that_share_tokens_decide_by_the_sums_of_all(rng: torch.Generator) -> None:
    x, y = torch.zeros(1, 6, 2), torch.randn(1, 6, 2, generator=rng)
    moved = y + torch.tensor([0.0, 0, 0, 0.3, 0.3, 0.3])[:, None]
    alone = StepCache(0.15)
    alone.skips(x, y, None)
    alone.completed(y, y)
    expected = alone.skips(x, moved, None)
    parts = [StepCache(0.15) for _ in range(2)]
    halves = [slice(0, 3), slice(3, 6)]
    sums = []
    for part, half in zip(parts, halves, strict=True):
        part.skips(x[:, half], y[:, half], None)
        part.completed(y[:, half], y[:, half])
        part.skips(x[:, half], moved[:, half], lambda each: sums.append(each) or each)
    decided = [
        part.skips(x[:, half], moved[:, half], lambda _: torch.stack(sums).sum(0))
        for part, half in zip(parts, halves, strict=True)
    ]
    assert decided == [expected] * 2


def text_of(rng: torch.Generator) -> EncodedText:
    text = torch.randn(1, 3, 8, generator=rng)
    return EncodedText(text=text, mask=torch.ones(1, 3, dtype=torch.bool), dropped=(0,))


def test_another_text_is_not_drawn_from_the_last_ones_blocks(
    model: LinearDiT, rng: torch.Generator
) -> None:
    one, other, null = (text_of(rng) for _ in range(3))
    guidance = Guidance(guidance_scale=3.0)
    run = GuardedDenoiser(Denoiser.prepare(model, one, null, guidance), 2, step_cache=100.0)
    x = torch.randn(1, 4, 2, 2, generator=rng)
    run(x, LEVEL)
    run(x, LEVEL)
    assert run.cache is not None
    assert run.cache.skipped == 1
    run.change(Change(texts=(other, null)))
    assert torch.equal(run(x, LEVEL), Denoiser.prepare(model, other, null, guidance)(x, LEVEL))


def test_what_was_not_finite_is_forgotten(model: LinearDiT, rng: torch.Generator) -> None:
    text, x = text_of(rng), torch.randn(1, 4, 2, 2, generator=rng)
    half = LinearDiT(model.config).requires_grad_(False)
    half.load_state_dict(model.state_dict())
    half = half.half()
    last = half.transformer_blocks[2]
    assert isinstance(last, Block)
    last.attn1.to_out[0].weight.mul_(1e4)
    last.attn1.to_out[0].weight.clamp_(-6e4, 6e4)
    last.ff.conv_point.weight.fill_(6e4)
    denoiser = Denoiser.prepare(half, text, None, Guidance())
    run = GuardedDenoiser(denoiser, 2, step_cache=100.0)
    with pytest.warns(match="not finite"):
        first = run(x, LEVEL)
    assert first.isfinite().all()
    assert run(x, LEVEL).isfinite().all()
    assert run.cache is not None
    assert run.cache.skipped == 1
