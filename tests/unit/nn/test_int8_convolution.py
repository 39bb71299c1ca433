"""3x3 convolutions in int8 beside those of what was rounded, and where they are taken."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sanakit.models import autoencoder_blocks
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.autoencoder_blocks import GatedConv, ResBlock
from sanakit.models.published import say_once
from sanakit.nn import int8_convolution
from sanakit.nn.fast_convolution import Conv3x3, DoublingConv3x3
from sanakit.nn.int8 import Int8Layer, mix_rounded
from sanakit.nn.int8_convolution import KINDS, pays, rounds
from sanakit.nn.resample import Upsample
from sanakit.pipeline.networks import AutoencoderDC
from sanakit.quant import quantize as quantizing
from sanakit.quant.method import Int8
from sanakit.quant.quantize import is_quantized, quantize, restore
from tiny import DEEP_AUTOENCODER

needs_units = pytest.mark.skipif(not pays("cpu"), reason="this processor has no units for it")
KEPT = AutoencoderDC.always_keep


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def rounded(module: nn.Module) -> Any:
    torch.manual_seed(0)
    holder = nn.Sequential(module.eval().requires_grad_(False))
    for parameter in holder.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape))
    return quantize(holder, Int8(), dtype=torch.float32)[0]


def levels_of(rows: Tensor) -> Tensor:
    """What a stripe becomes: real numbers on its levels."""
    low, high = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
    step = (high - low) / 254
    zero = round(-low / step)
    return (((rows.double() / step + zero + 0.5).floor() - zero) * step).to(rows.dtype)


def real(conv: Int8Layer) -> Tensor:
    return (conv.weight.flatten(1).double() * conv.weight_scale).view(conv.weight.shape)


def hooked(module: nn.Module) -> nn.Module:
    """Each layer's result is looked at, so that nothing is fused."""
    for child in module.modules():
        child.register_forward_hook(lambda *_: None)
    return module


@needs_units
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 24, 13, 9), (1, 3, 1, 1), (1, 40, 5, 64)])
def test_a_convolution_is_that_of_what_was_rounded(
    shape: tuple[int, ...], bias: bool, rng: torch.Generator
) -> None:
    conv = rounded(Conv3x3(shape[1], 17, bias=bias))
    x = torch.randn(shape, generator=rng) + 0.5
    seen = torch.stack([levels_of(each) for each in x]).double()
    exact = of_taps(conv, seen)
    torch.testing.assert_close(conv(x).double(), exact, rtol=1e-5, atol=1e-5)
    low = x.bfloat16()
    assert conv(low).dtype == torch.bfloat16
    torch.testing.assert_close(conv(low), conv(low.float()).bfloat16())


