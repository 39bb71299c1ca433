"""What happens when a component gives numbers that are not finite: one retry, then an error."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sanakit import Pipeline, SanaPipeline
from sanakit.errors import NumericsError
from sanakit.pipeline.components import Components
from sanakit.pipeline.numerics import (
    NumericsWarning,
    report_constant,
    require_finite,
    safer_copy,
    safer_dtype,
)
from sanakit.pipeline.pixels import to_pixels
from tiny import tiny_components

CALL: dict[str, Any] = {
    "prompt": "a red apple",
    "height": 64,
    "width": 64,
    "num_inference_steps": 3,
}


def breaking(module: nn.Module, *dtypes: torch.dtype, after: int = 0) -> list[torch.dtype]:
    """Make a module's answers NaN in some dtypes, from call ``after`` on; its copies do the same.

    Gives the dtypes of all its answers so far.
    """
    seen: list[torch.dtype] = []

    def hook(_: nn.Module, __: Any, answer: Tensor) -> Tensor:
        seen.append(answer.dtype)
        broken = answer.dtype in dtypes and len(seen) > after
        return answer * float("nan") if broken else answer

    module.register_forward_hook(hook)
    return seen


def components(part: str, dtype: torch.dtype) -> Components:
    """The tiny model, one part of it in another dtype."""
    made = tiny_components()
    module = made.prompts.text_encoder if part == "text_encoder" else getattr(made, part)
    module.to(dtype)
    return made


def draw(made: Components, kind: str = "latent") -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return SanaPipeline(Pipeline(made))(**CALL, generator=generator, output_type=kind).images


def widened(part: str, dtype: torch.dtype) -> Components:
    """The same weights, rounded to ``dtype`` and run in fp32."""
    made = components(part, dtype)
    module = made.prompts.text_encoder if part == "text_encoder" else getattr(made, part)
    module.float()
    return made


@pytest.fixture(autouse=True)
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that computes in 16 bits: elsewhere a network would run in fp32 inside."""
    monkeypatch.setattr("sanakit.nn.wide_products.is_emulated", lambda weight: False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_step_of_the_transformer_starts_again_in_fp32(dtype: torch.dtype) -> None:
    made = components("transformer", dtype)
    seen = breaking(made.transformer.proj_out, dtype)
    with pytest.warns(NumericsWarning, match=r"the transformer .* at step 1 of 3 in .*float32"):
        found = draw(made)
    assert seen == [dtype, torch.float32, torch.float32, torch.float32]
    assert_close(found, draw(widened("transformer", dtype)), atol=1e-6, rtol=0)
    assert made.transformer.proj_out.weight.dtype == dtype


def test_steps_before_the_failure_are_kept() -> None:
    made = components("transformer", torch.bfloat16)
    seen = breaking(made.transformer.proj_out, torch.bfloat16, after=1)
    with pytest.warns(NumericsWarning, match="at step 2 of 3"):
        draw(made)
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]


def test_a_transformer_that_fails_in_fp32_too_is_named_with_its_step() -> None:
    made = components("transformer", torch.bfloat16)
    breaking(made.transformer.proj_out, torch.bfloat16, torch.float32, after=2)
    with (
        pytest.warns(NumericsWarning),
        pytest.raises(NumericsError, match=r"transformer .* at step 3 of 3 \(torch.float32\)"),
    ):
        draw(made)


