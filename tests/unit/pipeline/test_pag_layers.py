"""Which blocks an id of perturbed attention names."""

from __future__ import annotations

import pytest

from sanakit.errors import ConfigError
from sanakit.pipeline.published.pag import Layers, layer_indices


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        ("transformer_blocks.0", {0}),
        ("transformer_blocks.1", {1}),
        ("blocks.1", {1}),
        ("blocks.2", {2}),
        ("transformer_blocks.19", {19}),
        ("transformer_blocks.1.attn1", {1}),
        (["transformer_blocks.8"], {8}),
        ("blocks.(0|1)", {0, 1}),
        ("blocks.[3-5]", {3, 4, 5}),
        (r"blocks\.1\d", set(range(10, 20))),
        ("transformer_blocks", set(range(28))),
        (".*", set(range(28))),
        (7, {7}),
        ("7", {7}),
        ((1, "blocks.10", "blocks.(2|3)"), {1, 2, 3, 10}),
    ],
)
def test_an_id_names_whole_words(layers: Layers, blocks: set[int]) -> None:
    assert layer_indices(layers, 28) == blocks


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("blocks.28", r"'blocks.28' names no block\n.*0 to transformer_blocks.27"),
        (28, "28 names no block"),
        (-1, "-1 names no block"),
        ([0, "down_blocks"], "'down_blocks' names no block"),
        ("block.(0|1", "no pattern"),
        ([], "names no block"),
        ([True], "True: an index or a name"),
        ([1.0], "1.0: an index or a name"),
    ],
)
def test_an_id_that_names_nothing_is_refused(layers: Layers, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        layer_indices(layers, 28)
