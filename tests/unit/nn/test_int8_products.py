"""Int8 products: exact sums, laws of the scales, error, gradients, adapters, files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sanakit.errors import ConfigError, WeightsError
from sanakit.nn import int8, mix_ffn
from sanakit.nn.cpu import PointConv
from sanakit.nn.int8 import (
    FEWER_LEVELS,
    LEVELS,
    Int8Layer,
    activation_levels,
    products,
    round_tokens,
    summed,
)
from sanakit.nn.lora import adapt
from sanakit.nn.mix_ffn import MixFFN
from sanakit.quant.method import Int8, TorchAo, method_of
from sanakit.quant.quantize import is_quantized, quantize, restore

BOTH = pytest.mark.parametrize("levels", [LEVELS, FEWER_LEVELS])


def layer(inputs: int, outputs: int, kind: str = "w8a8", *, bias: bool = True) -> Int8Layer:
    torch.manual_seed(0)
    holder = nn.Sequential(nn.Linear(inputs, outputs, bias=bias)).requires_grad_(False)
    made = quantize(holder, Int8(kind=kind), dtype=torch.float32)[0]
    assert isinstance(made, Int8Layer)
    return made


def runs_here(levels: int) -> bool:
    """Wider tokens than the processor adds exactly are for other processors."""
    return 0 < levels <= activation_levels()


@BOTH
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 3, 1), (7, 64, 96), (33, 501, 17)])
def test_sums_are_those_of_whole_numbers(
    levels: int, rows: int, inputs: int, outputs: int, rng: torch.Generator
) -> None:
    if not runs_here(levels):
        pytest.skip("this processor rounds to fewer levels")
    tokens = torch.randint(-levels, levels + 1, (rows, inputs), generator=rng).to(torch.int8)
    tokens[0] = levels  # the largest sums there are
    made = layer(inputs, outputs)
    made.weight.data[0] = LEVELS
    exact = tokens.long() @ made.weight.long().t()
    found = summed(tokens, made.weight, unsigned=levels == FEWER_LEVELS)
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), exact)


def test_both_kernels_give_the_same_sums(rng: torch.Generator) -> None:
    if not runs_here(LEVELS):
        pytest.skip("this processor has one of them")
    tokens = torch.randint(-FEWER_LEVELS, FEWER_LEVELS + 1, (9, 70), generator=rng).to(torch.int8)
    made = layer(70, 24)
    signed = summed(tokens.clone(), made.weight, unsigned=False)
    assert torch.equal(summed(tokens.clone(), made.weight, unsigned=True), signed)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_that_of_what_was_rounded(
    levels: int, dtype: torch.dtype, bias: bool, rng: torch.Generator
) -> None:
    if not runs_here(levels):
        pytest.skip("this processor rounds to fewer levels")
    made = layer(300, 40, bias=bias)
    x = torch.randn(2, 5, 300, generator=rng).to(dtype)
    tokens, step = round_tokens(x.reshape(-1, 300).float(), levels)
    exact = (tokens.double() * step) @ (made.weight.double() * made.weight_scale).t()
    if made.bias is not None:
        exact = exact + made.bias
    found = made.rounded_product(x, levels)
    assert found.dtype == dtype
    assert found.shape == (2, 5, 40)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found.double().view(10, 40), exact, rtol=tolerance, atol=tolerance)


@BOTH
def test_rounding_is_to_the_nearest_level_of_each_token(levels: int, rng: torch.Generator) -> None:
    rows = torch.randn(20, 64, generator=rng) * torch.logspace(-30, 30, 20)[:, None]
    tokens, step = round_tokens(rows, levels)
    assert (tokens.abs().amax(1) == levels).all()  # the largest value is a level
    assert ((tokens * step - rows).abs() <= 0.5001 * step).all()


@BOTH
def test_rows_of_zeros_are_zeros_and_what_is_not_finite_stays_so(levels: int) -> None:
    if not runs_here(levels):
        pytest.skip("this processor rounds to fewer levels")
    made = layer(32, 8)
    x = torch.ones(5, 32)
    x[0], x[1, 3], x[2, 3], x[3] = 0, torch.nan, torch.inf, 3e38
    y = made.rounded_product(x, levels)
    assert torch.equal(y[0], made.bias)
    assert y[1].isnan().all()
    assert not y[2].isfinite().any()
    assert y[4].isfinite().all()  # one row does not spoil another
    torch.testing.assert_close(y[4], made.rounded_product(x[4:], levels)[0])


@BOTH
def test_a_weight_that_changes_is_read_anew(levels: int, rng: torch.Generator) -> None:
    if not runs_here(levels):
        pytest.skip("this processor rounds to fewer levels")
    made, x = layer(48, 8), torch.randn(3, 48, generator=rng)
    before = made.rounded_product(x, levels)
    made.weight.data.copy_(made.weight.flip(0))
    made.weight_scale.copy_(made.weight_scale.flip(0))
    made.bias.data.copy_(made.bias.flip(0))
    torch.testing.assert_close(made.rounded_product(x, levels), before.flip(1))


def test_tokens_that_are_rounded_once_give_the_same_products(rng: torch.Generator) -> None:
    layers = [layer(48, outputs, bias=outputs > 8) for outputs in (8, 16, 24)]
    x = torch.randn(2, 3, 48, generator=rng)
    for made, each in zip(products(x, layers), layers, strict=True):
        assert torch.equal(made, each(x))
    layers[1].register_forward_hook(lambda _, __, y: y + 1)
    layers[2].rounds_tokens = False
    assert torch.equal(products(x, layers)[1], layers[1](x))
    layers.pop(1)
    for made, each in zip(products(x, layers), layers, strict=True):
        assert torch.equal(made, each(x))


@pytest.mark.parametrize(
    ("place", "wide"), [((2, 5, 7), 1 << 20), ((1, 9, 4), 100), ((1, 1, 1), 1)]
)
def test_a_mix_ffn_by_parts_is_that_of_its_layers(
    place: tuple[int, ...],
    wide: int,
    monkeypatch: pytest.MonkeyPatch,
    rng: torch.Generator,
) -> None:
    torch.manual_seed(0)
    ffn = MixFFN(24, 70).requires_grad_(False)
    quantize(ffn, Int8(), dtype=torch.float32)
    batch, height, width = place
    x = torch.randn(batch, height, width, 24, generator=rng).movedim(-1, 1)
    monkeypatch.setattr(mix_ffn, "mixes_rounded", lambda *_: False)
    plain = ffn(x)
    monkeypatch.undo()
    monkeypatch.setattr(int8, "WIDE", wide)
    used: list[object] = []
    monkeypatch.setattr(mix_ffn, "mix_rounded", lambda *a: used.append(a) or int8.mix_rounded(*a))
    if activation_levels():
        with torch.no_grad():
            found = ffn(x)
        assert used
        # bf16 between the products, and levels that it tips over
        assert (found - plain).norm() < 0.02 * plain.norm()
        monkeypatch.setattr(int8, "has_units", lambda _: False)
        with torch.no_grad():
            torch.testing.assert_close(ffn(x), plain, rtol=1e-4, atol=1e-5)
    ffn.conv_depth.weight.requires_grad_()
    ffn(x).sum().backward()  # what learns goes the plain way
    assert ffn.conv_depth.weight.grad is not None
    ffn.conv_point.register_forward_hook(lambda _, __, y: 2 * y)
    with torch.no_grad():
        torch.testing.assert_close(ffn(x), 2 * plain)


def test_weights_of_zeros_are_zeros_and_such_as_are_not_finite_are_refused() -> None:
    holder = nn.Sequential(nn.Linear(8, 4)).requires_grad_(False)
    holder[0].weight[1] = 0
    made = quantize(holder, Int8(), dtype=torch.float32)[0]
    x = torch.ones(1, 8)
    assert made(x)[0, 1] == made.bias[1]
    broken = nn.Sequential(nn.Linear(8, 4)).requires_grad_(False)
    broken[0].weight[1, 1] = torch.nan
    with pytest.raises(ConfigError, match=r"^0: holds values that are not finite"):
        quantize(broken, Int8(), dtype=torch.float32)


def test_a_point_convolution_is_the_linear_layer_of_its_channels(rng: torch.Generator) -> None:
    torch.manual_seed(0)
    holder = nn.Sequential(PointConv(24, 16)).requires_grad_(False)
    exact = holder[0]
    made = quantize(nn.Sequential(exact), Int8(), dtype=torch.float32)[0]
    x = torch.randn(2, 24, 3, 5, generator=rng)
    assert made.weight.shape == (16, 24, 1, 1)
    linear = made.product(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.equal(made(x), linear)
    assert 0.001 < (made(x) - exact(x)).norm() / exact(x).norm() < 0.03


def test_a_processor_without_such_products_makes_the_weight_real(
    monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    made, x = layer(96, 32), torch.randn(4, 96, generator=rng)
    monkeypatch.setattr(int8, "activation_levels", lambda: 0)
    real = nn.functional.linear(x, made.weight * made.weight_scale, made.bias)
    torch.testing.assert_close(made(x), real)
    assert torch.equal(layer(96, 32, "w8a16")(x), made(x))


def test_gradients_are_those_of_the_real_weight(rng: torch.Generator) -> None:
    made = layer(12, 6)
    x = torch.randn(3, 12, generator=rng, requires_grad=True)
    made(x).sum().backward()
    expected = (made.weight * made.weight_scale).sum(0).expand(3, -1)
    torch.testing.assert_close(x.grad, expected)


def test_an_adapter_adds_in_full_precision_and_is_swapped(rng: torch.Generator) -> None:
    made, x = layer(32, 16), torch.randn(4, 32, generator=rng)
    plain = made(x)
    changed = adapt(made)
    place = {"dtype": torch.float32, "device": torch.device("cpu")}
    for name in ("a", "b"):
        down, up = torch.randn(2, 32, generator=rng), torch.randn(16, 2, generator=rng)
        changed.add(name, down, up, 0.5, **place)
        changed.set_adapter(name)
        torch.testing.assert_close(made(x), plain + 0.5 * x @ down.t() @ up.t())
    changed.set_adapter([])
    assert torch.equal(made(x), plain)
    with pytest.raises(ConfigError, match="cannot be merged into a Int8Linear: it is quantized"):
        changed.merge(["a"])


def test_names_of_the_field_mean_the_same() -> None:
    w8a8 = Int8(kind="w8a8")
    assert method_of("w8a8") == method_of("int8dq") == w8a8
    published = {"quant_method": "torchao", "quant_type": "int8_dynamic_activation_int8_weight"}
    assert method_of(published) == w8a8
    assert method_of("int8") == TorchAo(kind="int8")
    for method in (w8a8, Int8(kind="w8a16"), Int8(skip=("attn1",))):
        assert method_of(method.to_json()) == method


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("format",), "pack-quantized"),
        (("config_groups",), {}),
        (("config_groups",), 3),
        (("config_groups", "group_0"), None),
        (("config_groups", "group_0", "weights", "num_bits"), 4),
        (("config_groups", "group_0", "weights", "strategy"), "group"),
        (("config_groups", "group_0", "input_activations", "dynamic"), False),
    ],
)
def test_other_schemes_of_the_format_are_refused(place: tuple[str, ...], value: object) -> None:
    import copy

    config = copy.deepcopy(Int8().to_json())
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(ConfigError, match="another scheme than int8"):
        method_of(config)


def stored(tmp_path: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    holder = nn.Sequential(nn.Linear(24, 16), PointConv(16, 8)).requires_grad_(False)
    made = quantize(holder, Int8(), dtype=torch.float32)
    save_file(made.state_dict(), tmp_path / "m.safetensors")
    return made, load_file(tmp_path / "m.safetensors")


def empty() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(24, 16), PointConv(16, 8))


def restored(state: dict[str, Tensor]) -> nn.Module:
    module = empty()
    restore(module, state, Int8(), dtype=torch.float32, device="cpu", source="FOLDER")
    return module


def test_what_was_stored_comes_back_to_the_bit(tmp_path: Path, rng: torch.Generator) -> None:
    made, state = stored(tmp_path)
    again = restored(state)
    assert not state
    assert is_quantized(again)
    theirs = again.state_dict()
    for name, tensor in made.state_dict().items():
        assert torch.equal(theirs[name], tensor)
        assert theirs[name].dtype == tensor.dtype
    x = torch.randn(3, 24, generator=rng)
    assert torch.equal(again[0](x), made[0](x))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("0.weight_scale"), "tensors of 0 are not"),
        (lambda s: s.update({"0.weight_scale": torch.ones(1)}), "tensors of 0 are not"),
        (lambda s: s.update({"0.weight_scale": torch.ones(16, 1).int()}), "tensors of 0 are not"),
        (lambda s: s.update({"0.weight": s["0.weight"][:, :3]}), "tensors of 0 are not"),
        (lambda s: s.update({"0.weight": s["0.weight"].view(torch.uint8)}), "tensors of 0 are not"),
        (lambda s: s.update({"0.zero_point": torch.zeros(16, 1)}), "tensors of 0 are not"),
        (lambda s: s.pop("0.bias"), "tensors of 0 are not"),
        (lambda s: s["1.weight_scale"].fill_(torch.nan), "1.weight_scale holds values"),
        (lambda s: s["1.weight_scale"].neg_(), "1.weight_scale holds values"),
    ],
)
def test_tensors_that_are_no_such_layer_are_refused(
    change: Callable[[dict[str, Tensor]], object], said: str, tmp_path: Path
) -> None:
    _, state = stored(tmp_path)
    change(state)
    with pytest.raises(WeightsError, match=said):
        restored(state)