@pytest.mark.parametrize(
    ("dtype", "safer"), [(torch.float16, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_a_text_encoder_is_asked_again_in_the_next_dtype(
    dtype: torch.dtype, safer: torch.dtype
) -> None:
    made = components("text_encoder", dtype)
    seen = breaking(made.prompts.text_encoder.llm.norm, dtype)
    with pytest.warns(NumericsWarning, match="the text encoder .*text_encoder"):
        draw(made)
    assert seen[0] == dtype
    assert seen[-2:] == [safer, safer]
    assert made.prompts.text_encoder.llm.dtype == dtype


def test_a_text_encoder_that_fails_again_is_an_error() -> None:
    made = components("text_encoder", torch.float16)
    breaking(made.prompts.text_encoder.llm.norm, torch.float16, torch.bfloat16)
    with (
        pytest.warns(NumericsWarning),
        pytest.raises(NumericsError, match=r"text encoder .*bfloat16\)\n.*in float32"),
    ):
        draw(made)


def test_a_decoder_is_asked_again_and_its_latents_are_kept() -> None:
    made = components("autoencoder", torch.bfloat16)
    breaking(made.autoencoder.decoder.conv_out, torch.bfloat16)
    with pytest.warns(NumericsWarning, match="the autoencoder .* while decoding in bfloat16.*vae"):
        found = draw(made, "pt")
    assert_close(found, draw(widened("autoencoder", torch.bfloat16), "pt"), atol=1e-6, rtol=0)
    again = components("autoencoder", torch.bfloat16)
    breaking(again.autoencoder.decoder.conv_out, torch.bfloat16, torch.float32)
    with pytest.warns(NumericsWarning), pytest.raises(NumericsError, match="while decoding"):
        draw(again, "pt")


def test_fp16_that_overflows_in_the_transformer_is_drawn_in_fp32() -> None:
    made = components("transformer", torch.float16)
    made.transformer.caption_projection.linear_1.weight.mul_(3e4)
    made.transformer.caption_projection.linear_2.weight.fill_(1.0)
    with pytest.warns(NumericsWarning, match="step 1 of 3 in float16"):
        assert draw(made).isfinite().all()


def test_quantized_weights_have_no_safer_copy() -> None:
    module = nn.Linear(2, 2).half()
    module.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(NumericsError, match="without quantization"):
        safer_copy(module, "transformer")
    with pytest.raises(NumericsError, match="in float32"):
        safer_copy(nn.Linear(2, 2, device="meta").half(), "transformer")


def test_the_ladder_of_dtypes_ends_in_fp32() -> None:
    half, brain, full = torch.float16, torch.bfloat16, torch.float32
    assert [safer_dtype("autoencoder", each) for each in (half, brain, full)] == [brain, full, None]
    assert [safer_dtype("transformer", each) for each in (half, brain, full)] == [full, full, None]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(value: float) -> None:
    values = torch.zeros(4, dtype=torch.float16)
    require_finite(values, "transformer")
    values[2] = value
    with pytest.raises(NumericsError, match=r"transformer .* at step 3 \(torch.float16\)"):
        require_finite(values, "transformer", " at step 3")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"latents": torch.full((1, 4, 2, 2), torch.nan)}, "latents to start from"),
        (
            {
                "prompt": None,
                "prompt_embeds": torch.full((1, 3, 8), torch.inf),
                "prompt_attention_mask": torch.ones(1, 3),
            },
            "prompt_embeds",
        ),
        (
            {"callback_on_step_end": lambda p, i, t, x: {"latents": x["latents"] / 0}},
            "callback's latents",
        ),
    ],
)
def test_what_a_caller_gives_is_blamed_on_nobody_else(given: dict[str, Any], named: str) -> None:
    pipe = SanaPipeline(Pipeline(tiny_components()))
    with pytest.raises(NumericsError, match=named):
        pipe(**(CALL | given))


def test_a_picture_of_one_colour_is_reported() -> None:
    made = tiny_components()
    for parameter in made.autoencoder.decoder.conv_out.parameters():
        parameter.zero_()
    with pytest.warns(NumericsWarning, match=r"picture 0 is nothing but the colour \(128, 128"):
        draw(made, "pt")


@pytest.mark.parametrize(
    ("make", "constant"),
    [
        (lambda image: image, False),
        (lambda image: image - 9, True),  # black after clamping
        (lambda image: image * 1e-4, True),
        (lambda image: image * torch.tensor([0, 0, 1.0]).view(3, 1, 1), False),
        (lambda image: torch.zeros_like(image) + torch.tensor([0, 0, 1.0]).view(3, 1, 1), True),
        (lambda image: image[:, :, :1, :1], False),  # one pixel has one colour
    ],
)
def test_one_colour_means_one_colour_of_eight_bits(
    make: Callable[[Tensor], Tensor], constant: bool, rng: torch.Generator
) -> None:
    image = make(torch.rand(1, 3, 32, 32, generator=rng))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report_constant(to_pixels(image), dtype=torch.float32)
    assert bool(caught) == constant


def test_another_pipeline_of_the_same_parts_is_left_as_it_was() -> None:
    made = components("transformer", torch.bfloat16)
    other = SanaPipeline(Pipeline(replace(made, name="other")))
    pointers = [p.data_ptr() for p in other.transformer.parameters()]
    breaking(made.transformer.proj_out, torch.bfloat16)
    with pytest.warns(NumericsWarning):
        draw(made)
    assert [p.data_ptr() for p in other.transformer.parameters()] == pointers
