"""SANA text-to-image: pipelines, models, training, and a small model that ships inside."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, TorchAoConfig

    from sanakit.data.captions.scorers import clip_scorer
    from sanakit.evaluate.best_of import best_of
    from sanakit.flow.projection import AdaptiveProjectedGuidance
    from sanakit.pipeline.control_images import control_image
    from sanakit.pipeline.networks import (
        AutoencoderDC,
        SanaControlNetModel,
        SanaTransformer2DModel,
    )
    from sanakit.pipeline.pipeline import GenerateResult, Pipeline
    from sanakit.pipeline.published.auto import (
        AutoModel,
        AutoPipelineForImage2Image,
        AutoPipelineForInpainting,
        AutoPipelineForText2Image,
        DiffusionPipeline,
        load,
    )
    from sanakit.pipeline.published.base import SanaPipelineOutput
    from sanakit.pipeline.published.controlnet import SanaControlNetPipeline
    from sanakit.pipeline.published.editing import SanaImg2ImgPipeline, SanaInpaintPipeline
    from sanakit.pipeline.published.pag import SanaPAGPipeline
    from sanakit.pipeline.published.pictures import load_image, make_image_grid
    from sanakit.pipeline.published.sana import SanaPipeline
    from sanakit.pipeline.published.sprint import SanaSprintImg2ImgPipeline, SanaSprintPipeline
    from sanakit.pipeline.request import GenerateRequest
    from sanakit.pipeline.schedulers import (
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        FlowMatchHeunDiscreteScheduler,
        SCMScheduler,
        UniPCMultistepScheduler,
    )
    from sanakit.pipeline.sequence_parallel import sequence_parallel
    from sanakit.quant.method import PipelineQuantizationConfig

try:
    __version__ = version("sanakit")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

# Where each public name lives: they load on first use, so that `import sanakit` stays instant.
_HOMES = {
    "AdaptiveProjectedGuidance": "sanakit.flow.projection",
    "AutoModel": "sanakit.pipeline.published.auto",
    "AutoPipelineForImage2Image": "sanakit.pipeline.published.auto",
    "AutoPipelineForInpainting": "sanakit.pipeline.published.auto",
    "AutoPipelineForText2Image": "sanakit.pipeline.published.auto",
    "AutoencoderDC": "sanakit.pipeline.networks",
    "BitsAndBytesConfig": "transformers",
    "DPMSolverMultistepScheduler": "sanakit.pipeline.schedulers",
    "DiffusionPipeline": "sanakit.pipeline.published.auto",
    "FlowMatchEulerDiscreteScheduler": "sanakit.pipeline.schedulers",
    "FlowMatchHeunDiscreteScheduler": "sanakit.pipeline.schedulers",
    "GenerateRequest": "sanakit.pipeline.request",
    "GenerateResult": "sanakit.pipeline.pipeline",
    "Pipeline": "sanakit.pipeline.pipeline",
    "PipelineQuantizationConfig": "sanakit.quant.method",
    "SanaImg2ImgPipeline": "sanakit.pipeline.published.editing",
    "SanaInpaintPipeline": "sanakit.pipeline.published.editing",
    "SanaControlNetModel": "sanakit.pipeline.networks",
    "SanaControlNetPipeline": "sanakit.pipeline.published.controlnet",
    "SCMScheduler": "sanakit.pipeline.schedulers",
    "SanaPAGPipeline": "sanakit.pipeline.published.pag",
    "SanaPipeline": "sanakit.pipeline.published.sana",
    "SanaPipelineOutput": "sanakit.pipeline.published.base",
    "SanaSprintImg2ImgPipeline": "sanakit.pipeline.published.sprint",
    "SanaSprintPipeline": "sanakit.pipeline.published.sprint",
    "SanaTransformer2DModel": "sanakit.pipeline.networks",
    "TorchAoConfig": "transformers",
    "UniPCMultistepScheduler": "sanakit.pipeline.schedulers",
    "best_of": "sanakit.evaluate.best_of",
    "clip_scorer": "sanakit.data.captions.scorers",
    "control_image": "sanakit.pipeline.control_images",
    "load": "sanakit.pipeline.published.auto",
    "load_image": "sanakit.pipeline.published.pictures",
    "make_image_grid": "sanakit.pipeline.published.pictures",
    "sequence_parallel": "sanakit.pipeline.sequence_parallel",
}
__all__ = [
    "AdaptiveProjectedGuidance",
    "AutoModel",
    "AutoPipelineForImage2Image",
    "AutoPipelineForInpainting",
    "AutoPipelineForText2Image",
    "AutoencoderDC",
    "BitsAndBytesConfig",
    "DPMSolverMultistepScheduler",
    "DiffusionPipeline",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "GenerateRequest",
    "GenerateResult",
    "Pipeline",
    "PipelineQuantizationConfig",
    "SCMScheduler",
    "SanaControlNetModel",
    "SanaControlNetPipeline",
    "SanaImg2ImgPipeline",
    "SanaInpaintPipeline",
    "SanaPAGPipeline",
    "SanaPipeline",
    "SanaPipelineOutput",
    "SanaSprintImg2ImgPipeline",
    "SanaSprintPipeline",
    "SanaTransformer2DModel",
    "TorchAoConfig",
    "UniPCMultistepScheduler",
    "__version__",
    "best_of",
    "clip_scorer",
    "control_image",
    "load",
    "load_image",
    "make_image_grid",
    "sequence_parallel",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        from sanakit.elsewhere import explain  # noqa: PLC0415 - nothing that succeeds reads it

        raise AttributeError(explain(name))
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
