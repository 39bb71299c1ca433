"""One call of a published pipeline, from its arguments to pictures."""

from __future__ import annotations

from dataclasses import replace

import torch
from huggingface_hub.utils.tqdm import tqdm

from sanakit.errors import ConfigError
from sanakit.flow.guidance import Guidance
from sanakit.pipeline.arguments import (
    MODEL_DEFAULT,
    Call,
    Images,
    as_output,
    draw_noise,
    rows_of,
)
from sanakit.pipeline.aspect_ratios import TABLES, nearest_bin
from sanakit.pipeline.binning import cut_to
from sanakit.pipeline.callbacks import StepHook, effective_scale
from sanakit.pipeline.compat import check_compat, instruction_as, scheduler_as
from sanakit.pipeline.face import PipelineFace
from sanakit.pipeline.generate import Pipeline, Sampling, Texts
from sanakit.pipeline.lora import lora_strength
from sanakit.pipeline.texts import embedded, encode_texts
from sanakit.shapes import Latent

PUBLISHED_SIZE = 1024


def draw(pipe: PipelineFace, call: Call) -> Images:
    """Draw the pictures of a call, or their latents; errors are those of `SanaPipeline`."""
    core = pipe.core
    check_compat(call.compat)
    scale = call.guidance_scale
    scale = core.components.habits.guidance_scale if scale is None else scale
    sampling = sampling_of(pipe, call, scale)
    asked = asked_size(core, call.height, call.width)
    shape = core.latent_shape(*drawn_size(core, *asked, binned=call.use_resolution_binning))
    positive, negative = texts_of(core, call, guided=sampling.guidance.guidance_scale != 1.0)
    count = len(positive.text)
    noise = noise_of(call, count, shape)
    pipe._call, pipe._interrupt = call, False
    pipe._guidance_scale, pipe._num_timesteps = scale, len(sampling.grid.timesteps)
    # Matrix products of another batch size round differently; on a CPU one by one costs little.
    at_once = count if call.callback_on_step_end or pipe.device.type != "cpu" else 1
    latents, images = [], []
    total = len(range(0, count, at_once)) * pipe._num_timesteps
    weighed = lora_strength(core.components.transformer, call.lora_scale)
    with weighed, tqdm(total=total, **pipe._bar_options) as bar:
        for start in range(0, count, at_once):
            rows = slice(start, start + at_once)
            latent = noise[rows]
            if not pipe._interrupt:
                given = rows_of(positive, rows)
                null = None if negative is None else rows_of(negative, rows)
                hook = StepHook(pipe, call, sampling, given, null, tick=bar.update)
                latent = core.sample(latent, given, null, sampling, on_step=hook)
            latents.append(latent)
            if call.output_type != "latent":
                images.append(cut_to(core.decode(latent), *asked))
    if call.output_type == "latent":
        return torch.cat(latents)
    return as_output(torch.cat(images), call.output_type)


def sampling_of(pipe: PipelineFace, call: Call, guidance_scale: float) -> Sampling:
    """Solver, noise levels and guidance of a call: the caller's levels, else the scheduler's."""
    core = pipe.core
    guidance = Guidance(
        guidance_scale=effective_scale(guidance_scale),
        pag_scale=call.pag_scale,
        pag_adaptive_scale=call.pag_adaptive_scale,
    )
    scheduler = pipe._scheduler
    if scheduler is None:
        scheduler = scheduler_as(
            core.components.habits, core.components.transformer.config, call.compat
        )
    sampling = core.sampling(
        scheduler=scheduler,
        num_steps=call.num_inference_steps,
        guidance=guidance,
        pag_layers=sorted(call.pag_layers),
    )
    if call.timesteps is not None or call.sigmas is not None:
        sampling = replace(sampling, grid=scheduler.custom_grid(call.timesteps, call.sigmas))
    return sampling


def texts_of(core: Pipeline, call: Call, *, guided: bool) -> Texts:
    """Embeddings of a call, as many rows as it has pictures."""
    config = core.components.transformer.config
    instruction = call.complex_human_instruction
    if instruction is MODEL_DEFAULT:
        instruction = core.components.habits.instruction
    return encode_texts(
        core,
        prompt=call.prompt,
        negative_prompt=call.negative_prompt,
        given=embedded(
            call.prompt_embeds, call.prompt_attention_mask, "prompt", config.caption_channels
        ),
        given_null=embedded(
            call.negative_prompt_embeds,
            call.negative_prompt_attention_mask,
            "negative_prompt",
            config.caption_channels,
        ),
        guided=guided and not config.guidance_embeds,
        count_each=call.num_images_per_prompt,
        instruction=instruction_as(instruction, call.compat),
        max_sequence_length=call.max_sequence_length,
        clean_caption=call.clean_caption,
        compat=call.compat,
    )


def noise_of(call: Call, count: int, shape: tuple[int, int, int]) -> Latent:
    """Noise to start from, ``b c h w``: the caller's, or drawn.

    Raises:
        ConfigError: the caller's has another shape.
    """
    if call.latents is None:
        return draw_noise(count, shape, call.generator)
    if tuple(call.latents.shape) != (count, *shape):
        raise ConfigError(
            f"latents are {tuple(call.latents.shape)}, this call needs {(count, *shape)}",
            hint="b, latent channels, height / 32, width / 32 of the size that is drawn; "
            "use_resolution_binning=False draws the very size asked for",
        )
    return call.latents


def asked_size(core: Pipeline, height: int | None, width: int | None) -> tuple[int, int]:
    """The size of the pictures; of published models 1024 px square unless told."""
    published = core.components.transformer.config.sample_size in TABLES
    usual = PUBLISHED_SIZE if published else core.default_size
    return usual if height is None else height, usual if width is None else width


def drawn_size(core: Pipeline, height: int, width: int, *, binned: bool) -> tuple[int, int]:
    """The size to draw at; a binned model draws at a trained one and is cut afterwards."""
    core.latent_shape(height, width)  # refuses what is no multiple, binned or not
    table = TABLES.get(core.components.transformer.config.sample_size)
    return nearest_bin(height, width, table) if binned and table else (height, width)
