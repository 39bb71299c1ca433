"""`SanaPipeline`: the arguments that users of diffusers know, over the stateless core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.flow.grids import SigmaGrid
from sanakit.flow.guidance import Guidance
from sanakit.flow.solvers import Stepped
from sanakit.models.autoencoder import Autoencoder
from sanakit.pipeline.arguments import (
    Generators,
    Images,
    OutputType,
    as_output,
    custom_grid,
    draw_noise,
    embedded,
    listed,
    refuse_unsupported,
    rows_of,
)
from sanakit.pipeline.binning import TABLES, cut_to, nearest_bin
from sanakit.pipeline.components import load_components, save_components
from sanakit.pipeline.generate import Pipeline
from sanakit.pipeline.prompt import EncodedText
from sanakit.shapes import Latent

PUBLISHED_SIZE = 1024
Callback = Callable[["SanaPipeline", int, Tensor, dict[str, Tensor]], "dict[str, Tensor] | None"]
_MODEL_DEFAULT = ("the model's own",)


@dataclass
class SanaPipelineOutput:
    """``images``: PIL pictures, ``b H W 3`` or ``b 3 H W`` in [0, 1], or scaled latents."""

    images: Images


class SanaPipeline:
    """Text to image with any SANA model: ``SanaPipeline.from_pretrained("glyph")("a red apple")``.

    On the CPU pictures are drawn one by one, so that each is the picture its generator draws alone.
    """

    def __init__(self, core: Pipeline) -> None:
        self.core = core

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype = torch.float32,
        variant: str | None = None,
    ) -> SanaPipeline:
        """Load a model: an embedded name, a folder in the published layout, or ``owner/name``.

        ``torch_dtype`` is the transformer's; text encoder and autoencoder take bf16 where it is
        16 bit, never fp16. Errors are those of `load_components`.
        """
        components = load_components(
            pretrained_model_name_or_path, dtype=torch_dtype, variant=variant
        )
        return cls(Pipeline(components))

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write all parts in the published layout, as safetensors."""
        save_components(self.core.components, Path(save_directory))

    def to(self, device: str | torch.device) -> SanaPipeline:
        """Move all parts to a device."""
        for module in (self.transformer, self.vae, self.core.components.prompts.text_encoder):
            module.to(device)
        return self

    @property
    def transformer(self) -> torch.nn.Module:
        """The linear diffusion transformer."""
        return self.core.components.transformer

    @property
    def vae(self) -> Autoencoder:
        """The deep-compression autoencoder."""
        return self.core.components.autoencoder

    @property
    def text_encoder(self) -> torch.nn.Module:
        """The decoder-only LLM."""
        return self.core.components.prompts.text_encoder.llm

    @property
    def tokenizer(self) -> Any:
        """The LLM's tokenizer."""
        return self.core.components.prompts.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return next(self.transformer.parameters()).device

    def enable_vae_tiling(self) -> None:
        """Decode in exact tiles; sizes are `Autoencoder.enable_tiling`'s, on ``pipe.vae``."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Undo :meth:`enable_vae_tiling`; large pictures are still cut where memory is short."""
        self.vae.disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Decode the pictures of a batch one after the other."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Undo :meth:`enable_vae_slicing`."""
        self.vae.disable_slicing()

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = "",
        num_inference_steps: int = 20,
        timesteps: Sequence[int] | None = None,
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
        complex_human_instruction: Sequence[str] | None = _MODEL_DEFAULT,
    ) -> SanaPipelineOutput | tuple[Any]:
        """Draw pictures; arguments mean what they mean in diffusers.

        Defaults that depend on the model: ``guidance_scale`` is 4.5, ``height`` and ``width`` 1024,
        ``complex_human_instruction`` the published one for published models; the embedded model
        has its own. ``callback_on_step_end(pipe, i, t, {"latents": ...})`` may return new latents.

        Raises:
            ConfigError: for a size, count or combination of arguments that cannot be drawn.
            NumericsError: for a number that is not finite, naming component and step.
        """
        refuse_unsupported(eta, attention_kwargs, output_type, callback_on_step_end_tensor_inputs)
        if num_images_per_prompt < 1:
            raise ConfigError(f"num_images_per_prompt={num_images_per_prompt} must be at least 1")
        habits = self.core.components.habits
        scale = habits.guidance_scale if guidance_scale is None else guidance_scale
        guidance = Guidance(guidance_scale=max(scale, 1.0))  # published: 1 and below is off
        asked = self._asked_size(height, width)
        drawn_size = self._drawn_size(*asked, binned=use_resolution_binning)
        shape = self.core.latent_shape(*drawn_size)
        positive, negative = self._texts(
            listed(prompt),
            listed(negative_prompt),
            guidance,
            given=embedded(prompt_embeds, prompt_attention_mask, "prompt"),
            given_null=embedded(negative_prompt_embeds, negative_prompt_attention_mask, "negative"),
            instruction=habits.instruction
            if complex_human_instruction is _MODEL_DEFAULT
            else complex_human_instruction,
            max_sequence_length=max_sequence_length,
            clean_caption=clean_caption,
        )
        positive = positive.repeat(num_images_per_prompt)
        negative = None if negative is None else negative.repeat(num_images_per_prompt)
        count = positive.text.shape[0]
        noise = draw_noise(count, shape, generator) if latents is None else latents
        if tuple(noise.shape) != (count, *shape):
            raise ConfigError(
                f"latents are {tuple(noise.shape)}, this call needs {(count, *shape)}",
                hint="b, latent channels, height / 32, width / 32",
            )
        sampling = self.core.sampling(
            solver=None, num_steps=num_inference_steps, flow_shift=None, guidance=guidance
        )
        if timesteps is not None or sigmas is not None:
            sampling = replace(sampling, grid=custom_grid(timesteps, sigmas))
        on_step = self._on_step(callback_on_step_end, sampling.grid)
        at_once = count if callback_on_step_end is not None or self.device.type != "cpu" else 1
        latent_parts, image_parts = [], []
        for start in range(0, count, at_once):
            rows = slice(start, start + at_once)
            null = None if negative is None else rows_of(negative, rows)
            part = self.core.sample(
                noise[rows], rows_of(positive, rows), null, sampling, on_step=on_step
            )
            latent_parts.append(part)
            if output_type != "latent":
                image_parts.append(cut_to(self.core.decode(part), *asked))
        images: Images
        if output_type == "latent":
            images = torch.cat(latent_parts)
        else:
            images = as_output(torch.cat(image_parts), output_type)
        return SanaPipelineOutput(images=images) if return_dict else (images,)

    def _asked_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        published = self.core.components.transformer.config.sample_size in TABLES
        usual = PUBLISHED_SIZE if published else self.core.default_size
        return height or usual, width or usual

    def _drawn_size(self, height: int, width: int, *, binned: bool) -> tuple[int, int]:
        """The size to draw at; a binned model draws at a trained one and is cut afterwards."""
        self.core.latent_shape(height, width)  # refuses what is no multiple, binned or not
        table = TABLES.get(self.core.components.transformer.config.sample_size)
        return nearest_bin(height, width, table) if binned and table else (height, width)

    def _texts(
        self,
        prompts: list[str] | None,
        negatives: list[str] | None,
        guidance: Guidance,
        *,
        given: EncodedText | None,
        given_null: EncodedText | None,
        instruction: Sequence[str] | None,
        max_sequence_length: int,
        clean_caption: bool,
    ) -> tuple[EncodedText, EncodedText | None]:
        """Embeddings of both sides, as many of each."""
        if (prompts is None) == (given is None):
            raise ConfigError("pass either prompt or prompt_embeds, and not both")
        encoder = self.core.components.prompts
        if given is None:
            assert prompts is not None
            given = encoder.encode(
                prompts,
                instruction=instruction,
                max_sequence_length=max_sequence_length,
                clean_caption=clean_caption,
            )
        count = given.text.shape[0]
        embeds = self.core.components.transformer.config.guidance_embeds
        if guidance.guidance_scale == 1.0 or embeds:
            return given, None
        if given_null is None:
            texts = negatives if negatives is not None else [""]
            if len(texts) not in (1, count):
                raise ConfigError(
                    f"{len(texts)} negative prompts for {count} prompts", hint="one, or one each"
                )
            given_null = encoder.encode(
                texts,
                instruction=None,
                max_sequence_length=max_sequence_length,
                clean_caption=clean_caption,
            )
        if given_null.text.shape[0] == 1:
            given_null = given_null.repeat(count)
        return given, given_null

    def _on_step(
        self, callback: Callback | None, grid: SigmaGrid
    ) -> Callable[[int, Stepped], Latent | None]:
        """Call the user's hook after each step; what it returns as latents goes on from there."""

        def hook(index: int, stepped: Stepped) -> Latent | None:
            if callback is None:
                return None
            timestep = grid.timesteps[index]
            changed = callback(self, index, timestep, {"latents": stepped.x}) or {}
            return changed.get("latents")

        return hook
