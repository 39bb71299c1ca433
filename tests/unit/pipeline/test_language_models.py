"""A language model's folder is not trusted: no code, no questions, nothing without bounds."""

from __future__ import annotations

import builtins
import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from sanakit.errors import SanakitError
from sanakit.pipeline.language_models import build_llm, open_tokenizer, read_llm_config
from sanakit.weights.resolve import embedded_folder

GLYPH = embedded_folder("glyph")
FILES = (
    "text_encoder/config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
)
CODE = 'open("ran", "w").write("x")\n'
ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([])


@pytest.fixture(params=["", "evil.py"], ids=["known files", "with code"])
def llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked"))
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(GLYPH / name, tmp_path / name)
    for folder in ("text_encoder", "tokenizer"):
        if request.param:  # then a tokenizer is left to transformers
            (tmp_path / folder / request.param).write_text(CODE)
    return tmp_path


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_model_is_that_of_transformers(llm: Path) -> None:
    built: Any = build_llm(llm / "text_encoder", by_transformers=True)
    known = AutoConfig.from_pretrained(str(llm / "text_encoder"), trust_remote_code=False)
    ours, theirs = built.config.to_dict(), known.to_dict()
    for key in ours.keys() & theirs.keys() - {"_name_or_path", "dtype", "architectures"}:
        assert ours[key] == theirs[key], key
    assert not any(buffer.is_meta for buffer in built.buffers())
    assert all(weight.is_meta for weight in built.parameters())


@pytest.mark.parametrize("reference", ["evil.Evil", "owner/name--evil.Evil"])
def test_code_of_a_model_neither_runs_nor_is_asked_for(llm: Path, reference: str) -> None:
    names = {"AutoConfig": reference, "AutoModel": reference}
    change(llm / "text_encoder/config.json", auto_map=names)
    build_llm(llm / "text_encoder")  # transformers has its class
    change(llm / "text_encoder/config.json", model_type="evil")
    with pytest.raises(SanakitError, match=r"evil\.Evil"):
        build_llm(llm / "text_encoder")
    settings = llm / "tokenizer/tokenizer_config.json"
    change(settings, auto_map={"AutoTokenizer": [None, reference]}, tokenizer_class="Evil")
    with pytest.raises(SanakitError, match=r"evil\.Evil"):
        open_tokenizer(llm / "tokenizer")
    assert not (llm / "ran").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": "x"},
        {"hidden_size": -5},
        {"vocab_size": 10**18},
        {"layer_types": [["x"]]},
        {"rope_parameters": 5},
        {"hidden_activation": "no such"},
        {"head_dim": 2**30},
    ],
)
def test_a_config_of_no_model_is_refused_before_it_takes_memory(
    llm: Path, values: dict[str, Any]
) -> None:
    change(llm / "text_encoder/config.json", **values)
    with pytest.raises(SanakitError):
        build_llm(llm / "text_encoder")


def test_kernels_and_numbers_from_elsewhere_are_not_asked_for(llm: Path) -> None:
    change(llm / "text_encoder/config.json", attn_implementation="owner/kernel", use_kernels=True)
    built: Any = build_llm(llm / "text_encoder", by_transformers=True)
    assert built.config._attn_implementation == "eager"
    ours = build_llm(llm / "text_encoder").config
    assert not {"attn_implementation", "use_kernels"} & ours.published.keys()
    assert not hasattr(read_llm_config(llm / "text_encoder"), "use_kernels")


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.dictionaries(
        st.sampled_from(sorted(json.loads((GLYPH / "text_encoder/config.json").read_text()))),
        ODD,
        min_size=1,
        max_size=2,
    )
)
def test_any_config_builds_or_is_one_error(llm: Path, values: dict[str, Any]) -> None:
    path = llm / "text_encoder/config.json"
    path.write_text(
        json.dumps(json.loads((GLYPH / "text_encoder/config.json").read_text()) | values)
    )
    with contextlib.suppress(SanakitError):
        build_llm(llm / "text_encoder")


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '"x"', "[" * 50_000])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_one_error(llm: Path, name: str, content: str) -> None:
    (llm / "tokenizer" / name).write_text(content)
    if (name, content) == ("tokenizer_config.json", "{}"):
        assert open_tokenizer(llm / "tokenizer")(["a"])["input_ids"]
        return
    with pytest.raises(SanakitError):
        open_tokenizer(llm / "tokenizer")


GROWS = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 50}


def split_by(expression: str) -> dict[str, Any]:
    pattern = {"Regex": expression}
    return {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": pattern,
            "behavior": "Isolated",
            "invert": False,
        }
    }


@pytest.mark.parametrize(
    "values",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [GROWS] * 9}},
        {"normalizer": {**GROWS, "pattern": {"Regex": "(a+)+$"}, "content": "b"}},
        *map(split_by, ["(?:a|aa)*b", "a*a*a*b", "a*(?:a*|b)a*c", "(?:a{1,3}){9}", "a{1,3}+b"]),
    ],
)
def test_a_tokenizer_whose_rules_know_no_end_is_refused(llm: Path, values: dict[str, Any]) -> None:
    change(llm / "tokenizer/tokenizer.json", **values)
    with pytest.raises(SanakitError, match="its tokenizer"):
        open_tokenizer(llm / "tokenizer")


@pytest.mark.parametrize(
    "expression",
    [
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t)|[^\r\n\p{L}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}]++[\r\n]*+|\s*[\r\n]|\s+",
        r"[^\p{L}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re)?|\p{N}{1,3}",
    ],
)
def test_expressions_as_published_tokenizers_have_them_are_read(llm: Path, expression: str) -> None:
    change(llm / "tokenizer/tokenizer.json", **split_by(expression))
    assert open_tokenizer(llm / "tokenizer")(["a 12"])["input_ids"]


def test_files_of_a_tokenizer_lie_beside_it(llm: Path) -> None:
    change(llm / "tokenizer/tokenizer_config.json", vocab_file="/dev/zero")
    with pytest.raises(SanakitError, match="not beside it"):
        open_tokenizer(llm / "tokenizer")
