"""Every catalogued checkpoint in every dtype: a picture, or a typed error, and nothing in silence.

The checkpoints are tiny, with the switches of the published ones: query and key norms, positional
embedding, embedded guidance. A cell is silent when it gives a picture that fp32 would not draw and
neither warns nor raises.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from sanakit import GenerateRequest, Pipeline, SanaPipeline, SanaSprintPipeline
from sanakit.errors import ConfigError, NumericsError
from sanakit.models.config import TRANSFORMERS, ControlBranchConfig, TransformerConfig
from sanakit.models.controlnet import ControlBranch
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import Components, suited
from sanakit.pipeline.numerics import NumericsWarning
from sanakit.weights.catalog import CATALOG, Checkpoint
from sanakit.weights.dtypes import Dtypes, resolve_dtypes
from tiny import TRANSFORMER, tiny_components

EMULATED = "sanakit.nn.wide_products.is_emulated"
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = (FP32, BF16, FP16)
# All that tells one published architecture from another, besides its size.
SWITCHES = (
    "sample_size",
    "patch_size",
    "interpolation_scale",
    "guidance_embeds",
    "guidance_embeds_scale",
    "qk_norm",
    "timestep_scale",
    "attention_bias",
    "norm_elementwise_affine",
)
DEVICES = (
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
)
CALL: dict[str, Any] = {
    "prompt": "a red apple",
    "height": 64,
    "width": 64,
    "num_inference_steps": 2,
    "use_resolution_binning": False,
    "output_type": "pt",
}
PIPELINES = [checkpoint for checkpoint in CATALOG if checkpoint.kind == "pipeline"]
# The distillation teacher of Sprint 0.6B has no preset: SANA 1.5 in another size.
PRESETS = sorted({checkpoint.preset or "sana1.5-1.6b" for checkpoint in PIPELINES})
# As messages call them.
NAMES = {"transformer": "transformer", "text_encoder": "text encoder", "vae": "autoencoder"}
# Farther from fp32 than this is another picture, not rounding. Pixels are in [0, 1].
SAME = 0.1


def tiny_of(preset: str) -> TransformerConfig:
    published = TRANSFORMERS[preset]
    return replace(TRANSFORMER, **{name: getattr(published, name) for name in SWITCHES})


def cast(made: Components, dtypes: Dtypes, device: str = "cpu") -> Components:
    made.transformer.to(device, dtypes.transformer)
    made.autoencoder.to(device, dtypes.vae)
    made.prompts.text_encoder.to(device, dtypes.text_encoder)
    return made


def tiny_checkpoint(preset: str) -> Components:
    made = tiny_components()
    torch.manual_seed(1)
    transformer = LinearDiT(tiny_of(preset)).eval().requires_grad_(False)
    torch.nn.init.ones_(transformer.caption_norm.weight)
    few_steps = transformer.config.guidance_embeds
    defaults = suited(made.defaults, few_steps=few_steps)
    return replace(made, transformer=transformer, defaults=defaults)


def draw(made: Components) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    few_steps = made.transformer.config.guidance_embeds
    face = SanaSprintPipeline if few_steps else SanaPipeline
    return face(Pipeline(made))(**CALL, generator=generator).images


@cache
def drawn(preset: str, dtypes: Dtypes, device: str) -> Tensor:
    """A picture by a sound model, which must come without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", NumericsWarning)
        return draw(cast(tiny_checkpoint(preset), dtypes, device)).cpu()


def check_picture(images: Tensor, exact: Tensor) -> None:
    assert torch.isfinite(images).all()
    assert images.amax() > images.amin()
    assert (images - exact).abs().max() < SAME


