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
    GPT2Config,
    GPT2Model,
    Llama4TextConfig,
    Llama4TextModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
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
from sanakit.pipeline.prompts import (
    EncodedText,
    PromptCache,
    PromptEncoder,
    instruction_lines,
)

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "assets" / "tokenizer"
SMALL = {"vocab_size": 1024, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
TOKENS = {"bos_token_id": 2, "eos_token_id": 1}
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


def windowed() -> list[PreTrainedModel]:
    """Decoders whose window is shorter than the prefix, and one that counts its positions."""
    torch.manual_seed(0)
    shared = {**SMALL, "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3}
    mistral = MistralModel(MistralConfig(**shared, sliding_window=5))
    gpt2 = GPT2Model(GPT2Config(vocab_size=1024, n_embd=16, n_layer=2, n_head=2, **TOKENS))
    return [gemma2(sliding_window=3), gemma2(sliding_window=8), mistral, gpt2.eval()]


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


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("llm", [*decoders(), *windowed()], ids=lambda llm: type(llm).__name__)
def test_tokens_behind_a_prefix_have_the_states_that_they_have_in_the_whole(
    llm: PreTrainedModel, attention: str
) -> None:
    if attention == "sdpa" and not llm._supports_sdpa:
        pytest.skip("transformers has no such attention for this model")
    llm.set_attn_implementation(attention)
    encoder, start = TextEncoder(llm), [2, 5, 6, 7, 8, 9, 10]
    prefix = encoder.read_prefix(start)
    assert prefix is not None
    for sequences in ([[11, 12, 13, 14, 15, 16, 17], [3], [], [4, 5]], [[900]], [[], []]):
        whole, mask = encoder.encode([[*start, *sequence] for sequence in sequences])
        kept = [0, *range(len(start), whole.shape[1])]
        for _ in range(2):  # the first time leaves the prefix as it was
            states, own_mask = encoder.encode_behind(prefix, sequences)
            assert torch.equal(own_mask, mask[:, kept])
            assert states.isfinite().all()
            assert_close(states[own_mask], whole[:, kept][own_mask], rtol=0, atol=1e-5)


def test_an_llm_that_attends_in_chunks_sees_every_prefix_anew(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config = Llama4TextConfig(**SMALL, **heads, num_local_experts=2, attention_chunk_size=4)
    torch.manual_seed(0)
    encoder = TextEncoder(Llama4TextModel(config))
    assert encoder.read_prefix([2, 5, 6]) is None
    cached = PromptEncoder(tokenizer, encoder)
    plain = PromptEncoder(tokenizer, encoder, cache=PromptCache.off())
    settings = {"instruction": instruction_lines()}
    assert torch.equal(cached.encode(["a"], **settings).text, plain.encode(["a"], **settings).text)


def test_a_prefix_of_an_8_bit_encoder_is_that_of_its_own_weights() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    llm = gemma2(hidden_size=64, intermediate_size=64)
    for layer in llm.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            plain = getattr(layer.mlp, name)
            packed = bitsandbytes.nn.Linear8bitLt(
                plain.in_features, plain.out_features, bias=False, has_fp16_weights=False
            )
            packed.load_state_dict(plain.state_dict())
            setattr(layer.mlp, name, packed.to("cpu"))
    encoder, start = TextEncoder(llm), [2, 5, 6, 7]
    cache = PromptCache(prompt_bytes=0)
    prefix = cache.prefix(encoder, start)
    assert prefix is not None
    sequences = [[11, 12, 13], [3]]
    whole, mask = encoder.encode([[*start, *sequence] for sequence in sequences])
    states, own_mask = encoder.encode_behind(prefix, sequences)
    kept = whole[:, [0, 4, 5, 6]]
    assert_close(states[own_mask], kept[mask[:, [0, 4, 5, 6]]], rtol=0, atol=1e-5)
    assert cache.prefix(encoder, start) is prefix


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
    ours = encoded.widened(text.shape[1])
    assert torch.equal(ours.mask, mask.bool())
    assert_close(ours.text[ours.mask], text[ours.mask], rtol=0, atol=1e-5)


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
