"""`SanaPipeline`: the arguments that users of diffusers know, over the stateless core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.text_encoder import TextEncoder
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.arguments import (
    MODEL_DEFAULT,
    Call,
    Callback,
    Generators,
    Images,
    OutputType,
)
from sanakit.pipeline.compat import instruction_as
from sanakit.pipeline.components import load_components, save_components
from sanakit.pipeline.drawing import draw
from sanakit.pipeline.face import PipelineFace
from sanakit.pipeline.generate import Pipeline
from sanakit.pipeline.keywords import bytes_of, refuse_other_readers, refuse_pickles, refuse_unknown
from sanakit.pipeline.lora import LoraMethods
from sanakit.pipeline.offload import ModelOffloaded, cast, move, offload_sequentially
from sanakit.pipeline.parts import assemble
from sanakit.pipeline.placement import Placed
from sanakit.pipeline.prompt import Compat, EncodedText, padded
from sanakit.pipeline.texts import Prompts, embedded, encode_texts
from sanakit.shapes import Latent
from sanakit.weights.dtypes import Requested
from sanakit.weights.store import MAX_SHARD_BYTES


@dataclass
class SanaPipelineOutput:
    """``images``: PIL pictures, ``b H W 3`` or ``b 3 H W`` in [0, 1], or scaled latents."""

    images: Images

    def __getitem__(self, index: int | str) -> Any:
        """``pipe(prompt)[0]`` and ``["images"]``, as published code writes them."""
        return self.images if index == "images" else (self.images,)[int(index)]


class SanaPipeline(PipelineFace, LoraMethods):
    """Text to image with any SANA model: ``SanaPipeline.from_pretrained("glyph")("a red apple")``.

    On the CPU pictures are drawn one by one, so that each is the picture its generator draws alone.
    ``compat`` is the published stack whose habits of text and noise are followed: "diffusers", or
    "nvlabs", as the weights were trained. It may be set, and given to a single call.
    """

    @refuse_unknown
    def __init__(
        self,
        core: Pipeline | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder: PreTrainedModel | TextEncoder | None = None,
        vae: Autoencoder | None = None,
        transformer: LinearDiT | None = None,
        scheduler: object | None = None,
        compat: Compat = "diffusers",
    ) -> None:
        """Take a core, or the parts of one; pipelines of the same parts share their memory.

        Raises:
            ConfigError: parts that are missing, of another package or do not fit each other.
        """
        if core is None:
            parts = assemble(
                tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer
            )
            core = Pipeline(parts)
        elif not isinstance(core, Pipeline):
            raise ConfigError(
                f"core is a {type(core).__name__}", hint="name the parts: SanaPipeline(vae=...)"
            )
        super().__init__(core, scheduler=scheduler, compat=compat)

    @classmethod
    @refuse_unknown
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: Requested = None,
        variant: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        use_safetensors: bool = True,
        low_cpu_mem_usage: bool = True,
        transformer: LinearDiT | None = None,
        vae: Autoencoder | None = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        scheduler: object | None = None,
        quantization_config: Any = None,
        device_map: Placed | None = None,
        allow_unsafe_dtype: bool = False,
        compat: Compat = "diffusers",
    ) -> SanaPipeline:
        """Load a model: an embedded name, a folder in the published layout, or ``owner/name``.

        ``torch_dtype`` is the transformer's, or a dict by component; text encoder and autoencoder
        are never fp16 unless ``allow_unsafe_dtype``. Parts that are passed are not read from disk:
        an fp16 text encoder quantised by bitsandbytes goes on in bf16. ``device_map="balanced"``
        spreads whole parts over the accelerators there are. ``quantization_config`` is for
        transformer and text encoder, or a dict by component. Arguments and errors otherwise are
        those of `load_components`; an unknown keyword is an error.
        """
        refuse_other_readers(use_safetensors=use_safetensors, low_cpu_mem_usage=low_cpu_mem_usage)
        components = load_components(
            pretrained_model_name_or_path,
            dtype=torch_dtype,
            device=device_map,
            variant=variant,
            revision=revision,
            offline=local_files_only,
            quantization=quantization_config,
            components={
                "transformer": transformer,
                "vae": vae,
                "text_encoder": text_encoder,
                "tokenizer": tokenizer,
                "scheduler": scheduler,
            },
            allow_unsafe_dtype=allow_unsafe_dtype,
        )
        return cls(Pipeline(components), compat=compat)

    @refuse_unknown
    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        variant: str | None = None,
        max_shard_size: int | str = MAX_SHARD_BYTES,
        safe_serialization: bool = True,
    ) -> None:
        """Write all parts in the published layout, as safetensors, which diffusers reads too."""
        refuse_pickles(safe_serialization)
        size = bytes_of(max_shard_size)
        folder = Path(save_directory)
        parts = self.core.components
        habits = replace(parts.habits, scheduler=self.scheduler)
        parts = replace(parts, habits=habits)
        save_components(parts, folder, variant=variant, max_shard_bytes=size)

    @refuse_unknown
    def to(
        self,
        *where: str | torch.device | torch.dtype,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        allow_unsafe_dtype: bool = False,
    ) -> SanaPipeline:
        """Move all parts to a device, cast them, or both: ``pipe.to("cuda", torch.bfloat16)``.

        A dtype is the transformer's, as in `from_pretrained`.

        Raises:
            ConfigError: as `offload.move` and `offload.cast`.
        """
        for given in where:
            if isinstance(given, torch.dtype):
                dtype = given
            else:
                device = given
        if dtype is not None:
            cast(self.core.components, dtype, allow_unsafe=allow_unsafe_dtype)
        if device is not None:
            move(self.core.components, device)
            self.core = Pipeline(self.core.components)
        return self

    def enable_model_cpu_offload(self, device: str | torch.device | None = None) -> None:
        """Keep all parts on the CPU and bring each to ``device`` only for its stage.

        ``device`` is the machine's accelerator unless named; `to` ends it. Errors are those of
        `offload.ModelOffloaded`.
        """
        self.core = ModelOffloaded(self.core.components, device)

    def enable_sequential_cpu_offload(self, device: str | torch.device | None = None) -> None:
        """Bring each layer to ``device`` only while it runs: least memory, slowest; `to` ends it.

        Errors are those of `offload.offload_sequentially`.
        """
        offload_sequentially(self.core.components, device)
        self.core = Pipeline(self.core.components)

    @classmethod
    def from_pipe(cls, pipeline: SanaPipeline, **parts: Any) -> SanaPipeline:
        """Make a pipeline of this class from another's parts, which both then share.

        ``parts`` are keywords of the constructor that take the place of the other's.

        Raises:
            UnknownArgumentError: for a keyword that the constructor lacks. ConfigError: as there.
        """
        return cls(**cls._of_pipe(pipeline, **parts))

    @staticmethod
    def _of_pipe(pipeline: SanaPipeline, **parts: Any) -> dict[str, Any]:
        if not isinstance(pipeline, SanaPipeline):
            raise ConfigError(
                f"{type(pipeline).__module__}.{type(pipeline).__name__} is no pipeline of sanakit",
                hint="load it with SanaPipeline.from_pretrained",
            )
        settings = {"scheduler": pipeline._scheduler, "compat": pipeline.compat}
        if parts.keys() <= settings.keys():
            return {"core": pipeline.core, **settings, **parts}
        return {**pipeline.components, **settings, **parts}

    @refuse_unknown
    def encode_prompt(
        self,
        prompt: Prompts | None,
        do_classifier_free_guidance: bool = True,
        negative_prompt: Prompts | None = "",
        num_images_per_prompt: int = 1,
        device: str | torch.device | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        clean_caption: bool = False,
        max_sequence_length: int = 300,
        complex_human_instruction: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Give embeddings and mask of the prompts, then of the negative ones, as published.

        Embeddings are ``b max_sequence_length channels``, masks 1 on real tokens; padding holds
        zeros. No instruction unless given; None twice at the end without guidance.

        Raises:
            ConfigError: as a call.
        """
        channels = self.transformer.config.caption_channels
        positive, negative = encode_texts(
            self.core,
            prompt=prompt,
            negative_prompt=negative_prompt,
            given=embedded(prompt_embeds, prompt_attention_mask, "prompt", channels),
            given_null=embedded(
                negative_prompt_embeds, negative_prompt_attention_mask, "negative_prompt", channels
            ),
            guided=do_classifier_free_guidance,
            count_each=num_images_per_prompt,
            instruction=instruction_as(complex_human_instruction, self.compat),
            max_sequence_length=max_sequence_length,
            clean_caption=clean_caption,
            compat=self.compat,
        )
        where = self.device if device is None else torch.device(device)

        def published(side: EncodedText) -> tuple[Tensor, Tensor]:
            text, mask = padded(side, max(max_sequence_length, side.text.shape[1]))
            text = text.masked_fill(~mask[:, :, None], 0)
            return text.to(where), mask.long().to(where)

        null = (None, None) if negative is None else published(negative)
        return (*published(positive), *null)

    @refuse_unknown
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
    ) -> SanaPipelineOutput | tuple[Any]:
        """Draw pictures; arguments mean what they mean in diffusers.

        Defaults that depend on the model: ``guidance_scale`` is 4.5, ``height`` and ``width`` 1024,
        ``complex_human_instruction`` the published one for published models; the embedded model
        has its own. ``timesteps`` and ``sigmas`` are read as `Scheduler.custom_grid` does.
        ``callback_on_step_end(pipe, i, t, tensors)`` may change what it is shown, see `StepHook`.

        Raises:
            ConfigError: for a size, count or combination of arguments that cannot be drawn.
            NumericsError: for a number that is not finite, naming component and step.
        """
        return self._draw(locals())

    def _draw(self, arguments: dict[str, Any], **more: Any) -> SanaPipelineOutput | tuple[Any]:
        """Draw from all that a ``__call__`` was given: its names are those of `Call`."""
        arguments = {name: value for name, value in arguments.items() if name != "self"}
        arguments["compat"] = arguments["compat"] or self.compat
        call = Call(**arguments, **more)
        images = draw(self, call)
        return SanaPipelineOutput(images=images) if call.return_dict else (images,)
