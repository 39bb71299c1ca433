"""The files of the cache: where they are, what is believed of them, and that they never hurt."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Gemma2Config, Gemma2Model

from sanakit.weights.fingerprint import llm_fingerprint, weights_stamp
from sanakit.weights.tensor_cache import TensorCache

KEY = "ab" * 32
TENSORS = {"a": torch.arange(6.0).reshape(2, 3).bfloat16(), "b": torch.tensor([True, False])}


@pytest.fixture
def cache(tmp_path: Path) -> TensorCache:
    return TensorCache(tmp_path / "deep" / "cache", max_bytes=1 << 20)


def stored(cache: TensorCache) -> Path:
    assert cache.write(KEY, TENSORS)
    return cache.folder / f"{KEY}.safetensors"


def test_what_was_written_is_read_with_its_dtypes(cache: TensorCache) -> None:
    stored(cache)
    read = cache.read(KEY)
    assert read is not None
    assert {name: value.dtype for name, value in read.items()} == {
        "a": torch.bfloat16,
        "b": torch.bool,
    }
    assert all(torch.equal(read[name], value) for name, value in TENSORS.items())
    assert cache.read("cd" * 32) is None


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
def test_other_users_cannot_look_into_the_folder(cache: TensorCache) -> None:
    assert stored(cache).parent.stat().st_mode & 0o077 == 0


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def foreign(path: Path) -> None:
    path.unlink()
    save_file({"a": torch.ones(2)}, path)


def swapped(path: Path) -> None:
    other = TensorCache(path.parent, max_bytes=1 << 20)
    assert other.write("cd" * 32, {"a": torch.ones(1)})
    os.replace(path.parent / ("cd" * 32 + ".safetensors"), path)


@pytest.mark.parametrize(
    "harm",
    [flip, cut, foreign, swapped, lambda p: p.write_bytes(b""), lambda p: p.write_text("hello")],
    ids=["a flipped bit", "cut off", "of another program", "of another key", "empty", "text"],
)
def test_a_file_that_is_not_sound_is_passed_over_and_written_anew(cache: TensorCache, harm) -> None:  # noqa: ANN001
    harm(stored(cache))
    assert cache.read(KEY) is None
    stored(cache)
    assert cache.read(KEY) is not None


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = TensorCache(tmp_path / "file" / "cache", max_bytes=1 << 20)
    assert not cache.write(KEY, TENSORS)
    assert cache.read(KEY) is None
    blocked = TensorCache(tmp_path, max_bytes=1 << 20)
    (tmp_path / f"{KEY}.safetensors").mkdir()
    assert not blocked.write(KEY, TENSORS)
    assert blocked.read(KEY) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{KEY}.safetensors", "file"]


def test_the_least_recently_used_files_make_room(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, max_bytes=6000)
    keys = ["1" * 64, "2" * 64, "3" * 64]
    for age, key in enumerate(keys[:2]):
        assert cache.write(key, {"a": torch.zeros(500)})
        os.utime(tmp_path / f"{key}.safetensors", (age, age))
    assert cache.read(keys[0]) is not None  # now the younger of the two
    (tmp_path / "notes.txt").write_text("x" * 9000)
    assert cache.write(keys[2], {"a": torch.zeros(500)})
    held = {path.name for path in tmp_path.iterdir()}
    assert held == {f"{keys[0]}.safetensors", f"{keys[2]}.safetensors", "notes.txt"}


def test_what_is_larger_than_the_whole_cache_is_not_kept(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, max_bytes=6000)
    assert cache.write(KEY, {"a": torch.zeros(500)})
    assert not cache.write("cd" * 32, {"a": torch.zeros(5000)})
    assert cache.read(KEY) is not None


def test_leavings_of_a_killed_process_go_and_those_of_a_living_one_stay(cache: TensorCache) -> None:
    folder = stored(cache).parent
    old, new = folder / ".0.tmp", folder / ".1.tmp"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    stored(cache)
    assert not old.exists()
    assert new.exists()


def tiny(seed: int = 0, **more: object) -> Gemma2Model:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "head_dim": 4}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    return Gemma2Model(Gemma2Config(**{**sizes, **heads, **more}))


def test_the_same_model_loaded_twice_has_one_fingerprint() -> None:
    again = tiny()
    again.config._name_or_path = "elsewhere"
    again.config.architectures = ["Gemma2ForCausalLM"]
    assert llm_fingerprint(again) == llm_fingerprint(tiny())


def test_other_weights_settings_or_precision_are_another_model() -> None:
    nudged = tiny()
    with torch.no_grad():
        nudged.layers[0].mlp.up_proj.weight.mul_(1 + 1e-6)
    capped = tiny(attn_logit_softcapping=1.0)
    others = [tiny(), tiny(1), tiny().bfloat16(), nudged, capped]
    assert len({llm_fingerprint(llm) for llm in others}) == 5


def test_weights_that_are_not_in_memory_have_no_fingerprint() -> None:
    assert llm_fingerprint(tiny().to("meta")) is None


def test_a_stamp_stays_while_the_weights_are_used_and_changes_when_they_do() -> None:
    llm = tiny()
    before = weights_stamp(llm)
    llm(torch.tensor([[1, 2]]))
    assert weights_stamp(llm) == before
    with torch.no_grad():
        llm.norm.weight.add_(1)
    written = weights_stamp(llm)
    llm.to(torch.bfloat16)
    assert len({before, written, weights_stamp(llm)}) == 3
