"""`SanaPipeline`: the arguments that users of diffusers know, over the one way to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sanakit.flow.path import Generators
from sanakit.flow.projection import AdaptiveProjectedGuidance
from sanakit.pipeline.prompts import MODEL_DEFAULT, Compat
from sanakit.pipeline.published.base import PublishedPipeline, draws_a_call
from sanakit.pipeline.request import (
    Callback,
    OutputType,
    Prompts,
)
from sanakit.shapes import Latent


class SanaPipeline(PublishedPipeline):
    """Text to image with any SANA model: ``SanaPipeline.from_pretrained("glyph")("a red apple")``.

    On the CPU pictures are drawn one by one, so that each is the picture its generator draws alone.
    ``compat`` is the published stack whose way with text and noise is followed: "diffusers", or
    "nvlabs", as the weights were trained. It may be set, and given to a single call.
    """

    @draws_a_call
    def __call__(
        self,
        prompt: Prompts | None = None,
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
        """Draw pictures; arguments mean what they mean in diffusers.

        Defaults that depend on the model: ``guidance_scale`` is 4.5, ``height`` and ``width`` 1024,
        ``complex_human_instruction`` the published one for published models; the embedded model
        has its own. ``timesteps`` and ``sigmas`` are read as `Scheduler.custom_grid` does.
        ``callback_on_step_end(pipe, i, t, tensors)`` may change what it is shown, see `StepHook`.
        ``guider`` says what guidance makes of its difference, ``guidance_interval`` at which noise
        levels there is any, ``step_cache`` how little a step may change to be drawn from the last.

        Raises:
            ConfigError: for a size, count or combination of arguments that cannot be drawn.
            NumericsError: for a number that is not finite, naming component and step.
        """
        return {}
