"""The control branch against diffusers' SanaControlNetModel, alone and together with the base."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from diffusers import SanaControlNetModel
from parity.test_transformer import SMALL, inputs, pair, published, random_weights
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.models.config import (
    ControlBranchConfig,
    TransformerConfig,
    check_branch,
    config_from_dict,
    config_to_dict,
)
from sanakit.models.controlnet import ControlBranch
from sanakit.models.transformer import LinearDiT

TRUNK = replace(SMALL, num_layers=4)
BRANCH = ControlBranchConfig.of(TRUNK, num_layers=2)
PUBLISHED = inspect.signature(SanaControlNetModel.__init__).parameters
PUBLISHED_FIELDS = PUBLISHED.keys() - {"self"}
VARIANTS = {
    "plain": BRANCH,
    "biased attention": replace(BRANCH, attention_bias=True, norm_elementwise_affine=True),
    "other norm eps and ffn": replace(BRANCH, norm_eps=1e-3, mlp_ratio=1.7),
    "patches and positions": replace(BRANCH, patch_size=2, interpolation_scale=1.0),
    "positions at scale 2": replace(BRANCH, interpolation_scale=2.0),
}


def branches(
    config: ControlBranchConfig, rng: torch.Generator
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


def called(
    model: ControlBranch,
    x: Tensor,
    timestep: Tensor,
    text: Tensor,
    mask: Tensor | None,
    control: Tensor,
    **more: float,
) -> tuple[Tensor, ...]:
    """As published."""
    return model(
        x,
        encoder_hidden_states=text,
        timestep=timestep,
        controlnet_cond=control,
        encoder_attention_mask=None if mask is None else mask.long(),
        **more,
    ).controlnet_block_samples


def fields_of(config: ControlBranchConfig) -> TransformerConfig:
    """Of a transformer that such a branch steers."""
    own = TransformerConfig.__dataclass_fields__
    return replace(TRUNK, **{n: getattr(config, n) for n in own if n != "num_layers"})


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_residual_agrees(name: str, masked: bool, rng: torch.Generator) -> None:
    model, reference = branches(VARIANTS[name], rng)
    x, timestep, text, mask = inputs(VARIANTS[name], rng, batch=3, size=(4, 10), tokens=7)
    control = torch.randn(x.shape, generator=rng)
    given = (x, timestep, text, mask if masked else None, control)
    with torch.inference_mode():
        got = called(model, *given, conditioning_scale=0.7)
    expected = published_residuals(reference, *given, 0.7)
    assert len(got) == len(expected) == 2
    assert min(each.std() for each in expected) > 0.1
    torch.testing.assert_close(got, tuple(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "positions at scale 2"])
def test_the_steered_transformer_agrees(name: str, rng: torch.Generator) -> None:
    config = VARIANTS[name]
    branch, published_branch = branches(config, rng)
    # One block more than takes a residual, so that the last residual is not added to the output.
    model, reference = pair(fields_of(config), rng)
    x, timestep, text, mask = inputs(config, rng, batch=2, size=(6, 4), tokens=5)
    control = torch.randn(x.shape, generator=rng)
    steering = published_residuals(published_branch, x, timestep, text, mask, control, 1.0)
    expected = published(
        reference, x, timestep, text, mask, controlnet_block_samples=tuple(steering)
    )
    with torch.inference_mode():
        steer = branch.steering(x, timestep, text, mask, control)
        got = model.velocity(x, timestep, text, mask, steer=steer)
        prepared = branch.prepare_text(text)
        steer = branch.steering(x, timestep, prepared, mask, control)
        at_once = model.velocity(x, timestep, model.prepare_text(text), mask, steer=steer)
        (by_hand,) = model(
            x,
            text,
            timestep,
            encoder_attention_mask=mask.long(),
            controlnet_block_samples=called(branch, x, timestep, text, mask, control),
            return_dict=False,
        )
        plain = model.velocity(x, timestep, text, mask)
    torch.testing.assert_close(at_once, got, rtol=0, atol=1e-6)
    torch.testing.assert_close(by_hand, got, rtol=0, atol=0)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert (got - plain).abs().max() > 0.1


def plain_reading(
    model: LinearDiT,
    branch: ControlBranch,
    x: Tensor,
    timestep: Tensor,
    text: Tensor,
    mask: Tensor,
    control: Tensor,
    scale: float,
) -> Tensor:
    """The original's formula, block by block, where both embed alike, as in its files.

    x1 = block0(x0); c = copy0(x1 + before(c0)) or copy_i(c); x_i+1 = block_i(x_i + after_i(c)).
    """
    time, embedded = model.time_embed(timestep, x.dtype)
    states = model.caption_norm(model.caption_projection(text))
    grid = (x.shape[2] // model.config.patch_size, x.shape[3] // model.config.patch_size)

    def run(block: Any, y: Tensor) -> Tensor:
        return block(y, states, None, mask, time, grid, None)

    c0 = model.patch_embed.proj(control).flatten(2).transpose(1, 2)  # no positions
    y = run(model.transformer_blocks[0], model.patch_embed(x))
    c = y + branch.input_block(c0)
    for index, block in enumerate(model.transformer_blocks[1:]):
        if index < len(branch.transformer_blocks):
            c = run(branch.transformer_blocks[index], c)
            y = y + scale * branch.controlnet_blocks[index](c)
        y = run(block, y)
    shift, factor = (model.scale_shift_table + embedded.unsqueeze(1)).chunk(2, dim=1)
    y = torch.nn.functional.layer_norm(y, y.shape[-1:], eps=1e-6) * (1 + factor) + shift
    side = model.config.patch_size
    y = model.proj_out(y).unflatten(1, grid).unflatten(3, (side, side, -1))
    return y.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize("name", ["plain", "patches and positions"])
def test_the_original_wiring_is_its_formula(name: str, rng: torch.Generator) -> None:
    config = replace(VARIANTS[name], wiring="original")
    branch, _ = branches(config, rng)
    model, _ = pair(fields_of(config), rng)
    # The original has one set of embedders for both.
    shared = {n: t for n, t in model.state_dict().items() if n in branch.state_dict()}
    shared = {n: t for n, t in shared.items() if not n.startswith("transformer_blocks")}
    branch.load_state_dict(shared, strict=False)
    x, timestep, text, mask = inputs(config, rng, batch=2, size=(6, 4), tokens=5)
    control = torch.randn(x.shape, generator=rng)
    given = (x, timestep, text, mask)
    with torch.inference_mode():
        expected = plain_reading(model, branch, *given, control, 0.6)
        steer = branch.steering(*given, control, conditioning_scale=0.6)
        got = model.velocity(*given, steer=steer)
        other = ControlBranch(replace(config, wiring="diffusers")).eval()
        other.load_state_dict(branch.state_dict())
        steer = other.steering(*given, control, conditioning_scale=0.6)
        as_diffusers = model.velocity(*given, steer=steer)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert (got - as_diffusers).abs().max() > 0.1
    with pytest.raises(ConfigError, match=r"(?s)wired as the original.*steer=controlnet.steering"):
        called(branch, *given, control)


@pytest.mark.parametrize("wiring", ["diffusers", "original"])
def test_a_new_branch_changes_nothing(
    wiring: Literal["diffusers", "original"], rng: torch.Generator
) -> None:
    given = inputs(BRANCH, rng, batch=2, size=(4, 4), tokens=5)
    branch = ControlBranch(replace(BRANCH, wiring=wiring))
    model, _ = pair(TRUNK, rng)
    with torch.inference_mode():
        steered = model.velocity(*given, steer=branch.steering(*given, control=given[0]))
        assert torch.equal(steered, model.velocity(*given))
    assert not branch.input_block.weight.any()


def test_a_published_config_is_read_as_it_is_and_ours_says_its_wiring() -> None:
    values = {name: config_to_dict(BRANCH)[name] for name in PUBLISHED_FIELDS}
    values["_class_name"] = "SanaControlNetModel"
    assert config_from_dict(ControlBranchConfig, values, source="config.json") == BRANCH
    original = replace(BRANCH, wiring="original")
    written = config_to_dict(original)
    assert written.keys() == PUBLISHED_FIELDS | {"_wiring"}
    assert config_from_dict(ControlBranchConfig, written, source="config.json") == original
    with pytest.raises(ConfigError, match="wiring"):
        config_from_dict(ControlBranchConfig, {**written, "_wiring": "mine"}, source="config.json")
    defaults = {name: PUBLISHED[name].default for name in PUBLISHED_FIELDS}
    assert {n: ControlBranchConfig()[n] for n in PUBLISHED_FIELDS} == defaults


def test_misuse_is_named_with_the_way_out(rng: torch.Generator) -> None:
    for change in ({"qk_norm": "rms_norm_across_heads"}, {"guidance_embeds": True}):
        name = next(iter(change))
        with pytest.raises(ConfigError, match=f"(?s){name}=.*has none.*SANA 1.0"):
            ControlBranchConfig.of(replace(TRUNK, **change))
        with pytest.raises(ConfigError, match=f"(?s){name}=.*no control branch.*SANA 1.0"):
            check_branch(BRANCH, replace(TRUNK, **change))
    for name in ("in_channels", "caption_channels", "patch_size"):
        with pytest.raises(ConfigError, match=f"{name} of the control branch is"):
            check_branch(BRANCH, replace(TRUNK, **{name: getattr(TRUNK, name) + 1}))
    wider = {"num_attention_heads": 12, "cross_attention_head_dim": 16, "cross_attention_dim": 48}
    with pytest.raises(ConfigError, match="width of the control branch is 24"):
        check_branch(BRANCH, replace(TRUNK, **wider))
    with pytest.raises(ConfigError, match="5 blocks of a control branch for 4"):
        check_branch(replace(BRANCH, num_layers=5), TRUNK)
    with pytest.raises(ConfigError, match="num_layers=5 of a control branch must be 1 to 4"):
        ControlBranchConfig.of(TRUNK, num_layers=5)
    given = inputs(BRANCH, rng, batch=2, size=(4, 4), tokens=5)
    with pytest.raises(ConfigError, match="latent has 1 channels, the model takes 3"):
        called(ControlBranch(BRANCH), given[0][:, :1], *given[1:], given[0][:, :1])
    with pytest.raises(ConfigError, match=r"(?s)control is \(1, 3, 4, 4\).*\(2, 3, 4, 4\)"):
        ControlBranch(BRANCH).steering(*given, control=given[0][:1])
    model, _ = pair(TRUNK, rng)
    x, timestep, text, _ = given
    tokens = torch.zeros(2, 16, 24)
    model(x, text, timestep, controlnet_block_samples=(tokens,) * 4)
    with pytest.raises(ConfigError, match="5 residuals for 4 blocks"):
        model(x, text, timestep, controlnet_block_samples=(tokens,) * 5)
