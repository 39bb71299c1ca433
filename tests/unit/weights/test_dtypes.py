from __future__ import annotations

import pytest
import torch
from torch import nn

from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AUTOENCODERS
from sanakit.models.published import say_once
from sanakit.weights.catalog import CATALOG, Checkpoint, find_checkpoint
from sanakit.weights.dtypes import Dtypes, overflowing_of, recommended, resolve_dtypes

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
FOR_FP16 = find_checkpoint("sana-1.6b")
FOR_BF16 = find_checkpoint("sana1.5-1.6b")
EVERY = [None, *CATALOG]


def all_in(dtype: torch.dtype) -> Dtypes:
    return Dtypes(transformer=dtype, text_encoder=dtype, vae=dtype)


def beside(transformer: torch.dtype, others: torch.dtype) -> Dtypes:
    return Dtypes(transformer=transformer, text_encoder=others, vae=others)


@pytest.mark.parametrize("requested", [FP16, BF16, FP32, None])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_no_single_dtype_ever_puts_a_component_where_it_overflows(
    requested: torch.dtype | None, device: str
) -> None:
    for checkpoint in EVERY:
        needs_bf16 = checkpoint is not None and checkpoint.dtype == "bfloat16"
        if needs_bf16 and requested == FP16:
            with pytest.raises(ConfigError):
                resolve_dtypes(checkpoint, requested, device=device)
            continue
        chosen = resolve_dtypes(checkpoint, requested, device=device)
        assert FP16 not in (chosen.text_encoder, chosen.vae)
        assert chosen.transformer != FP16 or not needs_bf16


@pytest.mark.parametrize("checkpoint", [None, FOR_FP16])
def test_a_scalar_is_the_transformers_dtype_and_fp16_means_bf16_for_the_others(
    checkpoint: Checkpoint | None,
) -> None:
    assert resolve_dtypes(checkpoint, FP16) == beside(FP16, BF16)
    assert resolve_dtypes(checkpoint, {"default": FP16}) == beside(FP16, BF16)
    assert resolve_dtypes(checkpoint, BF16) == all_in(BF16)
    assert resolve_dtypes(checkpoint, FP32) == all_in(FP32)


def test_saying_nothing_means_the_recommended_dtype_on_a_gpu_and_fp32_elsewhere() -> None:
    assert resolve_dtypes(FOR_FP16, None, device="cuda:1") == beside(FP16, BF16)
    assert resolve_dtypes(FOR_BF16, None, device=torch.device("cuda")) == all_in(BF16)
    assert resolve_dtypes(FOR_FP16, None) == all_in(FP32)
    assert resolve_dtypes(FOR_FP16, None, device="mps") == all_in(FP32)
    assert resolve_dtypes(None, None, device="cuda") == all_in(FP32)


def test_an_autoencoder_has_no_recommendation_and_stays_in_fp32() -> None:
    autoencoder = find_checkpoint("dc-ae-f32c32-sana")
    assert autoencoder is not None
    assert recommended(autoencoder) == FP32
    assert resolve_dtypes(autoencoder, None, device="cuda") == all_in(FP32)


def test_a_mapping_names_components_and_leaves_the_rest_to_the_default() -> None:
    assert resolve_dtypes(FOR_FP16, {"transformer": FP16}) == beside(FP16, FP32)
    assert resolve_dtypes(FOR_FP16, {"default": BF16, "vae": FP32}) == Dtypes(
        transformer=BF16, text_encoder=BF16, vae=FP32
    )
    given = {"default": BF16, "vae": FP32}
    resolve_dtypes(None, given)
    assert given == {"default": BF16, "vae": FP32}


@pytest.mark.parametrize("requested", [FP16, {"transformer": FP16}, {"default": FP16}])
def test_a_checkpoint_for_bf16_is_refused_in_fp16_with_the_reason_and_the_way_out(
    requested: object,
) -> None:
    with pytest.raises(ConfigError, match=r"sana1.5-1.6b.*overflows in float16") as caught:
        resolve_dtypes(FOR_BF16, requested)
    assert "torch.bfloat16" in str(caught.value.hint)
    assert "allow_unsafe_dtype=True" in str(caught.value.hint)
    assert resolve_dtypes(FOR_BF16, requested, allow_unsafe=True).transformer == FP16


@pytest.mark.parametrize("name", ["text_encoder", "vae"])
@pytest.mark.parametrize("checkpoint", [None, FOR_FP16, FOR_BF16])
def test_fp16_for_a_part_by_name_is_what_it_gets_and_that_it_overflows_is_said_once(
    name: str, checkpoint: Checkpoint | None, caplog: pytest.LogCaptureFixture
) -> None:
    say_once.cache_clear()
    for _ in range(2):
        assert getattr(resolve_dtypes(checkpoint, {name: FP16}), name) == FP16
    (said,) = caplog.messages
    assert said.startswith(f"{name} in float16 overflows")
    assert f"{{'{name}': torch.bfloat16}}" in said
    caplog.clear()
    say_once.cache_clear()
    resolve_dtypes(checkpoint, {name: FP16}, allow_unsafe=True)
    resolve_dtypes(checkpoint, {name: FP16}, overflowing=())
    assert not caplog.messages


def test_fp16_means_bf16_for_large_parts_alone() -> None:
    large = nn.Linear(10**4, 10**4 + 1, device="meta")
    small = nn.Linear(10**4, 10**4 - 1, device="meta")
    assert overflowing_of(text_encoder=large, vae=small) == ["text_encoder"]
    assert overflowing_of(text_encoder=None, vae=large) == ["vae"]
    assert resolve_dtypes(None, FP16, overflowing=["text_encoder"]) == Dtypes(
        transformer=FP16, text_encoder=BF16, vae=FP16
    )
    with torch.device("meta"):
        assert overflowing_of(vae=Autoencoder(AUTOENCODERS["dc-ae-f32c32-sana-1.0"]))
        assert not overflowing_of(vae=Autoencoder(AUTOENCODERS["glyph"]))


def test_permission_is_for_what_was_named_not_for_what_follows_from_it() -> None:
    assert resolve_dtypes(FOR_BF16, FP16, allow_unsafe=True) == beside(FP16, BF16)


def test_an_unknown_component_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"'txt_encoder'.*\n.*did you mean 'text_encoder'"):
        resolve_dtypes(None, {"txt_encoder": BF16})
    every = "known: transformer, text_encoder, vae, controlnet, default"
    with pytest.raises(ConfigError, match=every):
        resolve_dtypes(None, {"": BF16})


@pytest.mark.parametrize("wrong", [torch.int8, "bfloat16", torch.float8_e4m3fn, 16])
def test_what_is_no_dtype_for_weights_is_refused_even_when_unsafe(wrong: object) -> None:
    for requested in (wrong, {"vae": wrong}):
        with pytest.raises(ConfigError, match="torch_dtype") as caught:
            resolve_dtypes(None, requested, allow_unsafe=True)
        assert "torch.bfloat16" in str(caught.value.hint)
