"""What is kept between calls: an instruction runs once, a finished prompt not again."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model, PreTrainedTokenizerBase

from sanakit.errors import ConfigError
from sanakit.models.stamp import checksum_of, settings_of
from sanakit.models.text_encoder import TextEncoder
from sanakit.pipeline import prompts
from sanakit.pipeline.prompts import (
    COMPLEX_HUMAN_INSTRUCTION,
    PromptCache,
    PromptEncoder,
    instruction_lines,
)

TOKENIZER = Path(__file__).parents[2] / "fixtures" / "assets" / "tokenizer"
BEHIND = {"instruction": COMPLEX_HUMAN_INSTRUCTION}
INSTRUCTION_TOKENS = 302  # of the test tokenizer, without the last, which is the prompt's


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TOKENIZER)


def tiny(seed: int = 0) -> TextEncoder:
    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=1024,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        query_pre_attn_scalar=4,
        initializer_range=0.3,
    )
    return TextEncoder(Gemma2Model(config))


def make(
    tokenizer: PreTrainedTokenizerBase, cache: PromptCache, text_encoder: TextEncoder | None = None
) -> PromptEncoder:
    return PromptEncoder(tokenizer, text_encoder or tiny(), cache=cache)


def in_memory() -> PromptCache:
    return PromptCache(prompt_bytes=0)


@contextmanager
def runs(text_encoder: TextEncoder) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of all token batches that the LLM is given in the block."""
    seen: list[tuple[int, ...]] = []
    look_up = torch.nn.functional.embedding

    def noted(ids: torch.Tensor, weight: torch.Tensor, *more: object) -> torch.Tensor:
        if weight is text_encoder.llm.get_input_embeddings().weight:
            seen.append(tuple(ids.shape))
        return look_up(ids, weight, *more)

    # A hook would be a change of the network.
    with mock.patch.object(torch.nn.functional, "embedding", noted):
        yield seen


def test_the_instruction_runs_once_and_then_only_the_prompts_own_tokens(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    encoder = make(tokenizer, in_memory())
    with runs(encoder.text_encoder) as seen:
        encoder.encode(["a"], **BEHIND)
        encoder.encode(["a", "a cat", ""], **BEHIND)
    own = encoder.encode(["a cat"], **BEHIND).mask.shape[1] - 1
    assert seen == [(1, INSTRUCTION_TOKENS), (1, 1), (1, 1), (1, own), (1, 1)]


def test_on_the_cpu_a_prompt_has_the_bits_that_it_has_alone(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    prompts = ["a", "a cat", "a long story of a cat " * 9]
    for cache in (in_memory(), PromptCache.off()):
        encoder = make(tokenizer, cache)
        together = encoder.encode(prompts, **BEHIND)
        for row, prompt in enumerate(prompts):
            alone = encoder.encode([prompt], **BEHIND).text
            assert torch.equal(together.text[row : row + 1, : alone.shape[1]], alone)


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "row by row"])
@pytest.mark.parametrize("most", [300, 5, 2, 1])
def test_what_was_kept_changes_nothing(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, most: int, at_once: bool
) -> None:
    if at_once:  # as on other devices
        monkeypatch.setattr(PromptEncoder, "_batches", lambda self, sequences: [sequences])
    prompts = ["", "a red apple", "😀", "a long story of a cat " * 9]
    cached, plain = make(tokenizer, in_memory()), make(tokenizer, PromptCache.off())
    for instruction in (instruction_lines("single"), instruction_lines("double"), ("Draw:",)):
        settings = {"instruction": instruction, "max_sequence_length": most}
        for _ in range(2):
            ours, expected = cached.encode(prompts, **settings), plain.encode(prompts, **settings)
            assert torch.equal(ours.mask, expected.mask)
            assert ours.dropped == expected.dropped
            real = ours.mask
            assert_close(ours.text[real], expected.text[real], rtol=0, atol=1e-5)


