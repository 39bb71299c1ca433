"""Names of diffusers that are not here, and what to write instead."""

from __future__ import annotations

PARALLEL = "sanakit.sequence_parallel(pipe.transformer, pipe.vae), a context"
OFFLOAD = "pipe.enable_model_cpu_offload() or pipe.enable_sequential_cpu_offload()"
CACHES = "nothing: what depends on the text alone is computed once a call here"
QUANTIZE = 'BitsAndBytesConfig or TorchAoConfig, or quantization_config="bnb-nf4", "int8" or "fp8"'
SCHEDULERS = (
    "DPMSolverMultistepScheduler, UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler or "
    "FlowMatchHeunDiscreteScheduler: the solvers of flows"
)
INSTEAD = {
    "SanaVideoPipeline": "SanaPipeline: these models draw single pictures",
    "StableDiffusionPipeline": "SanaPipeline: these are SANA's models only",
    "StableDiffusionXLPipeline": "SanaPipeline: these are SANA's models only",
    "PixArtSigmaPipeline": "SanaPipeline: these are SANA's models only",
    "FluxPipeline": "SanaPipeline: these are SANA's models only",
    "UNet2DConditionModel": "SanaTransformer2DModel",
    "AutoencoderKL": "AutoencoderDC",
    "QuantoConfig": QUANTIZE,
    "GGUFQuantizationConfig": "SanaTransformer2DModel.from_single_file(path), which reads a .gguf",
    "NVIDIAModelOptConfig": QUANTIZE,
    "TorchAoConfigMixin": QUANTIZE,
    "ContextParallelConfig": PARALLEL,
    "ParallelConfig": PARALLEL,
    "apply_group_offloading": OFFLOAD,
    "apply_layerwise_casting": 'quantization_config="fp8", which keeps weights in 8 bits',
    "apply_faster_cache": CACHES,
    "apply_first_block_cache": CACHES,
    "apply_pyramid_attention_broadcast": CACHES,
    "FasterCacheConfig": CACHES,
    "FirstBlockCacheConfig": CACHES,
    "PyramidAttentionBroadcastConfig": CACHES,
    "ClassifierFreeGuidance": "pipe(..., guidance_scale=4.5)",
    "ControlNetModel": "SanaControlNetModel",
    "export_to_gif": 'images[0].save("a.gif", save_all=True, append_images=images[1:])',
    "export_to_video": "images: these models draw single pictures",
    "EulerDiscreteScheduler": SCHEDULERS,
    "EulerAncestralDiscreteScheduler": SCHEDULERS,
    "DDIMScheduler": SCHEDULERS,
    "DDPMScheduler": SCHEDULERS,
    "LCMScheduler": SCHEDULERS,
    "DPMSolverSinglestepScheduler": SCHEDULERS,
    "HeunDiscreteScheduler": SCHEDULERS,
}


def explain(name: str) -> str:
    """Say that the package has no such name, and what to write."""
    instead = INSTEAD.get(name)
    if instead is None and name.endswith("Scheduler"):
        instead = SCHEDULERS
    return f"module 'sanakit' has no attribute {name!r}" + (f"; write {instead}" if instead else "")
