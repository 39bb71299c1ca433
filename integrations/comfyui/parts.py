"""The parts of a model as ComfyUI's MODEL, CLIP and VAE, which it moves, patches and calls."""

from __future__ import annotations

from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError
from sanakit.models.parts import first_weight
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.pixels import to_pixels
from sanakit.serve.preview import LinearPreview

MASK = "attention_mask"
TIMESTEP = "sanakit_timestep"
"""Key of the transformer's options under which our sampler says the exact timestep."""


def load(name: str, dtype: str | None) -> tuple[Any, Text, Vae]:
    """Load a model; what ComfyUI does not use stays on the CPU.

    Raises:
        ConfigError: a model that was taught its guidance. MissingModelError: no such model.
    """
    # Parameters made in ComfyUI's inference mode would be none that counts its changes.
    with torch.inference_mode(False), torch.no_grad():
        pipeline = Pipeline.load(name, dtype=None if dtype is None else getattr(torch, dtype))
        if pipeline.components.transformer.config.guidance_embeds:
            raise ConfigError(
                f"{name} is a Sprint model, which these nodes do not draw yet",
                hint="sanakit generate does",
            )
        vae = Vae(pipeline)
        model = SanaModel(pipeline, vae.latent_format())
    return (
        comfy.model_patcher.ModelPatcher(
            model,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        ),
        Text(pipeline),
        vae,
    )


class SanaModel(comfy.model_base.BaseModel):
    """The transformer as ComfyUI asks it: a velocity at a level of noise, of two texts at once."""

    def __init__(
        self, pipeline: Pipeline, latent_format: comfy.latent_formats.LatentFormat
    ) -> None:
        config = comfy.supported_models_base.BASE({"disable_unet_model_creation": True})
        config.latent_format = latent_format
        config.sampling_settings = {"shift": pipeline.scheduler().flow_shift}
        super().__init__(config, model_type=comfy.model_base.ModelType.FLOW)
        self.diffusion_model = pipeline.components.transformer
        self.scheduler = pipeline.scheduler()

    def get_dtype(self) -> torch.dtype:
        return first_weight(self.diffusion_model).dtype

    def extra_conds(self, **given: Any) -> dict[str, Any]:
        """Give a text and its mask; all texts are as wide, and none is repeated to fit another."""
        conds = {"c_crossattn": comfy.conds.CONDRegular(given["cross_attn"])}
        if given.get(MASK) is not None:
            conds[MASK] = comfy.conds.CONDRegular(given[MASK])
        return conds

    def _apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006  ComfyUI's own signature
        **conds: Any,
    ) -> Tensor:
        transformer, dtype = self.diffusion_model, self.get_dtype()
        if control is not None or c_concat is not None:
            raise ConfigError(
                "SANA takes no ControlNet of ComfyUI and no inpainting model's channels",
                hint="sanakit generate --control FILE; a latent's noise mask works here",
            )
        exact = transformer_options.get(TIMESTEP)
        timestep = self.model_sampling.timestep(t) if exact is None else exact.to(t).expand_as(t)
        velocity = transformer(
            x.to(dtype),
            encoder_hidden_states=c_crossattn.to(x.device, dtype),
            encoder_attention_mask=conds[MASK].to(x.device) if MASK in conds else None,
            timestep=timestep.float() * transformer.config.timestep_scale,
            return_dict=False,
        )[0][:, : x.shape[1]]
        return self.model_sampling.calculate_denoised(t, velocity.float(), x)


class Held(nn.Module):
    """A network that ComfyUI moves; its own attributes stay as they are."""

    def __init__(self, network: nn.Module, device: torch.device, idle: torch.device) -> None:
        super().__init__()
        self.network = network
        self._patcher = comfy.model_patcher.ModelPatcher(self, device, idle)

    def to_its_device(self) -> None:
        comfy.model_management.load_models_gpu([self._patcher])


