"""The ways of inference on a CPU against the plain ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from sanakit.models.config import TRANSFORMERS
from sanakit.models.init import init_transformer
from sanakit.models.transformer import LinearDiT
from sanakit.nn import inference, linear_attention, mix_ffn, ways
from sanakit.nn.attention import CrossAttention
from sanakit.nn.linear_attention import relu_linear_attention
from sanakit.nn.lora import adapt
from sanakit.nn.mix_ffn import MixFFN
from sanakit.nn.wide_products import wide_products


@pytest.fixture(autouse=True)
def nothing_is_learned() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("stripe", [1, 6, 10, 17, 18, 35, 1000])
@pytest.mark.parametrize("height", [1, 2, 7])
def test_a_feed_forward_in_stripes(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch, stripe: int, height: int
) -> None:
    torch.manual_seed(0)
    ffn = MixFFN(8, 20)
    x = torch.randn(2, height, 5, 8, generator=rng).movedim(-1, 1)
    expected = ffn.narrow(ffn.conv_inverted(x))
    monkeypatch.setattr(inference, "STRIPE", stripe)
    found = inference.mix_in_stripes(x, ffn.conv_inverted, ffn.conv_depth, ffn.conv_point)
    assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert found.movedim(1, -1).is_contiguous()


def test_stripes_of_16_bits_are_as_exact_as_the_whole(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    ffn = MixFFN(64, 160).bfloat16()
    x = torch.randn(1, 12, 12, 64, generator=rng).bfloat16().movedim(-1, 1)
    layers = (ffn.conv_inverted, ffn.conv_depth, ffn.conv_point)
    monkeypatch.setattr(inference, "STRIPE", 40)
    for units in (True, False):
        monkeypatch.setattr(inference, "has_units", lambda _, units=units: units)
        with wide_products(ffn.conv_depth.weight):
            found = inference.mix_in_stripes(x, *layers)
            expected = ffn.narrow(ffn.conv_inverted(x))
        assert_close(found, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("then", ["none", "swish"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 6), (3, 5, 6), (2, 3, 4, 6), (0, 6)])
def test_both_libraries_multiply_alike(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], bias: bool, then: str
) -> None:
    torch.manual_seed(0)
    layer = inference.Linear(6, 7, bias=bias)
    x = torch.randn(*shape[:-1], 12)[..., ::2]
    expected = x.double() @ layer.weight.double().mT + (0 if layer.bias is None else layer.bias)
    if then == "swish":
        expected = expected * expected.sigmoid()
    monkeypatch.setattr(ways, "MULTIPLIED", 0)
    for faster in (True, False):
        monkeypatch.setattr(ways, "_onednn_is_faster", lambda faster=faster: faster)
        found = inference.product(x, layer.weight, layer.bias, then=then)
        assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)


def test_only_large_fp32_products_that_nothing_learns_from_choose_a_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = ways.multiplies_by_onednn
    monkeypatch.setattr(ways, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(ways, "MULTIPLIED", 64)
    x, weight = torch.zeros(2, 8), nn.Parameter(torch.zeros(4, 8))
    assert asked(x, weight)
    assert not asked(x[:1], weight)
    assert not asked(x.bfloat16(), nn.Parameter(weight.bfloat16()))
    assert not asked(x, torch.zeros(4, 8).as_subclass(Other))
    with torch.enable_grad():
        assert not asked(x, weight)
    with torch.autocast("cpu"):
        assert not asked(x, weight)


class Other(torch.Tensor):
    """Stands for a quantized weight."""


def test_what_is_only_counted_goes_the_plain_way() -> None:
    assert ways.infers_on_cpu(torch.zeros(1))
    for counting in (FakeTensorMode(), FlopCounterMode(display=False)):
        with counting:
            assert not ways.infers_on_cpu(torch.zeros(1))
    assert not ways.infers_on_cpu(torch.zeros(1, device="meta"))


def test_what_is_put_around_a_layer_is_heeded(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ffn, x = MixFFN(8, 20), torch.randn(1, 8, 6, 6, generator=rng)
    monkeypatch.setattr(mix_ffn, "mix_in_stripes", lambda x, *_: x)
    assert torch.equal(ffn(x), x)
    with torch.enable_grad():
        assert not torch.equal(ffn(x), x)
    hook = ffn.conv_depth.register_forward_pre_hook(lambda *_: None)
    assert not torch.equal(ffn(x), x)
    hook.remove()
    assert torch.equal(ffn(x), x)
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not torch.equal(ffn(x), x)
    everywhere.remove()
    adapt(ffn.conv_point)
    assert not torch.equal(ffn(x), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_linear_attention_row_by_row(rng: torch.Generator, dtype: torch.dtype) -> None:
    tokens = torch.randn(3, 2, 9, 4, 8, generator=rng).to(dtype)
    q, k, v = tokens.transpose(2, 3)  # as a layer has them: heads beside each other
    q[1] = -1  # matches no key
    found = inference.attend_by_rows(q, k, v, 1e-15)
    expected = relu_linear_attention(q, k, v)
    assert found.dtype == dtype
    assert found.stride() == v.stride()
    assert_close(found, expected, atol=1e-6 if dtype == torch.float32 else 1e-3, rtol=1e-5)
    assert not found[1].any()


def test_each_row_reads_its_own_words(rng: torch.Generator) -> None:
    torch.manual_seed(0)
    attention = CrossAttention(2, 8, qk_norm=False, dropout=0.0)
    x, text = torch.randn(3, 7, 16, generator=rng), torch.randn(3, 6, 16, generator=rng)
    k, v = attention.keys_values(text)
    mask = torch.arange(6) < torch.tensor([[1], [6], [4]])
    expected = attention(x, k, v, mask)
    assert_close(attention(x, k, v, [1, 6, 4]), expected, atol=1e-6, rtol=1e-5)


def test_lengths_are_of_masks_that_begin_with_what_is_real(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask = torch.arange(6) < torch.tensor([[1], [6]])
    assert ways.lengths_where_it_pays(mask, 10) is None
    monkeypatch.setattr(ways, "SPARED", 50)
    assert ways.lengths_where_it_pays(mask, 10) == [1, 6]
    assert ways.lengths_where_it_pays(mask, 9) is None
    assert ways.lengths_where_it_pays(mask.flip(1), 10) is None


def test_a_whole_network_by_all_of_them(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TRANSFORMERS["tiny"]
    model = LinearDiT(config).eval()
    init_transformer(model, generator=rng)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=rng))
    x, time = torch.randn(2, 4, 6, 4, generator=rng), torch.tensor([900.0, 200.0])
    text = torch.randn(2, 5, 8, generator=rng)
    mask = torch.arange(5) < torch.tensor([[1], [3]])
    expected = model.velocity(x, time, text, mask)
    for name in ("CACHED", "SPARED"):
        monkeypatch.setattr(ways, name, 0)
    used: list[str] = []
    for module, name in (
        (mix_ffn, "mix_in_stripes"),
        (linear_attention, "attend_by_rows"),
    ):
        plain = getattr(inference, name)
        monkeypatch.setattr(
            module, name, lambda *given, plain=plain, name=name: used.append(name) or plain(*given)
        )
    monkeypatch.setattr(inference, "STRIPE", 4)
    found = model.velocity(x, time, text, mask)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert used == ["attend_by_rows", "mix_in_stripes"] * config.num_layers
    with torch.enable_grad():
        assert_close(model.velocity(x, time, text, mask), expected, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(model.velocity(x, time, text, mask).float(), expected, atol=0.1, rtol=0.1)
