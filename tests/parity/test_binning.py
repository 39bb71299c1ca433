"""The tables of trained sizes, and how a size finds its place, against diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers.image_processor import PixArtImageProcessor
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import (
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
)
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from diffusers.pipelines.sana.pipeline_sana import ASPECT_RATIO_4096_BIN

from sanakit.pipeline.aspect_ratios import TABLES, nearest_bin
from sanakit.pipeline.pixels import cut_to

PUBLISHED = {
    16: ASPECT_RATIO_512_BIN,
    32: ASPECT_RATIO_1024_BIN,
    64: ASPECT_RATIO_2048_BIN,
    128: ASPECT_RATIO_4096_BIN,
}


def test_there_is_a_table_for_each_published_size() -> None:
    assert TABLES.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("sample_size", PUBLISHED)
def test_tables_are_those_of_the_published_pipelines(sample_size: int) -> None:
    published = {float(key): tuple(map(int, size)) for key, size in PUBLISHED[sample_size].items()}
    assert TABLES[sample_size] == published


@pytest.mark.parametrize("sample_size", PUBLISHED)
def test_a_size_goes_to_the_published_bin(sample_size: int) -> None:
    table, published = TABLES[sample_size], PUBLISHED[sample_size]
    for height in range(32, 4097, 224):
        for width in range(32, 4097, 160):
            expected = PixArtImageProcessor.classify_height_width_bin(height, width, published)
            assert nearest_bin(height, width, table) == expected


@pytest.mark.parametrize(
    ("have", "want"),
    [((8, 8), (8, 8)), ((16, 8), (8, 8)), ((8, 16), (6, 9)), ((7, 5), (12, 13)), ((9, 5), (4, 3))],
)
def test_a_picture_is_scaled_and_cut_as_published(
    have: tuple[int, int], want: tuple[int, int], rng: torch.Generator
) -> None:
    image = torch.rand(2, 3, *have, generator=rng)
    expected = PixArtImageProcessor.resize_and_crop_tensor(image, want[1], want[0])
    torch.testing.assert_close(cut_to(image, *want), expected, atol=1e-6, rtol=0)
