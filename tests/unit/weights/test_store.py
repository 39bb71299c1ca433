from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sanakit.errors import ConfigError, DataError, MissingModelError, WeightsError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AUTOENCODERS, TRANSFORMERS, AutoencoderConfig, TransformerConfig
from sanakit.models.transformer import LinearDiT
from sanakit.weights.store import (
    load_strict,
    read_config,
    read_weights,
    write_config,
    write_weights,
)

STATE = {name: torch.full((4, 8), float(i)) for i, name in enumerate("abcde")}
WHOLE = "diffusion_pytorch_model.safetensors"
INDEX = WHOLE + ".index.json"


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype
        for name in left
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("most", [1, 300, 10**9])
def test_what_is_written_is_read_in_any_number_of_shards(tmp_path: Path, most: int) -> None:
    state = STATE | {"half": torch.ones(3).bfloat16(), "count": torch.tensor(7)}
    write_weights(tmp_path / "new", state, max_shard_bytes=most)
    assert equal(read_weights(tmp_path / "new"), state)
    assert len(names(tmp_path / "new")) == {1: 8, 300: 4, 10**9: 1}[most]


@pytest.mark.parametrize(("before", "after"), [(10**9, 1), (1, 10**9), (300, 1), (1, 300)])
def test_weights_written_over_others_leave_nothing_of_them(
    tmp_path: Path, before: int, after: int
) -> None:
    write_weights(tmp_path / "clean", STATE, max_shard_bytes=after)
    write_weights(tmp_path / "used", {"old": torch.zeros(99), **STATE}, max_shard_bytes=before)
    write_weights(tmp_path / "used", STATE, max_shard_bytes=after)
    assert names(tmp_path / "used") == names(tmp_path / "clean")
    assert equal(read_weights(tmp_path / "used"), STATE)


def test_other_stems_and_variants_are_left_alone(tmp_path: Path) -> None:
    for other in ("model.safetensors", "diffusion_pytorch_model.fp16.safetensors"):
        save_file(STATE, tmp_path / other)
    write_weights(tmp_path, STATE, max_shard_bytes=1)
    write_weights(tmp_path, STATE)
    assert len(names(tmp_path)) == 3


