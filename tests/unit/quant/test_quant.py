"""Quantized linear layers: their error against fp32, what is left alone, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig

from sanakit.errors import ConfigError
from sanakit.quant.method import BitsAndBytes, TorchAo, method_of
from sanakit.quant.quantize import is_quantized, linear_names, quantize

# Relative RMS error of a product of normal values, from each format's step. int8: a row's largest
# of 256 values is about 2.9 sigma, steps of 1/127 of it are off by 2.9 / 127 / sqrt(12) = 0.66 %,
# and LLM.int8() rounds the activations by as much: 0.9 %. fp8 keeps 3 bits of mantissa: 2.6 %.
# int4 in groups of 32: 2 * 2.1 sigma / 15 / sqrt(12) = 8 %. nf4 and fp4 in pieces of 64: 9.5 and
# 12 % by their tables. Bounds allow a third more; a wrong scale or sign gives 100 %.
BOUNDS = {
    "bnb-int8": 0.012,
    "bnb-nf4": 0.125,
    "bnb-fp4": 0.16,
    "int8": 0.009,
    "fp8": 0.035,
    "int4": 0.11,
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(256, 96), nn.Conv2d(1, 1, 1), nn.Linear(96, 64))
    nn.init.normal_(layers[0].weight, std=256**-0.5)
    return layers.requires_grad_(False).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BOUNDS)
def test_the_error_of_a_product_is_that_of_the_format(name: str, dtype: torch.dtype) -> None:
    exact = network()
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    expected = exact[0](x)
    rounded = quantize(network(), method_of(name), dtype=dtype)
    found = rounded[0](x.to(dtype))
    assert found.dtype == dtype
    error = ((found.float() - expected).norm() / expected.norm()).item()
    assert error < BOUNDS[name]
    assert error > BOUNDS[name] / 10  # something was rounded
    assert rounded[1].weight.dtype == dtype
    assert torch.equal(rounded[1].weight.float(), exact[1].weight.to(dtype).float())


def test_what_is_to_be_kept_is_kept_by_name_place_or_part() -> None:
    module = nn.ModuleDict({"a": network(), "b": network()})
    assert linear_names(module, ()) == ["a.0", "a.2", "b.0", "b.2"]
    assert linear_names(module, ("a",)) == ["b.0", "b.2"]
    assert linear_names(module, ("a.0", "b.2")) == ["a.2", "b.0"]
    assert linear_names(module, ("2",)) == ["a.0", "b.0"]


def test_a_list_of_the_caller_replaces_the_usual_one_but_not_what_must_stay() -> None:
    def kept(method: BitsAndBytes) -> list[str]:
        module = nn.ModuleDict({"a": network(), "b": network()})
        quantize(module, method, keep=("a",), always_keep=("b.2",), dtype=torch.float32)
        return [name for name, child in module.named_modules() if type(child) is nn.Linear]

    assert kept(BitsAndBytes(kind="int8")) == ["a.0", "a.2", "b.2"]
    assert kept(BitsAndBytes(kind="int8", skip=("b.0",))) == ["b.0", "b.2"]
    assert kept(BitsAndBytes(kind="int8", skip=())) == ["b.2"]
    with pytest.raises(ConfigError, match=r"to skip name 'bb'.*\n.*did you mean 'b'"):
        kept(BitsAndBytes(kind="int8", skip=("bb",)))


def test_configs_of_the_ecosystem_are_read() -> None:
    eight = BitsAndBytesConfig(
        load_in_8bit=True, llm_int8_threshold=4.0, llm_int8_skip_modules=["attn2"]
    )
    assert method_of(eight) == BitsAndBytes(kind="int8", threshold=4.0, skip=("attn2",))
    four = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    method = BitsAndBytes(kind="nf4", nested=True, compute_dtype="bfloat16")
    assert method_of(four) == method
    assert method_of(method.to_json()) == method

    from diffusers import BitsAndBytesConfig as Theirs
    from torchao.quantization import Int8WeightOnlyConfig

    assert method_of(Theirs(load_in_8bit=True)) == BitsAndBytes(kind="int8")
    own = Int8WeightOnlyConfig()
    found = method_of(TorchAoConfig(own, modules_to_not_convert=["a"]))
    assert found == TorchAo(kind=own, skip=("a",))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("bnb-nf5", r"unknown\n.*did you mean 'bnb-nf4'"),
        (8, "is a int"),
        ({"quant_method": "gptq"}, "'gptq' is not supported"),
        ({"quant_method": "bitsandbytes"}, "quantizes nothing"),
        (BitsAndBytesConfig(load_in_8bit=True, llm_int8_has_fp16_weight=True), "has_fp16_weight"),
        (
            BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage=torch.bfloat16),
            "storage=bfloat16",
        ),
    ],
)
def test_what_would_not_be_honoured_is_refused(config: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        method_of(config)


@pytest.mark.parametrize(("name", "library"), [("bnb-int8", "bitsandbytes"), ("int8", "torchao")])
def test_a_library_that_is_missing_is_named_with_how_to_install_it(
    name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for module in [m for m in sys.modules if m.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"{library} cannot.*\n.*pip install 'sanakit\[quant\]'"):
        quantize(network(), method_of(name), dtype=torch.float32)


def test_a_width_that_groups_do_not_divide_is_refused_by_name() -> None:
    odd = nn.Sequential(nn.Linear(40, 8))
    with pytest.raises(ConfigError, match="cannot quantize 0 to int4"):
        quantize(odd, method_of("int4"), dtype=torch.float32)


def test_only_rounded_networks_count_as_quantized() -> None:
    assert not is_quantized(network())
    for name in ("bnb-int8", "bnb-nf4", "int8"):
        assert is_quantized(quantize(network(), method_of(name), dtype=torch.float32))
