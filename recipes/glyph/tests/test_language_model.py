"""Packing is transparent, the loss is the definition's, batches depend on the generator alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes.glyph.train.language_model import (
    LanguageModelRecipe,
    glyph_lm_config,
    language_model_loss,
    pack_rows,
    prepare_rows,
)
from torch.testing import assert_close
from transformers import AutoTokenizer, Gemma2Model, LlamaConfig, LlamaModel

from sanakit.errors import ConfigError, DataError
from sanakit.models.text_encoder import TextEncoder
from tiny_recipe import drawn

TOKENIZER = Path(__file__).parents[3] / "tests" / "fixtures" / "assets" / "tokenizer"
BOS = 2


def tiny(**more: object) -> Gemma2Model:
    config = glyph_lm_config(vocab_size=50)
    config.update({"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2})
    config.update({"num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 2})
    config.layer_types = config.layer_types[:2]
    config.update({"initializer_range": 0.3, **more})
    torch.manual_seed(0)
    return Gemma2Model(config)


documents = st.lists(st.lists(st.integers(3, 49), min_size=1, max_size=20), min_size=1, max_size=60)


@settings(max_examples=30)
@given(documents=documents, length=st.integers(2, 12))
def test_packing_loses_no_token_and_invents_only_bos_and_padding(
    documents: list[list[int]], length: int
) -> None:
    rows = pack_rows(documents, length)
    assert rows.dtype == np.uint16
    assert (rows[:, 0] == BOS).all()
    kept = sorted(rows[(rows != BOS) & (rows != 0)].tolist())
    assert kept == sorted(token for document in documents for token in document)
    pads = rows == 0
    assert not (pads[:, :-1] & ~pads[:, 1:]).any()  # on the right only
    chunks = sum(-(-len(document) // (length - 1)) for document in documents)
    assert (rows == BOS).sum() == chunks


def test_documents_that_fit_are_never_split() -> None:
    rows = pack_rows([[5, 6, 7], [8, 9], [BOS, 10]], 6)
    assert rows.tolist() == [[2, 5, 6, 7, 2, 10], [2, 8, 9, 0, 0, 0]]


def test_many_short_documents_leave_little_room() -> None:
    lengths = np.random.default_rng(0).integers(3, 40, 2000)
    rows = pack_rows([[7] * int(n) for n in lengths], 96)
    assert (rows == 0).mean() < 0.02


@pytest.mark.parametrize(
    ("documents", "length", "error"),
    [([[5]], 1, ConfigError), ([], 8, DataError), ([[0]], 8, DataError), ([[70000]], 8, DataError)],
)
def test_what_cannot_be_packed_is_refused(
    documents: list[list[int]], length: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        pack_rows(documents, length)


def nats(model: Gemma2Model, document: list[int]) -> tuple[float, int]:
    """The definition: one document alone, one prediction at a time."""
    total = 0.0
    embedding = model.get_input_embeddings().weight
    for end in range(1, len(document)):
        states = model(input_ids=torch.tensor([document[:end]])).last_hidden_state
        logits = states[0, -1] @ embedding.T
        cap = model.config.final_logit_softcapping
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        total -= float(logits.double().log_softmax(-1)[document[end]])
    return total, len(document) - 1


@pytest.mark.parametrize("cap", [None, 2.0])
@torch.no_grad()
def test_a_packed_row_costs_what_its_documents_cost_alone(cap: float | None) -> None:
    model = tiny(final_logit_softcapping=cap).eval()
    ids = torch.tensor([[2, 5, 6, 7, 2, 9, 8, 2, 11, 0, 0], [2, 9, 5, 7, 8, 9, 4, 3, 5, 6, 7]])
    alone = [[2, 5, 6, 7, 2], [2, 9, 8, 2], [2, 11], ids[1].tolist()]
    parts = [nats(model, document) for document in alone]
    expected = sum(total for total, _ in parts) / sum(count for _, count in parts)
    assert_close(float(language_model_loss(model, ids, ids != 0)), expected, rtol=0, atol=1e-5)


def test_what_stands_in_padding_changes_nothing() -> None:
    model = tiny().eval()
    ids = torch.tensor([[2, 5, 6, 0, 0]])
    other = torch.tensor([[2, 5, 6, 30, 31]])
    mask = ids != 0
    with torch.no_grad():
        first, second = (language_model_loss(model, row, mask) for row in (ids, other))
    assert_close(first, second)


def test_a_model_without_tied_embeddings_is_refused() -> None:
    model = LlamaModel(
        LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(ConfigError, match="tie_word_embeddings"):
        language_model_loss(model, torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2) > 0)


def test_our_shape_is_small_and_a_text_encoder_accepts_it() -> None:
    with torch.device("meta"):
        model = Gemma2Model(glyph_lm_config())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 6e6 < parameters < 9e6
    assert TextEncoder(model).width == 256


def test_a_few_steps_lower_the_loss_and_the_held_out_figure() -> None:
    rows = pack_rows([[5, 6, 7, 8], [9, 10, 11]] * 20, 16)
    recipe = LanguageModelRecipe(tiny(), rows, rows)
    before = recipe.evaluate(recipe.module)["nats"]
    optimizer = torch.optim.AdamW(recipe.module.parameters(), lr=1e-2)
    for seed in range(20):
        recipe.loss(drawn(recipe, 4, seed))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert recipe.evaluate(recipe.module)["nats"] < before / 2


def test_the_held_out_figure_weighs_tokens_not_batches() -> None:
    model = tiny().eval()
    rows = pack_rows([[5, 6, 7, 8, 9, 10, 11]] * 16 + [[12]] * 4, 8)
    rows = np.concatenate([rows[rows[:, -1] != 0], rows[rows[:, -1] == 0]])
    recipe = LanguageModelRecipe(model, rows, rows)
    ids = torch.from_numpy(rows.astype(np.int64))
    with torch.no_grad():
        whole = language_model_loss(model, ids, ids != 0)
        measured = recipe.evaluate(model)["nats"]
    assert len(rows) > 16  # more than one batch
    assert_close(measured, float(whole), rtol=0, atol=1e-5)


def test_the_held_out_figure_looks_at_all_of_a_long_corpus() -> None:
    model = tiny().eval()
    rows = np.array([[2, 5, 6]] * 128 + [[2, 7, 8]] * 128, dtype=np.uint16)
    halves = [
        LanguageModelRecipe(model, rows, part).evaluate(model)["nats"]
        for part in (rows[:128], rows[128:])
    ]
    whole = LanguageModelRecipe(model, rows, rows).evaluate(model)["nats"]
    assert abs(halves[0] - halves[1]) > 0.1
    assert_close(whole, sum(halves) / 2, rtol=0, atol=1e-5)


def test_batches_are_a_function_of_the_seed() -> None:
    rows = pack_rows([[index] for index in range(3, 50)], 3)
    recipe = LanguageModelRecipe(tiny(), rows, rows)
    draws = [drawn(recipe, 8, seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_every_fiftieth_text_is_held_out() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    texts = [f"a number {index}" for index in range(100)]
    train, held = prepare_rows(texts, tokenizer, row_length=24)
    assert (train == BOS).sum() == 98
    assert (held == BOS).sum() == 2
    first = tokenizer(texts[0]).input_ids
    assert held[0, : len(first)].tolist() == first
    seen = np.concatenate([train[train > BOS], held[held > BOS]]).tolist()
    assert sorted(seen) == sorted(i for ids in tokenizer(texts).input_ids for i in ids if i > BOS)
    with pytest.raises(ConfigError, match="held_every=1"):
        prepare_rows(texts, tokenizer, held_every=1)
