"""LoRA files of any content: read for what they say, or refused in one line."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close

from original_files import original_transformer
from sanakit.errors import SanakitError, WeightsError
from sanakit.models.transformer import LinearDiT
from sanakit.weights.convert.keymaps import transformer_keymap
from sanakit.weights.lora import (
    METADATA,
    AdapterConfig,
    LoraPair,
    fit_lora,
    lora_pairs,
    read_lora,
    write_lora,
)
from tiny import TRANSFORMER

LAYER = "transformer_blocks.0.attn1.to_q"
PAIR = {
    f"transformer.{LAYER}.lora_A.weight": torch.ones(4, 6),
    f"transformer.{LAYER}.lora_B.weight": torch.ones(5, 4),
}
# What JSON may hold, with numbers and texts that are odd.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [
        "r",
        "lora_alpha",
        "alpha_pattern",
        "rank_pattern",
        "use_rslora",
        "use_dora",
        "peft_type",
        "init_lora_weights",
        "target_modules",
        "fan_in_fan_out",
        "modules_to_save",
        "bias",
    ]
)
SHAPES = st.lists(st.integers(0, 4), max_size=5).map(tuple)
KINDS = st.sampled_from(
    [
        "lora_A.weight",
        "lora_B.weight",
        "lora_B.bias",
        "lora_magnitude_vector",
        "alpha",
        "dora_scale",
        "lora_down.weight",
        "lora_up.weight",
        "lora_mid.weight",
        "lora_A.x.weight",
    ]
)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64])
TENSORS = st.builds(lambda shape, dtype: torch.ones(shape).to(dtype), SHAPES, DTYPES)
some = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


def model() -> nn.Module:
    block = nn.ModuleDict({"attn1": nn.ModuleDict({"to_q": nn.Linear(6, 5)})})
    return nn.ModuleDict({"transformer_blocks": nn.ModuleList([block])})


def scale_of(metadata: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> float:
    prefixed = {f"transformer.{name}": value for name, value in metadata.items()}
    return lora_pairs({**PAIR, **(tensors or {})}, source="file", metadata=prefixed)[LAYER].scale


@some
@given(st.dictionaries(FIELDS | st.text(max_size=8), VALUES, max_size=4))
def test_metadata_of_any_kind_give_a_finite_scale_or_are_refused(metadata: dict[str, Any]) -> None:
    with suppress(SanakitError):
        assert math.isfinite(scale_of(metadata))


@some
@given(st.dictionaries(KINDS, TENSORS, max_size=5))
def test_tensors_of_any_shape_fit_or_are_refused(parts: dict[str, Tensor]) -> None:
    tensors = {f"{LAYER}.{kind}": tensor for kind, tensor in parts.items()}
    with suppress(SanakitError):
        fitted = fit_lora(model(), lora_pairs(tensors, source="file"), source="file")
        assert fitted[LAYER].up.shape[0] == 5
        assert fitted[LAYER].down.shape[1] == 6


@pytest.mark.parametrize("form", ["{}", "base_model.model.{}", "diffusion_model.{}", "lora_unet_"])
def test_a_lora_by_the_original_names_is_that_of_the_converted_weights(form: str) -> None:
    state = original_transformer(TRANSFORMER)
    keymap = transformer_keymap(TRANSFORMER)
    network = LinearDiT(TRANSFORMER)
    tensors, changed = {}, dict(state)
    for name, weight in state.items():
        kernel = weight.shape[2:]
        if not name.endswith(".weight") or weight.ndim < 2 or kernel.numel() > 1:
            continue
        down, up = torch.randn(2, *weight.shape[1:]), torch.randn(len(weight), 2, *kernel)
        layer = name.removesuffix(".weight")
        given = form.format(layer) if "{" in form else form + layer.replace(".", "_")
        tensors |= {f"{given}.lora_A.weight": down, f"{given}.lora_B.weight": up}
        changed[name] = weight + (up.flatten(1) @ down.flatten(1)).view_as(weight)
    fitted = fit_lora(network, lora_pairs(tensors, source="file"), source="file")
    before, after = (keymap.to_published(each, source="file") for each in (state, changed))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {f"{layer}.weight" for layer in fitted} == moved
    assert "transformer_blocks.1.attn2.to_v.weight" in moved
    for layer, pair in fitted.items():
        change = (pair.up.flatten(1) @ pair.down.flatten(1)).view_as(before[f"{layer}.weight"])
        expected = after[f"{layer}.weight"] - before[f"{layer}.weight"]
        assert_close(change, expected, atol=1e-5, rtol=0)


def test_all_rows_of_a_fused_layer_are_split_alike() -> None:
    width = TRANSFORMER.width
    fused = {
        "blocks.0.attn.qkv.lora_A.weight": torch.ones(2, width),
        "blocks.0.attn.qkv.lora_B.weight": torch.arange(6.0 * width).view(-1, 2),
        "blocks.0.attn.qkv.lora_B.bias": torch.arange(3.0 * width),
        "blocks.0.cross_attn.kv_linear.lora_A.weight": torch.ones(2, width),
        "blocks.0.cross_attn.kv_linear.lora_B.weight": torch.ones(2 * width, 2),
        "blocks.0.cross_attn.kv_linear.dora_scale": torch.arange(2.0 * width)[:, None],
        "blocks.0.attn.qkv.alpha": torch.tensor(8.0),
    }
    fitted = fit_lora(LinearDiT(TRANSFORMER), lora_pairs(fused, source="file"), source="file")
    key = fitted["transformer_blocks.0.attn1.to_k"]
    assert key.scale == 4.0
    assert key.up[0].tolist() == [2.0 * width, 2.0 * width + 1]
    assert key.bias is not None
    assert key.bias[0] == width
    value = fitted["transformer_blocks.0.attn2.to_v"]
    assert value.magnitude is not None
    assert value.magnitude[0] == width
    fused["blocks.0.attn.qkv.lora_B.weight"] = torch.ones(3 * width + 1, 2)
    with pytest.raises(WeightsError, match="cannot be split into 3 equal parts"):
        fit_lora(LinearDiT(TRANSFORMER), lora_pairs(fused, source="file"), source="file")


@pytest.mark.parametrize(
    "written",
    [
        "[" * 100_000,
        "[]",
        "1",
        '{"a": ' + "9" * 5000 + "}",
        '{"transformer.r": 1',
        "null",
        "\ud800",
    ],
    ids=range(7),
)
def test_metadata_that_are_no_object_are_refused(written: str, tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    text = written.encode("utf-8", "replace").decode()
    save_file(PAIR, file, {METADATA: text})
    if written == "null":
        assert read_lora(file)[LAYER].alpha is None
    else:
        with pytest.raises(WeightsError, match="no JSON"):
            read_lora(file)


def test_the_scale_is_that_of_peft() -> None:
    assert scale_of({}) == 1.0
    assert scale_of({"lora_alpha": 2}) == 0.5
    assert scale_of({"lora_alpha": 2, "use_rslora": True}) == 1.0
    assert scale_of({"use_rslora": True, "lora_alpha": 1}) == 0.5
    patterns = {r"^transformer_blocks\.0\.attn1\.to_q": 8, "to_q": 1}
    assert scale_of({"lora_alpha": 2, "alpha_pattern": patterns}) == 2.0
    assert scale_of({"lora_alpha": 2, "alpha_pattern": {"tn1.to_q": 8}}) == 0.5
    alpha = {f"{LAYER}.alpha": torch.tensor(3)}
    assert scale_of({"lora_alpha": 2}, alpha) == 0.75


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"alpha_pattern": {"(a+)+$": 1}}, "no name of a layer"),
        ({"init_lora_weights": "pissa"}, "changes the model's own weights"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out of PEFT is not supported"),
        ({"peft_type": "LOHA"}, "no LoRA"),
        ({"lora_alpha": True}, "must be a number"),
    ],
)
def test_what_would_mean_other_weights_is_refused(metadata: dict[str, Any], said: str) -> None:
    with pytest.raises(SanakitError, match=said):
        scale_of(metadata)


def test_a_written_file_says_what_was_read(tmp_path: Path) -> None:
    pairs = {
        "a.to_q": LoraPair(
            down=torch.ones(4, 6), up=torch.ones(5, 4), alpha=2.0, rslora=True, bias=torch.ones(5)
        ),
        "b": LoraPair(
            down=torch.ones(2, 6),
            up=torch.ones(5, 2),
            alpha=7.0,
            rslora=True,
            magnitude=torch.ones(5),
        ),
    }
    file = tmp_path / "lora.safetensors"
    write_lora(file, pairs)
    back = read_lora(file)
    assert {name: pair.scale for name, pair in back.items()} == {
        name: pair.scale for name, pair in pairs.items()
    }
    assert back["a.to_q"].bias is not None
    assert back["b"].magnitude is not None
    config = AdapterConfig.of(back)
    assert (config.r, config.rank_pattern, config.use_dora) == (4, {"b": 2}, True)
    json.dumps(config.to_dict())