def exactly(preset: str) -> Tensor:
    return drawn(preset, Dtypes(transformer=FP32, text_encoder=FP32, vae=FP32), "cpu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [None, *DTYPES], ids=str)
@pytest.mark.parametrize("checkpoint", PIPELINES, ids=lambda checkpoint: checkpoint.alias)
def test_a_checkpoint_draws_in_the_dtypes_it_resolves_to_or_refuses(
    checkpoint: Checkpoint, dtype: torch.dtype | None, device: str
) -> None:
    if checkpoint.dtype == "bfloat16" and dtype == FP16:
        with pytest.raises(ConfigError, match="trained in bfloat16"):
            resolve_dtypes(checkpoint, dtype, device=device)
        return
    dtypes = resolve_dtypes(checkpoint, dtype, device=device)
    assert FP16 not in (dtypes.text_encoder, dtypes.vae)
    preset = checkpoint.preset or "sana1.5-1.6b"
    check_picture(drawn(preset, dtypes, device), exactly(preset))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("transformer", "beside"), list(product(DTYPES, DTYPES)), ids=lambda dtype: str(dtype)[6:]
)
@pytest.mark.parametrize("preset", PRESETS)
def test_an_architecture_draws_in_every_dtype_that_its_numbers_fit(
    preset: str, transformer: torch.dtype, beside: torch.dtype, device: str
) -> None:
    """Also in the dtypes that the rule refuses, which ``allow_unsafe_dtype`` lets through."""
    dtypes = Dtypes(transformer=transformer, text_encoder=beside, vae=beside)
    check_picture(drawn(preset, dtypes, device), exactly(preset))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_a_control_branch_steers_in_every_dtype(dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    config = replace(TRANSFORMER, num_layers=3)
    trunk = LinearDiT(config)
    branch = ControlBranch(ControlBranchConfig.of(config, num_layers=2))
    for projection in (branch.input_block, *branch.controlnet_blocks):
        torch.nn.init.eye_(projection.weight)
    x, control = torch.randn(2, 1, 4, 2, 2)
    text, time = torch.randn(1, 3, config.caption_channels), torch.tensor([500.0])

    def velocity(dtype: torch.dtype, device: str, *, steered: bool = True) -> Tensor:
        given = [value.to(device, dtype) for value in (x, time, text)]
        for module in (trunk, branch):
            module.to(device, dtype)
        with torch.inference_mode():
            near = control.to(device, dtype)
            steer = branch.steering(*given, None, near) if steered else None
            return trunk.velocity(*given, None, steer=steer).float().cpu()

    exact, alone = velocity(FP32, "cpu"), velocity(FP32, "cpu", steered=False)
    found = velocity(dtype, device)
    assert torch.isfinite(found).all()
    assert (found - exact).abs().max() < 0.05 * exact.abs().max()
    assert (alone - exact).abs().max() > 0.1 * exact.abs().max()


def overflow_in_feed_forward(made: Components) -> None:
    """Activations of millions between two convolutions, which fp32 takes back exactly."""
    ff = made.transformer.transformer_blocks[0].ff
    ff.conv_inverted.weight.mul_(2.0**10)
    ff.conv_inverted.bias.mul_(2.0**10)
    ff.conv_depth.weight.mul_(2.0**6)
    ff.conv_point.weight.mul_(2.0**-20)


def overflow_in_self_attention(made: Components) -> None:
    made.transformer.transformer_blocks[0].attn1.to_v.weight.mul_(2.0**18)
    made.transformer.transformer_blocks[0].attn1.to_out[0].weight.mul_(2.0**-18)


def overflow_in_captions(made: Components) -> None:
    made.transformer.caption_projection.linear_2.weight.mul_(2.0**20)


def overflow_in_language_model(made: Components) -> None:
    made.prompts.text_encoder.llm.layers[0].mlp.up_proj.weight.mul_(2.0**20)
    made.prompts.text_encoder.llm.layers[1].mlp.up_proj.weight.mul_(2.0**20)


def overflow_in_decoder(made: Components) -> None:
    made.autoencoder.decoder.conv_in.weight.mul_(2.0**17)


def overflow_in_decoder_block(made: Components) -> None:
    """Undone in fp32 by the norm that follows."""
    made.autoencoder.decoder.up_blocks[-1][-1].conv_out.conv_point.weight.mul_(2.0**24)


INJECTIONS: dict[str, tuple[str, Callable[[Components], None]]] = {
    "feed-forward": ("transformer", overflow_in_feed_forward),
    "self-attention": ("transformer", overflow_in_self_attention),
    "captions": ("transformer", overflow_in_captions),
    "language model": ("text_encoder", overflow_in_language_model),
    "decoder": ("vae", overflow_in_decoder),
    "decoder block": ("vae", overflow_in_decoder_block),
}


def injected(name: str, **dtypes: torch.dtype) -> Components:
    made = tiny_checkpoint("sana-1.6b")
    with torch.no_grad():
        INJECTIONS[name][1](made)
    usual = {"transformer": FP32, "text_encoder": FP32, "vae": FP32}
    return cast(made, Dtypes(**(usual | dtypes)))


def heard(call: Callable[[], Tensor]) -> tuple[Tensor | None, list[str]]:
    """What a call gives, None where it raises, and all that it says about its numbers."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NumericsWarning)
        try:
            images = call()
        except NumericsError as error:
            return None, [str(error)]
    return images, [str(w.message) for w in caught if w.category is NumericsWarning]


@pytest.mark.parametrize("name", INJECTIONS)
def test_weights_that_overflow_fp16_are_sound_in_fp32(name: str) -> None:
    images, said = heard(lambda: draw(injected(name)))
    assert images is not None
    assert torch.isfinite(images).all()
    assert not said


@pytest.mark.parametrize("units", [True, False], ids=["as with units", "as it is"])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", INJECTIONS)
def test_an_overflow_is_repaired_or_said_and_never_silent(
    name: str, dtype: torch.dtype, units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if units:  # elsewhere a transformer runs in fp32 inside, and does not overflow
        monkeypatch.setattr(EMULATED, lambda weight: False)
    part = INJECTIONS[name][0]
    exact = injected(name)
    if not units:  # the weights may underflow where they are stored: these are the model
        whole = Dtypes(transformer=FP32, text_encoder=FP32, vae=FP32)
        exact = cast(injected(name, **{part: dtype}), whole)
    images, said = heard(lambda: draw(injected(name, **{part: dtype})))
    if dtype == FP16 and units:
        assert said, "fp16 overflowed and nobody said so"
        assert NAMES[part] in said[0]
    if images is None:
        return
    assert torch.isfinite(images).all()
    if not said:
        assert (images - draw(exact)).abs().max() < SAME


@pytest.mark.parametrize("name", INJECTIONS)
def test_the_command_lines_core_is_not_silent_either(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EMULATED, lambda weight: False)
    core = Pipeline(injected(name, **{INJECTIONS[name][0]: FP16}))
    request = GenerateRequest(prompt="a red apple", num_steps=2, height=64, width=64)
    _, said = heard(lambda: torch.from_numpy(core.generate(request).pictures[0].pixels))
    assert said


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("bias", "colour"), [(100.0, 255), (-100.0, 0)], ids=["white", "black"])
def test_a_picture_of_one_colour_is_said_to_be_one(
    dtype: torch.dtype, bias: float, colour: int
) -> None:
    """Saturation overflows nothing: only the picture shows it."""
    made = tiny_checkpoint("sana-1.6b")
    last = made.autoencoder.decoder.conv_out.conv
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, bias)
    images, said = heard(
        lambda: draw(cast(made, Dtypes(transformer=FP32, text_encoder=FP32, vae=dtype)))
    )
    assert images is not None
    assert images.amax() == images.amin() == colour / 255
    assert len(said) == 1
    assert f"the colour ({colour}, {colour}, {colour})" in said[0]


def test_the_command_lines_core_says_it_too() -> None:
    made = tiny_checkpoint("sana-1.6b")
    last = made.autoencoder.decoder.conv_out.conv
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, 9.0)
    request = GenerateRequest(prompt="a red apple", num_steps=1, height=64, width=64)
    _, said = heard(lambda: torch.from_numpy(Pipeline(made).generate(request).pictures[0].pixels))
    assert "the colour (255, 255, 255)" in said[0]


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_weights_that_are_no_numbers_are_an_error_in_every_dtype(part: str, value: float) -> None:
    for dtype in DTYPES:
        made = tiny_checkpoint("sana-1.6b")
        modules = {
            "transformer": made.transformer.proj_out,
            "text_encoder": made.prompts.text_encoder.llm.norm,
            "vae": made.autoencoder.decoder.norm_out,
        }
        modules[part].weight.data.fill_(value)
        usual = {"transformer": FP32, "text_encoder": FP32, "vae": FP32}
        made = cast(made, Dtypes(**(usual | {part: dtype})))
        images, said = heard(lambda made=made: draw(made))
        assert images is None
        assert re.search(f"{NAMES[part]}.* not finite", said[0])
