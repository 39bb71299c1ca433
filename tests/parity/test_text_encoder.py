"""The text side against transformers run on full padding, and against diffusers' SanaPipeline."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from diffusers import SanaPipeline
from torch.testing import assert_close
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2Model,
    T5Config,
    T5EncoderModel,
    T5Model,
)

from sanakit.errors import ConfigError
from sanakit.models.text_encoder import TextEncoder, length_mask
from sanakit.pipeline.prompt import EncodedText, PromptEncoder, instruction_lines, padded

TOKENIZER = Path(__file__).parents[1] / "assets" / "tokenizer"
SMALL = {"vocab_size": 1024, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
PROMPTS = [
    "",
    "a",
    "  A Red Apple on a TABLE  ",
    "😀 a smile",
    "红色的苹果",
    "\n, comma first",
    "<eos> spelt out <0x41>",
    "an extremely long story of a cat and a dog " * 40,
]


def gemma2(**more: object) -> Gemma2Model:
    torch.manual_seed(0)
    # A small softcap, so that leaving it out would show; weights large enough to reach it.
    config = Gemma2Config(
        **{**SMALL, **HEADS, **IDS, "attn_logit_softcapping": 2.0, "initializer_range": 0.3, **more}
    )
    return Gemma2Model(config).eval()


def decoders() -> list[PreTrainedModel]:
    torch.manual_seed(0)
    shared = {**SMALL, "num_attention_heads": 2, "num_key_value_heads": 1}
    llama, qwen = LlamaModel(LlamaConfig(**shared)), Qwen2Model(Qwen2Config(**shared))
    return [gemma2(), llama, qwen]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TOKENIZER)


@pytest.fixture(scope="module")
def ours(tokenizer: PreTrainedTokenizerBase) -> PromptEncoder:
    return PromptEncoder(tokenizer, TextEncoder(gemma2()))


@pytest.fixture(scope="module")
def reference(tokenizer: PreTrainedTokenizerBase) -> SanaPipeline:
    return SanaPipeline(tokenizer, gemma2(), vae=None, transformer=None, scheduler=None)


@pytest.mark.parametrize("llm", decoders(), ids=lambda llm: type(llm).__name__)
def test_padding_to_the_longest_equals_padding_to_300_on_real_tokens(llm: PreTrainedModel) -> None:
    sequences = [[2, 5, 6, 7, 8, 9, 10], [2], [2, 900, 3, 4]]
    states, mask = TextEncoder(llm).encode(sequences)
    assert states.shape == (3, 7, 16)
    assert mask.sum(dim=1).tolist() == [7, 1, 4]
    for row, sequence in enumerate(sequences):
        ids = torch.zeros(1, 300, dtype=torch.long)
        ids[0, : len(sequence)] = torch.tensor(sequence)
        with torch.no_grad():
            expected = llm.eval()(ids, attention_mask=length_mask([len(sequence)], 300).long())[0]
        real = slice(len(sequence))
        assert_close(states[row, real], expected[0, real], rtol=0, atol=1e-5)


def test_states_are_those_after_the_final_norm() -> None:
    llm = gemma2()
    with torch.no_grad():
        llm.norm.weight.fill_(-1)  # Gemma scales by 1 + weight
    states, _ = TextEncoder(llm).encode([[2, 5, 6]])
    assert not states.any()


def test_the_head_of_a_causal_language_model_is_left_aside() -> None:
    whole = Gemma2ForCausalLM(Gemma2Config(**SMALL, **HEADS, **IDS)).eval()
    states, _ = TextEncoder(whole).encode([[2, 5]])
    alone, _ = TextEncoder(whole.model).encode([[2, 5]])
    assert torch.equal(states, alone)
    assert TextEncoder(whole).width == states.shape[-1]


def test_gradients_never_flow_into_the_text_encoder() -> None:
    states, _ = TextEncoder(gemma2()).encode([[2, 5]])
    assert not states.requires_grad


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: T5Model(T5Config(vocab_size=8, d_model=8, num_layers=1)), "encoder-decoder"),
        (lambda: T5EncoderModel(T5Config(vocab_size=8, d_model=8, num_layers=1)), "not a causal"),
        (lambda: BertModel(BertConfig(vocab_size=8, num_hidden_layers=1)), "not a causal"),
    ],
)
def test_models_that_are_no_decoders_are_refused_with_the_reason(build, reason: str) -> None:  # noqa: ANN001
    with pytest.raises(ConfigError, match=reason) as caught:
        TextEncoder(build())
    assert "Gemma2Model" in str(caught.value)


def test_a_softcap_that_sdpa_would_skip_is_refused() -> None:
    llm = gemma2()
    llm.config._attn_implementation = "sdpa"
    with pytest.raises(ConfigError, match=r"softcap of 2\.0"):
        TextEncoder(llm)


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one token"):
        TextEncoder(gemma2()).encode([[2], []])


def test_the_instruction_is_the_published_one() -> None:
    default = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"]
    assert list(instruction_lines("single")) == default.default


def assert_same(encoded: EncodedText, text: torch.Tensor, mask: torch.Tensor) -> None:
    ours_text, ours_mask = padded(encoded, text.shape[1])
    assert torch.equal(ours_mask, mask.bool())
    assert_close(ours_text[ours_mask], text[ours_mask], rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [300, 12, 2, 1])
@pytest.mark.parametrize("instruction", [instruction_lines(), ("Draw this: ",), ("Draw", "this:")])
def test_prompts_behind_an_instruction_equal_the_reference(
    ours: PromptEncoder, reference: SanaPipeline, instruction: tuple[str, ...], length: int
) -> None:
    text, mask, null, null_mask = reference.encode_prompt(
        PROMPTS,
        True,
        device=torch.device("cpu"),
        max_sequence_length=length,
        complex_human_instruction=list(instruction),
    )
    encoded = ours.encode(PROMPTS, instruction=instruction, max_sequence_length=length)
    # With one token the reference's index [0] + range(0, 0) still works.
    assert_same(encoded, text, mask)
    nulls = ours.encode_null([""] * len(PROMPTS), encoded, max_sequence_length=length)
    assert_same(nulls, null, null_mask)


@pytest.mark.parametrize("length", [300, 12])
@pytest.mark.parametrize("instruction", [None, []])
def test_prompts_and_negatives_without_an_instruction_equal_the_reference(
    ours: PromptEncoder, reference: SanaPipeline, instruction: list[str] | None, length: int
) -> None:
    negatives = PROMPTS[::-1]
    text, mask, null, null_mask = reference.encode_prompt(
        PROMPTS,
        True,
        negatives,
        device=torch.device("cpu"),
        max_sequence_length=length,
        complex_human_instruction=instruction,
    )
    encoded = ours.encode(PROMPTS, instruction=instruction, max_sequence_length=length)
    assert_same(encoded, text, mask)
    nulls = ours.encode_null(negatives, encoded, max_sequence_length=length)
    assert_same(nulls, null, null_mask)


def test_the_nvlabs_null_reads_padding_states_under_the_mask_of_the_prompt(
    ours: PromptEncoder, tokenizer: PreTrainedTokenizerBase
) -> None:
    negatives = ["", "Ugly, blurred and much longer than the prompt that it stands beside"]
    encoded = ours.encode(["a big red apple", "a"], instruction=None, compat="nvlabs")
    null = ours.encode_null(negatives, encoded, compat="nvlabs")
    full = tokenizer(negatives, padding="max_length", max_length=300, return_tensors="pt")
    with torch.no_grad():
        expected = gemma2()(full.input_ids, attention_mask=full.attention_mask)[0]
    assert torch.equal(null.mask, encoded.mask)
    width = encoded.mask.shape[1]
    kept = expected[:, :width][encoded.mask]
    assert_close(null.text[encoded.mask], kept, rtol=0, atol=1e-5)
    assert null.dropped[0] == 0
    assert null.dropped[1] == int(full.attention_mask[1].sum()) - width
