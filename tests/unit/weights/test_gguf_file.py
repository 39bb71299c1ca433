"""GGUF files of transformers: read as what was written, and refused in a line where they lie."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from command_line import sanakit
from original_files import original_transformer
from sanakit import SanaTransformer2DModel
from sanakit.errors import ConfigError, WeightsError
from sanakit.models.config import TransformerConfig
from sanakit.models.transformer import LinearDiT
from sanakit.weights.convert.gguf_file import read_gguf
from sanakit.weights.store import write_config

gguf = pytest.importorskip("gguf", reason="pip install 'sanakit[gguf]'")
Q = gguf.GGMLQuantizationType
TINY = TransformerConfig(
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=32,
    num_layers=2,
    num_cross_attention_heads=2,
    cross_attention_head_dim=32,
    cross_attention_dim=64,
    caption_channels=32,
    sample_size=4,
)


def write(path: Path, state: Mapping[str, Tensor], kind: Any = None, **more: Any) -> Path:
    """As converters write them: large matrices quantized, all else as it is."""
    writer = gguf.GGUFWriter(path, "sana")
    writer.add_file_type(7)
    writer.add_array("tokenizer.ggml.tokens", ["some", "words"])
    for name, tensor in state.items():
        array = tensor.float().numpy()
        if kind is None or array.ndim != 2 or array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    for name, value in more.items():
        writer.add_array(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", [Q.F16, Q.BF16, Q.Q8_0, Q.Q5_1, Q.Q4_0], ids=lambda k: k.name)
def test_a_transformer_is_read_as_the_package_dequantizes_it(kind: Any, tmp_path: Path) -> None:
    state = original_transformer(TINY)
    path = write(tmp_path / "sana.gguf", state, kind)
    found = read_gguf(path)
    assert found.keys() == state.keys()
    oracle = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, tensor in found.items():
        wanted = gguf.quants.dequantize(oracle[name].data, oracle[name].tensor_type)
        assert_close(tensor.float(), torch.from_numpy(wanted.copy()).float(), rtol=0, atol=0)
        assert tensor.shape == state[name].shape


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Of widths that are not published shapes do not tell how many heads share them."""
    write_config(tmp_path, TINY, "SanaTransformer2DModel")
    return tmp_path / "config.json"


