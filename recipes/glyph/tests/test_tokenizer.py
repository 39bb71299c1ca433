"""A trained tokenizer: Gemma's ids and spaces, no text lost, the same texts the same pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes.glyph.train.tokenizer import train_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sanakit.errors import ConfigError, DataError

TOKENIZER = Path(__file__).parents[3] / "tests" / "fixtures" / "assets" / "tokenizer"
TEXTS = ["a red apple, on a pale yellow background"] * 60 + ["a blue bird; the bird's mp3"] * 30


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerBase:
    return train_tokenizer([*TEXTS, "a single ☃ and one 𝄞"], vocab_size=420)


@pytest.fixture(scope="module", params=["trained", "asset"])
def tokenizer(request: pytest.FixtureRequest, trained: PreTrainedTokenizerBase):  # noqa: ANN201
    return trained if request.param == "trained" else AutoTokenizer.from_pretrained(TOKENIZER)


def test_special_ids_are_those_of_gemma(tokenizer: PreTrainedTokenizerBase) -> None:
    specials = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    assert specials == (0, 1, 2)
    assert tokenizer.padding_side == "right"
    assert tokenizer("").input_ids == [2]
    assert tokenizer("a").input_ids[0] == 2
    assert tokenizer("a").input_ids[-1] != 1


def test_a_space_belongs_to_the_word_after_it_and_none_is_invented(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert tokenizer.tokenize("a a") == ["a", "▁a"]
    assert tokenizer.tokenize("a ") == ["a", "▁"]
    assert tokenizer.tokenize(" a") == ["▁a"]


def test_a_character_without_a_piece_becomes_bytes_beside_a_lone_space(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert tokenizer.tokenize("a ☃") == ["a", "▁", "<0xE2>", "<0x98>", "<0x83>"]


def test_spelling_a_byte_token_does_not_make_it(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.tokenize("<0x41>") == list("<0x41>")


def test_frequent_words_are_single_pieces(trained: PreTrainedTokenizerBase) -> None:
    pieces = trained.tokenize(TEXTS[0])
    assert pieces == ["a", "▁red", "▁apple", ",", *["▁on", "▁a", "▁pale", "▁yellow", "▁background"]]


def test_pieces_never_join_a_word_with_digits_or_signs(trained: PreTrainedTokenizerBase) -> None:
    words = [piece for piece in trained.get_vocab() if piece[:3] != "<0x" and piece[:1] != "<"]
    mixed = [w for w in words if any(map(str.isalpha, w)) and not w.strip("▁").isalpha()]
    assert not mixed
    assert not [word for word in words if "▁" in word[1:] or " " in word]


@pytest.mark.parametrize(
    "text", ["", " ", "  two  spaces ", "line\nbreak\n", "Ünïcödé 红色 😀 e\u0301", "tab\tand\r\n"]
)
def test_text_survives_the_round_trip(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


# U+2581 is how a space is written, and the specials are read as what they spell.
anything = st.text(st.characters(exclude_characters="▁<", exclude_categories=["Cs"]), max_size=30)


@given(text=anything)
def test_no_text_is_ever_lost(trained: PreTrainedTokenizerBase, text: str) -> None:
    assert trained.decode(trained(text).input_ids, skip_special_tokens=True) == text


def test_the_same_texts_give_the_same_tokenizer() -> None:
    rare = [chr(0x4E00 + index) * 25 for index in range(40)]  # forty characters, equally often
    first, second = (train_tokenizer([*TEXTS, *rare], vocab_size=420) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_it_survives_its_folder(trained: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "a ☃", "  A  "]:
        assert loaded(text).input_ids == trained(text).input_ids
    assert (loaded.pad_token, loaded.padding_side) == ("<pad>", "right")


@pytest.mark.parametrize("size", [100, 70000])
def test_a_vocabulary_too_small_or_beyond_uint16_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=f"vocab_size={size}"):
        train_tokenizer(TEXTS, vocab_size=size)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_nothing_to_learn_from_is_refused(texts: list[str]) -> None:
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(texts)
