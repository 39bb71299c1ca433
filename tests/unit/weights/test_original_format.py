"""Reading original checkpoints: what they hold, what kind they are, and what is refused."""

from __future__ import annotations

import ast
import os
import pickle
import random
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from original_files import original_autoencoder, original_transformer, sincos
from sanakit.errors import ConfigError, DataError, WeightsError
from sanakit.models.config import (
    AUTOENCODERS,
    TRANSFORMERS,
    AutoencoderConfig,
    ControlBranchConfig,
    TransformerConfig,
)
from sanakit.weights.convert.original_format import (
    BRANCH,
    TRANSFORMER,
    OriginalModel,
    Part,
    identified,
    original_state,
    read_original,
    write_original,
)

TINY = TRANSFORMERS["tiny"]
SMALL_AE = AUTOENCODERS["tiny"]
SOURCES = Path(__file__).resolve().parents[3] / "src" / "sanakit"


class Evil:
    """Runs a command when it is unpickled by anything that trusts it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def inferred(state: dict[str, torch.Tensor]) -> TransformerConfig | AutoencoderConfig:
    return identified(state, source="m.pth").parts[-1].config


def write(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def tensors(model: OriginalModel) -> dict[str, torch.Tensor]:
    return model.parts[0].state


# What a file is.


@pytest.mark.parametrize("preset", TRANSFORMERS)
def test_a_transformer_of_a_preset_is_told_by_its_shapes(preset: str) -> None:
    config = TRANSFORMERS[preset]
    original = original_transformer(config, device="meta")
    side = config.sample_size // config.patch_size
    original["pos_embed"] = torch.zeros(1, side**2, 1).expand(1, side**2, config.width)
    if config.interpolation_scale is not None:
        # Only the first row of the grid is looked at: a whole real table takes long to make.
        table = torch.zeros(1, side**2, config.width)
        columns = sincos(config.width, side, config.interpolation_scale)[:, :side]
        table[:, :side] = columns
        original["pos_embed"] = table
    assert inferred(original) == config


# The light one is published as a folder.
@pytest.mark.parametrize("preset", [name for name in AUTOENCODERS if "lite" not in name])
def test_an_autoencoder_of_a_preset_is_told_by_its_shapes_where_one_scale_fits(
    preset: str,
) -> None:
    original = original_autoencoder(AUTOENCODERS[preset], device="meta")
    if preset.endswith(("-in-1.0", "-mix-1.0")):
        with pytest.raises(ConfigError, match=r"-in-1\.0 \(0\.\d+\), .*-mix-1\.0 \(0\.\d+\)"):
            inferred(original)
        original_model = identified(original, source="m.pth", config=preset)
        assert original_model.parts[0].presets == [preset]
    else:
        assert inferred(original) == AUTOENCODERS[preset]


@pytest.mark.parametrize(
    "change",
    [
        {"in_channels": 5, "out_channels": 7},
        {"patch_size": 2, "sample_size": 8},
        {"qk_norm": "rms_norm_across_heads"},
        {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"},
        {"mlp_ratio": 1.7},
        {"num_layers": 3, "caption_channels": 11},
        {"sample_size": 6, "interpolation_scale": 1.0},
        {"sample_size": 6, "interpolation_scale": 2.0},
        {"sample_size": 12, "patch_size": 2, "interpolation_scale": 0.5},
    ],
    ids=str,
)
def test_each_field_that_shapes_tell_is_told(change: dict[str, Any]) -> None:
    config = replace(TINY, **change)
    told = inferred(original_transformer(config))
    assert isinstance(told, TransformerConfig)
    assert told.ffn_width == config.ffn_width
    assert replace(told, mlp_ratio=config.mlp_ratio) == config


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_positions_are_told_from_a_table_in_sixteen_bits(dtype: torch.dtype) -> None:
    config = replace(TINY, sample_size=16, interpolation_scale=2.0)
    original = original_transformer(config)
    original["pos_embed"] = original["pos_embed"].to(dtype)
    assert inferred(original) == config


def test_a_control_file_holds_its_branch_and_its_transformer() -> None:
    config = replace(TINY, num_layers=4)
    model = identified(original_transformer(config, branch=3), source="m.pth")
    branch, transformer = model.parts
    assert model.kind == "controlnet"
    assert (branch.class_name, transformer.class_name) == (BRANCH, TRANSFORMER)
    own = ControlBranchConfig.of(config, num_layers=3, wiring="original")
    assert branch.config == own
    assert transformer.config == config
    assert transformer.presets == []
    assert identified(original_transformer(TINY), source="m.pth").parts[0].presets == ["tiny"]


def test_what_shapes_leave_open_is_asked_for_and_a_config_answers(tmp_path: Path) -> None:
    config = replace(
        TINY,
        num_attention_heads=3,
        cross_attention_dim=12,
        num_cross_attention_heads=3,
    )
    original = original_transformer(config)
    with pytest.raises(ConfigError, match="its width is 12; shapes do not say") as caught:
        identified(original, source="m.pth")
    assert "--config" in str(caught.value)
    path = tmp_path / "config.json"
    path.write_text(
        '{"_class_name": "SanaTransformer2DModel", "in_channels": 4, "out_channels": 4, '
        '"num_attention_heads": 3, "attention_head_dim": 4, "num_layers": 2, '
        '"num_cross_attention_heads": 3, "cross_attention_head_dim": 4, '
        '"cross_attention_dim": 12, "caption_channels": 8}'
    )
    assert identified(original, source="m.pth", config=str(path)).parts[0].config == config
    with pytest.raises(ConfigError, match="neither a preset nor a config"):
        identified(original, source="m.pth", config="sana-9b")


def test_without_a_positional_table_the_size_is_asked_for() -> None:
    original = original_transformer(TINY)
    del original["pos_embed"]
    with pytest.raises(ConfigError, match="has no pos_embed"):
        identified(original, source="m.pth")
    assert identified(original, source="m.pth", config="tiny").parts[0].config == TINY


def test_a_positional_table_that_is_no_sincos_is_not_guessed_at() -> None:
    original = original_transformer(TINY)
    for spoil in (torch.randn_like, lambda table: table * (1 + 0.1 * (table < 0))):
        original["pos_embed"] = spoil(sincos(TINY.width, TINY.sample_size, 1.0))
        with pytest.raises(ConfigError, match="no sincos table"):
            identified(original, source="m.pth")
    original["pos_embed"] = torch.zeros(1, 15, TINY.width)
    with pytest.raises(ConfigError, match="no square grid"):
        identified(original, source="m.pth")
    original["pos_embed"] = torch.zeros(16, TINY.width)
    with pytest.raises(WeightsError, match=r"pos_embed is \(16, 8\)"):
        identified(original, source="m.pth")


def test_an_autoencoder_nobody_published_needs_a_config() -> None:
    original = original_autoencoder(replace(SMALL_AE, latent_channels=2))
    with pytest.raises(ConfigError, match="no published autoencoder has its shapes; tiny is"):
        identified(original, source="m.pth")


@pytest.mark.parametrize(
    ("state", "looks"),
    [
        ({"patch_embed.proj.weight": 1}, "a transformer under its published names"),
        ({"model.embed_tokens.weight": 1}, "a language model"),
        ({"unet.down.weight": 1, "vae.up": 1}, "names begin with unet, vae"),
        ({}, "it holds no tensors"),
    ],
)
def test_another_kind_of_file_is_refused_saying_what_it_looks_like(
    state: dict[str, Any], looks: str
) -> None:
    with pytest.raises(WeightsError, match=re.escape(looks)):
        identified({name: torch.ones(1) for name in state}, source="m.pth")


# Tensors that do not fit.


@pytest.mark.parametrize(
    "name",
    [
        "x_embedder.proj.weight",
        "t_block.1.bias",
        "blocks.1.cross_attn.kv_linear.weight",
        "blocks.1.scale_shift_table",
        "final_layer.linear.weight",
    ],
)
def test_a_missing_tensor_is_named(name: str) -> None:
    original = original_transformer(TINY)
    del original[name]
    with pytest.raises(WeightsError, match="missing"):
        identified(original, source="m.pth")


def test_a_missing_block_is_named() -> None:
    original = original_transformer(replace(TINY, num_layers=3))
    gap = {name: t for name, t in original.items() if not name.startswith("blocks.1.")}
    with pytest.raises(WeightsError, match=r"blocks\.1 is missing, blocks\.2 is there"):
        identified(gap, source="m.pth")


def test_an_extra_tensor_and_a_wrong_shape_are_named() -> None:
    original = original_transformer(TINY)
    with pytest.raises(WeightsError, match=r"unexpected: blocks\.0\.extra\.weight"):
        identified({**original, "blocks.0.extra.weight": torch.ones(1)}, source="m.pth")
    original["t_block.1.weight"] = torch.ones(48, 9)
    with pytest.raises(WeightsError, match=r"time_embed\.linear\.weight: file \(48, 9\)"):
        identified(original, source="m.pth")


def test_norms_of_queries_and_keys_come_together() -> None:
    original = original_transformer(TINY)
    original["blocks.0.attn.q_norm.weight"] = torch.ones(8)
    with pytest.raises(WeightsError, match=r"in part only, attn\.k_norm is missing"):
        identified(original, source="m.pth")


def test_a_later_model_in_an_earlier_config_does_not_fit() -> None:
    later = replace(TINY, qk_norm="rms_norm_across_heads")
    with pytest.raises(WeightsError, match="unexpected"):
        identified(original_transformer(later), source="m.pth", config="tiny")


def test_an_autoencoder_that_lacks_a_block_is_refused() -> None:
    original = original_autoencoder(SMALL_AE)
    lost = "encoder.stages.1.op_list.0"
    gap = {n: t for n, t in original.items() if lost not in n}
    with pytest.raises(ConfigError, match=rf"tiny is nearest, and differs in \d+ .*{lost}"):
        identified(gap, source="m.pth")
    with pytest.raises(WeightsError, match="missing"):
        identified(gap, source="m.pth", config="tiny")
    name = "decoder.stages.0.op_list.0.main.conv.conv.weight"
    original[name] = torch.ones(9, 8, 3, 3)
    with pytest.raises(ConfigError, match=f"differs in 1 tensors such as {name}"):
        identified(original, source="m.pth")


# Files.


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".safetensors"])
def test_a_file_of_any_ending_gives_the_same_tensors(tmp_path: Path, suffix: str) -> None:
    original = original_transformer(TINY)
    path = tmp_path / f"m{suffix}"
    if suffix == ".safetensors":
        save_file(original, path)
    else:
        torch.save(original, path)
    expected = tensors(identified(original, source="m"))
    given = tensors(read_original(path))
    assert all(torch.equal(given[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"module": state}},
        lambda state: {f"module._orig_mod.{name}": t for name, t in state.items()},
        lambda state: {f"model.diffusion_model.{name}": t for name, t in state.items()},
        lambda state: {
            "state_dict": state,
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
            "scheduler": {"last_epoch": 2},
            "rng_state": {
                "torch": torch.get_rng_state(),
                "numpy": np.random.RandomState(0).get_state(),
                "python": random.Random(0).getstate(),
            },
        },
    ],
    ids=["nested", "nested twice", "compiled and parallel", "prefixed", "training checkpoint"],
)
def test_wrappings_of_training_code_are_taken_off(tmp_path: Path, wrapped: Any) -> None:
    original = original_transformer(TINY)
    path = write(tmp_path / "m.pth", wrapped(original))
    expected = tensors(identified(original, source="m"))
    given = tensors(read_original(path))
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], expected[name]) for name in expected)


def test_an_old_checkpoint_that_is_no_archive_is_read(tmp_path: Path) -> None:
    original = original_transformer(TINY)
    path = tmp_path / "m.pth"
    torch.save(original, path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert read_original(path).parts[0].config == TINY


def test_the_moving_average_is_taken_when_asked_for(tmp_path: Path) -> None:
    original = original_transformer(TINY)
    mean = {name: t + 1 for name, t in original.items()} | {"pos_embed": original["pos_embed"]}
    path = write(tmp_path / "m.pth", {"state_dict": original, "state_dict_ema": mean})
    name = "scale_shift_table"
    model = read_original(path)
    assert torch.equal(tensors(model)[name], original["final_layer.scale_shift_table"])
    assert any("--average" in note for note in model.notes)
    average = read_original(path, average=True)
    assert torch.equal(tensors(average)[name], original["final_layer.scale_shift_table"] + 1)
    assert not average.notes
    with pytest.raises(WeightsError, match="no moving average"):
        read_original(write(tmp_path / "n.pth", original), average=True)


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_with_code_is_refused_in_one_line_and_not_run(
    tmp_path: Path, archive: bool
) -> None:
    ran = tmp_path / "ran"
    content = {**original_transformer(TINY), "x": Evil(f"touch {ran}")}
    path = tmp_path / "m.pth"
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(WeightsError, match=r"refused.*posix\.system") as caught:
        read_original(path)
    assert "\n" not in caught.value.message
    assert not ran.exists()
    plain = tmp_path / "n.pth"
    plain.write_bytes(pickle.dumps(Evil(f"touch {ran}")))
    with pytest.raises(WeightsError):
        read_original(plain)
    assert not ran.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 20, 200, 0.5, 0.99])
def test_a_cut_file_is_refused_in_one_line(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"m{suffix}"
    write_original(path, original_transformer(TINY))
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    with pytest.raises(WeightsError) as caught:
        read_original(path)
    assert "\n" not in caught.value.message
    assert str(path) in caught.value.message


def test_bytes_of_anything_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    for data in (b"hello", bytes(range(256)) * 9, b"PK\x03\x04" + bytes(99), b"\x80\x02N."):
        path.write_bytes(data)
        with pytest.raises(WeightsError):
            read_original(path)
    with pytest.raises(WeightsError, match="holds a list, not a dictionary"):
        read_original(write(path, [torch.ones(1)]))


def test_a_folder_a_missing_file_and_another_ending_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a folder"):
        read_original(tmp_path)
    with pytest.raises(WeightsError, match="no such file"):
        read_original(tmp_path / "m.pth")
    (tmp_path / "m.onnx").write_bytes(b"ONNX")
    with pytest.raises(WeightsError, match="no checkpoint by its name"):
        read_original(tmp_path / "m.onnx")


def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    original = original_transformer(TINY)
    original["t_block.1.weight"] = torch.zeros(1).expand(10**6, 10**6)
    path = write(tmp_path / "m.pth", original)
    with pytest.raises(WeightsError, match="claim 4000"):
        read_original(path)


# Writing.


def test_what_is_written_is_read_again_by_torch_and_by_us(tmp_path: Path) -> None:
    config = replace(TINY, sample_size=6, interpolation_scale=2.0)
    original = original_transformer(config)
    part = identified(original, source="m").parts[0]
    state = original_state(part, source="folder")
    path = tmp_path / "m.pth"
    write_original(path, state)
    content = torch.load(path, weights_only=True)["state_dict"]
    assert content.keys() == original.keys()
    for name, tensor in original.items():
        if name == "y_embedder.y_embedding":
            assert content[name].shape == tensor.shape
        else:
            torch.testing.assert_close(content[name], tensor, rtol=0, atol=1e-6)
    assert read_original(path).parts[0].config == config
    with pytest.raises(DataError, match="does not exist"):
        write_original(tmp_path / "no" / "m.pth", state)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.pth"]


def test_a_view_is_written_without_what_it_was_cut_from(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    write_original(path, {"x": torch.zeros(10**6)[:4]})
    assert path.stat().st_size < 10**5


def test_a_branch_of_another_transformer_is_not_joined_to_it() -> None:
    config = replace(TINY, num_layers=4)
    branch, transformer = identified(original_transformer(config, branch=2), source="m").parts
    original_state(transformer, branch, source="folder")
    other = {**branch.state, "caption_norm.weight": torch.ones(8)}
    wrong = Part(class_name=branch.class_name, config=branch.config, state=other)
    with pytest.raises(WeightsError, match=r"attention_y_norm\.weight differs"):
        original_state(transformer, wrong, source="folder")


def test_no_other_file_reads_pickles() -> None:
    readers = {("torch", "load"), ("pickle", "load"), ("pickle", "loads"), ("joblib", "load")}
    guilty = {
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in readers
    }
    assert guilty == {"weights/convert/original_format.py"}
