"""What a user puts around a part of a pipeline acts in its pictures, and changes nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sanakit.models.parts
from sanakit import AutoencoderDC, SanaPAGPipeline, SanaPipeline, SanaTransformer2DModel
from sanakit.errors import ConfigError, NumericsError
from sanakit.models.outputs import DecoderOutput

CALL: dict[str, Any] = {
    "prompt": "a red apple",
    "height": 64,
    "width": 64,
    "num_inference_steps": 2,
    "use_resolution_binning": False,
    "output_type": "pt",
}


@pytest.fixture
def pipe(folder: Path) -> SanaPipeline:
    return SanaPipeline.from_pretrained(folder)


def drawn(pipe: SanaPipeline, **more: Any) -> Tensor:
    images = pipe(**{**CALL, **more}, generator=torch.Generator().manual_seed(3)).images
    assert isinstance(images, Tensor)
    return images


class Around(nn.Module):
    """A module of a user's around one of ours."""

    def __init__(self, inner: nn.Module, *, config: bool = True) -> None:
        super().__init__()
        self.inner = inner
        if config:
            self.config = inner.config
        self.seen: list[dict[str, Any]] = []

    def forward(self, *given: Any, **named: Any) -> Any:
        self.seen.append(named)
        return self.inner(*given, **named)


def patch_forward(network: nn.Module) -> list[dict[str, Any]]:
    seen, own = [], network.forward
    network.forward = lambda *given, **named: seen.append(named) or own(*given, **named)
    return seen


def patch_decode(vae: AutoencoderDC) -> list[dict[str, Any]]:
    seen, own = [], vae.decode
    vae.decode = lambda z, **named: seen.append(named) or own(z, **named)  # type: ignore
    return seen


def listen(network: nn.Module) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    network.register_forward_pre_hook(lambda _, __, named: seen.append(named), with_kwargs=True)
    return seen


@pytest.mark.parametrize("put", [patch_forward, listen])
def test_a_transformer_that_is_patched_or_hooked_is_called_as_published(
    put: Callable[[nn.Module], list[dict[str, Any]]], pipe: SanaPipeline
) -> None:
    expected = drawn(pipe)
    seen = put(pipe.transformer)
    torch.testing.assert_close(drawn(pipe), expected, rtol=0, atol=1e-5)
    assert len(seen) == CALL["num_inference_steps"]
    mask, timestep = seen[0]["encoder_attention_mask"], seen[0]["timestep"]
    assert seen[0]["encoder_hidden_states"].shape[:2] == mask.shape == (2, 300)
    assert mask.dtype == torch.long
    assert timestep.shape == (2,)
    assert seen[0]["return_dict"] is False


def test_what_a_hook_makes_of_the_velocity_is_in_the_picture(pipe: SanaPipeline) -> None:
    expected = drawn(pipe)
    handle = pipe.transformer.register_forward_hook(lambda _, __, out: (0.5 * out[0],))
    assert not torch.allclose(drawn(pipe), expected, atol=1e-3)
    handle.remove()
    assert torch.equal(drawn(pipe), expected)


@pytest.mark.parametrize("output_type", ["pt", "np", "pil"])
def test_a_decoder_that_is_patched_makes_the_pixels(output_type: str, pipe: SanaPipeline) -> None:
    assert drawn(pipe).std() > 0
    pipe.vae.decode = lambda z, return_dict=True: (torch.full((1, 3, 64, 64), 0.25),)  # type: ignore
    with pytest.warns(UserWarning, match="one colour|nothing but the colour"):
        images = pipe(**{**CALL, "output_type": output_type}).images
    value = np.asarray(images[0]).max()
    assert value == pytest.approx(0.625 * (255 if output_type == "pil" else 1), abs=1)


