"""Our solvers as a sampler of ComfyUI: its model gives estimates, its callback is told of steps."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from sanakit.flow.grids import NoiseLevel, SigmaGrid
from sanakit.flow.solvers import Stepped, integrate
from sanakit.pipeline.schedulers import Scheduler, scheduler_named

from .parts import TIMESTEP


def sample(
    model: Any,
    positive: list[list[Any]],
    negative: list[list[Any]],
    latent: dict[str, Any],
    *,
    seed: int,
    steps: int,
    cfg: float,
    solver: str | None,
    denoise: float,
) -> Tensor:
    """Carry a latent, or noise where it is empty, to a clean one; ComfyUI may interrupt."""
    own: Scheduler = model.model.scheduler
    scheduler = own if solver is None else scheduler_named(solver, own.flow_shift)
    grid = scheduler.grid(steps)
    if denoise < 1:
        grid = grid.cut(denoise)
    sigmas = grid.sigmas.clone()
    if denoise == 1:
        sigmas[0] = 1.0  # the published grids begin just below it, but at pure noise
    image = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    return comfy.sample.sample_custom(
        model,
        comfy.sample.prepare_noise(image, seed, latent.get("batch_index")),
        cfg,
        comfy.samplers.KSAMPLER(_walk, extra_options={"scheduler": scheduler, "grid": grid}),
        sigmas,
        positive,
        negative,
        image,
        noise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(grid.timesteps)),
        seed=seed,
    )


def _walk(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    *,
    extra_args: dict[str, Any],
    callback: Any,
    disable: bool,
    scheduler: Scheduler,
    grid: SigmaGrid,
) -> Tensor:
    """Walk down the grid; ``model`` answers a state and a level with what is behind the noise."""
    options = extra_args["model_options"]

    def velocity(x: Tensor, level: NoiseLevel) -> Tensor:
        sigma = level.sigma.to(x)
        told = {**options.get("transformer_options", {}), TIMESTEP: level.timestep}
        given = {**extra_args, "model_options": {**options, "transformer_options": told}}
        return (x - model(x, sigma.expand(len(x)), **given)) / sigma

    def on_step(index: int, stepped: Stepped) -> None:
        if callback is not None:
            callback({"i": index, "x": stepped.x, "denoised": stepped.denoised})

    with torch.no_grad():
        return integrate(scheduler.solver.step, velocity, x, grid, on_step=on_step)
