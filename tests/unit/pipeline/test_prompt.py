"""What the prompt encoder keeps, drops, refuses and leaves untouched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.testing import assert_close
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model, PreTrainedTokenizerBase

from sanakit.errors import ConfigError
from sanakit.models.text_encoder import TextEncoder
from sanakit.pipeline.prompts import (
    COMPLEX_HUMAN_INSTRUCTION,
    EncodedText,
    PromptEncoder,
    cleaned,
    instruction_lines,
)

TOKENIZER = Path(__file__).parents[2] / "fixtures" / "assets" / "tokenizer"
PLAIN = {"instruction": None}
BEHIND = {"instruction": COMPLEX_HUMAN_INSTRUCTION}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TOKENIZER)


@pytest.fixture(scope="module")
def encoder(tokenizer: PreTrainedTokenizerBase) -> PromptEncoder:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=1024,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.3,
    )
    return PromptEncoder(tokenizer, TextEncoder(Gemma2Model(config)))


def test_double_quotes_change_two_characters_and_nothing_else() -> None:
    single, double = "\n".join(instruction_lines("single")), "\n".join(instruction_lines("double"))
    changed = [(a, b) for a, b in zip(single, double, strict=True) if a != b]
    assert changed == [("'", '"')] * 2


def test_the_template_gives_its_last_space_to_the_first_word(encoder: PromptEncoder) -> None:
    # bos and "▁a"; a lone "▁" would make three.
    assert encoder.encode(["a"], **BEHIND).mask.sum() == 2


def test_a_first_character_that_cannot_take_the_space_leaves_it_alone(
    encoder: PromptEncoder,
) -> None:
    # bos, "▁" and the four bytes of the emoji.
    assert encoder.encode(["😀"], **BEHIND).mask.sum() == 6


def test_the_instruction_changes_the_words_after_it_but_not_bos(encoder: PromptEncoder) -> None:
    behind, plain = encoder.encode(["a"], **BEHIND), encoder.encode(["a"], **PLAIN)
    assert_close(behind.text[:, 0], plain.text[:, 0])
    assert not torch.allclose(behind.text[:, 1], plain.text[:, 1], atol=1e-3)


def test_a_prompt_costs_the_same_alone_and_beside_a_longer_one(encoder: PromptEncoder) -> None:
    together = encoder.encode(["a cat", "a cat on a table in a house"], **BEHIND)
    alone = encoder.encode(["a cat"], **BEHIND)
    width = alone.text.shape[1]
    assert_close(together.text[:1, :width], alone.text, rtol=0, atol=1e-5)
    assert not together.mask[0, width:].any()


def test_a_tokenizer_of_another_model_is_refused_and_not_read_out_of_bounds(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    config = Gemma2Config(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    with pytest.raises(ConfigError, match="and the text encoder has 8"):
        PromptEncoder(tokenizer, TextEncoder(Gemma2Model(config))).encode(["a red tree"], **PLAIN)


@pytest.mark.parametrize("settings", [PLAIN, BEHIND], ids=["plain", "behind"])
def test_tokens_beyond_the_limit_are_counted_as_dropped(
    encoder: PromptEncoder, settings: dict[str, tuple[str, ...]]
) -> None:
    whole = encoder.encode(["a of " * 30], **settings)
    cut = encoder.encode(["a of " * 30, "a"], max_sequence_length=10, **settings)
    assert whole.dropped == (0,)
    assert cut.text.shape[1] == 10
    assert cut.dropped == (whole.text.shape[1] - 10, 0)
    assert_close(cut.text[0], whole.text[0, :10], rtol=0, atol=1e-5)


def test_case_counts_for_nvlabs_only(encoder: PromptEncoder) -> None:
    lower, upper = ["a red cat"], ["  A RED CAT "]
    as_diffusers = encoder.encode(upper, **PLAIN, compat="diffusers")
    as_nvlabs = encoder.encode(upper, **PLAIN, compat="nvlabs")
    assert torch.equal(as_diffusers.text, encoder.encode(lower, **PLAIN).text)
    assert as_nvlabs.text.shape != as_diffusers.text.shape
    stripped = encoder.encode(["A RED CAT"], **PLAIN, compat="nvlabs")
    assert torch.equal(as_nvlabs.text, stripped.text)


def test_a_call_leaves_nothing_behind(encoder: PromptEncoder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    settings = tokenizer.backend_tokenizer.to_str()
    encoder = PromptEncoder(tokenizer, encoder.text_encoder)
    before = encoder.encode(["a cat"], **BEHIND)
    encoder.encode(["a dog " * 100, ""], instruction=["Draw: "], max_sequence_length=7)
    encoder.encode_null(["blurred"], before, compat="nvlabs")
    assert tokenizer.backend_tokenizer.to_str() == settings
    assert torch.equal(encoder.encode(["a cat"], **BEHIND).text, before.text)


def test_repeats_keep_every_mask_beside_its_text(encoder: PromptEncoder) -> None:
    encoded = encoder.encode(["a cat", "a cat on a table"], **PLAIN).repeat(2)
    lengths = encoded.mask.sum(dim=1)
    assert lengths[0] == lengths[1] < lengths[2] == lengths[3]
    assert torch.equal(encoded.text[0], encoded.text[1])
    assert torch.equal(encoded.text[2], encoded.text[3])
    assert len(encoded.dropped) == 4


def test_the_published_form_is_300_wide_and_refuses_to_cut() -> None:
    encoded = EncodedText(
        text=torch.ones(1, 3, 8), mask=torch.ones(1, 3, dtype=torch.bool), dropped=(0,)
    )
    wide = encoded.widened()
    assert wide.text.shape == (1, 300, 8)
    assert wide.mask.sum() == 3
    assert wide.text.sum() == 24
    with pytest.raises(ConfigError, match="less than the 3 tokens"):
        encoded.widened(2)


def test_an_empty_prompt_is_one_bos(encoder: PromptEncoder) -> None:
    assert encoder.encode([""], **PLAIN).mask.tolist() == [[True]]


def test_a_tokenizer_without_bos_still_gives_an_empty_prompt_a_token(
    encoder: PromptEncoder,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    bare = PromptEncoder(tokenizer, encoder.text_encoder)
    assert bare.encode([""], **PLAIN).mask.tolist() == [[True]]


def test_a_tokenizer_that_appends_eos_is_refused(encoder: PromptEncoder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    with pytest.raises(ConfigError, match="eos"):
        PromptEncoder(tokenizer, encoder.text_encoder)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"prompts": "a cat", "instruction": None}, "a list"),
        ({"prompts": [], "instruction": None}, "at least one"),
        ({"prompts": ["a"], "instruction": "User Prompt: "}, "list of lines"),
        ({"prompts": ["a"], "instruction": None, "max_sequence_length": 0}, "at least 1"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(
    encoder: PromptEncoder, settings: dict[str, object], rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule):
        encoder.encode(**settings)


def test_nvlabs_nulls_need_a_prompt_each(encoder: PromptEncoder) -> None:
    beside = encoder.encode(["a", "b"], **PLAIN)
    with pytest.raises(ConfigError, match="1 null prompts beside 2"):
        encoder.encode_null([""], beside, compat="nvlabs")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("<b>a cat</b> &amp; a dog", "a cat & a dog"),
        ("a cat https://cats.example/x?y=1 sleeps", "a cat sleeps"),
        ("a cat by @someone, IMG_0042.JPG", "a cat by ,"),
        ("“a cat” — #12 1234567", '"a cat" -'),
        ("红色的苹果 3 apples", "红色的苹果 3 apples"),
    ],
)
def test_cleaning_removes_noise_and_keeps_every_script(caption: str, expected: str) -> None:
    assert cleaned(caption) == expected


def test_cleaning_is_off_unless_asked_for(encoder: PromptEncoder) -> None:
    noisy, clean = ["a <b>cat</b>"], ["a cat"]
    asked = encoder.encode(noisy, **PLAIN, clean_caption=True)
    assert torch.equal(asked.text, encoder.encode(clean, **PLAIN).text)
    assert encoder.encode(noisy, **PLAIN).text.shape != asked.text.shape
