"""Original checkpoints, converted here and by diffusers: the same tensors, the same pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC, SanaControlNetModel, SanaTransformer2DModel
from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers
from parity.test_transformer import SMALL
from tests.unit.weights.test_keymaps import narrow_autoencoder
from torch import Tensor

from original_files import original_autoencoder, original_transformer
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import (
    AUTOENCODERS,
    AutoencoderConfig,
    ControlBranchConfig,
    config_to_dict,
)
from sanakit.models.controlnet import ControlBranch
from sanakit.models.transformer import LinearDiT
from sanakit.weights.convert.conversion import Options, carry_out, plan
from sanakit.weights.store import read_config

POSITIONED = replace(SMALL, interpolation_scale=2.0)


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def converted(tmp_path: Path, original: dict[str, Tensor], config: object) -> Path:
    """The user's command: an original file, and a config.json where shapes say too little."""
    torch.save({"state_dict": original}, tmp_path / "m.pth")
    (tmp_path / "c.json").write_text(json.dumps(config_to_dict(config)))
    options = Options(config=str(tmp_path / "c.json"))
    carry_out(plan(tmp_path / "m.pth", tmp_path / "out", options))
    return tmp_path / "out"


@pytest.mark.parametrize("config", [SMALL, POSITIONED], ids=["no positions", "positions"])
@torch.inference_mode()
def test_a_transformer_is_what_from_single_file_makes_of_it(
    tmp_path: Path, config: object, rng: torch.Generator
) -> None:
    original = original_transformer(config)
    folder = converted(tmp_path, original, config)
    described = tmp_path / "described"
    SanaTransformer2DModel(**config_to_dict(config)).save_config(described)
    theirs = SanaTransformer2DModel.from_single_file(dict(original), config=str(described)).eval()
    loaded = SanaTransformer2DModel.from_pretrained(folder).eval()
    same(loaded.state_dict(), theirs.state_dict())
    ours = LinearDiT(config).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 4, 6, generator=rng)
    text = torch.randn(2, 5, 10, generator=rng)
    time = torch.tensor([3.0, 700.0])
    expected = theirs(x, encoder_hidden_states=text, timestep=time).sample
    torch.testing.assert_close(ours.velocity(x, time, text, None), expected, rtol=0, atol=1e-5)
    given = loaded(x, encoder_hidden_states=text, timestep=time).sample
    torch.testing.assert_close(given, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", [name for name in AUTOENCODERS if name.endswith(("in-1.0", "sana-1.0"))]
)
@torch.inference_mode()
def test_an_autoencoder_is_what_the_other_converter_makes_of_it(
    tmp_path: Path, name: str, rng: torch.Generator
) -> None:
    config: AutoencoderConfig = narrow_autoencoder(AUTOENCODERS[name])
    config = replace(config, encoder_layers_per_block=_fewer(config.encoder_layers_per_block))
    original = original_autoencoder(config)
    folder = converted(tmp_path, original, config)
    theirs = AutoencoderDC(**config_to_dict(config)).eval()
    theirs.load_state_dict(convert_autoencoder_dc_checkpoint_to_diffusers(dict(original)))
    loaded = AutoencoderDC.from_pretrained(folder).eval()
    same(loaded.state_dict(), theirs.state_dict())
    assert loaded.config.scaling_factor == AUTOENCODERS[name].scaling_factor
    ours = Autoencoder(config).eval()
    ours.load_state_dict(loaded.state_dict())
    factor = config.spatial_factor
    z = torch.randn(1, config.latent_channels, 1, 2, generator=rng)
    image = torch.randn(1, 3, factor, factor, generator=rng)
    decoded, encoded = theirs.decode(z).sample, theirs.encode(image).latent
    torch.testing.assert_close(ours.decode(z).sample, decoded, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.encode(image).latent, encoded, rtol=1e-4, atol=1e-4)


def _fewer(layers: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(min(count, 2) for count in layers)


@torch.inference_mode()
def test_a_control_branch_has_the_names_and_values_of_diffusers_model(tmp_path: Path) -> None:
    original = original_transformer(SMALL, branch=2)
    folder = converted(tmp_path, original, SMALL)
    loaded, info = SanaControlNetModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    state = loaded.state_dict()
    config = ControlBranchConfig.of(SMALL, num_layers=2, wiring="original")
    assert read_config(folder, ControlBranchConfig) == config
    assert state.keys() == ControlBranch(config).state_dict().keys()
    # What the table must say, spelt out once more: which module is which.
    assert torch.equal(state["input_block.weight"], original["controlnet.0.before_proj.weight"])
    for index in range(2):
        block, copied = f"transformer_blocks.{index}", f"controlnet.{index}.copied_block"
        after = f"controlnet.{index}.after_proj.bias"
        assert torch.equal(state[f"controlnet_blocks.{index}.bias"], original[after])
        q, k, v = original[f"{copied}.attn.qkv.weight"].chunk(3)
        for name, own in (("to_q", q), ("to_k", k), ("to_v", v)):
            assert torch.equal(state[f"{block}.attn1.{name}.weight"], own)
        k, v = original[f"{copied}.cross_attn.kv_linear.bias"].chunk(2)
        assert torch.equal(state[f"{block}.attn2.to_k.bias"], k)
        assert torch.equal(state[f"{block}.attn2.to_v.bias"], v)
    assert torch.equal(state["caption_norm.weight"], original["attention_y_norm.weight"])
    assert loaded.config.num_layers == 2


@pytest.mark.parametrize("guided", [False, True], ids=["1.5", "Sprint"])
@torch.inference_mode()
def test_what_diffusers_cannot_read_is_read_here_and_loads_there(
    tmp_path: Path, guided: bool
) -> None:
    config = replace(SMALL, qk_norm="rms_norm_across_heads", guidance_embeds=guided)
    original = original_transformer(config)
    loaded, info = SanaTransformer2DModel.from_pretrained(
        converted(tmp_path, original, config), output_loading_info=True
    )
    assert not any(info.values())
    state = loaded.state_dict()
    block = "transformer_blocks.1"
    for theirs, own in (("attn1.norm_q", "attn.q_norm"), ("attn2.norm_k", "cross_attn.k_norm")):
        original_name = f"blocks.1.{own}.weight"
        assert torch.equal(state[f"{block}.{theirs}.weight"], original[original_name])
    if guided:
        embedder = "time_embed.guidance_embedder.linear_2.weight"
        assert torch.equal(state[embedder], original["cfg_embedder.mlp.2.weight"])
