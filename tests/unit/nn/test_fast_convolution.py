"""Convolutions with fewer multiplications: equal to the plain ones, and used only where right."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from sanakit.models.autoencoder import Autoencoder
from sanakit.models.autoencoder_blocks import GatedConv, ResBlock
from sanakit.models.config import AutoencoderConfig
from sanakit.nn import fast_convolution, processor
from sanakit.nn.by_rows import by_rows
from sanakit.nn.fast_convolution import Conv3x3, DoublingConv3x3, doubled, pays, tiled
from sanakit.nn.processor import HALF
from sanakit.nn.resample import Downsample, Upsample
from sanakit.nn.wide_products import wide_products

LAST = torch.channels_last


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, times: int) -> Tensor:
    x = F.interpolate(x, scale_factor=times, mode="nearest") if times > 1 else x
    return F.conv2d(x, weight, bias, padding=1)


@pytest.fixture(autouse=True)
def no_graph() -> object:
    with torch.no_grad():
        yield


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 2),
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 6),
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    bias=st.booleans(),
    at_once=st.sampled_from((1, 20_000, 4 << 20)),
    layout=st.sampled_from((LAST, torch.contiguous_format)),
)
def test_both_ways_are_the_plain_convolution(
    batch: int,
    inputs: int,
    outputs: int,
    height: int,
    width: int,
    bias: bool,
    at_once: int,
    layout: torch.memory_format,
) -> None:
    """In fp64, where a wrong tap cannot hide in rounding; any size, any number of rows at once."""
    x = torch.randn(batch, inputs, height, width, dtype=torch.float64)
    x = x.contiguous(memory_format=layout)
    weight = torch.randn(outputs, inputs, 3, 3, dtype=torch.float64)
    offset = torch.randn(outputs, dtype=torch.float64) if bias else None
    before = x.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_convolution, "AT_ONCE", at_once)
        one, two = tiled(x, weight, offset), doubled(x, weight, offset)
    torch.testing.assert_close(one, plain(x, weight, offset, 1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(two, plain(x, weight, offset, 2), rtol=1e-12, atol=1e-12)
    assert one.is_contiguous(memory_format=LAST)
    assert two.is_contiguous(memory_format=LAST)
    assert torch.equal(x, before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_convolution, "AT_ONCE", at_once)
        over = tiled(x, weight, offset, overwrite=True)
    assert torch.equal(over, one)
    last = x.permute(0, 2, 3, 1).is_contiguous()
    assert (over.data_ptr() == x.data_ptr()) == (last and inputs == outputs)


@pytest.mark.parametrize("channels", [128, 384])
def test_their_rounding_is_that_of_fp32_sums(channels: int) -> None:
    """Against fp64, in parts of the result's root mean square."""
    torch.manual_seed(0)
    x = F.silu(torch.randn(1, channels, 37, 32, dtype=torch.float64))
    weight = torch.randn(channels, channels, 3, 3, dtype=torch.float64) / (9 * channels) ** 0.5
    for way, times in ((tiled, 1), (doubled, 2)):
        true = plain(x, weight, None, times)
        error = (way(x.float(), weight.float(), None).double() - true) / true.square().mean().sqrt()
        assert error.square().mean().sqrt() < 2e-6
        assert error.abs().max() < 3e-5


def layers() -> list[tuple[torch.nn.Conv2d, int]]:
    torch.manual_seed(0)
    return [(Conv3x3(128, 136), 1), (DoublingConv3x3(136, 128), 2)]


def test_a_layer_takes_them_for_wide_maps_of_many_positions() -> None:
    for layer, times in layers():
        x = torch.randn(1, layer.in_channels, 32, 33)
        assert pays(layer, x)
        want = plain(x, layer.weight, layer.bias, times)
        torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-5)