@pytest.mark.parametrize("names", ["original", "published"])
def test_names_of_both_layouts_give_the_network_that_was_written(
    names: str, tmp_path: Path, config: Path
) -> None:
    original = original_transformer(TINY)
    known = SanaTransformer2DModel.from_single_file(original, config=config)
    state = original if names == "original" else known.state_dict()
    named = {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}
    path = write(tmp_path / "sana.gguf", named)
    read = SanaTransformer2DModel.from_single_file(path, config=config)
    assert read.config == known.config
    for name, tensor in read.state_dict().items():
        assert_close(tensor, known.state_dict()[name], rtol=0, atol=0)
    half = SanaTransformer2DModel.from_single_file(path, config=config, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_what_is_read_is_near_to_what_was_quantized(tmp_path: Path, config: Path) -> None:
    original = original_transformer(TINY)
    known = SanaTransformer2DModel.from_single_file(original, config=config)
    path = write(tmp_path / "sana.gguf", original, Q.Q8_0)
    read = SanaTransformer2DModel.from_single_file(path, config=config)
    given = (torch.randn(1, 4, 4, 4), torch.tensor([500.0]), torch.randn(1, 3, 32), None)
    with torch.no_grad():
        one, two = known.velocity(*given), read.velocity(*given)
    assert 0 < (one - two).norm() < 0.05 * one.norm()


def test_a_config_of_the_reference_is_heeded_in_its_dtype(
    tmp_path: Path, config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "sana-config.gguf", original_transformer(TINY), Q.Q8_0)
    theirs = diffusers.GGUFQuantizationConfig(compute_dtype=torch.bfloat16)
    read = SanaTransformer2DModel.from_single_file(path, config=config, quantization_config=theirs)
    assert read.dtype == torch.bfloat16
    assert "dequantized" in caplog.text


def test_a_tensor_that_was_folded_gets_its_shape_back(tmp_path: Path) -> None:
    folded = {"a": torch.arange(32.0).view(4, 8)}
    path = write(tmp_path / "a.gguf", folded, **{"comfy.gguf.orig_shape.a": [2, 16]})
    assert_close(read_gguf(path)["a"], folded["a"].view(2, 16))
    path = write(tmp_path / "b.gguf", folded, **{"comfy.gguf.orig_shape.a": [3, 16]})
    with pytest.raises(WeightsError, match="damaged"):
        read_gguf(path)


def test_the_command_makes_a_folder_of_it_and_writes_none(tmp_path: Path, config: Path) -> None:
    path = write(tmp_path / "sana.gguf", original_transformer(TINY), Q.Q8_0)
    sanakit("convert", path, tmp_path / "out", "--config", config)
    read = SanaTransformer2DModel.from_pretrained(tmp_path / "out")
    assert isinstance(read, LinearDiT)
    _, said = sanakit("convert", tmp_path / "out", tmp_path / "back.gguf", code=2)
    assert "GGUF is read and not written" in said


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(*, version: int = 3, tensors: int = 0, values: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + rest


def tensor(name: str, *shape: int, kind: int = 0, offset: int = 0) -> bytes:
    sides = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sides + struct.pack("<IQ", kind, offset)


def value(content: bytes, key: str = "key") -> bytes:
    return header(values=1, rest=text(key) + content + bytes(99))


HUGE = 2**62
LONG, CLAIMS = "header is longer than the file", "claims bytes that the file does not have"
HOSTILE = {
    "empty": (b"", LONG),
    "of another format": (b"PK\x03\x04" + bytes(99), "does not begin"),
    "cut": (header()[:-3], LONG),
    "version of the far future": (header(version=99), "version 99"),
    "of a big-endian machine": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
    "tensors without end": (header(tensors=HUGE), LONG),
    "values without end": (header(values=HUGE), LONG),
    "a name without end": (header(values=1, rest=struct.pack("<Q", HUGE)), LONG),
    "a list without end": (value(struct.pack("<IIQ", 9, 0, HUGE)), LONG),
    "strings without end": (value(struct.pack("<IIQ", 9, 8, HUGE)), LONG),
    "lists in lists": (value(struct.pack("<IIQ", 9, 9, 1)), "unknown type 9"),
    "a value of no type": (value(struct.pack("<I", 77)), "unknown type 77"),
    "a name that is no text": (
        header(values=1, rest=struct.pack("<Q", 2) + b"\xff\xfe" + bytes(99)),
        "decode",
    ),
    "no alignment": (value(struct.pack("<II", 4, 0), "general.alignment"), "alignment of 0"),
    "an alignment in words": (
        value(struct.pack("<I", 8) + text("32"), "general.alignment"),
        "alignment of '32'",
    ),
    "a shape of many sides": (
        value(struct.pack("<IIQ", 9, 4, 99), "comfy.gguf.orig_shape.t"),
        "a shape of 99 sides",
    ),
    "a tensor larger than the file": (header(tensors=1, rest=tensor("t", 2**40, 2**20)), CLAIMS),
    "a tensor without sides": (header(tensors=1, rest=tensor("t") + bytes(64)), "0 dimensions"),
    "a tensor of no size": (header(tensors=1, rest=tensor("t", 0, 4) + bytes(64)), r"\(4, 0\)"),
    "a tensor of too many sides": (
        header(tensors=1, rest=tensor("t", *[1] * 50) + bytes(64)),
        "50 dimensions",
    ),
    "a tensor of no type": (header(tensors=1, rest=tensor("t", 8, kind=250)), "unknown type 250"),
    "a tensor of whole numbers": (
        header(tensors=1, rest=tensor("t", 8, kind=24) + bytes(64)),
        "I8 is not yet implemented",
    ),
    "rows that are no blocks": (
        header(tensors=1, rest=tensor("t", 5, kind=8) + bytes(64)),
        "no whole blocks of 32",
    ),
    "a place that is not aligned": (
        header(tensors=1, rest=tensor("t", 8, offset=3) + bytes(99)),
        "at 3",
    ),
    "a name twice": (header(tensors=2, rest=2 * tensor("t", 4) + bytes(99)), "there twice"),
    "many in one place": (
        header(tensors=9, rest=b"".join(tensor(f"t{n}", 1000) for n in range(9)) + bytes(4100)),
        CLAIMS,
    ),
    "of other tensors": (header(tensors=1, rest=tensor("t", 8) + bytes(99)), "is no original"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_and_little_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "sana.gguf"
    content, reason = HOSTILE[name]
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(WeightsError, match=reason) as caught:
        SanaTransformer2DModel.from_single_file(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in caught.value.message
    assert str(path) in caught.value.message
    assert peak < 10_000_000


def test_a_header_longer_than_that_of_any_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sana.gguf"
    words = header(values=1, rest=text("k") + struct.pack("<IIQ", 9, 8, 1_000_000) + bytes(2**23))
    path.write_bytes(words)
    with pytest.raises(WeightsError, match="longer than"):
        read_gguf(path)


def test_without_the_package_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sanakit.weights.convert.gguf_file.find_spec", lambda name: None)
    path = write(tmp_path / "sana.gguf", {"a": torch.ones(2)})
    with pytest.raises(ConfigError, match="needs gguf"):
        read_gguf(path)
