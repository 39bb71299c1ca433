"""Tiny decoders: the published row of layers, whole and in tiles, loaded, converted."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.testing import assert_close

from command_line import sanakit
from sanakit.errors import ConfigError, MissingModelError, WeightsError
from sanakit.models.config import AutoencoderConfig
from sanakit.models.parts import decodes_as_built
from sanakit.models.tiling import Tiling
from sanakit.models.tiny_decoder import TINY_DECODERS, TinyDecoder, TinyDecoderConfig
from sanakit.pipeline.decoder import decode_image
from sanakit.pipeline.networks import AutoencoderDC
from sanakit.weights.store import write_config, write_weights
from tiny import AUTOENCODER
from tiny_recipe import weights

SMALL = TinyDecoderConfig(
    latent_channels=4,
    block_out_channels=(2, 4, 4, 8, 8, 8),
    layers_per_block=(0, 1, 1, 0, 1, 2),
)


def small(shape: TinyDecoderConfig = SMALL, *, scaling_factor: float = 0.5) -> TinyDecoder:
    torch.manual_seed(0)
    return TinyDecoder(shape, scaling_factor=scaling_factor).eval().requires_grad_(False)


def latent(*size: int) -> Tensor:
    return 2 * torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1))


def write_decoder(folder: Path, decoder: TinyDecoder) -> Path:
    write_weights(folder, decoder.state_dict())
    write_config(folder, decoder.config, "TinyDecoder")
    return folder


def autoencoder(config: AutoencoderConfig = AUTOENCODER) -> AutoencoderDC:
    torch.manual_seed(2)
    return AutoencoderDC(config).eval().requires_grad_(False)


class Published(nn.Module):
    """A block of the published decoders, written down from their description."""

    def __init__(self, width: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(
            convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


def published_row() -> nn.Sequential:
    """The row of layers of ``taesana_decoder.pth``."""
    row: list[nn.Module] = [nn.Identity(), nn.Conv2d(32, 256, 3, padding=1), nn.ReLU()]
    for width, following in ((256, 128), (128, 64), (64, 64), (64, 64), (64, 64)):
        row += [Published(width) for _ in range(3)]
        row += [nn.Upsample(scale_factor=2), nn.Conv2d(width, following, 3, padding=1, bias=False)]
    return nn.Sequential(*row, Published(64), nn.Conv2d(64, 3, 3, padding=1))


def test_taesana_has_the_names_the_shapes_and_the_numbers_of_the_published_row() -> None:
    torch.manual_seed(0)
    row, config = published_row(), TINY_DECODERS["taesana"]
    decoder = TinyDecoder(config, scaling_factor=0.41407)
    decoder.load_state_dict(row.state_dict())
    z = 3 * torch.randn(1, 32, 2, 1)
    with torch.no_grad():
        expected = 2 * row(3 * torch.tanh(0.41407 * z / 3)) - 1
        assert_close(decoder(z), expected, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in decoder.parameters()) == 8_301_763


def test_a_decoder_of_one_width_is_that_of_diffusers() -> None:
    shape = replace(SMALL, block_out_channels=(8, 8, 8), layers_per_block=(1, 3, 2))
    ours = small(shape, scaling_factor=1.0)
    theirs = AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(2, 3, 1),
    ).eval()
    # They bound latents outside of the row, so that each layer stands one place earlier.
    named = {
        f"layers.{int(place) - 1}.{rest}": tensor
        for place, rest, tensor in ((*n.split(".", 1), t) for n, t in ours.state_dict().items())
    }
    theirs.decoder.load_state_dict(named)
    with torch.no_grad():
        assert_close(ours(latent(3, 5)), theirs.decode(latent(3, 5)).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tiling", [Tiling.rows(64), Tiling.squares(64, 96)], ids=str)
def test_tiles_of_a_tiny_decoder_are_the_whole(tiling: Tiling) -> None:
    vae = autoencoder()
    vae.decoder = small()
    raw = latent(7, 6)
    whole = vae.decode(raw).sample
    out = torch.full_like(whole, torch.nan)
    for tile in vae.decode_tiles(raw, tiling):
        out[:, :, tile.rows, tile.columns] = tile.values
    assert_close(out, whole, atol=1e-5, rtol=1e-5)


def test_an_autoencoder_decodes_with_a_decoder_from_a_folder(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "tiny", small())
    vae = autoencoder()
    before = weights(vae.encoder)
    vae.load_decoder(folder)
    assert decodes_as_built(vae)
    z = latent(2, 3)
    assert_close(decode_image(vae, z), small()(z / AUTOENCODER.scaling_factor))
    assert all(torch.equal(before[n], t) for n, t in vae.encoder.state_dict().items())
    assert not any(p.requires_grad for p in vae.decoder.parameters())
    with pytest.raises(ConfigError, match="no published layout"):
        vae.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_decoder_takes_the_dtype_of_its_autoencoder(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "tiny", small())
    vae = autoencoder().bfloat16()
    vae.load_decoder(folder)
    assert {p.dtype for p in vae.decoder.parameters()} == {torch.bfloat16}


def test_the_decoder_of_another_autoencoder_decodes_and_is_saved(tmp_path: Path) -> None:
    other = replace(
        AUTOENCODER,
        decoder_block_types="ResBlock",
        decoder_layers_per_block=(0, 2, 1, 1, 1, 1),
        decoder_qkv_multiscales=((),) * 6,
        decoder_conv_act_fn="silu",
    )
    lite = autoencoder(other)
    lite.save_pretrained(tmp_path / "lite")
    vae = autoencoder()
    vae.load_decoder(tmp_path / "lite")
    raw = latent(2, 2)
    assert_close(vae.decode(raw).sample, lite.decode(raw).sample)
    vae.save_pretrained(tmp_path / "both")
    again = AutoencoderDC.from_pretrained(tmp_path / "both")
    assert_close(again.decode(raw).sample, lite.decode(raw).sample)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"latent_channels": 8}, "latent_channels"),
        ({"block_out_channels": (4, 8), "layers_per_block": (1, 1)}, "spatial_factor"),
        ({"scaling_factor": 0.4}, "scaling_factor"),
    ],
)
def test_a_decoder_of_other_latents_is_refused(
    tmp_path: Path, change: dict[str, object], field: str
) -> None:
    folder = write_decoder(tmp_path / "tiny", small(replace(SMALL, **change)))
    vae = autoencoder()
    own = vae.decoder
    with pytest.raises(ConfigError, match=field):
        vae.load_decoder(folder)
    assert vae.decoder is own


def test_decoders_that_are_not_there_or_not_converted_say_what_to_do(tmp_path: Path) -> None:
    vae = autoencoder()
    with pytest.raises(MissingModelError):
        vae.load_decoder(tmp_path / "nowhere")
    file = tmp_path / "taesana_decoder.pth"
    torch.save(small().state_dict(), file)
    with pytest.raises(ConfigError, match="is a file") as raised:
        vae.load_decoder(file)
    assert "sanakit convert" in str(raised.value.hint)
    folder = write_decoder(tmp_path / "tiny", small())
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 30)
    with pytest.raises(WeightsError):
        vae.load_decoder(folder)


# The published file.


def test_a_published_file_becomes_a_folder_and_a_file_again(tmp_path: Path) -> None:
    file, folder, back = (tmp_path / name for name in ("a_decoder.pth", "tiny", "back.pth"))
    torch.save({n: t.half() for n, t in small().state_dict().items()}, file)
    told, _ = sanakit("convert", file, folder)
    assert "TinyDecoder" in told
    assert "block_out_channels (2, 4, 4, 8, 8, 8), layers_per_block (0, 1, 1, 0, 1, 2)" in told
    vae = autoencoder()
    vae.load_decoder(folder)
    halved = {n: t.half().float() for n, t in small().state_dict().items()}
    assert_close(dict(vae.decoder.state_dict()), halved)
    sanakit("convert", folder, back)
    returned = torch.load(back, weights_only=True)["state_dict"]
    assert_close(returned, torch.load(file, weights_only=True))


def without(*names: str) -> dict[str, Tensor]:
    return {n: t for n, t in small().state_dict().items() if n not in names}


def places(state: dict[str, Tensor], add: int) -> dict[str, Tensor]:
    moved = ((*n.split(".", 1), t) for n, t in state.items())
    return {f"{int(place) + add}.{rest}": tensor for place, rest, tensor in moved}


last = max(int(name.partition(".")[0]) for name in small().state_dict())


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"0.weight": torch.zeros(4, 3, 3, 3), "4.conv.0.weight": torch.zeros(1)}, "the encoder"),
        ({"1.weight": torch.zeros(4)}, "no tiny decoder"),
        ({"1.weight": torch.zeros(8, 4, 3, 3)}, "no tiny decoder"),
        (without(f"{last}.weight", f"{last}.bias"), ""),
        (without("1.bias"), "1.bias"),
        (without("3.conv.2.weight"), "3.conv.2.weight"),
        ({**without(), "3.pool.0.weight": torch.zeros(8, 8, 1, 1)}, "3.pool.0.weight"),
        ({**without(), "3.conv.0.weight": torch.zeros(8, 8, 1, 1)}, "3.conv.0.weight"),
        ({**places(without(), 1), "1.weight": torch.zeros(3, 3, 3, 3)}, ""),
        ({**without(), "9" * 5000 + ".weight": torch.zeros(1)}, ""),
    ],
    ids=str,
)
def test_files_that_are_no_tiny_decoder_are_refused_and_leave_nothing(
    tmp_path: Path, state: dict[str, Tensor], words: str
) -> None:
    file = tmp_path / "odd.pth"
    torch.save(state, file)
    _, error = sanakit("convert", file, tmp_path / "out", code=2)
    assert words in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_out_channels": ()},
        {"block_out_channels": (8,) * 11, "layers_per_block": (1,) * 11},
        {"layers_per_block": (1, 1)},
        {"out_channels": 5},
        {"latent_channels": 0},
        {"scaling_factor": 0.0},
    ],
    ids=str,
)
def test_shapes_that_cannot_be_built_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        replace(SMALL, **wrong)


def test_a_picture_remembers_its_decoder_and_is_drawn_with_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shape = replace(SMALL, latent_channels=32)
    write_decoder(Path("tiny"), small(shape))
    fast = ("--steps", "1", "--guidance", "1", "--quiet")
    sanakit("generate", "a red apple", "--decoder", "tiny", *fast)
    settings, _ = sanakit("info", "out.png")
    assert re.search(r"^decoder +tiny$", settings, re.MULTILINE)
    sanakit("again", "out.png", "--quiet")
    drawn = Path("out.png").read_bytes(), Path("out-again.png").read_bytes()
    assert drawn[0] == drawn[1]
    write_decoder(Path("tiny"), TinyDecoder(shape, scaling_factor=1.0))
    _, noted = sanakit("again", "out.png", "--quiet")
    assert "the decoder tiny is not the one that drew it" in noted
    sanakit("generate", "a red apple", "--decoder", "nowhere", *fast, code=3)