class Text:
    """The text encoder; ComfyUI's own CLIPTextEncode takes it for prompts, too."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._prompts = pipeline.components.prompts
        self._instruction = pipeline.components.defaults.instruction
        management = comfy.model_management
        self._held = Held(
            self._prompts.text_encoder.llm,
            management.text_encoder_device(),
            management.text_encoder_offload_device(),
        )

    def encode(self, text: str, *, negative: bool = False) -> list[list[Any]]:
        """Give CONDITIONING of one text with its mask, as wide as the longest may be."""
        self._held.to_its_device()
        encoded = self._prompts.encode([text], instruction=None if negative else self._instruction)
        encoded.warn_of_lost("prompt", self._prompts.max_sequence_length)
        wide = encoded.at_least(self._prompts.max_sequence_length)
        device = comfy.model_management.intermediate_device()
        return [[wide.text.float().to(device), {MASK: wide.mask.long().to(device)}]]

    def tokenize(self, text: str, **_: Any) -> str:
        """Hand the text on: its tokens depend on the instruction before it."""
        return text

    def encode_from_tokens_scheduled(self, tokens: str, **_: Any) -> list[list[Any]]:
        """What CLIPTextEncode asks for."""
        return self.encode(tokens)


class Vae:
    """The autoencoder, by the calls that ComfyUI's nodes make; latents are unscaled as there."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        autoencoder = pipeline.components.autoencoder
        self.channels = autoencoder.config.latent_channels
        self.factor = autoencoder.config.spatial_factor
        self.scale = autoencoder.config.scaling_factor
        management = comfy.model_management
        self._held = Held(autoencoder, management.vae_device(), management.vae_offload_device())

    def zeros(self, count: int, height: int, width: int) -> Tensor:
        """Give an empty latent of a size that the model can draw.

        Raises:
            ConfigError: for a side that is no multiple of what its latent grid holds.
        """
        shape = self._pipeline.latent_shape(height, width)
        device = comfy.model_management.intermediate_device()
        return torch.zeros(count, *shape, device=device)

    def decode(self, samples: Tensor) -> Tensor:
        """Latents ``b c h w`` to pictures ``b H W 3`` in [0, 1]."""
        self._held.to_its_device()
        images = [self._pipeline.decode(one.float() * self.scale) for one in samples.split(1)]
        pictures = torch.cat(images).div(2).add(0.5).clamp(0, 1).movedim(1, -1)
        return pictures.float().to(comfy.model_management.intermediate_device())

    def encode(self, pixels: Tensor) -> Tensor:
        """Pictures ``b H W 3`` in [0, 1], cut to what the latent grid holds, to latents."""
        self._held.to_its_device()
        height, width = (side // self.factor * self.factor for side in pixels.shape[1:3])
        images = pixels[:, :height, :width, :3].movedim(-1, 1).mul(2).sub(1)
        latents = self._pipeline.encode(images) / self.scale
        return latents.to(comfy.model_management.intermediate_device())

    def decode_tiled(self, samples: Tensor, **_: Any) -> Tensor:
        """The same picture: tiles are exact here, and chosen where memory is short."""
        return self.decode(samples)

    def encode_tiled(self, pixels: Tensor, **_: Any) -> Tensor:
        """The same latents."""
        return self.encode(pixels)

    def spacial_compression_decode(self) -> int:
        """Pixels a latent's side is long."""
        return self.factor

    spacial_compression_encode = spacial_compression_decode

    def temporal_compression_decode(self) -> None:
        """There is no time in a picture."""

    def latent_format(self) -> comfy.latent_formats.LatentFormat:
        """Give what ComfyUI must know of latents; colors of previews are fitted to the decoder."""
        autoencoder = self._pipeline.components.autoencoder
        weight = first_weight(autoencoder)
        # Bright and dark, warm and cold patches: what a linear map of channels can tell apart.
        generator = torch.Generator().manual_seed(0)
        patches = torch.rand(4, 3, 4, 4, generator=generator) * 2 - 1
        images = nn.functional.interpolate(patches, scale_factor=2 * self.factor, mode="bicubic")
        with torch.no_grad():
            latents = autoencoder.encode(images.clamp(-1, 1).to(weight)).latent.float()
        fitted = LinearPreview.fit(latents * self.scale, to_pixels(images.clamp(-1, 1))).weights
        found = comfy.latent_formats.LatentFormat()
        found.scale_factor, found.latent_channels = self.scale, self.channels
        found.latent_rgb_factors = fitted[:-1].tolist()
        found.latent_rgb_factors_bias = fitted[-1].tolist()
        return found
