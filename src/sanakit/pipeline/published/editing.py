"""`SanaImg2ImgPipeline` and `SanaInpaintPipeline`: pictures drawn from pictures.

diffusers has neither for these models; names and arguments are those of its other pipelines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.flow.path import Generators
from sanakit.flow.projection import AdaptiveProjectedGuidance
from sanakit.pipeline.editing import IMAGE_STRENGTH, MASK_STRENGTH, Edit
from sanakit.pipeline.input_images import Images, as_image, as_mask
from sanakit.pipeline.picture_requests import Expand
from sanakit.pipeline.prompts import MODEL_DEFAULT, Compat
from sanakit.pipeline.published.base import PublishedPipeline, draws_a_call
from sanakit.pipeline.request import Callback, OutputType, Prompts
from sanakit.shapes import Latent


class SanaImg2ImgPipeline(PublishedPipeline):
    """Draws a picture anew, as far from it as ``strength`` says.

    ``SanaImg2ImgPipeline.from_pretrained("glyph")("a green apple", picture, strength=0.9)``
    """

    written_as: ClassVar[str] = "SanaPipeline"

    @draws_a_call
    def __call__(
        self,
        prompt: Prompts | None = None,
        image: Images | None = None,
        strength: float = IMAGE_STRENGTH,
        negative_prompt: Prompts | None = "",
        num_inference_steps: int = 20,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
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
        compat: Compat | None = None,
        *,
        guider: AdaptiveProjectedGuidance | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        step_cache: float = 0.0,
    ) -> dict[str, Any]:
        """Draw pictures that begin at ``image``; arguments otherwise as those of `SanaPipeline`.

        ``image`` is one picture for all prompts or one for each, of any kind that `as_image` takes.
        Of ``num_inference_steps`` the last ``strength`` of them run; at 1 nothing of the picture
        is left. Without ``height`` and ``width`` the result has the picture's own size; with them
        it is scaled to cover that size, and its centre is cut out. ``latents`` are the noise.

        Raises:
            ConfigError: no picture, a strength that leaves no step, or as `SanaPipeline`.
            DataError: a file that is no picture. NumericsError: as `SanaPipeline`.
        """
        edit = Edit(image=as_image(given(image, "image", "SanaPipeline")), strength=strength)
        return {"edit": edit}


class SanaInpaintPipeline(PublishedPipeline):
    """Draws the masked part of a picture anew, and gives the rest back bit for bit.

    ``SanaInpaintPipeline.from_pretrained("glyph")("a green apple", picture, mask)``
    """

    few_steps: ClassVar[bool | None] = None

    @property
    def written_as(self) -> str:
        """The published pipeline whose folder it writes."""
        transformer = self.transformer
        sprint = transformer is not None and transformer.config.guidance_embeds
        return "SanaSprintPipeline" if sprint else "SanaPipeline"

    @draws_a_call
    def __call__(
        self,
        prompt: Prompts | None = None,
        image: Images | None = None,
        mask_image: Images | None = None,
        strength: float = MASK_STRENGTH,
        negative_prompt: Prompts | None = "",
        num_inference_steps: int | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
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
        padding_mask_crop: int | None = None,
        expand: Expand | None = None,
        compat: Compat | None = None,
        *,
        guider: AdaptiveProjectedGuidance | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        step_cache: float = 0.0,
    ) -> dict[str, Any]:
        """Draw the white part of ``mask_image``; arguments otherwise as `SanaImg2ImgPipeline`.

        The mask has the picture's size, or its proportions. ``expand`` adds pixels at left, top,
        right and bottom, which are drawn as well; with it a mask is not needed. Latents stand for
        32 by 32 pixels, and each that the mask touches is drawn: what comes back outside of the
        mask is the picture itself. Unless they are given, ``num_inference_steps`` are 20, or 2 of a
        Sprint model, whose ``timesteps`` are angles.

        Raises:
            ConfigError: neither mask nor ``expand``, or as `SanaImg2ImgPipeline`.
            DataError, NumericsError: as there.
        """
        if padding_mask_crop is not None:
            raise ConfigError(
                f"padding_mask_crop={padding_mask_crop!r}: a picture is drawn as a whole",
                hint="cut picture and mask out, and paste the result",
            )
        picture = as_image(given(image, "image", "SanaPipeline"))
        mask = None
        if expand is None or mask_image is not None:
            height_width = (picture.shape[-2], picture.shape[-1])
            mask = as_mask(given(mask_image, "mask_image", "SanaImg2ImgPipeline"), height_width)
        edit = Edit(image=picture, mask=mask, strength=strength)
        return {"edit": edit if expand is None else edit.expanded(expand)}


def given(images: Images | None, name: str, otherwise: str) -> Images:
    """Refuse a call without a picture, and name the pipeline that needs none."""
    if images is None:
        raise ConfigError(f"{name} is missing", hint=f"a picture, or {otherwise} goes without one")
    return images
