"""Rotary frequencies stay fp32 whoever casts the text encoder, and however."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2Model, LlamaConfig, LlamaModel, PreTrainedModel

from sanakit.models.text_encoder import TextEncoder
from sanakit.pipeline.components import adopt_llm
from sanakit.pipeline.placement import cast
from sanakit.quant.method import method_of
from sanakit.quant.quantize import cast_real, quantize

SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def gemma() -> PreTrainedModel:
    return Gemma2Model._from_config(Gemma2Config(**SMALL), attn_implementation="eager")


def stretched() -> PreTrainedModel:
    return LlamaModel(LlamaConfig(**SMALL, rope_parameters=STRETCHED))


def frequencies(llm: nn.Module) -> Tensor:
    return llm.get_submodule("rotary_emb").get_buffer("inv_freq")


def by_its_own_to(llm: PreTrainedModel) -> None:
    llm.to(torch.bfloat16)


def by_half(llm: PreTrainedModel) -> None:
    llm.half()


def there_and_back(llm: PreTrainedModel) -> None:
    llm.to(torch.bfloat16).to(torch.float32)


def by_a_pipeline(llm: PreTrainedModel) -> None:
    cast({"text encoder": llm}, {"text encoder": torch.bfloat16})


def around_quantized_layers(llm: PreTrainedModel) -> None:
    cast_real(llm, torch.bfloat16)


def by_quantizing(llm: PreTrainedModel) -> None:
    quantize(llm, method_of("bnb-int8"), dtype=torch.bfloat16)


CASTS = (
    by_its_own_to,
    by_half,
    there_and_back,
    by_a_pipeline,
    around_quantized_layers,
    by_quantizing,
)


@pytest.mark.parametrize("make", [gemma, stretched])
@pytest.mark.parametrize("change", CASTS)
def test_no_cast_rounds_them(
    make: Callable[[], PreTrainedModel], change: Callable[[PreTrainedModel], None]
) -> None:
    llm = TextEncoder(make()).llm
    change(llm)
    torch.testing.assert_close(frequencies(llm), frequencies(make()), rtol=0, atol=0)


@pytest.mark.parametrize("change", [by_its_own_to, there_and_back])
def test_those_that_its_owner_rounded_before_are_computed_again(
    change: Callable[[PreTrainedModel], None],
) -> None:
    llm = gemma()
    change(llm)
    assert not torch.equal(frequencies(llm).float(), frequencies(gemma()))
    encoder = adopt_llm(llm, allow_unsafe=False)
    torch.testing.assert_close(frequencies(encoder.llm), frequencies(gemma()), rtol=0, atol=0)


def test_a_copy_keeps_its_own() -> None:
    llm = TextEncoder(gemma()).llm
    for other in (copy.deepcopy(llm), pickle.loads(pickle.dumps(llm))):
        other.to(torch.bfloat16)
        assert frequencies(other).dtype == torch.float32
        assert frequencies(other) is not frequencies(llm)
    assert next(llm.parameters()).dtype == torch.float32


def test_the_300th_token_stands_where_it_stood() -> None:
    llm = TextEncoder(gemma()).llm
    places, x = torch.arange(300)[None], torch.zeros(1, 300, 64)
    before = llm.get_submodule("rotary_emb")(x, places)
    llm.to(torch.bfloat16)
    after = llm.get_submodule("rotary_emb")(x, places)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_they_move_with_the_network() -> None:
    llm = TextEncoder(gemma()).llm
    llm.to("meta", torch.bfloat16)
    assert frequencies(llm).device.type == "meta"
    assert frequencies(llm).dtype == torch.float32
    assert frequencies(TextEncoder(llm).llm).device.type == "meta", "no values yet, none compared"
