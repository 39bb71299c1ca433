"""What users of diffusers expect of the object itself: parts, facts, refusals, shared memory."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sanakit
from sanakit import Pipeline, SanaPAGPipeline, SanaPipeline, SanaPipelineOutput
from sanakit.errors import ConfigError, UnknownArgumentError
from sanakit.pipeline.components import GenerationDefaults
from sanakit.pipeline.schedulers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from tiny import tiny_components, write_tiny

CALL: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_inference_steps": 2,
    "output_type": "latent",
}


@pytest.fixture(scope="module")
def pipe() -> SanaPipeline:
    defaults = GenerationDefaults(
        instruction=("Draw:", ""),
        guidance_scale=3.0,
        scheduler=DPMSolverMultistepScheduler(flow_shift=2.0),
    )
    return SanaPipeline(Pipeline(tiny_components(defaults)))


def draw(pipe: SanaPipeline, **more: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a tree", generator=generator, **(CALL | more)).images


def pointers(pipe: SanaPipeline) -> list[int]:
    modules: list[nn.Module] = [pipe.transformer, pipe.vae, pipe.text_encoder]
    return [p.data_ptr() for module in modules for p in module.parameters()]


def test_pipelines_of_the_same_parts_share_their_memory_and_draw_alike(pipe: SanaPipeline) -> None:
    made = [
        SanaPipeline(**pipe.components),
        SanaPAGPipeline(**pipe.components),
        SanaPAGPipeline.from_pipe(pipe),
        SanaPipeline.from_pipe(SanaPAGPipeline.from_pipe(pipe)),
        SanaPAGPipeline.from_pipe(pipe, scheduler=DPMSolverMultistepScheduler(flow_shift=2.0)),
    ]
    for other in made:
        assert pointers(other) == pointers(pipe)
        off = {"pag_scale": 0.0} if isinstance(other, SanaPAGPipeline) else {}
        assert torch.equal(draw(other, **off), draw(pipe))
    assert not torch.equal(draw(made[1]), draw(pipe))


def test_a_part_may_be_exchanged_and_the_others_stay(pipe: SanaPipeline) -> None:
    vae = tiny_components().autoencoder
    other = SanaPipeline.from_pipe(pipe, vae=vae)
    assert other.vae is vae
    assert other.transformer is pipe.transformer
    assert torch.equal(draw(other), draw(pipe))


def test_layers_of_perturbed_attention_stay_with_their_pipeline(pipe: SanaPipeline) -> None:
    first = SanaPAGPipeline.from_pipe(pipe)
    second = SanaPAGPipeline.from_pipe(pipe, pag_applied_layers=[1])
    assert first.pag_applied_layers == "transformer_blocks.0"
    assert SanaPAGPipeline.from_pipe(second).pag_applied_layers == [1]
    assert not torch.equal(draw(first), draw(second))
    with pytest.raises(ConfigError, match="names no block"):
        SanaPAGPipeline(pipe.core, pag_applied_layers="transformer_blocks.2")


def test_components_are_the_published_ones(pipe: SanaPipeline) -> None:
    assert list(pipe.components) == [
        "tokenizer",
        "text_encoder",
        "vae",
        "transformer",
        "scheduler",
    ]
    assert pipe.components["scheduler"] == DPMSolverMultistepScheduler(flow_shift=2.0)
    assert pipe.dtype == torch.float32


def test_a_scheduler_that_is_set_chooses_solver_and_levels(pipe: SanaPipeline) -> None:
    other = SanaPipeline.from_pipe(pipe)
    other.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    euler = GenerationDefaults(
        instruction=("Draw:", ""),
        guidance_scale=3.0,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    assert torch.equal(draw(other), draw(SanaPipeline(Pipeline(tiny_components(euler)))))
    with pytest.raises(ConfigError, match="is no scheduler"):
        other.scheduler = object()


def test_facts_of_a_call_can_be_read_in_it_and_after_it(pipe: SanaPipeline) -> None:
    seen: list[tuple[Any, ...]] = []

    def look(running: SanaPipeline, *_: Any) -> None:
        seen.append((running.guidance_scale, running.num_timesteps, running.interrupt))

    draw(pipe, callback_on_step_end=look, attention_kwargs={})
    assert seen == [(3.0, 2, False)] * 2
    assert pipe.do_classifier_free_guidance
    assert pipe.attention_kwargs == {}
    draw(pipe, guidance_scale=1.0)
    assert not pipe.do_classifier_free_guidance
    strong = SanaPAGPipeline.from_pipe(pipe)
    assert not strong.do_perturbed_attention_guidance
    draw(strong, pag_scale=2.0, pag_adaptive_scale=0.001)
    assert strong.do_perturbed_attention_guidance
    assert (strong.pag_scale, strong.pag_adaptive_scale) == (2.0, 0.001)


def test_pictures_after_an_interruption_stay_noise(pipe: SanaPipeline) -> None:
    noise = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    bar = pipe._bar_options

    class Stop(io.StringIO):
        """A terminal whose user stops at the first sign of progress."""

        def write(self, text: str) -> int:
            pipe.interrupt = "1/4" in text
            return len(text)

    pipe.set_progress_bar_config(disable=False, file=Stop(), mininterval=0)
    try:
        images = pipe(["a tree", "a car"], latents=noise, **CALL).images
    finally:
        pipe._bar_options = bar
    assert torch.equal(images[1], noise[1])
    assert not torch.equal(images[0], noise[0])


def test_progress_is_written_where_it_is_asked_for(pipe: SanaPipeline) -> None:
    file = io.StringIO()
    other = SanaPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=False, file=file, desc="drawing")
    draw(other)
    assert "drawing: 100%" in file.getvalue()
    with pytest.raises(ConfigError, match="did you mean 'desc'"):
        other.set_progress_bar_config(descr="drawing")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"num_inference_step": 2}, "did you mean 'num_inference_steps'"),
        ({"pag_scale": 2.0}, "has no argument 'pag_scale'"),
        ({"cross_attention_kwargs": {}}, "did you mean 'attention_kwargs'"),
    ],
)
def test_a_keyword_that_nobody_knows_is_refused_with_the_nearest(
    pipe: SanaPipeline, call: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnknownArgumentError, match=said):
        pipe("a tree", **call)
    with pytest.raises(TypeError):
        pipe("a tree", **call)
    with pytest.raises(UnknownArgumentError):
        SanaPAGPipeline.from_pipe(pipe, **(call | {"pag_layer": 1}))
    with pytest.raises(UnknownArgumentError, match="text_encoder"):
        SanaPipeline(text_encodr=None)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"prompt": None}, "either prompt or prompt_embeds"),
        ({"prompt": ["a", 3]}, "prompt holds a int"),
        ({"negative_prompt": b"x"}, "negative_prompt holds a int"),
        ({"prompt": []}, "at least one string"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"num_inference_steps": 2.5}, "num_inference_steps=2.5"),
        ({"num_images_per_prompt": True}, "num_images_per_prompt=True"),
        ({"height": 0}, "height=0"),
        ({"width": -32}, "width=-32"),
        ({"width": 100_000}, "width=100000"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"max_sequence_length": 0}, "max_sequence_length=0"),
        ({"complex_human_instruction": "one line"}, "list of lines"),
        ({"attention_kwargs": {"gligen": 1}}, "has gligen"),
        ({"timesteps": [10], "sigmas": [0.5]}, "both given"),
        ({"timesteps": [500, 600]}, "must fall"),
        ({"timesteps": [1001]}, "must fall"),
        ({"sigmas": [float("nan")]}, "must fall"),
        (
            {
                "negative_prompt": "blurry",
                "negative_prompt_embeds": torch.zeros(1, 2, 8),
                "negative_prompt_attention_mask": torch.ones(1, 2),
            },
            "either negative_prompt or",
        ),
        (
            {
                "negative_prompt_embeds": torch.zeros(3, 2, 8),
                "negative_prompt_attention_mask": torch.ones(3, 2),
            },
            "3 negative prompts for 1",
        ),
        (
            {
                "negative_prompt_embeds": torch.zeros(1, 2, 9),
                "negative_prompt_attention_mask": torch.ones(1, 2),
            },
            "have 9 channels, the transformer takes 8",
        ),
        ({"callback_on_step_end": lambda p, i, t, x: {"latent": 1}}, "did you mean 'latents'"),
        (
            {"callback_on_step_end": lambda p, i, t, x: {"latents": x["latents"][0]}},
            "latents of shape",
        ),
        (
            {"callback_on_step_end": lambda p, i, t, x: {"prompt_embeds": torch.zeros(1, 5, 8)}},
            r"goes on with \(1, 300, 8\)",
        ),
        (
            {
                "guidance_scale": 1.0,
                "callback_on_step_end": lambda p, i, t, x: {"negative_prompt_embeds": 0},
            },
            "guidance_scale above 1",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    pipe: SanaPipeline, call: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        pipe(**(CALL | {"prompt": "a tree"} | call))


def test_parts_that_are_missing_or_of_others_are_refused(pipe: SanaPipeline) -> None:
    parts = pipe.components
    with pytest.raises(ConfigError, match="lacks vae, transformer"):
        SanaPipeline(tokenizer=parts["tokenizer"], text_encoder=parts["text_encoder"])
    with pytest.raises(ConfigError, match=r"transformer is of type Linear of torch"):
        SanaPipeline(**(parts | {"transformer": nn.Linear(2, 2)}))
    with pytest.raises(ConfigError, match="lacks text_encoder, vae"):
        SanaPipeline(parts["tokenizer"])
    with pytest.raises(ConfigError, match="no pipeline of sanakit"):
        SanaPAGPipeline.from_pipe(pipe.core)  # type: ignore[arg-type]


def test_the_published_names_are_at_the_root(tmp_path: Path) -> None:
    assert sanakit.SanaPAGPipeline is SanaPAGPipeline
    folder = write_tiny(tmp_path / "m")
    strong = sanakit.SanaPAGPipeline.from_pretrained(folder, pag_applied_layers=["blocks.1"])
    output = strong("a tree", **CALL)
    assert isinstance(output, SanaPipelineOutput)
    (images,) = strong("a tree", return_dict=False, **CALL)
    assert images.shape == output.images.shape
