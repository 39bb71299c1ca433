"""`Autoencoder` against `diffusers.AutoencoderDC` on random weights, fp32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderDC

from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AUTOENCODERS, AutoencoderConfig, config_to_dict
from sanakit.nn.multiscale_attention import quadratic_form, read, summarise
from tiny import DEEP_AUTOENCODER

CONFIGS = {
    "tiny": AUTOENCODERS["tiny"],
    "first stage empty, shuffles, batch norm": DEEP_AUTOENCODER,
    "strided conv, interpolate": replace(
        DEEP_AUTOENCODER,
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    ),
    "no shortcuts, silu": replace(
        DEEP_AUTOENCODER,
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
        decoder_conv_act_fn="silu",
    ),
    # The light decoder of Sprint models, narrow.
    "dc-ae-lite": replace(
        AUTOENCODERS["dc-ae-lite-f32c32-sana-1.1"],
        attention_head_dim=4,
        latent_channels=4,
        encoder_block_out_channels=(8,) * 6,
        decoder_block_out_channels=(8,) * 6,
    ),
}


def pair(config: AutoencoderConfig) -> tuple[Autoencoder, AutoencoderDC]:
    """Both models with one set of random weights, none of them at its initial 0 or 1."""
    torch.manual_seed(0)
    theirs = AutoencoderDC(**config_to_dict(config)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5 / max(1, parameter[0].numel()) ** 0.5)
    for name, buffer in theirs.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    with torch.device("meta"):
        ours = Autoencoder(config)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    return ours.eval(), theirs


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
# 8 px: so few positions that the n-by-n attention runs; 48 x 80: the linear form, not square.
@pytest.mark.parametrize("size", [(8, 8), (48, 80)])
def test_encode_and_decode_equal_the_published_model(name: str, size: tuple[int, int]) -> None:
    ours, theirs = pair(CONFIGS[name])
    factor = ours.config.spatial_factor
    image = torch.rand(2, 3, *(-(-side // factor) * factor for side in size)) * 2 - 1
    expected = theirs.encode(image).latent
    assert expected.abs().mean() > 0.01
    torch.testing.assert_close(ours.encode(image).latent, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        ours.decode(expected).sample, theirs.decode(expected).sample, atol=1e-4, rtol=0
    )


@torch.no_grad()
@pytest.mark.slow
def test_the_published_f32c32_decoder_stage_shapes_agree_at_full_width() -> None:
    config = replace(
        AUTOENCODERS["dc-ae-f32c32-sana-1.0"],
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
    )
    ours, theirs = pair(config)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    latent = theirs.encode(image).latent
    torch.testing.assert_close(ours.encode(image).latent, latent, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        ours.decode(latent).sample, theirs.decode(latent).sample, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("preset", AUTOENCODERS)
def test_every_published_variant_has_the_published_parameter_names_and_shapes(preset: str) -> None:
    with torch.device("meta"):
        ours = Autoencoder(AUTOENCODERS[preset])
        theirs = AutoencoderDC(**config_to_dict(AUTOENCODERS[preset]))
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}


def test_both_forms_of_attention_agree() -> None:
    torch.manual_seed(0)
    q, k, v = torch.rand(3, 2, 4, 8, 16)
    linear = read(summarise(k, v), q)
    torch.testing.assert_close(quadratic_form(q, k, v), linear, rtol=1e-5, atol=1e-6)
