"""Schedulers: taken out, put in, asked and stepped by hand."""

from __future__ import annotations

import diffusers
import numpy as np
import torch

from places import draw, loaded, seeded


def _with(lib, at, scheduler, **options):
    pipe = loaded(lib, at)
    pipe.scheduler = scheduler
    return draw(pipe, num_inference_steps=6, output_type="latent", **options)


def flow_euler(lib, at):
    return _with(lib, at, lib.FlowMatchEulerDiscreteScheduler())


def flow_euler_shifted(lib, at):
    return _with(lib, at, lib.FlowMatchEulerDiscreteScheduler(shift=3.0))


def flow_euler_from_config(lib, at):
    config = loaded(lib, at).scheduler.config
    return _with(lib, at, lib.FlowMatchEulerDiscreteScheduler.from_config(config))


def flow_euler_from_config_with_shift(lib, at):
    config = loaded(lib, at).scheduler.config
    return _with(lib, at, lib.FlowMatchEulerDiscreteScheduler.from_config(config, shift=4.0))


def dpm_from_config(lib, at):
    config = loaded(lib, at).scheduler.config
    return _with(lib, at, lib.DPMSolverMultistepScheduler.from_config(config))


def dpm_with_another_shift(lib, at):
    config = loaded(lib, at).scheduler.config
    scheduler = lib.DPMSolverMultistepScheduler.from_config(config, flow_shift=5.0)
    return _with(lib, at, scheduler)


def dpm_of_first_order(lib, at):
    config = loaded(lib, at).scheduler.config
    return _with(lib, at, lib.DPMSolverMultistepScheduler.from_config(config, solver_order=1))


def dpm_heun(lib, at):
    config = loaded(lib, at).scheduler.config
    scheduler = lib.DPMSolverMultistepScheduler.from_config(config, solver_type="heun")
    return _with(lib, at, scheduler)


def dpm_stochastic(lib, at):
    config = loaded(lib, at).scheduler.config
    kind = "sde-dpmsolver++"
    scheduler = lib.DPMSolverMultistepScheduler.from_config(config, algorithm_type=kind)
    return _with(lib, at, scheduler)


def dpm_constructed(lib, at):
    scheduler = lib.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0
    )
    return _with(lib, at, scheduler)


def unipc(lib, at):
    config = loaded(lib, at).scheduler.config
    return _with(lib, at, lib.UniPCMultistepScheduler.from_config(config))


def unipc_constructed(lib, at):
    scheduler = lib.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return _with(lib, at, scheduler)


def peer_s_own_object(lib, at):
    return _with(lib, at, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))


def peer_s_own_object_from_our_config(lib, at):
    config = loaded(lib, at).scheduler.config
    return _with(lib, at, diffusers.DPMSolverMultistepScheduler.from_config(config))


def peer_s_own_euler_from_our_config(lib, at):
    config = loaded(lib, at).scheduler.config
    return _with(lib, at, diffusers.FlowMatchEulerDiscreteScheduler.from_config(config))


def peer_s_own_unipc_from_our_config(lib, at):
    config = loaded(lib, at).scheduler.config
    return _with(lib, at, diffusers.UniPCMultistepScheduler.from_config(config, flow_shift=4.0))


