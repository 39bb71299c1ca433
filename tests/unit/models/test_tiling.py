"""Tiles of an autoencoder: equal to the whole, whatever the sizes and the configuration."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AUTOENCODERS, AutoencoderConfig
from sanakit.models.tiling import WHOLE, Attend, Tiling, blended, segments
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.request import GenerateRequest
from tiny import DEEP_AUTOENCODER

THIN = (4, 8, 8)
DEEP = replace(
    DEEP_AUTOENCODER,
    attention_head_dim=4,
    latent_channels=4,
    encoder_block_out_channels=THIN,
    decoder_block_out_channels=THIN,
)
CONFIGS = {
    "first stage empty, shuffles, batch norm": DEEP,
    "strided conv, interpolate, no shortcuts": replace(
        DEEP,
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 2, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
    ),
    "first stage empty, strided conv, interpolate": replace(
        DEEP, downsample_block_type="conv", upsample_block_type="interpolate"
    ),
    "attention in every stage": replace(
        DEEP,
        encoder_block_types="EfficientViTBlock",
        decoder_block_types="EfficientViTBlock",
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        decoder_norm_types="rms_norm",
    ),
    "no attention": replace(DEEP, encoder_block_types="ResBlock", decoder_block_types="ResBlock"),
}


def built(config: AutoencoderConfig) -> Autoencoder:
    """Random weights, none of them at its initial 0 or 1."""
    torch.manual_seed(0)
    autoencoder = Autoencoder(config).eval().requires_grad_(False)
    for parameter in autoencoder.parameters():
        torch.nn.init.normal_(parameter, std=0.7 / max(1, parameter[0].numel()) ** 0.5)
    for name, buffer in autoencoder.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    return autoencoder


AUTOENCODERS_BUILT = {name: built(config) for name, config in CONFIGS.items()}


def psnr(ours: Tensor, theirs: Tensor) -> float:
    """In dB for the range [-1, 1]."""
    return float(10 * torch.log10(4 / (ours - theirs).square().mean().clamp_min(1e-20)))


@given(
    name=st.sampled_from(sorted(CONFIGS)),
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    tile=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    batch=st.integers(1, 2),
)
@settings(max_examples=40)
def test_tiles_of_any_size_are_the_whole(
    name: str, height: int, width: int, tile: tuple[int, int], batch: int
) -> None:
    autoencoder = AUTOENCODERS_BUILT[name]
    generator = torch.Generator().manual_seed(height * 100 + width)
    image = torch.rand(batch, 3, height * 4, width * 4, generator=generator) * 2 - 1
    latent = autoencoder.encode(image).latent
    whole = autoencoder.decode(latent).sample
    autoencoder.tiling = Tiling.squares(*tile)
    try:
        torch.testing.assert_close(autoencoder.encode(image).latent, latent, atol=1e-5, rtol=0)
        torch.testing.assert_close(autoencoder.decode(latent).sample, whole, atol=1e-5, rtol=0)
    finally:
        autoencoder.tiling = None


@pytest.mark.parametrize("name", ["tiny", "dc-ae-f32c32-sana-1.0"])
def test_only_attention_is_run_whole(name: str) -> None:
    with torch.device("meta"):
        autoencoder = Autoencoder(AUTOENCODERS[name])
    parts = segments(autoencoder.decoder.steps())
    attending = [part for part in parts if isinstance(part[0], Attend)]
    assert all(len(part) == 1 for part in attending)
    assert len(parts) == 2 * len(attending) + 1
    if name != "tiny":
        # The last part: mixing of the last block, three times doubled with three blocks, output.
        assert len(attending) == 9
        assert len(parts[-1]) == 1 + 3 * (1 + 3) + 1


def test_every_position_comes_once_and_stripes_come_in_order() -> None:
    autoencoder = AUTOENCODERS_BUILT["attention in every stage"]
    seen = torch.zeros(48, 40)
    starts = []
    for part in autoencoder.decode_tiles(torch.randn(1, 4, 12, 10), Tiling.squares(16, 24)):
        assert part.values.shape[-2:] == seen[part.rows, part.columns].shape
        seen[part.rows, part.columns] += 1
        starts.append((part.rows.start, part.columns.start))
    assert (seen == 1).all()
    assert starts == sorted(starts)


def test_sixteen_bit_tiles_are_as_near_to_fp32_as_the_whole_is() -> None:
    autoencoder = built(CONFIGS["attention in every stage"])
    latent = torch.randn(1, 4, 12, 10)
    true = autoencoder.decode(latent).sample
    autoencoder.to(torch.bfloat16)
    whole = autoencoder.decode(latent.bfloat16()).sample
    autoencoder.enable_tiling(16, 16)
    tiled = autoencoder.decode(latent.bfloat16()).sample
    assert tiled.dtype == whole.dtype == torch.bfloat16
    error = (whole - true).square().mean()
    assert (tiled - true).square().mean() < 1.5 * error


def test_slicing_gives_the_pictures_one_by_one() -> None:
    autoencoder = built(DEEP)
    batches = []
    autoencoder.decoder.register_forward_hook(lambda _, given, out: batches.append(len(out)))
    latent = torch.randn(3, 4, 4, 4)
    whole = autoencoder.decode(latent).sample
    autoencoder.enable_slicing()
    torch.testing.assert_close(autoencoder.decode(latent).sample, whole)
    autoencoder.disable_slicing()
    autoencoder.decode(latent)
    assert batches == [3, 1, 1, 1, 3]


def test_the_arguments_of_enable_tiling_are_honoured() -> None:
    autoencoder = built(DEEP)
    decoded = autoencoder.decoder.register_forward_hook
    calls = []
    decoded(lambda _, given, out: calls.append(tuple(out.shape[-2:])))
    latent = torch.randn(1, 4, 12, 8)
    autoencoder.enable_tiling(48, 32, tile_sample_stride_height=24)
    autoencoder.decode(latent)
    assert calls == [(48, 32)], "a picture that is no larger than the minimum is not cut"
    autoencoder.enable_tiling(32, 32, tile_sample_stride_height=24, tile_sample_stride_width=16)
    assert autoencoder.tiling is not None
    autoencoder.decode(latent)
    parts = list(autoencoder.decode_tiles(latent, autoencoder.tiling))
    assert len(calls) == 1
    assert [part.values.shape[-2:] for part in parts] == [(24, 32), (24, 32)]
    autoencoder.enable_tiling(32, 16, 24, 8, exact=False)
    autoencoder.decode(latent)
    assert calls[1:] == [(32, 16)] * 6
    autoencoder.disable_tiling()
    autoencoder.decode(latent)
    assert calls[-1] == (48, 32)


def test_a_stride_above_the_minimum_is_the_size_of_exact_tiles() -> None:
    """As a published training script calls it: the other side's minimum goes with the stride."""
    autoencoder = built(DEEP)
    latent = torch.randn(1, 4, 12, 8)
    whole = autoencoder.decode(latent).sample
    autoencoder.enable_tiling(tile_sample_min_height=32, tile_sample_stride_width=1024)
    assert autoencoder.tiling == Tiling(32, 1024, 28, 1024)
    torch.testing.assert_close(autoencoder.decode(latent).sample, whole, atol=1e-5, rtol=0)
    autoencoder.enable_tiling(None, 16)
    assert autoencoder.tiling == Tiling(512, 16, 448, 14)
    autoencoder.enable_tiling(1, 1)
    assert autoencoder.tiling == Tiling(1, 1, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tile_sample_min_height": 0}, "tile_sample_min_height=0"),
        ({"tile_sample_min_width": 64.0}, "whole number of pixels"),
        ({"tile_sample_stride_width": 513, "exact": False}, "448 overlaps by an eighth"),
        ({"tile_sample_min_height": 510, "exact": False}, "use 512, or exact tiles"),
    ],
)
def test_tile_sizes_that_cannot_be_are_refused(arguments: dict[str, int], said: str) -> None:
    autoencoder = built(DEEP)
    with pytest.raises(ConfigError) as caught:
        autoencoder.enable_tiling(**arguments)
    assert said in str(caught.value)
    assert autoencoder.tiling is None


