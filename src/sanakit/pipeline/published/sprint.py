"""`SanaSprintPipeline`: Sprint models, in one to a few steps, under diffusers' arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sanakit.errors import refuse_unknown
from sanakit.flow.path import Generators
from sanakit.flow.scm import MAX_TIME, SECOND_TIME, scm_grid_asked
from sanakit.pipeline.editing import IMAGE_STRENGTH, Edit
from sanakit.pipeline.input_images import Images, as_image
from sanakit.pipeline.prompts import MODEL_DEFAULT, Compat
from sanakit.pipeline.published.base import PublishedPipeline, draws_a_call
from sanakit.pipeline.published.editing import given
from sanakit.pipeline.request import Call, Callback, OutputType, Prompts
from sanakit.shapes import Latent


class SanaSprintPipeline(PublishedPipeline):
    """Text to image in 1 to 4 steps: ``SanaSprintPipeline.from_pretrained("sprint-0.6b")("...")``.

    The network is told how strongly to guide, so there is one pass a step and no negative prompt.
    Each step adds noise, which the call's generators draw after the first.
    """

    few_steps: ClassVar[bool | None] = True
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds"]

    @refuse_unknown
    def encode_prompt(  # type: ignore[override]  # as published: there is no negative side
        self,
        prompt: Prompts | None,
        num_images_per_prompt: int = 1,
        device: str | torch.device | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        clean_caption: bool = False,
        max_sequence_length: int = 300,
        complex_human_instruction: Sequence[str] | None = None,
        lora_scale: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Give embeddings and mask of the prompts; as `SanaPipeline.encode_prompt` otherwise."""
        return super().encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            num_images_per_prompt=num_images_per_prompt,
            device=device,
            prompt_embeds=prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            clean_caption=clean_caption,
            max_sequence_length=max_sequence_length,
            complex_human_instruction=complex_human_instruction,
            lora_scale=lora_scale,
        )[:2]

    def _negative_side(self, call: Call) -> tuple[tuple[bool, ...], dict[str, Any]]:
        return (), {}

    @refuse_unknown
    def check_inputs(  # type: ignore[override]  # as published
        self,
        prompt: Prompts | None,
        height: int,
        width: int,
        num_inference_steps: int = 2,
        timesteps: Sequence[float] | None = None,
        max_timesteps: float | None = MAX_TIME,
        intermediate_timesteps: float | None = SECOND_TIME,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
    ) -> None:
        """Refuse arguments that cannot be drawn; as `SanaPipeline.check_inputs` otherwise."""
        times_asked(num_inference_steps, timesteps, max_timesteps, intermediate_timesteps)
        super().check_inputs(
            prompt,
            height,
            width,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            prompt_embeds=prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
        )

    def _check(self, call: Call) -> None:
        height, width = self._size(call)
        times = list(call.timesteps or ())
        self.check_inputs(
            call.prompt,
            height,
            width,
            num_inference_steps=len(times),
            timesteps=[*times, 0.0],
            max_timesteps=None,
            intermediate_timesteps=None,
            callback_on_step_end_tensor_inputs=call.callback_on_step_end_tensor_inputs,
            prompt_embeds=call.prompt_embeds,
            prompt_attention_mask=call.prompt_attention_mask,
        )

    @draws_a_call
    def __call__(
        self,
        prompt: Prompts | None = None,
        num_inference_steps: int = 2,
        timesteps: Sequence[float] | None = None,
        max_timesteps: float | None = MAX_TIME,
        intermediate_timesteps: float | None = SECOND_TIME,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        eta: float = 0.0,
        generator: Generators | None = None,
        latents: Latent | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        clean_caption: bool = False,
        use_resolution_binning: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 300,
        complex_human_instruction: Sequence[str] | None = MODEL_DEFAULT,
        compat: Compat | None = None,
    ) -> dict[str, Any]:
        """Draw pictures; arguments mean what they mean in diffusers, and in `SanaPipeline`.

        1, 2 and 4 steps are at the times found for the published models; other numbers, and all
        with ``intermediate_timesteps=None``, at even ones from ``max_timesteps``. ``timesteps`` are
        times of one's own, as angles: ``[1.5683, 1.3, 1.1, 0.6, 0]``. ``guidance_scale`` is told
        to the network, 4.5 unless given.

        Raises:
            ConfigError: as `SanaPipeline`, and for times that do not fall.
            NumericsError: for a number that is not finite, naming component and step.
        """
        return {
            "negative_prompt": None,
            "timesteps": times_asked(
                num_inference_steps, timesteps, max_timesteps, intermediate_timesteps
            ),
            "num_inference_steps": None,
        }


class SanaSprintImg2ImgPipeline(SanaSprintPipeline):
    """Draws a picture anew in 1 to 4 steps, as far from it as ``strength`` says."""

    @draws_a_call
    def __call__(  # type: ignore[override]  # the published order puts the picture in between
        self,
        prompt: Prompts | None = None,
        num_inference_steps: int = 2,
        timesteps: Sequence[float] | None = None,
        max_timesteps: float | None = MAX_TIME,
        intermediate_timesteps: float | None = SECOND_TIME,
        guidance_scale: float | None = None,
        image: Images | None = None,
        strength: float = IMAGE_STRENGTH,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        eta: float = 0.0,
        generator: Generators | None = None,
        latents: Latent | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        clean_caption: bool = False,
        use_resolution_binning: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 300,
        complex_human_instruction: Sequence[str] | None = MODEL_DEFAULT,
        compat: Compat | None = None,
    ) -> dict[str, Any]:
        """Draw pictures that begin at ``image``; arguments otherwise as `SanaSprintPipeline`.

        ``image``, ``height``, ``width`` and ``latents`` are those of `SanaImg2ImgPipeline`. The
        first ``num_inference_steps * (1 - strength)`` steps are left out, as published; of less
        than one step, the first begins that far on its way, so that every strength below 1 heeds
        the picture. Strength is finest with one step.

        Raises:
            ConfigError, DataError, NumericsError: as `SanaImg2ImgPipeline`.
        """
        return {
            "edit": Edit(
                image=as_image(given(image, "image", "SanaSprintPipeline")), strength=strength
            ),
            "negative_prompt": None,
            "timesteps": times_asked(
                num_inference_steps, timesteps, max_timesteps, intermediate_timesteps
            ),
            "num_inference_steps": None,
        }


def times_asked(
    num_inference_steps: int,
    timesteps: Sequence[float] | None,
    max_timesteps: float | None,
    intermediate_timesteps: float | None,
) -> list[float]:
    """Give the angles that published arguments mean; the default of two steps asks for nothing."""
    unsaid = timesteps is not None and num_inference_steps == 2
    grid = scm_grid_asked(
        None if unsaid else num_inference_steps, timesteps, max_timesteps, intermediate_timesteps
    )
    return grid.timesteps.tolist()