def keys_of_others_carried_along(lib, at):
    euler = lib.FlowMatchEulerDiscreteScheduler(shift=7.0)
    scheduler = lib.DPMSolverMultistepScheduler.from_config(
        euler.config, use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    return _with(lib, at, scheduler)


def config_of_the_scheduler(lib, at):
    config = loaded(lib, at).scheduler.config
    keys = ("flow_shift", "solver_order", "prediction_type", "use_flow_sigmas", "algorithm_type")
    return [config[key] for key in keys] + [config.flow_shift, config.get("nothing")]


def timesteps_of_twenty(lib, at):
    scheduler = loaded(lib, at).scheduler
    scheduler.set_timesteps(20)
    return [scheduler.timesteps, scheduler.sigmas]


def timesteps_on_a_device(lib, at):
    scheduler = loaded(lib, at).scheduler
    scheduler.set_timesteps(num_inference_steps=7, device="cpu")
    return [scheduler.timesteps, len(scheduler.timesteps), scheduler.order]


def own_loop(lib, at):
    pipe = loaded(lib, at)
    embeds, mask, *_ = pipe.encode_prompt("a cat", do_classifier_free_guidance=False)
    latents = torch.randn(1, 4, 2, 2, generator=seeded(1)) * pipe.scheduler.init_noise_sigma
    pipe.scheduler.set_timesteps(5)
    for t in pipe.scheduler.timesteps:
        with torch.no_grad():
            velocity = pipe.transformer(
                latents, encoder_hidden_states=embeds, encoder_attention_mask=mask, timestep=t[None]
            ).sample
        latents = pipe.scheduler.step(velocity, t, latents).prev_sample
    with torch.no_grad():
        return pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample


def own_loop_as_the_pipeline_draws(lib, at):
    pipe = loaded(lib, at)
    embeds, mask, no_embeds, no_mask = pipe.encode_prompt("a cat")
    embeds, mask = torch.cat([no_embeds, embeds]), torch.cat([no_mask, mask])
    latents = torch.randn(1, 4, 2, 2, generator=seeded(1))
    pipe.scheduler.set_timesteps(4, device="cpu")
    for t in pipe.scheduler.timesteps:
        with torch.no_grad():
            both = pipe.transformer(
                torch.cat([latents] * 2),
                encoder_hidden_states=embeds,
                encoder_attention_mask=mask,
                timestep=t.expand(2),
                return_dict=False,
            )[0]
        without, conditional = both.chunk(2)
        velocity = without + 4.5 * (conditional - without)
        latents = pipe.scheduler.step(velocity, t, latents, return_dict=False)[0]
    return latents


def euler_stepped_by_hand(lib, at):
    scheduler = lib.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    sample = torch.randn(1, 4, 2, 2, generator=seeded(1))
    for t in scheduler.timesteps:
        sample = scheduler.step(torch.sin(sample), t, sample).prev_sample
    return [sample, scheduler.timesteps, scheduler.sigmas]


def noised_for_a_start_in_the_middle(lib, at):
    scheduler = lib.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    clean, noise = torch.ones(1, 4, 2, 2), torch.randn(1, 4, 2, 2, generator=seeded(1))
    return scheduler.scale_noise(clean, scheduler.timesteps[4:5], noise)


def noised_by_the_multistep_solver(lib, at):
    scheduler = loaded(lib, at).scheduler
    scheduler.set_timesteps(10)
    clean, noise = torch.ones(1, 4, 2, 2), torch.randn(1, 4, 2, 2, generator=seeded(1))
    return scheduler.add_noise(clean, noise, scheduler.timesteps[4:5])


def own_sigmas(lib, at):
    pipe = loaded(lib, at)
    pipe.scheduler = lib.FlowMatchEulerDiscreteScheduler(shift=1.0)
    sigmas = [float(x) for x in np.linspace(1.0, 0.25, 4)]
    return draw(pipe, sigmas=sigmas, output_type="latent")


def saved_scheduler(lib, at):
    loaded(lib, at).scheduler.save_pretrained(at.folder / "scheduler")
    scheduler = lib.DPMSolverMultistepScheduler.from_pretrained(at.folder / "scheduler")
    return _with(lib, at, scheduler)


def compatible_schedulers(lib, at):
    names = {one.__name__ for one in loaded(lib, at).scheduler.compatibles}
    return "DPMSolverMultistepScheduler" in names


def number_of_training_steps(lib, at):
    scheduler = loaded(lib, at).scheduler
    return [scheduler.config.num_train_timesteps, len(scheduler)]


def input_scaling(lib, at):
    scheduler = loaded(lib, at).scheduler
    scheduler.set_timesteps(3)
    return scheduler.scale_model_input(torch.ones(1, 2), scheduler.timesteps[0])
