"""`SanaControlNetPipeline`: a control image steers, under the arguments users of diffusers know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sanakit.errors import ConfigError, refuse_unknown
from sanakit.flow.path import Generators
from sanakit.flow.projection import AdaptiveProjectedGuidance
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.controlnet import ControlBranch
from sanakit.models.parts import first_weight
from sanakit.models.text_encoder import TextEncoder
from sanakit.models.tokenizer import Tokenizer
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import LOADED, assemble, control_folder
from sanakit.pipeline.control import Control
from sanakit.pipeline.input_images import Images, as_image
from sanakit.pipeline.networks import SanaControlNetModel
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.prompts import MODEL_DEFAULT, Compat
from sanakit.pipeline.published.base import PublishedPipeline, draws_a_call
from sanakit.pipeline.request import (
    Callback,
    OutputType,
    Prompts,
)
from sanakit.shapes import Image, Latent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class SanaControlNetPipeline(PublishedPipeline):
    """Text to image along a control image, by a control branch beside the transformer.

    ``from_pretrained(MODEL, controlnet=...)`` takes a branch, or where one is; without, the model's
    own. So does ``from_pipe``. The wiring is that of the branch's config.
    """

    own_parts: ClassVar[tuple[str, ...]] = ("controlnet",)
    model_cpu_offload_seq: ClassVar[str] = "text_encoder->controlnet->transformer->vae"

    @refuse_unknown
    def __init__(
        self,
        tokenizer: Tokenizer | PreTrainedTokenizerBase | Pipeline | None = LOADED,
        text_encoder: PreTrainedModel | TextEncoder | None = LOADED,
        vae: Autoencoder | None = LOADED,
        transformer: LinearDiT | None = LOADED,
        controlnet: ControlBranch | None = LOADED,
        scheduler: object | None = None,
        *,
        core: Pipeline | None = None,
        compat: Compat = "diffusers",
    ) -> None:
        """Take parts in their published order, or a core, as `PublishedPipeline` does.

        Without a control branch, by ``controlnet=None``, it does no more than encode prompts.

        Raises:
            ConfigError: as there; no control branch, or one of another model.
        """
        if core is None and not isinstance(tokenizer, Pipeline):
            branch = None if controlnet is LOADED else controlnet
            parts = assemble(
                tokenizer=tokenizer,
                text_encoder=text_encoder,
                vae=vae,
                transformer=transformer,
                controlnet=branch,
            )
            core = Pipeline(parts)
        super().__init__(tokenizer, scheduler=scheduler, core=core, compat=compat)
        if controlnet is LOADED and self.controlnet is None:
            raise ConfigError(
                "SanaControlNetPipeline needs a control branch, and there is none",
                hint="controlnet=SanaControlNetModel.from_pretrained(...), or "
                "SanaControlNetModel.from_transformer(...) for a new one",
            )

    @staticmethod
    def _of_pipe(pipeline: PublishedPipeline, **parts: Any) -> dict[str, Any]:
        if isinstance(where := parts.get("controlnet"), str | Path):
            near = first_weight(pipeline.transformer)
            parts["controlnet"] = SanaControlNetModel.from_pretrained(
                control_folder(where), torch_dtype=near.dtype, device_map=str(near.device)
            )
        return PublishedPipeline._of_pipe(pipeline, **parts)

    @property
    def controlnet(self) -> Any:
        """The control branch. It may be set, and is checked as when made."""
        return self.core.components.controlnet

    @controlnet.setter
    def controlnet(self, controlnet: ControlBranch | None) -> None:
        self.register_modules(controlnet=controlnet)

    @property
    def _parts(self) -> dict[str, Any]:
        parts = super()._parts
        scheduler = parts.pop("scheduler")
        return {**parts, "controlnet": self.controlnet, "scheduler": scheduler}

    @refuse_unknown
    def register_modules(
        self,
        *,
        tokenizer: Tokenizer | PreTrainedTokenizerBase | None = LOADED,
        text_encoder: PreTrainedModel | TextEncoder | None = LOADED,
        vae: Autoencoder | None = LOADED,
        transformer: LinearDiT | None = LOADED,
        controlnet: ControlBranch | None = LOADED,
        scheduler: object | None = LOADED,
    ) -> None:
        """Exchange parts, several at once where they only fit each other; as all pipelines do."""
        if scheduler is not LOADED:
            self.scheduler = scheduler
        self._exchange(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            transformer=transformer,
            controlnet=controlnet,
        )

    @refuse_unknown
    def prepare_image(
        self,
        image: Images,
        width: int,
        height: int,
        batch_size: int,
        num_images_per_prompt: int,
        device: str | torch.device,
        dtype: torch.dtype,
        do_classifier_free_guidance: bool = False,
        guess_mode: bool = False,
    ) -> Image:
        """Give control images as a loop of one's own encodes them, twice under guidance.

        ``batch_size`` is that of all pictures; in ``guess_mode`` they are given once.

        Raises:
            ConfigError: as a call.
        """
        control = Control(image=as_image(image, "image", grey=True)).at(height, width).image
        each = batch_size if len(control) == 1 else num_images_per_prompt
        control = control.repeat_interleave(each, dim=0).to(device=device, dtype=dtype)
        twice = do_classifier_free_guidance and not guess_mode
        return torch.cat([control] * 2) if twice else control

    @draws_a_call
    def __call__(
        self,
        prompt: Prompts | None = None,
        negative_prompt: Prompts | None = "",
        num_inference_steps: int = 20,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        control_image: Images | None = None,
        controlnet_conditioning_scale: float = 1.0,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        eta: float = 0.0,
        generator: Generators | None = None,
        latents: Latent | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        clean_caption: bool = False,
        use_resolution_binning: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 300,
        complex_human_instruction: Sequence[str] | None = MODEL_DEFAULT,
        guider: AdaptiveProjectedGuidance | None = None,
        compat: Compat | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        step_cache: float = 0.0,
    ) -> dict[str, Any]:
        """Draw pictures; arguments as those of `SanaPipeline`, in the published order.

        ``control_image`` is one for all pictures or one for each prompt, of the kinds and ranges of
        `as_image`; tensors in [-1, 1] are taken as they are. Its size is the picture's unless
        ``height`` and ``width`` say: then it is scaled to cover that, and its centre cut out.
        ``controlnet_conditioning_scale`` from 0 weighs what it adds.

        Raises:
            ConfigError: as `SanaPipeline`; no control image, or one that is no picture.
        """
        if control_image is None:
            raise ConfigError(
                "control_image is None: there is nothing to follow",
                hint="pass a picture, or draw with SanaPipeline.from_pipe(pipe)",
            )
        return {
            "control": Control(
                image=as_image(control_image, "control_image", grey=True),
                scale=controlnet_conditioning_scale,
            )
        }