def test_tensors_that_share_memory_or_are_views_are_written_each(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    state = {"tied": base, "tie": base, "row": base[1], "turned": base.T}
    write_weights(tmp_path, state)
    assert equal(read_weights(tmp_path), state)


def test_a_write_that_fails_leaves_the_old_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_weights(tmp_path, STATE)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        write_weights(tmp_path, {"a": torch.zeros(1)})
    assert names(tmp_path) == [WHOLE]
    assert equal(read_weights(tmp_path), STATE)


@pytest.mark.parametrize("most", ["1KB", "10GB"])
def test_diffusers_reads_what_we_write_and_we_read_what_it_writes(
    tmp_path: Path, most: str
) -> None:
    from diffusers import AutoencoderDC

    ours = Autoencoder(AUTOENCODERS["tiny"])
    state = ours.state_dict()
    write_config(tmp_path / "ours", ours.config, "AutoencoderDC")
    write_weights(tmp_path / "ours", state, max_shard_bytes=1000 if most == "1KB" else 10**10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoencoderDC.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False)
        theirs.save_pretrained(tmp_path / "theirs", max_shard_size=most, variant="fp16")
    assert equal(dict(theirs.state_dict()), dict(state))

    config = read_config(tmp_path / "theirs", AutoencoderConfig)
    assert config == ours.config
    with torch.device("meta"):
        again = Autoencoder(config)
    load_strict(again, read_weights(tmp_path / "theirs", variant="fp16"), source="theirs")
    assert equal(again.state_dict(), state)


def test_diffusers_builds_our_transformer_config(tmp_path: Path) -> None:
    from diffusers import SanaTransformer2DModel

    config = TRANSFORMERS["tiny"]
    write_config(tmp_path, config, "SanaTransformer2DModel")
    theirs = SanaTransformer2DModel.from_config(SanaTransformer2DModel.load_config(tmp_path))
    assert theirs.state_dict().keys() == LinearDiT(config).state_dict().keys()
    assert read_config(tmp_path, TransformerConfig) == config


def test_a_missing_file_is_named_with_what_is_there_instead(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(MissingModelError) as caught:
        read_weights(tmp_path)
    assert f"has no {WHOLE}; it holds diffusion_pytorch_model.fp16.safetensors" in str(caught.value)
    assert "variants there: fp16" in str(caught.value)
    assert caught.value.exit_code == 3
    with pytest.raises(MissingModelError, match="no such folder"):
        read_weights(tmp_path / "nowhere")
    with pytest.raises(MissingModelError, match=r"config.json: no such file"):
        read_config(tmp_path, TransformerConfig)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pth", "last.ckpt"])
def test_a_pickle_alone_is_refused_unread_with_the_conversion(tmp_path: Path, name: str) -> None:
    torch.save(STATE, tmp_path / name)
    with pytest.raises(WeightsError, match="pickle refused") as caught:
        read_weights(tmp_path)
    hint = caught.value.hint
    assert hint is not None
    assert f"sanakit convert {tmp_path} " in hint


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "zip":
        torch.save(STATE, path)
    elif how == "pickle":
        torch.save(STATE, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(
            {
                "truncated": whole[:-10],
                "headless": whole[:6],
                "empty": b"",
                "text": b"<html>not found</html>",
                "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
                "garbled": whole[:20] + b"\xff\xff" + whole[22:],
            }[how]
        )


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "cut off"),
        ("headless", "cut off"),
        ("empty", r"0 bytes"),
        ("text", "damaged"),
        ("garbled", "damaged"),
        ("zip", "is a pickle"),
        ("pickle", "is a pickle"),
        ("lfs", "Git LFS pointer"),
    ],
)
def test_a_damaged_file_is_one_line_and_a_hint(tmp_path: Path, how: str, said: str) -> None:
    write_weights(tmp_path, STATE)
    damage(tmp_path / WHOLE, how)
    with pytest.raises(WeightsError, match=said) as caught:
        read_weights(tmp_path)
    assert "\n" not in caught.value.message
    assert str(tmp_path / WHOLE) in caught.value.message
    assert caught.value.hint


def test_a_cut_file_whose_header_length_looks_like_a_pickle_is_not_called_one(
    tmp_path: Path,
) -> None:
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(0x280)
    (tmp_path / WHOLE).write_bytes(b"\x80\x02" + b"\0" * 6 + header)
    with pytest.raises(WeightsError, match="cut off"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    "file",
    ["../stolen.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "c:\\x.safetensors"],
)
def test_an_index_may_not_name_files_elsewhere(tmp_path: Path, file: str) -> None:
    save_file(STATE, tmp_path / "stolen.safetensors")
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    save_file(STATE, folder / "a" / "b.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(WeightsError, match="leads out of its folder"):
        read_weights(folder)


def shard_linked_to(target: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(STATE, target)
    (folder / "x.safetensors").symlink_to(target)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(STATE, "x.safetensors")}))


def test_a_shard_that_is_a_link_leading_outside_is_refused(tmp_path: Path) -> None:
    shard_linked_to(tmp_path / "outside" / "y.safetensors", tmp_path / "model")
    with pytest.raises(WeightsError, match="leads out of its folder"):
        read_weights(tmp_path / "model")


def test_the_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "abc" / "transformer"
    shard_linked_to(tmp_path / "blobs" / "0123", folder)
    assert equal(read_weights(folder), STATE)


def test_an_index_that_promises_too_much_is_found_out(tmp_path: Path) -> None:
    write_weights(tmp_path, STATE, max_shard_bytes=300)
    index = json.loads((tmp_path / INDEX).read_text())
    shard = index["weight_map"]["a"]
    (tmp_path / INDEX).write_text(
        json.dumps({"weight_map": {**index["weight_map"], "extra": shard}})
    )
    with pytest.raises(WeightsError, match="has no tensor extra"):
        read_weights(tmp_path)
    (tmp_path / shard).unlink()
    with pytest.raises(WeightsError, match="which is not there"):
        read_weights(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(WeightsError, match="no weight_map"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"depth": 3}', '{"num_layers": "many", "patch_size": "x"}', "\xff"]
)
def test_a_broken_config_is_a_config_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_config(tmp_path, TransformerConfig)