def test_a_layer_does_not_take_them_otherwise() -> None:
    for layer, _ in layers():
        x = torch.randn(1, layer.in_channels, 32, 32)
        assert not pays(layer, x[..., :31])
        assert not pays(layer, x.to("meta"))
        assert not pays(layer, x.double())
        assert not pays(layer.double(), x.double())
        layer.float()
        with torch.enable_grad():
            assert not pays(layer, x)
        with torch.autocast("cpu", torch.bfloat16):
            assert not pays(layer, x)
    assert not pays(Conv3x3(127, 128), torch.randn(1, 127, 32, 32))
    assert not pays(Conv3x3(128, 3), torch.randn(1, 128, 32, 32))


def test_emulated_16_bits_are_fp32_within(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(dtype: torch.dtype) -> bool:
        return dtype not in HALF

    small = replace(processor.this_processor(), units=("AVX2",))
    monkeypatch.setattr(processor, "has_units", none)
    monkeypatch.setattr(processor, "this_processor", lambda: small)
    for layer, times in layers():
        layer.bfloat16()
        x = torch.randn(1, layer.in_channels, 32, 33).bfloat16()
        assert pays(layer, x)
        assert layer.bias is not None
        with wide_products(layer.weight):
            got = layer(x)
        want = plain(x.float(), layer.weight.float(), layer.bias.float(), times).bfloat16()
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got, want, rtol=8e-3, atol=8e-3)


@pytest.mark.parametrize(
    ("units", "fast"),
    [
        (("AVX-512 bf16",), True),
        (("AVX-512 bf16", "AMX bf16"), False),
        (("Arm bf16",), False),
    ],
)
def test_16_bits_go_the_fast_way_where_their_products_are_slower(
    monkeypatch: pytest.MonkeyPatch, units: tuple[str, ...], fast: bool
) -> None:
    monkeypatch.setattr(processor, "has_units", lambda _: True)
    monkeypatch.setattr(processor, "this_processor", lambda: SimpleNamespace(units=units))
    layer, x = Conv3x3(128, 128).bfloat16(), torch.randn(1, 128, 32, 32)
    assert fast_convolution.pays(layer, x.bfloat16()) is fast
    assert fast_convolution.pays(layer.float(), x)
    assert not fast_convolution.pays(layer.double(), x.double())


