"""Callbacks: watched, changed and stopped on the way."""

from __future__ import annotations

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from places import draw, loaded

STEPS = 4


def _drawn(lib, at, callback, **options):
    options = {"num_inference_steps": STEPS, "output_type": "latent", **options}
    return draw(loaded(lib, at), callback_on_step_end=callback, **options)


def counted(lib, at):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, float(timestep), sorted(tensors)))
        return tensors

    return [_drawn(lib, at, callback), seen]


def latents_kept(lib, at):
    kept = []

    def callback(pipe, step, timestep, tensors):
        kept.append(tensors["latents"].clone())
        return tensors

    return [_drawn(lib, at, callback), kept]


def latents_changed(lib, at):
    def callback(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"] * 0.9}

    return _drawn(lib, at, callback)


def texts_changed(lib, at):
    def callback(pipe, step, timestep, tensors):
        tensors["prompt_embeds"] = tensors["prompt_embeds"] * (1.0 - 0.1 * step)
        return tensors

    names = ["latents", "prompt_embeds"]
    return _drawn(lib, at, callback, callback_on_step_end_tensor_inputs=names)


def guidance_turned_off_half_way(lib, at):
    def callback(pipe, step, timestep, tensors):
        if step == STEPS // 2:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"][-1:]
        return tensors

    names = ["latents", "prompt_embeds"]
    try:
        return _drawn(lib, at, callback, callback_on_step_end_tensor_inputs=names)
    except (RuntimeError, ValueError):
        return "the mask keeps its two rows"


def guidance_changed(lib, at):
    def callback(pipe, step, timestep, tensors):
        pipe._guidance_scale = 2.0 + step
        return tensors

    return _drawn(lib, at, callback)


def stopped(lib, at):
    def callback(pipe, step, timestep, tensors):
        if step == 1:
            pipe._interrupt = True
        return tensors

    return _drawn(lib, at, callback)


def drawn_again_after_a_stop(lib, at):
    def callback(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return tensors

    pipe = loaded(lib, at)
    draw(pipe, callback_on_step_end=callback)
    return draw(pipe)


def properties_read(lib, at):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append([pipe.guidance_scale, pipe.do_classifier_free_guidance, pipe.num_timesteps])
        return tensors

    _drawn(lib, at, callback, guidance_scale=3.5)
    return seen


def transformer_exchanged_half_way(lib, at):
    refiner = lib.SanaTransformer2DModel.from_pretrained(at.model, subfolder="transformer")
    with torch.no_grad():
        refiner.proj_out.weight.mul_(0.5)
        refiner.transformer_blocks[0].attn2.to_k.weight.mul_(2.0)

    def callback(pipe, step, timestep, tensors):
        if step == 1:
            pipe.transformer = refiner
        return tensors

    return _drawn(lib, at, callback)


def weights_changed_half_way(lib, at):
    def callback(pipe, step, timestep, tensors):
        if step == 1:
            with torch.no_grad():
                pipe.transformer.transformer_blocks[0].attn2.to_v.weight.mul_(3.0)
        return tensors

    return _drawn(lib, at, callback)


def steps_counted_by_the_scheduler(lib, at):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append(len(pipe.scheduler.timesteps))
        return tensors

    _drawn(lib, at, callback)
    return seen


def decoded_on_the_way(lib, at):
    seen = []

    def callback(pipe, step, timestep, tensors):
        with torch.no_grad():
            scaled = tensors["latents"] / pipe.vae.config.scaling_factor
            seen.append(pipe.vae.decode(scaled, return_dict=False)[0])
        return tensors

    return [_drawn(lib, at, callback), seen]


class _Fade(PipelineCallback):
    tensor_inputs = ("latents",)

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        callback_kwargs["latents"] = callback_kwargs["latents"] * 0.95
        return callback_kwargs


class _ListedFade(_Fade):
    tensor_inputs = ["latents"]  # noqa: RUF012 - as the reference declares it


def callback_object(lib, at):
    return _drawn(lib, at, _ListedFade(cutoff_step_ratio=1.0))


def several_callbacks(lib, at):
    both = MultiPipelineCallbacks([_ListedFade(1.0), _ListedFade(1.0)])
    return _drawn(lib, at, both)


def unknown_tensor_is_refused(lib, at):
    def callback(pipe, step, timestep, tensors):
        return tensors

    try:
        _drawn(lib, at, callback, callback_on_step_end_tensor_inputs=["nothing"])
    except ValueError:
        return "ValueError"
    return "drawn"


def tensors_that_may_be_asked(lib, at):
    return list(lib.SanaPipeline._callback_tensor_inputs)


def nothing_returned_where_nothing_changes(lib, at):
    def callback(pipe, step, timestep, tensors):
        return {}

    return _drawn(lib, at, callback)


def gradients(lib, at):
    def callback(pipe, step, timestep, tensors):
        with torch.enable_grad():
            latents = tensors["latents"].detach().requires_grad_()
            slope = torch.autograd.grad(latents.square().sum(), latents)[0]
        return {"latents": tensors["latents"] - 0.01 * slope}

    return _drawn(lib, at, callback)


def gradients_through_the_decoder(lib, at):
    def callback(pipe, step, timestep, tensors):
        with torch.enable_grad():
            latents = tensors["latents"].detach().requires_grad_()
            decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
            slope = torch.autograd.grad(decoded.square().mean(), latents)[0]
        return {"latents": tensors["latents"] - 0.1 * slope}

    return _drawn(lib, at, callback, num_inference_steps=2)
