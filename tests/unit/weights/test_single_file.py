"""`from_single_file`: one network from one original file, its tensors, or its address."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from original_files import original_autoencoder, original_transformer
from sanakit import SanaTransformer2DModel
from sanakit.errors import ConfigError, MissingModelError, UnknownArgumentError, WeightsError
from sanakit.models.config import AUTOENCODERS, TransformerConfig
from sanakit.weights.convert.original_format import read_original

CONFIG = TransformerConfig(
    in_channels=3,
    out_channels=3,
    num_attention_heads=2,
    attention_head_dim=32,
    num_layers=2,
    num_cross_attention_heads=4,
    cross_attention_head_dim=16,
    cross_attention_dim=64,
    caption_channels=10,
)


@pytest.fixture
def described(tmp_path: Path) -> Path:
    SanaTransformer2DModel(CONFIG).save_config(tmp_path / "described" / "transformer")
    return tmp_path / "described"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_its_tensors_and_its_conversion_are_one(
    suffix: str, described: Path, tmp_path: Path
) -> None:
    original = original_transformer(CONFIG)
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": original}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in original.items()}, path)
    (part,) = read_original(path, config=str(described / "transformer" / "config.json")).parts
    for config in (described, described / "transformer", described / "transformer/config.json"):
        for source in (path, str(path), original):
            network = SanaTransformer2DModel.from_single_file(source, config=str(config))
            assert network.config == CONFIG
            assert not network.training
            state = network.state_dict()
            assert state.keys() == part.state.keys()
            assert all(torch.equal(state[name], t.float()) for name, t in part.state.items())
    half = SanaTransformer2DModel.from_single_file(
        path, config=str(described), torch_dtype=torch.bfloat16
    )
    assert half.dtype == torch.bfloat16


def test_shapes_tell_the_autoencoder() -> None:
    original = original_autoencoder(AUTOENCODERS["dc-ae-f32c32-sana-1.0"], device="meta")
    with pytest.raises(ConfigError, match="holds a AutoencoderDC"):
        SanaTransformer2DModel.from_single_file(original)


def test_misuse_is_named(described: Path, tmp_path: Path) -> None:
    address = "https://huggingface.co/owner/name/blob/main/checkpoints/model.pth"
    with pytest.raises(MissingModelError, match=r"hf download owner/name checkpoints/model\.pth"):
        SanaTransformer2DModel.from_single_file(address)
    with pytest.raises(ConfigError, match="no file of the Hugging Face hub"):
        SanaTransformer2DModel.from_single_file("https://example.org/model.pth")
    with pytest.raises(WeightsError, match="no such file"):
        SanaTransformer2DModel.from_single_file(tmp_path / "absent.pth")
    with pytest.raises(UnknownArgumentError, match="confg"):
        SanaTransformer2DModel.from_single_file(tmp_path / "absent.pth", confg="x")