def test_gradients_are_those_of_the_plain_layers() -> None:
    torch.manual_seed(0)
    block = ResBlock(128, "rms_norm", "silu")
    x = torch.randn(1, 128, 32, 32)
    kept = x.clone()
    without = block(x)
    with torch.enable_grad():
        result = block(x.requires_grad_())
        result.sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
    torch.testing.assert_close(without, result.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(x.detach(), kept)


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_a_whole_autoencoder_is_the_plain_one(size: tuple[int, int]) -> None:
    """Wide enough for both ways; with a graph every layer is the plain one."""
    config = AutoencoderConfig(
        latent_channels=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(128, 128),
        decoder_block_out_channels=(128, 128),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
    )
    torch.manual_seed(0)
    autoencoder = Autoencoder(config).eval()
    image = torch.randn(2, 3, *size)
    with torch.enable_grad():
        want_latent = autoencoder.encode(image).latent.detach()
        want = autoencoder.decode(want_latent).sample.detach()
    latent = autoencoder.encode(image).latent
    torch.testing.assert_close(latent, want_latent, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(autoencoder.decode(want_latent).sample, want, rtol=1e-5, atol=1e-5)


def test_rows_at_a_time_are_the_whole_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of two heights, a batch, rows that do not divide; into a map or beside all."""
    monkeypatch.setattr("sanakit.nn.by_rows.CACHED", 100)
    x, small = torch.randn(2, 3, 14, 5).contiguous(memory_format=LAST), torch.randn(2, 3, 7, 5)

    def function(x: Tensor, small: Tensor) -> Tensor:
        return x * 2 + small.repeat_interleave(2, dim=2)

    want, kept = function(x, small), x.clone()
    assert torch.equal(by_rows(function, x, small), want)
    assert torch.equal(x, kept)
    assert by_rows(function, x, small, into=x) is x
    assert torch.equal(x, want)
    with torch.enable_grad():
        recorded = by_rows(lambda x: x * 2, kept.clone().requires_grad_(), into=kept)
    assert recorded.requires_grad
    assert recorded is not kept


def res_block() -> tuple[ResBlock, Tensor]:
    torch.manual_seed(0)
    return ResBlock(128, "rms_norm", "silu"), torch.randn(1, 128, 32, 33).contiguous(
        memory_format=LAST
    )


def plainly(block: torch.nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        result: Tensor = block(x)
    return result.detach()


def test_any_layer_may_take_a_convolutions_place() -> None:
    """One that gives what it was given, too: nothing of the block's input is overwritten."""
    for name in ("conv1", "conv2"):
        for layer in (torch.nn.Conv2d(128, 128, 3, padding=1), torch.nn.Identity()):
            block, x = res_block()
            setattr(block, name, layer)
            kept = x.clone()
            torch.testing.assert_close(block(x), plainly(block, x), rtol=1e-5, atol=1e-5)
            assert torch.equal(x, kept)


def test_another_norm_sees_the_whole_map() -> None:
    block, x = res_block()
    block.norm = torch.nn.GroupNorm(4, 128)
    x = torch.cat([x, x.flip(2)])
    torch.testing.assert_close(block(x), plainly(block, x), rtol=1e-5, atol=1e-5)


def test_what_a_hook_keeps_stays() -> None:
    """What every part takes and gives, of all blocks that overwrite."""
    blocks = [
        res_block()[0],
        GatedConv(128),
        Upsample(128, 128, interpolate=False, shortcut=True),
        Upsample(128, 128, interpolate=True, shortcut=True),
        Downsample(128, 128, unshuffle=True, shortcut=True),
    ]
    x = torch.randn(2, 128, 64, 66).contiguous(memory_format=LAST)
    for block in blocks:
        kept: list[tuple[Tensor, Tensor]] = []

        def keep(
            _: object,
            inputs: tuple[Tensor, ...],
            y: Tensor,
            kept: list[tuple[Tensor, Tensor]] = kept,
        ) -> None:
            kept.extend((each, each.clone()) for each in (*inputs, y))

        block(x)
        for part in block.modules():
            part.register_forward_hook(keep)
        block(x)
        assert len(kept) == 2 * len(list(block.modules()))
        assert all(torch.equal(one, copy) for one, copy in kept)


@pytest.mark.parametrize("mode", ["circular", "reflect"])
def test_a_border_of_something_else_is_heeded(mode: str) -> None:
    for layer, times in layers():
        x = torch.randn(1, layer.in_channels, 32, 33)
        layer.padding_mode = mode
        around = F.interpolate(x, scale_factor=times, mode="nearest")
        want = F.conv2d(F.pad(around, (1, 1, 1, 1), mode), layer.weight, layer.bias)
        torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-5)
        layer.padding_mode = "zeros"
        layer._conv_forward = lambda x, weight, bias: x  # type: ignore[method-assign]
        assert torch.equal(layer(x), around)


@pytest.mark.filterwarnings("ignore")
def test_transforms_have_the_plain_way() -> None:
    block, x = res_block()
    x = torch.cat([x, x.flip(2)])
    want = block(x)
    got = torch.func.vmap(lambda x: block(x[None])[0])(x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    parameters = {k: torch.stack([v, 2 * v]) for k, v in block.named_parameters()}
    both = torch.func.vmap(lambda p: torch.func.functional_call(block, p, (x,)))(parameters)
    torch.testing.assert_close(both[0], want, rtol=1e-5, atol=1e-5)
    _, tangent = torch.func.jvp(block, (x,), (x,))
    with forward_ad.dual_level():
        made = forward_ad.unpack_dual(block(forward_ad.make_dual(x, x)))
    torch.testing.assert_close(made.tangent, tangent, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_shapes_alone_and_traces_have_the_plain_way() -> None:
    block, x = res_block()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert block(mode.from_tensor(x)).shape == x.shape
    traced = torch.jit.trace(block, x)
    other = x.flip(2) * 2
    torch.testing.assert_close(traced(other), block(other), rtol=1e-5, atol=1e-5)
    block.to("meta")
    assert block(x.to("meta")).shape == x.shape
