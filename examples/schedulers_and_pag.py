"""Two schedulers and perturbed attention over one set of weights, loaded once: [MODEL]."""

import sys

import torch

from sanakit import FlowMatchEulerDiscreteScheduler, SanaPAGPipeline, SanaPipeline


def draw(pipe: SanaPipeline, name: str, **settings: float) -> None:
    """Draw one prompt and seed, so that only the settings differ."""
    generator = torch.Generator().manual_seed(7)
    pipe("a cat face", generator=generator, **settings).images[0].save(f"{name}.png")


pipe = SanaPipeline.from_pretrained((sys.argv[1:] or ["glyph"])[0])
draw(pipe, "flow_dpm_solver", num_inference_steps=14)

pag = SanaPAGPipeline.from_pipe(pipe, pag_applied_layers="transformer_blocks.1")
draw(pag, "perturbed_attention", num_inference_steps=14, pag_scale=2.0)

pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
draw(pipe, "flow_euler", num_inference_steps=28)
