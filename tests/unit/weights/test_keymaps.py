"""Names of original checkpoints and ours: both directions, every kind, every preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from original_files import original_autoencoder, original_transformer
from sanakit.errors import WeightsError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import (
    AUTOENCODERS,
    TRANSFORMERS,
    AutoencoderConfig,
    ControlBranchConfig,
    TransformerConfig,
)
from sanakit.models.controlnet import ControlBranch
from sanakit.models.transformer import LinearDiT
from sanakit.weights.convert.keymaps import (
    Keymap,
    Rule,
    autoencoder_keymap,
    control_keymap,
    transformer_keymap,
)

TINY = TRANSFORMERS["tiny"]
BRANCHED = replace(TINY, num_layers=3)


def narrow(config: TransformerConfig) -> TransformerConfig:
    """Another preset's kind and depth, at a width that costs nothing."""
    return replace(
        config,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=6,
        sample_size=4,
    )


def narrow_autoencoder(config: AutoencoderConfig) -> AutoencoderConfig:
    """Another preset's stages, 8 times thinner."""
    return replace(
        config,
        attention_head_dim=max(1, config.attention_head_dim // 8),
        latent_channels=max(2, config.latent_channels // 8),
        encoder_block_out_channels=tuple(max(8, w // 8) for w in config.encoder_block_out_channels),
        decoder_block_out_channels=tuple(max(8, w // 8) for w in config.decoder_block_out_channels),
    )


def on_meta(kind: type[nn.Module], config: object) -> Mapping[str, Tensor]:
    with torch.device("meta"):
        return kind(config).state_dict()


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def inverts(keymap: Keymap, original: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Same tensors under our names, and back again to the last bit."""
    published = keymap.to_published(original, source="file")
    assert shapes(published) == shapes(ours)
    back = keymap.to_original(published, source="file")
    kept = {n: t for n, t in original.items() if n in back}
    assert shapes(back) == shapes(kept)
    dropped = original.keys() - back.keys()
    assert all(n.startswith(("pos_embed", "y_embedder.y_emb", "logvar_lin")) for n in dropped)
    if next(iter(original.values())).device.type != "meta":
        assert all(torch.equal(back[name], original[name]) for name in back)
        again = keymap.to_published(back, source="file")
        assert all(torch.equal(again[name], published[name]) for name in published)


@pytest.mark.parametrize("preset", TRANSFORMERS)
def test_a_transformer_goes_there_and_back(preset: str) -> None:
    config = narrow(TRANSFORMERS[preset])
    original = original_transformer(config)
    inverts(transformer_keymap(config), original, on_meta(LinearDiT, config))


def test_a_biased_fused_projection_is_split_and_fused_like_its_weight() -> None:
    config = replace(TINY, attention_bias=True)
    original = original_transformer(config)
    for index in range(config.num_layers):
        original[f"blocks.{index}.attn.qkv.bias"] = torch.randn(3 * config.width)
    inverts(transformer_keymap(config), original, on_meta(LinearDiT, config))


def test_a_control_branch_goes_there_and_back() -> None:
    original = original_transformer(BRANCHED, branch=2)
    own = {n: t for n, t in original.items() if not n.startswith(("blocks.", "final_layer."))}
    inverts(
        control_keymap(),
        own,
        on_meta(ControlBranch, ControlBranchConfig.of(BRANCHED, num_layers=2)),
    )


@pytest.mark.parametrize("preset", AUTOENCODERS)
def test_an_autoencoder_goes_there_and_back(preset: str) -> None:
    config = narrow_autoencoder(AUTOENCODERS[preset])
    original = original_autoencoder(config)
    inverts(autoencoder_keymap(config), original, on_meta(Autoencoder, config))


@pytest.mark.parametrize("change", ["strided", "no shortcuts", "two scales"])
def test_an_autoencoder_nobody_published_goes_there_and_back(change: str) -> None:
    config = narrow_autoencoder(AUTOENCODERS["dc-ae-f32c32-in-1.0"])
    config = {
        "strided": replace(config, downsample_block_type="conv", upsample_block_type="interpolate"),
        "no shortcuts": replace(config, encoder_out_shortcut=False, decoder_in_shortcut=False),
        "two scales": replace(config, encoder_qkv_multiscales=((),) * 5 + ((3, 5),)),
    }[change]
    original = original_autoencoder(config)
    inverts(autoencoder_keymap(config), original, on_meta(Autoencoder, config))


@pytest.mark.parametrize("kind", ["transformer", "guided", "branch", "autoencoder"])
def test_no_name_fits_two_rules(kind: str) -> None:
    guided = replace(TINY, guidance_embeds=True)
    keymap = {
        "transformer": transformer_keymap(TINY),
        "guided": transformer_keymap(guided),
        "branch": control_keymap(),
        "autoencoder": autoencoder_keymap(AUTOENCODERS["dc-ae-f32c32-sana-1.0"]),
    }[kind]
    original = [rule.original for rule in keymap.rules]
    published = [name for rule in keymap.rules for name in rule.published]
    assert len(set(original)) == len(original)
    assert len(set(published)) == len(published)


def test_queries_keys_and_values_are_the_thirds_in_this_order() -> None:
    original = original_transformer(TINY)
    published = transformer_keymap(TINY).to_published(original, source="file")
    qkv = original["blocks.1.attn.qkv.weight"]
    for third, name in enumerate(("to_q", "to_k", "to_v")):
        own = published[f"transformer_blocks.1.attn1.{name}.weight"]
        assert torch.equal(own, qkv[8 * third : 8 * third + 8])


def test_an_unknown_name_is_refused_by_name() -> None:
    original = {**original_transformer(TINY), "blocks.0.lora.weight": torch.ones(1)}
    with pytest.raises(WeightsError, match=r"m\.pth: 1 unexpected: blocks\.0\.lora\.weight"):
        transformer_keymap(TINY).to_published(original, source="m.pth")
    published = {"transformer_blocks.0.norm2.weight": torch.ones(8)}
    with pytest.raises(WeightsError, match=r"1 unexpected: transformer_blocks\.0\.norm2\.weight"):
        transformer_keymap(TINY).to_original(published, source="folder")


def test_a_part_of_a_fused_tensor_cannot_be_missing() -> None:
    published = transformer_keymap(TINY).to_published(original_transformer(TINY), source="file")
    del published["transformer_blocks.0.attn2.to_v.bias"]
    with pytest.raises(WeightsError, match=r"attn2\.to_v\.bias is missing.*kv_linear\.bias"):
        transformer_keymap(TINY).to_original(published, source="folder")


def test_parts_that_differ_in_shape_or_dtype_are_not_fused() -> None:
    rule = Rule("qkv", ("q", "k"))
    with pytest.raises(WeightsError, match="parts differ"):
        rule.fuse((torch.ones(2, 2), torch.ones(3, 2)), name="qkv")
    with pytest.raises(WeightsError, match="parts differ"):
        rule.fuse((torch.ones(2), torch.ones(2, dtype=torch.float16)), name="qkv")


def test_a_tensor_that_cannot_be_split_or_is_no_pointwise_convolution_is_refused() -> None:
    with pytest.raises(WeightsError, match="cannot be split into 2"):
        Rule("kv", ("k", "v")).split(torch.ones(3, 2), name="kv")
    with pytest.raises(WeightsError, match="not a 1x1 convolution"):
        Rule("qkv", ("q",), pointwise=True).split(torch.ones(3, 2, 3, 3), name="qkv")