def test_a_prompt_that_joins_the_template_runs_with_it(tokenizer: PreTrainedTokenizerBase) -> None:
    # "a Prompt" is two pieces; "a Prom" alone is more, and other ones.
    cached, plain = make(tokenizer, in_memory()), make(tokenizer, PromptCache.off())
    prompts, settings = ["pt", "x"], {"instruction": ("a Prom",)}
    alone = tokenizer("a Prom")["input_ids"][:-1]
    assert tokenizer("a Prompt")["input_ids"][: len(alone)] != alone
    with runs(cached.text_encoder) as seen:
        ours = cached.encode(prompts, **settings)
    whole, own = (len(tokenizer(f"a Prom{prompt}")["input_ids"]) for prompt in prompts)
    assert seen == [(1, whole), (1, len(alone)), (1, own - len(alone))]
    expected = plain.encode(prompts, **settings)
    assert torch.equal(ours.mask, expected.mask)
    assert_close(ours.text[ours.mask], expected.text[ours.mask], rtol=0, atol=1e-5)


def test_without_a_cache_every_call_runs_everything(tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = make(tokenizer, PromptCache.off())
    with runs(encoder.text_encoder) as seen:
        encoder.encode(["a"], **BEHIND)
        encoder.encode(["a"], **BEHIND)
    assert seen == [(1, INSTRUCTION_TOKENS + 1)] * 2


def double_weights(text_encoder: TextEncoder) -> None:
    with torch.no_grad():
        for parameter in text_encoder.parameters():
            parameter.mul_(2)


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.to(torch.bfloat16),
        lambda e: e.llm.to(torch.bfloat16),
        lambda e: e.to(torch.bfloat16).to(torch.float32),
        double_weights,
        lambda e: e.load_state_dict(tiny(1).state_dict()),
        lambda e: e.load_state_dict(tiny(1).state_dict(), assign=True),
    ],
    ids=["cast", "cast inside", "rounded", "written to", "loaded", "replaced"],
)
def test_nothing_outlives_a_change_of_the_weights(
    tokenizer: PreTrainedTokenizerBase,
    change,  # noqa: ANN001
) -> None:
    encoder = make(tokenizer, PromptCache())
    encoder.encode(["a cat"], **BEHIND)
    change(encoder.text_encoder)
    fresh = make(tokenizer, PromptCache(), copy.deepcopy(encoder.text_encoder))
    changed = encoder.encode(["a cat"], **BEHIND)
    assert torch.equal(changed.text, fresh.encode(["a cat"], **BEHIND).text)


def test_a_stamp_stays_while_the_weights_are_used_and_changes_when_they_do() -> None:
    def stamp() -> object:
        return settings_of(text_encoder.llm), checksum_of(text_encoder.llm)

    text_encoder = tiny()
    before = stamp()
    text_encoder.encode([[1, 2]])
    assert stamp() == before
    with torch.no_grad():
        text_encoder.llm.norm.weight.add_(1)
    written = stamp()
    text_encoder.llm.to(torch.bfloat16)
    assert len({before, written, stamp()}) == 3