def test_batch_norm_in_training_is_not_cut() -> None:
    autoencoder = built(DEEP).train()
    autoencoder.enable_tiling(16, 16)
    with pytest.raises(ConfigError, match="batch norm"):
        autoencoder.decode(torch.randn(1, 4, 12, 8))


@given(
    length=st.integers(1, 40),
    tile=st.integers(2, 12),
    stride=st.integers(1, 12),
)
def test_blending_a_map_that_no_tile_changes_gives_it_back(
    length: int, tile: int, stride: int
) -> None:
    x = torch.randn(1, 2, length, 5)
    grid = (tile, WHOLE)
    twice = blended(
        lambda part: part.repeat_interleave(2, 2).repeat_interleave(2, 3),
        x,
        tile=grid,
        stride=(min(stride, tile), 3),
        scale=lambda positions: 2 * positions,
        channels=2,
    )
    expected = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(twice, expected, atol=1e-5, rtol=0)


def test_the_outer_quarter_of_an_overlap_is_context_and_thrown_away() -> None:
    x = torch.randn(1, 1, 40, 1)

    def spoilt_at_its_edges(part: Tensor) -> Tensor:
        return torch.cat([part[:, :, :2] + 1, part[:, :, 2:-2], part[:, :, -2:] - 1], dim=2)

    given = blended(
        spoilt_at_its_edges,
        x,
        tile=(16, 1),
        stride=(8, 1),
        scale=lambda positions: positions,
        channels=1,
    )
    torch.testing.assert_close(given[:, :, 2:-2], x[:, :, 2:-2], atol=1e-5, rtol=0)
    torch.testing.assert_close(given[:, :, :2], x[:, :, :2] + 1)


def gradient(height: int, width: int) -> Tensor:
    """A sky: a slow slope in each channel, no texture at all."""
    down = torch.linspace(-0.6, 0.8, height)[:, None].expand(height, width)
    across = torch.linspace(-0.3, 0.3, width)[None].expand(height, width)
    return torch.stack([down, down * 0.5 + across, 0.9 - across])[None]


@pytest.fixture(scope="module")
def glyph() -> Pipeline:
    return Pipeline.load("glyph")


@pytest.fixture(scope="module")
def pictures(glyph: Pipeline) -> dict[str, Tensor]:
    request = GenerateRequest(prompt="a red apple", seed=1, num_steps=4)
    drawn = glyph.generate(request).pictures[0].pixels
    apple = torch.from_numpy(drawn).permute(2, 0, 1)[None] / 127.5 - 1
    return {"sky": gradient(256, 256), "drawn": apple}


@torch.inference_mode()
@pytest.mark.parametrize("name", ["sky", "drawn"])
def test_trained_tiles_show_no_seam(
    glyph: Pipeline, pictures: dict[str, Tensor], name: str
) -> None:
    autoencoder = glyph.components.autoencoder
    latent = autoencoder.encode(pictures[name]).latent
    whole = autoencoder.decode(latent).sample
    autoencoder.enable_tiling(64, 96)
    try:
        tiled = autoencoder.decode(latent).sample
        again = autoencoder.encode(pictures[name]).latent
    finally:
        autoencoder.disable_tiling()
    assert psnr(tiled, whole) > 80
    assert psnr(again / latent.std(), latent / latent.std()) > 80
