"""Our tokenizer against that of transformers: the same ids for any text, or none of ours."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sanakit.models.tokenizer import GEMMA, Tokenizer
from sanakit.pipeline.language_models import open_tokenizer
from sanakit.weights.resolve import embedded_folder

FIXTURE = Path(__file__).parents[1] / "fixtures" / "assets" / "tokenizer"
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
MASK = {"content": "<mask>", **FLAGS, "special": True}
HOSTILE = [
    "",
    " ",
    "<eos><bos><pad><mask><unk>",
    "a <mask>b  <eos>",
    "▁▁ a\n\n\tb \u00a0\u200b",
    "\ud7ff\ue000\x00\x7f",
    "e\u0301 é ﬁ Ⅷ 红色的苹果 😀👨‍👩‍👧",
    "<0x41> \\u0041 %00",
]


def as_gemma(folder: Path) -> Path:
    """A tokenizer as Gemma's folders have it, of the pieces of the tests' own."""
    folder.mkdir()
    content = json.loads((FIXTURE / "tokenizer.json").read_text("utf-8"))
    content |= copy.deepcopy(GEMMA)
    content["model"] |= {"fuse_unk": True, "byte_fallback": True}
    content["added_tokens"].append({"id": len(content["model"]["vocab"]), **MASK})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    known = json.loads((FIXTURE / "tokenizer_config.json").read_text())
    known |= {"tokenizer_class": "GemmaTokenizerFast", "add_bos_token": True}
    known |= {"add_eos_token": False, "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(known))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    glyph = embedded_folder("glyph") / "tokenizer"
    return [glyph, copied(tmp_path_factory), as_gemma(tmp_path_factory.mktemp("g") / "t")]


def copied(factory: pytest.TempPathFactory) -> Path:
    folder = factory.mktemp("f")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(FIXTURE / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def pairs(folders: list[Path]) -> list[tuple[Any, Any]]:
    return [(open_tokenizer(f), open_tokenizer(f, by_transformers=True)) for f in folders]


def check(pairs: list[tuple[Any, Any]], text: str) -> None:
    for ours, theirs in pairs:
        assert isinstance(ours, Tokenizer)
        expected = theirs([text], verbose=False)["input_ids"]
        assert ours([text])["input_ids"] == expected
        assert ours([text, "a"])["input_ids"] == theirs([text, "a"])["input_ids"]
        assert ours.decode(expected[0]) == theirs.decode(expected[0])


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_ids_of_odd_texts_are_those_of_transformers(
    pairs: list[tuple[Any, Any]], text: str
) -> None:
    check(pairs, text)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_ids_of_any_text_are_those_of_transformers(pairs: list[tuple[Any, Any]], text: str) -> None:
    check(pairs, text)


def test_facts_are_those_of_transformers(pairs: list[tuple[Any, Any]]) -> None:
    for ours, theirs in pairs:
        assert ours.eos_token_id == theirs.eos_token_id
        assert ours.pad_token_id == theirs.pad_token_id
        assert type(ours.published()) is type(theirs)
        assert pickle.loads(pickle.dumps(ours))(["a b"]) == ours(["a b"])


def test_settings_of_the_published_one_act(folders: list[Path]) -> None:
    ours: Any = open_tokenizer(folders[0])
    assert ours.published() is ours.published()
    ours.published().add_tokens(["zyzzyva"])
    assert ours(["zyzzyva"])["input_ids"][0][1:] == [len(ours.published()) - 1]


@pytest.mark.parametrize("kind", [1, 2], ids=["as it is", "Gemma's"])
@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}),
        ("tokenizer_config.json", {"add_eos_token": True}),
        ("tokenizer_config.json", {"add_bos_token": False}),
        ("tokenizer_config.json", {"split_special_tokens": True}),
        ("tokenizer_config.json", {"clean_up_tokenization_spaces": True}),
        ("tokenizer_config.json", {"eos_token": "apple"}),
        ("tokenizer_config.json", {"additional_special_tokens": ["<new>"]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": {**MASK, "content": "<new>"}}}),
        ("special_tokens_map.json", {"eos_token": "<pad>"}),
        ("added_tokens.json", {"<new>": 5}),
        ("tokenizer.json", {"post_processor": None}),
    ],
    ids=str,
)
def test_what_could_change_an_id_is_left_to_transformers(
    folders: list[Path], tmp_path: Path, kind: int, file: str, values: dict[str, Any]
) -> None:
    folder = tmp_path / "t"
    shutil.copytree(folders[kind], folder)
    path = folder / file
    held = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(held | values))
    assert not isinstance(open_tokenizer(folder), Tokenizer)


@pytest.mark.parametrize(
    "values",
    [
        {"normalizer": None},
        {"pre_tokenizer": None},
        {"added_tokens": []},
        {"model": {"byte_fallback": False}},
    ],
    ids=str,
)
def test_gemmas_class_builds_no_other_tokenizer(
    folders: list[Path], tmp_path: Path, values: dict[str, Any]
) -> None:
    folder = tmp_path / "t"
    shutil.copytree(folders[2], folder)
    path = folder / "tokenizer.json"
    held = json.loads(path.read_text("utf-8"))
    for name, value in values.items():
        held[name] = held[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(held))
    assert not isinstance(open_tokenizer(folder), Tokenizer)
