"""The control branch against diffusers' SanaControlNetModel, alone and together with the base."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from diffusers import SanaControlNetModel
from parity.test_transformer import SMALL, inputs, pair, published, random_weights
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.models.config import TransformerConfig, config_from_dict, config_to_dict
from sanakit.models.controlnet import ControlBranch

BRANCH = replace(SMALL, num_layers=2)
PUBLISHED_FIELDS = inspect.signature(SanaControlNetModel.__init__).parameters.keys() - {"self"}
VARIANTS = {
    "plain": BRANCH,
    "biased attention": replace(BRANCH, attention_bias=True, norm_elementwise_affine=True),
    "other norm eps and ffn": replace(BRANCH, norm_eps=1e-3, mlp_ratio=1.7),
    "patches and positions": replace(BRANCH, patch_size=2, interpolation_scale=1.0),
    "positions at scale 2": replace(BRANCH, interpolation_scale=2.0),
}


def branches(
    config: TransformerConfig, rng: torch.Generator
) -> tuple[ControlBranch, SanaControlNetModel]:
    """Both branches on one set of tensors, loaded strictly: the names are the same set."""
    fields = config_to_dict(config)
    reference = SanaControlNetModel(**{name: fields[name] for name in PUBLISHED_FIELDS}).eval()
    model = ControlBranch(config).eval()
    reference.load_state_dict(random_weights(reference, rng), strict=True)
    model.load_state_dict(reference.state_dict(), strict=True)
    return model, reference


@torch.inference_mode()
def published_residuals(
    reference: SanaControlNetModel,
    x: Tensor,
    timestep: Tensor,
    text: Tensor,
    mask: Tensor | None,
    control: Tensor,
    scale: float,
) -> list[Tensor]:
    (residuals,) = reference(
        hidden_states=x,
        timestep=timestep,
        encoder_hidden_states=text,
        encoder_attention_mask=None if mask is None else mask.long(),
        controlnet_cond=control,
        conditioning_scale=scale,
        return_dict=False,
    )
    return residuals


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_residual_agrees(name: str, masked: bool, rng: torch.Generator) -> None:
    model, reference = branches(VARIANTS[name], rng)
    x, timestep, text, mask = inputs(VARIANTS[name], rng, batch=3, size=(4, 10), tokens=7)
    control = torch.randn(x.shape, generator=rng)
    given = (x, timestep, text, mask if masked else None, control)
    with torch.inference_mode():
        got = model(*given, conditioning_scale=0.7)
    expected = published_residuals(reference, *given, 0.7)
    assert len(got) == len(expected) == 2
    assert min(each.std() for each in expected) > 0.1
    torch.testing.assert_close(got, tuple(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "positions at scale 2"])
def test_the_steered_transformer_agrees(name: str, rng: torch.Generator) -> None:
    config = VARIANTS[name]
    branch, published_branch = branches(config, rng)
    # One block more than takes a residual, so that the last residual is not added to the output.
    model, reference = pair(replace(config, num_layers=4), rng)
    x, timestep, text, mask = inputs(config, rng, batch=2, size=(6, 4), tokens=5)
    control = torch.randn(x.shape, generator=rng)
    steering = published_residuals(published_branch, x, timestep, text, mask, control, 1.0)
    expected = published(
        reference, x, timestep, text, mask, controlnet_block_samples=tuple(steering)
    )
    with torch.inference_mode():
        residuals = branch(x, timestep, text, mask, control)
        got = model.velocity(x, timestep, text, mask, residuals=residuals)
        plain = model.velocity(x, timestep, text, mask)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert (got - plain).abs().max() > 0.1


def test_a_new_branch_changes_nothing(rng: torch.Generator) -> None:
    given = inputs(BRANCH, rng, batch=2, size=(4, 4), tokens=5)
    branch = ControlBranch(BRANCH)
    assert not any(each.any() for each in branch(*given, control=given[0]))
    assert not branch.input_block.weight.any()


def test_a_published_config_is_read_as_it_is() -> None:
    values = {name: config_to_dict(BRANCH)[name] for name in PUBLISHED_FIELDS}
    values["_class_name"] = "SanaControlNetModel"
    assert config_from_dict(TransformerConfig, values, source="config.json") == BRANCH


def test_misuse_is_named_with_the_way_out(rng: torch.Generator) -> None:
    for change in ({"qk_norm": "rms_norm_across_heads"}, {"guidance_embeds": True}):
        with pytest.raises(ConfigError, match=f"(?s){next(iter(change))}=.*has none.*SANA 1.0"):
            ControlBranch(replace(BRANCH, **change))
    given = inputs(BRANCH, rng, batch=2, size=(4, 4), tokens=5)
    with pytest.raises(ConfigError, match="latent has 1 channels, the model takes 3"):
        ControlBranch(BRANCH)(given[0][:, :1], *given[1:], control=given[0][:, :1])
    with pytest.raises(ConfigError, match=r"(?s)control is \(1, 3, 4, 4\).*\(2, 3, 4, 4\)"):
        ControlBranch(BRANCH)(*given, control=given[0][:1])
    model, _ = pair(BRANCH, rng)
    tokens = torch.zeros(2, 16, 24)
    model.velocity(*given, residuals=(tokens,))
    with pytest.raises(ConfigError, match=r"2 residuals for 2 blocks.*at most 1"):
        model.velocity(*given, residuals=(tokens, tokens))