@needs_units
def test_each_stripe_has_its_own_scale(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = rounded(Conv3x3(8, 8))
    x = torch.randn(1, 8, 11, 6, generator=rng) * torch.logspace(-2, 2, 11)[:, None]
    monkeypatch.setattr(int8_convolution, "ROUNDED", 4 * 6 * 8)
    found = conv(x)
    for top in (0, 4, 8):
        around = F.pad(x, (0, 0, 1, 1))[:, :, top : top + 6]
        exact = F.conv2d(levels_of(around).double(), real(conv), conv.bias.double(), padding=(0, 1))
        part = found[:, :, top : top + 4].double()
        torch.testing.assert_close(part, exact, rtol=1e-5, atol=1e-5 * float(exact.std()))


def of_taps(conv: Int8Layer, x: Tensor) -> Tensor:
    """What the layer is of real numbers: taps of a doubled map are summed and rounded again."""
    bias = None if conv.bias is None else conv.bias.double()
    weight, (height, width) = real(conv), x.shape[2:]
    if not isinstance(conv, DoublingConv3x3):
        return F.conv2d(x.double(), weight, bias, padding=1)
    seen = F.pad(x.double(), (1, 1, 1, 1))
    exact = torch.empty(len(x), len(weight), 2 * height, 2 * width, dtype=torch.float64)
    firsts = torch.tensor([[1.0, 0, 0], [0, 1, 1]]), torch.tensor([[1.0, 1, 0], [0, 0, 1]])
    for down, rows in enumerate(firsts):
        for across, columns in enumerate(firsts):
            taps = rows.double() @ weight @ columns.double().T
            scale = taps.abs().amax((1, 2, 3), keepdim=True) / 127
            made = F.conv2d(seen, (taps / scale).round() * scale, bias)
            part = made[:, :, down : down + height, across : across + width]
            exact[:, :, down::2, across::2] = part
    return exact


@needs_units
def test_a_doubled_map_is_seen_by_taps_that_are_summed_and_rounded(rng: torch.Generator) -> None:
    conv = rounded(DoublingConv3x3(12, 10))
    x = torch.randn(2, 12, 7, 5, generator=rng)
    exact = of_taps(conv, torch.stack([levels_of(each) for each in x]))
    torch.testing.assert_close(conv(x).double(), exact, rtol=1e-5, atol=1e-5)
    plain = F.conv2d(F.interpolate(x, scale_factor=2), real(conv).float(), conv.bias, padding=1)
    assert (conv(x) - plain).norm() < 0.02 * plain.norm()


BLOCKS = [
    (lambda: ResBlock(16, "rms_norm", "silu"), 16),
    (lambda: ResBlock(16, "batch_norm", "relu"), 16),
    (lambda: Upsample(16, 4, interpolate=True, shortcut=True), 16),
    (lambda: Upsample(16, 8, interpolate=True, shortcut=True), 16),
    (lambda: Upsample(8, 16, interpolate=True, shortcut=True), 8),
    (lambda: Upsample(16, 8, interpolate=False, shortcut=True), 16),
]


@needs_units
@pytest.mark.parametrize("at_once", [1, 1 << 20])
@pytest.mark.parametrize(("make", "width"), BLOCKS)
def test_a_block_in_one_pass_is_its_layers_one_after_another(
    make: Any, width: int, at_once: int, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_convolution, "ROUNDED", at_once)
    block = rounded(make())
    x = torch.randn(2, width, 10, 7, generator=rng).to(memory_format=torch.channels_last)
    before = x.clone()
    found = block(x)
    assert torch.equal(x, before)
    exact = hooked(block)(x)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5 * float(exact.std()))


@needs_units
@pytest.mark.parametrize("make", [lambda: Conv3x3(6, 5), lambda: DoublingConv3x3(6, 5)])
def test_rows_of_which_few_channels_are_large_are_not_rounded(
    make: Any, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_convolution, "ROUNDED", 4 * 9 * 6)
    conv = rounded(make())
    x = torch.randn(1, 6, 13, 9, generator=rng)
    even = conv(x)
    x[:, 2, 6:] *= 1e4  # seen by the second of four stripes and those after it
    found, exact = conv(x).double(), of_taps(conv, x)
    half = 4 * found.shape[2] // 13
    assert torch.equal(found[:, :, :half], even[:, :, :half].double())
    apart = (found - exact).abs() / exact.abs().amax()
    assert apart[:, :, half:].max() < 1e-6
    assert (found - exact)[:, :, :half].abs().max() > 1e-3  # of steps, by one scale


