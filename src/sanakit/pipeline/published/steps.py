"""The steps of a call that published subclasses override: checks, texts and noise to begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sanakit.errors import refuse_unknown
from sanakit.flow.path import Generators
from sanakit.models.published import say_once
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.prompts import MODEL_DEFAULT, Compat, EncodedText
from sanakit.pipeline.request import Call, Prompts, listed
from sanakit.shapes import Latent

# Names of published pipelines that a subclass may have in mind, where calls go another way.
NOT_CALLED = (
    dict.fromkeys(
        ("_get_gemma_prompt_embeds", "_text_preprocessing", "_clean_caption"),
        "override encode_prompt, which is called",
    )
    | dict.fromkeys(
        ("guidance_scale", "do_classifier_free_guidance", "interrupt", "attention_kwargs"),
        "pass it to the call, or set it in a callback",
    )
    | {"prepare_image": "pass control_image as it is to be"}
    | {"prepare_extra_step_kwargs": "solvers take no more arguments"}
)


class Steps:
    """Methods that a call does not need, and asks wherever a user put their own in their place."""

    core: Pipeline
    compat: Compat
    device: torch.device
    _execution_device: torch.device

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = cls.__module__.startswith("sanakit.")
        for name in () if own else sorted(NOT_CALLED.keys() & vars(cls).keys()):
            say_once(f"{cls.__name__}.{name} decides nothing in a call: {NOT_CALLED[name]}")

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
        lora_scale: float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Give embeddings and mask of the prompts, then of the negative ones, as published.

        Embeddings are ``b max_sequence_length channels``, masks 1 on real tokens; padding holds
        zeros. No instruction unless given; None twice at the end without guidance. Where another
        method stands in the place of this one, calls draw with what that one gives. ``lora_scale``
        is of the text encoder's adapters, which these models have none of.

        Raises:
            ConfigError: as a call.
        """
        call = Call(
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            prompt_embeds=prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_embeds=negative_prompt_embeds,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            clean_caption=clean_caption,
            max_sequence_length=max_sequence_length,
            complex_human_instruction=complex_human_instruction,
            compat=self.compat,
        )
        positive, negative = self.core.texts(call, guided=do_classifier_free_guidance)
        where = self.device if device is None else torch.device(device)

        def published(side: EncodedText) -> tuple[Tensor, Tensor]:
            wide = side.widened(max(max_sequence_length, side.text.shape[1]))
            text = wide.text.masked_fill(~wide.mask[:, :, None], 0)
            return text.to(where), wide.mask.long().to(where)

        prompt_embeds, prompt_attention_mask = published(positive)
        negative_prompt_embeds = negative_prompt_attention_mask = None
        if negative is not None:
            negative_prompt_embeds, negative_prompt_attention_mask = published(negative)
        return (
            prompt_embeds,
            prompt_attention_mask,
            negative_prompt_embeds,
            negative_prompt_attention_mask,
        )

    @refuse_unknown
    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        dtype: torch.dtype | None,
        device: str | torch.device | None,
        generator: Generators | None,
        latents: Latent | None = None,
    ) -> Latent:
        """Give noise ``b c h w`` for pictures of a size, or ``latents`` at their place.

        Where another method stands in the place of this one, calls begin with what that one gives.

        Raises:
            ConfigError: not as many generators as pictures.
        """
        if latents is None:
            factor = self.core.components.autoencoder.config.spatial_factor
            shape = (num_channels_latents, height // factor, width // factor)
            latents = Call(prompt=None, generator=generator).noise(batch_size, shape)
        return latents.to(device=device, dtype=dtype)

    @refuse_unknown
    def check_inputs(
        self,
        prompt: Prompts | None,
        height: int,
        width: int,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        negative_prompt: Prompts | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
    ) -> None:
        """Refuse arguments that cannot be drawn, as a call does by itself.

        Where another method stands in the place of this one, calls ask that one, too.

        Raises:
            ConfigError: a size off the grid, a prompt beside its own embeddings, or neither.
        """
        call = Call(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_embeds=negative_prompt_embeds,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs or (),
        )
        self.core.size_to_draw(height, width, binned=False)
        self.core.check_texts(call)

    def _by_own_steps(self, call: Call) -> Call:
        """The same call with what a user's own steps make of it."""
        if self._does_its_own_way("check_inputs"):
            self._check(call)
        if self._does_its_own_way("encode_prompt"):
            call = self._encoded(call)
        if self._does_its_own_way("prepare_latents"):
            call = self._started(call)
        return call

    def _does_its_own_way(self, step: str) -> bool:
        """Whether a subclass, or whoever set it on the pipeline, has a method of their own."""
        found = next(kind for kind in type(self).__mro__ if step in vars(kind))
        return not found.__module__.startswith("sanakit.") or step in vars(self)

    def _check(self, call: Call) -> None:
        """Let a user's own ``check_inputs`` see a call."""
        height, width = self._size(call)
        self.check_inputs(
            call.prompt,
            height,
            width,
            callback_on_step_end_tensor_inputs=call.callback_on_step_end_tensor_inputs,
            negative_prompt=call.negative_prompt,
            prompt_embeds=call.prompt_embeds,
            negative_prompt_embeds=call.negative_prompt_embeds,
            prompt_attention_mask=call.prompt_attention_mask,
            negative_prompt_attention_mask=call.negative_prompt_attention_mask,
        )

    def _started(self, call: Call) -> Call:
        """The same call with the noise that a user's own ``prepare_latents`` gives."""
        height, width = self._size(call)
        prompts = listed(call.prompt)
        texts = call.prompt_embeds if prompts is None else prompts
        latents = self.prepare_latents(
            (0 if texts is None else len(texts)) * call.num_images_per_prompt,
            self.core.components.transformer.config.in_channels,
            height,
            width,
            torch.float32,
            self._execution_device,
            call.generator,
            call.latents,
        )
        return replace(call, latents=latents)

    def _size(self, call: Call) -> tuple[int, int]:
        return self.core.sizes(call)[1]

    def _encoded(self, call: Call) -> Call:
        """The same call with embeddings that a user's own ``encode_prompt`` made of its prompts."""
        components = self.core.components
        instruction = call.complex_human_instruction
        if instruction is MODEL_DEFAULT:
            instruction = components.defaults.instruction
        guided, negative = self._negative_side(call)
        encode: Any = self.encode_prompt  # which pipelines have with other arguments
        text, mask, *behind = encode(
            call.prompt,
            *guided,
            **negative,
            num_images_per_prompt=call.num_images_per_prompt,
            device=self.device,
            prompt_embeds=call.prompt_embeds,
            prompt_attention_mask=call.prompt_attention_mask,
            clean_caption=call.clean_caption,
            max_sequence_length=call.max_sequence_length,
            complex_human_instruction=None if instruction is None else list(instruction),
        )
        null, null_mask = behind or (None, None)
        return replace(
            call,
            prompt=None,
            negative_prompt=None,
            num_images_per_prompt=1,
            prompt_embeds=text,
            prompt_attention_mask=mask,
            negative_prompt_embeds=null,
            negative_prompt_attention_mask=null_mask,
        )

    def _negative_side(self, call: Call) -> tuple[tuple[bool, ...], dict[str, Any]]:
        """What `encode_prompt` is asked of negative prompts, in order and by name."""
        embeds = self.core.components.transformer.config.guidance_embeds
        return (call.guidance_scale != 1.0 and not embeds,), {
            "negative_prompt": call.negative_prompt,
            "negative_prompt_embeds": call.negative_prompt_embeds,
            "negative_prompt_attention_mask": call.negative_prompt_attention_mask,
        }