@pytest.mark.parametrize("put", [patch_decode, lambda vae: patch_forward(vae.decoder)])
def test_a_decoder_that_is_watched_is_asked_for_whole_pictures(
    put: Callable[[AutoencoderDC], list[dict[str, Any]]], pipe: SanaPipeline
) -> None:
    expected = drawn(pipe)
    seen = put(pipe.vae)
    torch.testing.assert_close(drawn(pipe), expected, rtol=0, atol=1e-5)
    assert len(seen) == 1


def test_outputs_of_any_published_form_are_taken(pipe: SanaPipeline) -> None:
    expected, own = drawn(pipe), pipe.vae.decode
    pipe.vae.decode = lambda z, return_dict=True: DecoderOutput(sample=-own(z).sample)  # type: ignore
    torch.testing.assert_close(drawn(pipe), 1 - expected, rtol=0, atol=1e-5)


def test_a_subclass_draws_its_own_way(pipe: SanaPipeline) -> None:
    expected = drawn(pipe)

    class Halved(SanaTransformer2DModel):
        def forward(self, *given: Any, **named: Any) -> Any:
            return (0.5 * super().forward(*given, **{**named, "return_dict": False})[0],)

    pipe.transformer.__class__ = Halved
    assert not torch.allclose(drawn(pipe), expected, atol=1e-3)


def test_perturbed_attention_goes_through_a_patched_transformer(folder: Path) -> None:
    pipe = SanaPAGPipeline.from_pretrained(folder, pag_applied_layers="transformer_blocks.1")
    expected = drawn(pipe, pag_scale=2.0)
    seen = patch_forward(pipe.transformer)
    torch.testing.assert_close(drawn(pipe, pag_scale=2.0), expected, rtol=0, atol=1e-5)
    assert len(seen) == CALL["num_inference_steps"]


def test_a_wrapped_part_stands_for_what_is_in_it(pipe: SanaPipeline) -> None:
    expected, parts = drawn(pipe), pipe.components
    around = Around(parts["transformer"])
    pipe.transformer = around
    assert pipe.transformer is around
    for wrapped in (pipe, SanaPipeline(**{**parts, "transformer": around})):
        torch.testing.assert_close(drawn(wrapped), expected, rtol=0, atol=1e-5)
    assert len(around.seen) == 2 * CALL["num_inference_steps"]


COMPILED = """
import sys, torch
from sanakit import SanaPipeline
folder, out = sys.argv[1:]
call = dict(prompt="a red apple", height=64, width=64, num_inference_steps=2,
            use_resolution_binning=False, output_type="pt")
def drawn(pipe):
    return pipe(**call, generator=torch.Generator().manual_seed(3)).images
pipe = SanaPipeline.from_pretrained(folder)
expected, calls = drawn(pipe), []
def backend(graph, inputs):
    def run(*given):
        calls.append(graph)
        return graph(*given)
    return run
pipe.transformer = torch.compile(pipe.transformer, backend=backend)
torch.testing.assert_close(drawn(pipe), expected, rtol=0, atol=1e-5)
of_transformer = len(calls)
assert of_transformer
pipe.vae.decode = torch.compile(pipe.vae.decode, backend=backend)
torch.testing.assert_close(drawn(pipe), expected, rtol=0, atol=1e-5)
assert len(calls) > 2 * of_transformer
pipe.save_pretrained(out)
torch.testing.assert_close(drawn(SanaPipeline.from_pretrained(out)), expected, rtol=0, atol=0)
"""


def test_what_is_compiled_draws_the_same_and_is_saved_without_its_wrapper(
    folder: Path, tmp_path: Path
) -> None:
    # On its own: the type checks of these tests are not made to be compiled.
    subprocess.run([sys.executable, "-c", COMPILED, folder, tmp_path / "out"], check=True)


def test_a_block_of_ones_own_runs_in_the_place_of_ours(pipe: SanaPipeline) -> None:
    expected, blocks = drawn(pipe), pipe.transformer.transformer_blocks
    around = Around(blocks[0], config=False)
    blocks[0] = around
    torch.testing.assert_close(drawn(pipe), expected, rtol=0, atol=1e-5)
    assert len(around.seen) == CALL["num_inference_steps"]


