"""Which blocks matter, and a transformer without the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sanakit.errors import ConfigError
from sanakit.models.init import grow_into, init_transformer
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import load_components
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.pruned_copy import block_importance, most_important, pruned, pruned_copy
from sanakit.pipeline.request import GenerateRequest
from tiny import TRANSFORMER, tiny_components, write_tiny

DRAWN = [GenerateRequest(prompt="a tree", num_steps=2), GenerateRequest(prompt="", num_steps=3)]


def grown() -> tuple[LinearDiT, LinearDiT]:
    """A transformer of two blocks, and the same function of four: the last two do nothing."""
    rng = torch.Generator().manual_seed(0)
    small = LinearDiT(TRANSFORMER)
    init_transformer(small, generator=rng)
    large = LinearDiT(replace(TRANSFORMER, num_layers=4))
    init_transformer(large, generator=rng)
    grow_into(large, small)
    return small, large


def pipeline_of(transformer: LinearDiT) -> Pipeline:
    return Pipeline(replace(tiny_components(), transformer=transformer))


def test_blocks_that_do_nothing_have_no_importance_and_are_the_ones_left_out() -> None:
    small, large = grown()
    found = block_importance(pipeline_of(large), DRAWN)
    assert all(value > 1e-4 for value in found[:2])
    assert found[2:] == pytest.approx([0, 0], abs=1e-6)
    kept = most_important(found, 2)
    assert kept == [0, 1]
    assert_close(pruned(large, kept).state_dict(), small.state_dict(), atol=0, rtol=0)
    (last,) = pruned(large, [3]).transformer_blocks
    assert_close(last.state_dict(), large.transformer_blocks[3].state_dict(), atol=0, rtol=0)


def test_importance_is_one_minus_the_mean_cosine_over_all_calls() -> None:
    small, _ = grown()
    seen: list[list[float]] = [[], []]
    for block, values in zip(small.transformer_blocks, seen, strict=True):

        def note(module: object, given: tuple, made: torch.Tensor, values: list = values) -> None:
            a, b = given[0].double(), made.double()
            cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
            values.append(float(cosine.mean()))

        block.register_forward_hook(note)
    found = block_importance(pipeline_of(small), DRAWN)
    assert len(seen[0]) == 5
    assert found == pytest.approx([1 - sum(each) / len(each) for each in seen], abs=1e-6)


def test_watching_leaves_nothing_behind_and_changes_no_picture() -> None:
    small, _ = grown()
    pipeline = pipeline_of(small)
    before = pipeline.generate(DRAWN[0]).pictures[0].pixels
    block_importance(pipeline, DRAWN)
    assert not any(block._forward_hooks for block in small.transformer_blocks)
    assert (pipeline.generate(DRAWN[0]).pictures[0].pixels == before).all()


def test_blocks_keep_their_order_and_of_equals_the_earlier_stay() -> None:
    assert most_important([0.1, 0.5, 0.2, 0.9], 2) == [1, 3]
    assert most_important([0.5, 0.5, 0.5], 2) == [0, 1]
    for count in (0, 4):
        with pytest.raises(ConfigError, match=f"--blocks {count}: the model has 3"):
            most_important([0.5, 0.5, 0.5], count)


def test_a_folder_is_written_whole_and_drawn_with(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "model")
    told = pruned_copy(str(model), tmp_path / "less", 1, requests=DRAWN)
    parts = load_components(tmp_path / "less")
    assert parts.transformer.config.num_layers == 1
    own = load_components(model).transformer
    wanted = own.transformer_blocks[told["kept"][0]].state_dict()
    assert_close(parts.transformer.transformer_blocks[0].state_dict(), wanted, atol=0, rtol=0)
    assert Pipeline(parts).generate(DRAWN[0]).pictures
    with pytest.raises(ConfigError, match="is there already"):
        pruned_copy(str(model), tmp_path / "less", 1, requests=DRAWN)
    with pytest.raises(ConfigError, match="--blocks 3"):
        pruned_copy(str(model), tmp_path / "more", 3, requests=DRAWN)
    assert not (tmp_path / "more").exists()
    with pytest.raises(ConfigError, match="the model itself"):
        pruned_copy(str(model), model, 1, requests=DRAWN, force=True)