def test_an_unknown_storage_asks_for_a_newer_version(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / WHOLE, {"storage": "int3-spirals"})
    with pytest.raises(WeightsError, match=r"int3-spirals.*\n.*newer version"):
        read_weights(tmp_path)


@pytest.mark.parametrize("most", [1, 10**9])
def test_weights_are_converted_while_they_are_read(
    tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sanakit.weights import store

    monkeypatch.setattr(store, "MAPPED_AT_ONCE", 200)  # a new mapping after two of these
    opened: list[object] = []
    genuine = store.safe_open
    monkeypatch.setattr(store, "safe_open", lambda *a, **k: opened.append(a) or genuine(*a, **k))
    state = STATE | {"count": torch.tensor(7), "half": torch.ones(3).bfloat16()}
    write_weights(tmp_path, state, max_shard_bytes=most)
    opened.clear()
    found = read_weights(tmp_path, dtype=torch.bfloat16)
    expected = {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
    assert equal(found, expected)
    assert len(opened) == (1 + 3 if most > 1 else 2 * len(state))
    opened.clear()
    assert equal(read_weights(tmp_path, dtype=torch.float32), state | {"half": torch.ones(3)})
    assert len(opened) == (1 + 1 if most > 1 else 2 * len(state))


def test_int8_rows_are_converted_too(tmp_path: Path) -> None:
    state = {"weight": torch.randn(64, 128), "bias": torch.randn(3)}
    write_weights(tmp_path, state, storage="int8-rows")
    found = read_weights(tmp_path, dtype=torch.bfloat16)
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    torch.testing.assert_close(found["weight"].float(), state["weight"], atol=0.05, rtol=0)


def test_a_variant_has_its_own_files_and_leaves_the_plain_ones(tmp_path: Path) -> None:
    write_weights(tmp_path, STATE)
    other = {"a": torch.zeros(4, 8), "b": torch.zeros(4, 8)}
    write_weights(tmp_path, STATE, variant="fp16", max_shard_bytes=300)
    write_weights(tmp_path, other, variant="fp16")
    assert names(tmp_path) == ["diffusion_pytorch_model.fp16.safetensors", WHOLE]
    assert equal(read_weights(tmp_path, variant="fp16"), other)
    assert equal(read_weights(tmp_path), STATE)


def test_a_fitting_state_fills_a_module_and_keeps_its_own_dtype() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    source = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in source.state_dict().items()
    }
    load_strict(module, state, source="f")
    assert all(not p.is_meta and p.dtype == torch.bfloat16 for p in module.parameters())
    assert all(p.requires_grad for p in module.parameters())
    assert torch.equal(module[0].weight, source[0].weight.bfloat16())


def test_a_misfit_changes_nothing_and_names_all_kinds_of_it() -> None:
    module = nn.Linear(3, 4)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_strict(
            module, {"weight": torch.ones(4, 2), "x": torch.ones(1)}, source="f.safetensors"
        )
    assert caught.value.message == (
        "f.safetensors: 3 tensors (1 missing, 1 shape, 1 unexpected) do not fit Linear: "
        "missing bias; shape weight: file (4, 2), model (4, 3); unexpected x"
    )
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert caught.value.exit_code == 2


def test_integers_for_real_numbers_are_a_misfit_and_not_a_half_loaded_module() -> None:
    module = nn.Linear(3, 4)
    before = module.bias.detach().clone()
    state = {"bias": torch.zeros(4), "weight": torch.zeros(4, 3, dtype=torch.int8)}
    with pytest.raises(WeightsError, match=r"1 tensor \(1 kind\).*file torch.int8"):
        load_strict(module, state, source="f")
    assert torch.equal(module.bias, before)


def test_of_many_misfits_five_are_shown_and_the_rest_counted() -> None:
    state = {f"x{i}": torch.zeros(1) for i in range(9)} | nn.Linear(2, 2).state_dict()
    with pytest.raises(WeightsError) as caught:
        load_strict(nn.Linear(2, 2), state, source="f")
    assert caught.value.message.count("unexpected x") == 5
    assert "; ... and 4 more" in caught.value.message