def test_a_wrapper_without_a_config_is_told_what_it_lacks(pipe: SanaPipeline) -> None:
    around = Around(pipe.transformer, config=False)
    with pytest.raises(ConfigError, match="without the config") as refused:
        SanaPipeline(**{**pipe.components, "transformer": around})
    assert "part.config = pipe.transformer.config" in str(refused.value)


def test_a_patched_transformer_that_overflows_is_named(pipe: SanaPipeline) -> None:
    own = pipe.transformer.forward
    pipe.transformer.forward = lambda *given, **named: (own(*given, **named)[0] * torch.inf,)
    with pytest.raises(NumericsError, match="transformer"):
        drawn(pipe)


def test_what_nobody_touched_runs_our_own_way(
    pipe: SanaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("called as published")

    monkeypatch.setattr(sanakit.models.parts, "_BUILT", {})
    for network in (pipe.transformer, pipe.vae):
        monkeypatch.setattr(network, "forward", never)
    monkeypatch.setattr(pipe.vae, "decode", never)
    drawn(pipe)


def test_gradients_flow_in_a_callback(pipe: SanaPipeline) -> None:
    slopes = []

    def towards_white(pipe: Any, index: int, timestep: Tensor, tensors: Any) -> dict[str, Tensor]:
        with torch.enable_grad():
            x = tensors["latents"].detach().clone().requires_grad_(True)
            text = tensors["prompt_embeds"][-1:].float()
            steps = torch.full((1,), float(timestep))
            velocity = pipe.transformer(x, encoder_hidden_states=text, timestep=steps).sample
            image = pipe.vae.decode((x - velocity) / pipe.vae.config.scaling_factor).sample
            (slope,) = torch.autograd.grad((image - 1).square().mean(), x)
        slopes.append(slope)
        return {"latents": tensors["latents"] - slope}

    shown = ("latents", "prompt_embeds")
    found = drawn(
        pipe, callback_on_step_end=towards_white, callback_on_step_end_tensor_inputs=shown
    )
    assert len(slopes) == CALL["num_inference_steps"]
    assert all(slope.abs().max() > 0 for slope in slopes)
    assert not torch.equal(found, drawn(pipe))


def test_latents_that_were_drawn_can_be_trained_on(pipe: SanaPipeline) -> None:
    latent = drawn(pipe, output_type="latent").requires_grad_(True)
    pipe.vae.decode(latent).sample.mean().backward()
    assert latent.grad is not None


@pytest.mark.parametrize("how", ["subclass", "instance"])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
def test_an_encode_prompt_of_ones_own_is_what_is_drawn(
    how: str, guidance_scale: float, pipe: SanaPipeline
) -> None:
    given: list[dict[str, Any]] = []
    own = pipe.encode_prompt

    def encode(prompt: Any, guided: bool = True, **named: Any) -> Any:
        given.append({"prompt": prompt, "guided": guided, **named})
        return own("a small tree", guided, **named)

    class Mine(SanaPipeline):
        def encode_prompt(self, *positional: Any, **named: Any) -> Any:
            return encode(*positional, **named)

    expected = drawn(pipe, prompt="a small tree", guidance_scale=guidance_scale)
    if how == "subclass":
        pipe = Mine(**pipe.components)
    else:
        pipe.encode_prompt = encode  # type: ignore[method-assign]
    found = drawn(pipe, guidance_scale=guidance_scale)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert given[0]["prompt"] == CALL["prompt"]
    assert given[0]["guided"] == (guidance_scale != 1.0)
    several = drawn(pipe, prompt=["a", "b"], num_images_per_prompt=2, guidance_scale=guidance_scale)
    assert given[1]["num_images_per_prompt"] == 2
    assert len(several) == 2  # the method gave one prompt, twice