@needs_units
def test_a_gated_convolution_is_mixed_as_that_of_a_transformer(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = rounded(GatedConv(16))
    x = torch.randn(2, 16, 10, 7, generator=rng)
    mixed = []

    def mix(*given: Any) -> Tensor:
        mixed.append(mix_rounded(*given))
        return mixed[0]

    monkeypatch.setattr(autoencoder_blocks, "mix_rounded", mix)
    found, exact = block(x), hooked(block)(x)
    assert len(mixed) == 1
    assert (found - exact).norm() < 0.01 * (exact - x).norm()


@needs_units
def test_zeros_and_what_is_not_finite() -> None:
    conv = rounded(Conv3x3(4, 6))
    x = torch.zeros(3, 4, 5, 5)
    x[1, 2, 2, 2], x[2, 0, 0, 0] = torch.nan, torch.inf
    y = conv(x)
    assert torch.equal(y[0], conv.bias[:, None, None].expand(6, 5, 5))
    assert not y[1].isfinite().any()
    assert not y[2, :, :2, :2].isfinite().any()


@pytest.mark.parametrize("make", [lambda: Conv3x3(6, 5), lambda: DoublingConv3x3(6, 5)])
def test_what_learns_sees_the_weight_made_real(
    make: Any, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizing, "pays", lambda device: True)
    conv = rounded(make())
    assert isinstance(conv, KINDS)
    x = torch.randn(1, 6, 8, 8, generator=rng).requires_grad_()
    plain = make().requires_grad_(False)
    plain.load_state_dict({"weight": real(conv).float(), "bias": conv.bias})
    with torch.enable_grad():
        assert not rounds(conv, x)
        (wanted,) = torch.autograd.grad(plain(x).square().sum(), x)
        (found,) = torch.autograd.grad(conv(x).square().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert not rounds(conv, x)


@needs_units
def test_a_decoder_comes_back_from_its_file_to_the_bit(
    tmp_path: Path, rng: torch.Generator
) -> None:
    torch.manual_seed(0)
    config = DEEP_AUTOENCODER
    made = quantize(Autoencoder(config).eval(), Int8(), always_keep=KEPT, dtype=torch.float32)
    assert sum(isinstance(each, KINDS) for each in made.decoder.modules()) > 3
    save_file(made.state_dict(), tmp_path / "m.safetensors")
    again: Any = Autoencoder(config).eval()
    state = load_file(tmp_path / "m.safetensors")
    filled = restore(again, state, Int8(), dtype=torch.float32, device="cpu", source="FOLDER")
    assert len(filled) == sum(isinstance(each, Int8Layer) for each in made.modules())
    again.load_state_dict(state, strict=False)
    z = torch.randn(1, config.latent_channels, 3, 2, generator=rng)
    assert torch.equal(again.decode(z).sample, made.decode(z).sample)


@needs_units
def test_pictures_of_a_trained_decoder_in_int8_are_near_the_exact_ones() -> None:
    known = Path(int8_convolution.__file__).parents[1] / "assets" / "known" / "picture.png"
    picture = torch.from_numpy(np.asarray(Image.open(known).convert("RGB")).copy())
    x = picture.permute(2, 0, 1)[None].float() / 127.5 - 1
    kinds: dict[str, Any] = {"exact": None, "int8": "w8a8"}
    made = {}
    for name, kind in kinds.items():
        vae = AutoencoderDC.from_pretrained("glyph", subfolder="vae", quantization_config=kind)
        made[name] = vae.decode(vae.encode(x).latent).sample.clamp(-1, 1)
    error = (made["int8"] - made["exact"]).square().mean()
    assert error > 0
    assert 10 * torch.log10(4 / error) > 45


def test_where_nothing_is_gained_convolutions_stay_real_and_it_is_said_once(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    block = nn.Sequential(ResBlock(8, "rms_norm", "silu")).eval().requires_grad_(False)
    monkeypatch.setattr(quantizing, "pays", lambda device: True)
    stored = quantize(ResBlock(8, "rms_norm", "silu").eval(), Int8(), dtype=torch.float32)
    state = stored.state_dict()
    monkeypatch.setattr(quantizing, "pays", lambda device: False)
    say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert not is_quantized(quantize(block, Int8(), dtype=torch.float32))
        again = ResBlock(8, "rms_norm", "silu").eval()
        assert not restore(again, state, Int8(), dtype=torch.float32, device="cpu", source="F")
    assert [each.message for each in caplog.records].count(caplog.records[0].message) == 1
    assert "stay real numbers" in caplog.records[0].message
    again.load_state_dict(state)
    for one, other in ((again.conv1, stored.conv1), (again.conv2, stored.conv2)):
        assert type(one) is Conv3x3
        torch.testing.assert_close(one.weight, real(other).float())
    assert not pays("cuda")
