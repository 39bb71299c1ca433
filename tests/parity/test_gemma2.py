"""Our forward of the Gemma-2 family against that of transformers, on random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import Gemma2Config, PreTrainedModel
from transformers import Gemma2Model as Reference

from sanakit.models.gemma2 import (
    Gemma2Model,
    config_of,
    final_states,
    keys_and_values,
    runs_as_built,
)
from sanakit.models.text_encoder import TextEncoder, length_mask

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "query_pre_attn_scalar": 5,
    "attn_logit_softcapping": 2.0,
    "sliding_window": 3,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
SHAPES: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 1},
    {"num_key_value_heads": 4, "head_dim": 8},
    {"attn_logit_softcapping": None},
    {"sliding_window": 100},
    {"sliding_window": 1, "layer_types": ["sliding_attention"] * 3},
    {"layer_types": ["full_attention", "full_attention", "sliding_attention"]},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    {"rms_norm_eps": 0.1},
]


def reference(**more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    made = Reference._from_config(Gemma2Config(**SMALL | more), attn_implementation="eager")
    for name, weight in made.named_parameters():
        if "norm" in name:
            nn.init.normal_(weight, std=0.3)
    return made.eval().requires_grad_(False)


def ours(theirs: PreTrainedModel) -> Gemma2Model:
    config = config_of(theirs.config.to_dict())
    assert config is not None
    made = Gemma2Model(config).eval().requires_grad_(False)
    made.load_state_dict(theirs.state_dict())
    return made.to(theirs.dtype)


def some_ids(rows: int = 3, length: int = 9) -> torch.Tensor:
    return torch.randint(0, 64, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_states_are_those_of_the_reference(shape: dict[str, Any]) -> None:
    theirs = reference(**shape)
    ids, mask = some_ids(), length_mask([9, 4, 1])
    expected = theirs(ids, attention_mask=mask).last_hidden_state
    for network in (ours(theirs), theirs):
        assert runs_as_built(network)
        assert_close(final_states(network, ids, mask), expected, rtol=0, atol=1e-5)
        packed = final_states(network, ids, mask, every=False)
        assert_close(packed[mask], expected[mask], rtol=0, atol=1e-5)
        assert not packed[~mask].any()
    assert_close(ours(theirs)(ids, mask).last_hidden_state, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("start", range(1, 9))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_prefix_of_any_length_changes_nothing(
    shape: dict[str, Any], start: int, rows: int
) -> None:
    network = ours(reference(**shape))
    ids = some_ids(1).expand(rows, -1).clone()
    ids[:, start:] = some_ids(rows)[:, start:]
    mask = length_mask([9, 4, 1])[:rows]
    pairs, first = keys_and_values(network, ids[:1, :start])
    whole = final_states(network, ids)
    assert_close(first, whole[:1, :start], rtol=0, atol=1e-5)
    behind = final_states(network, ids[:, start:], mask[:, : 9 - start], before=pairs, every=False)
    real = mask[:, : 9 - start]
    assert_close(behind[real], whole[:, start:][real], rtol=0, atol=1e-5)


def test_neither_padding_nor_other_rows_change_a_row() -> None:
    encoder = TextEncoder(ours(reference()))
    sequences = [[2, 5, 6, 7], [9], [8] * 9]
    together, mask = encoder.encode(sequences)
    prefix = encoder.read_prefix([3, 4])
    assert prefix is not None
    assert len(prefix) == 2
    behind, _ = encoder.encode_behind(prefix, sequences)
    for row, sequence in enumerate(sequences):
        alone, _ = encoder.encode([sequence])
        assert_close(together[row, mask[row]], alone[0], rtol=0, atol=1e-5)
        one, _ = encoder.encode_behind(prefix, [sequence])
        assert_close(behind[row, : one.shape[1]], one[0], rtol=0, atol=1e-5)
        whole, _ = encoder.encode([[3, 4, *sequence]])
        assert_close(one[0], whole[0][[0, *range(2, whole.shape[1])]], rtol=0, atol=1e-5)


def test_in_bf16_states_round_as_those_of_the_reference_do() -> None:
    theirs = reference().to(torch.bfloat16)
    ids, mask = some_ids(), length_mask([9, 4, 1])
    expected = theirs(ids, attention_mask=mask).last_hidden_state
    # Three of bf16's steps at states of about 2, which three layers of the same roundings take.
    assert_close(final_states(ours(theirs), ids, mask), expected, rtol=0, atol=0.05)


def test_the_scale_of_embeddings_is_rounded_to_their_dtype() -> None:
    theirs = reference(hidden_size=24, num_attention_heads=4).to(torch.bfloat16)
    found = ours(theirs).embed_tokens(some_ids())
    assert torch.equal(found, theirs.get_input_embeddings()(some_ids()))


def test_configs_of_both_spellings_are_read() -> None:
    new = Gemma2Config(**SMALL).to_dict()
    old = {name: value for name, value in new.items() if name != "rope_parameters"}
    assert config_of(old | {"rope_theta": 10_000.0, "hidden_act": "gelu_pytorch_tanh"}) == (
        config_of(new)
    )
    published = {"model_type": "gemma2", "rope_theta": 10_000.0}
    known, made = config_of(published), Gemma2Config()
    assert known is not None
    for name in ("hidden_size", "num_hidden_layers", "head_dim", "vocab_size", "sliding_window"):
        assert getattr(known, name) == getattr(made, name)
    assert list(known.layer_types) == made.layer_types


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "gemma"},
        {"hidden_activation": "relu"},
        {"attention_bias": True},
        {"use_bidirectional_attention": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        {"rope_parameters": None},
        {"rope_parameters": 5},
        {"rope_scaling": {"factor": 2}},
        {"layer_types": ["chunked_attention"] * 3},
        {"layer_types": ["full_attention"]},
        {"layer_types": 3},
        {"sliding_window": None},
        {"num_key_value_heads": 3},
        {"head_dim": 5},
        {"head_dim": 2**30},
        {"hidden_size": True},
        {"hidden_size": 16.0},
        {"vocab_size": -1},
        {"num_hidden_layers": 10**9},
        {"rms_norm_eps": float("nan")},
    ],
    ids=str,
)
def test_what_this_network_is_not_is_left_to_transformers(values: dict[str, Any]) -> None:
    assert config_of(Gemma2Config(**SMALL).to_dict() | values) is None


def halved(module: nn.Module, given: object, output: torch.Tensor) -> torch.Tensor:
    return output / 2


def test_who_asks_for_it_gets_the_model_of_transformers_with_the_same_weights() -> None:
    own = ours(reference())
    encoder = TextEncoder(own)
    before, _ = encoder.encode([[2, 5, 6]])
    llm = encoder.published()
    assert isinstance(llm, Reference)
    assert encoder.published() is llm is encoder.llm
    pointers = [weight.data_ptr() for weight in own.parameters()]
    assert [weight.data_ptr() for weight in llm.parameters()] == pointers
    assert not any(weight.requires_grad for weight in llm.parameters())
    assert torch.equal(encoder.encode([[2, 5, 6]])[0], before)
    llm.to(torch.bfloat16)
    assert llm.get_submodule("rotary_emb").get_buffer("inv_freq").dtype == torch.float32


def test_what_a_user_hangs_on_it_acts() -> None:
    encoder = TextEncoder(ours(reference()))
    llm: Any = encoder.published()
    before, _ = encoder.encode([[2, 5, 6]])
    for part in (llm, llm.layers[0], llm.layers[1].self_attn, llm.layers[2].mlp, llm.norm):
        hook = part.register_forward_pre_hook(lambda *_: None)
        assert runs_as_built(llm) == (part is llm.norm)
        hook.remove()
    llm.norm.register_forward_hook(halved)
    assert_close(encoder.encode([[2, 5, 6]])[0], before / 2, rtol=0, atol=1e-6)
    llm.layers[0].mlp.forward = torch.zeros_like
    assert not runs_as_built(llm)
    expected = llm(torch.tensor([[2, 5, 6]])).last_hidden_state
    assert_close(encoder.encode([[2, 5, 6]])[0], expected, rtol=0, atol=0)