def test_a_finished_prompt_is_not_run_again_and_belongs_to_the_caller(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    encoder = make(tokenizer, PromptCache())
    first = encoder.encode(["a cat", "a"], **BEHIND)
    null = encoder.encode_null(["", "x"], first, compat="nvlabs")
    expected = first.text.clone(), null.text.clone()
    first.text.zero_()
    with runs(encoder.text_encoder) as seen:
        again = encoder.encode([" A cat ", "A"], **BEHIND)
        again_null = encoder.encode_null(["", "x"], again, compat="nvlabs")
        assert torch.equal(again.text, expected[0])
        assert torch.equal(again_null.text, expected[1])
        again.text.zero_()
        assert torch.equal(encoder.encode(["a cat", "a"], **BEHIND).text, expected[0])
    assert seen == []
    assert torch.equal(again.mask, first.mask)


def test_every_setting_that_changes_a_result_is_another_content(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    cached, plain = make(tokenizer, PromptCache()), make(tokenizer, PromptCache.off())
    calls = [
        {"instruction": None},
        {"instruction": ["Draw: "]},
        {"instruction": ["Draw: "], "max_sequence_length": 3},
        {"instruction": None, "compat": "nvlabs"},
        {"instruction": None, "clean_caption": True},
    ]
    for settings in calls * 2:
        ours = cached.encode(["A <b>cat</b>"], **settings)
        expected = plain.encode(["A <b>cat</b>"], **settings)
        assert_close(ours.text, expected.text, rtol=0, atol=1e-5)


def test_the_same_words_with_and_without_an_instruction_are_two_contents(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    encoder = make(tokenizer, PromptCache())
    whole = encoder.encode(["draw: a cat"], instruction=None)
    behind = encoder.encode(["a cat"], instruction=["draw: "])
    assert behind.mask.sum() < whole.mask.sum()


def test_nulls_of_one_length_are_told_apart_by_their_words(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    encoder = make(tokenizer, PromptCache())
    beside = encoder.encode(["a cat"], **BEHIND)
    a, b = (encoder.encode_null([text], beside, compat="nvlabs").text for text in ("a", "b"))
    assert not torch.equal(a, b)


def test_memory_for_prompts_is_bounded_and_the_oldest_go(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    one = 2 * (8 * 4 + 1)  # bos and "▁a" in fp32, and their mask
    cache = PromptCache(prompt_bytes=2 * one)
    encoder = make(tokenizer, cache)
    for prompt in ("a", "b", "a", "c"):  # "b" is what was not used for longest
        encoder.encode([prompt], **BEHIND)
        assert cache.memory_bytes <= 2 * one
    with runs(encoder.text_encoder) as seen:
        encoder.encode(["a"], **BEHIND)
        encoder.encode(["c"], **BEHIND)
        assert seen == []
        encoder.encode(["b"], **BEHIND)
        encoder.encode(["a cat on a table in a house"], **BEHIND)
    assert len(seen) == 2
    assert cache.memory_bytes == 2 * one
    cache.clear()
    assert cache.memory_bytes == 0


def test_few_instructions_are_held_at_a_time(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "MAX_PREFIXES", 2)
    encoder = make(tokenizer, in_memory())
    with runs(encoder.text_encoder) as seen:
        for lines in (["one: "], ["two: "], ["one: "], ["three: "], ["one: "], ["two: "]):
            encoder.encode(["a"], instruction=lines)
    # Four prefixes were run: "two" twice.
    assert len(seen) == 6 + 4


def test_threads_share_one_run_of_the_instruction(tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = make(tokenizer, PromptCache())
    plain = make(tokenizer, PromptCache.off())
    prompts = [word * count for word in ("a ", "cat ") for count in (1, 2, 3, 4)] * 2
    with runs(encoder.text_encoder) as seen, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda p: encoder.encode([p], **BEHIND), prompts))
    assert seen.count((1, INSTRUCTION_TOKENS)) == 1
    for prompt, encoded in zip(prompts, found, strict=True):
        assert_close(
            encoded.text, plain.encode([prompt], **BEHIND).text, rtol=0, atol=1e-5, msg=prompt
        )


def test_a_result_is_not_kept_if_the_weights_changed_while_it_was_made() -> None:
    text_encoder, cache = tiny(), PromptCache()

    def compute() -> tuple[torch.Tensor, torch.Tensor]:
        states = text_encoder.encode([[2, 5]])
        double_weights(text_encoder)
        return states

    cache.finished(text_encoder, "content", compute)
    assert cache.memory_bytes == 0


def test_what_inference_mode_kept_serves_training_too(tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = make(tokenizer, PromptCache())
    with torch.inference_mode():
        encoder.encode(["a"], **BEHIND)
    for prompt in ("a", "a cat"):
        text = encoder.encode([prompt], **BEHIND).text
        scale = torch.ones((), requires_grad=True)
        (text * scale).sum().backward()
        assert scale.grad is not None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_a_copy_has_the_settings_and_none_of_the_contents(
    tokenizer: PreTrainedTokenizerBase,
    copied,  # noqa: ANN001
) -> None:
    cache = PromptCache(prompt_bytes=123456)
    make(tokenizer, cache).encode(["a"], **BEHIND)
    again = copied(cache)
    assert cache.memory_bytes > again.memory_bytes == 0
    assert again.prompt_bytes == cache.prompt_bytes


def test_less_than_no_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 or more"):
        PromptCache(prompt_bytes=-1)


def test_a_prefix_has_a_token() -> None:
    with pytest.raises(ConfigError, match="at least one token"):
        tiny().read_prefix([])
