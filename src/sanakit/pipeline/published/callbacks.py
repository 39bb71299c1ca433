"""What a caller may see and change between two steps of a run."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sanakit.errors import ConfigError, did_you_mean
from sanakit.flow.guidance import Guidance
from sanakit.flow.solvers import Stepped
from sanakit.models.stamp import settings_of
from sanakit.pipeline.prompts import EncodedText
from sanakit.pipeline.published.running import Run
from sanakit.pipeline.request import TENSOR_INPUTS, Call
from sanakit.pipeline.sampler import Change, Sampling


def effective_scale(guidance_scale: float, *, embedded: bool) -> float:
    """Give the scale as guidance has it: published pipelines take 1 and below as off.

    A network that embeds it is told the scale as it is.
    """
    return guidance_scale if embedded else max(guidance_scale, 1.0)


class StepHook:
    """Called after every step of one run: shows the callback its tensors, takes what it changed.

    ``prompt_embeds`` are shown as the published pipelines show them, ``max_sequence_length`` wide
    and, under guidance, behind the negative ones. They come back like that or without those;
    ``negative_prompt_embeds`` that come back changed take effect, too.
    """

    def __init__(
        self,
        pipe: Any,
        run: Run,
        call: Call,
        sampling: Sampling,
        positive: EncodedText,
        negative: EncodedText | None,
    ) -> None:
        self.pipe, self.run = pipe, run
        self.call = call
        self.timesteps = sampling.grid.timesteps
        self.embedded = self._network()[0].config.guidance_embeds
        self.unit = run.scheduler.latent_unit if run.scheduler else 1.0
        self.guidance: Guidance = sampling.guidance
        self.positive, self.negative = positive, negative
        if call.callback_on_step_end is not None:
            sides = [positive] if negative is None else [positive, negative]
            width = max(call.max_sequence_length, *(side.text.shape[1] for side in sides))
            self.positive = positive.widened(width)
            self.negative = None if negative is None else negative.widened(width)

    def __call__(self, index: int, stepped: Stepped) -> Change | None:
        """Take part after step ``index``."""
        latents = texts = network = None
        callback = self.call.callback_on_step_end
        if callback is not None:
            shown = self._shown(stepped)
            asked = {name: shown[name] for name in self.call.tensor_inputs if name in shown}
            before = self._network()
            changed = callback(self.pipe, index, self.timesteps[index], asked) or {}
            network = self._changed_since(before)
            for name in changed:
                if name not in TENSOR_INPUTS:
                    raise ConfigError(
                        f"the callback gave back {name!r}", hint=did_you_mean(name, TENSOR_INPUTS)
                    )
            latents = self._latents(changed, shown["latents"])
            texts = self._texts(changed, shown)
        guidance = None
        scale = effective_scale(self.run.guidance_scale, embedded=self.embedded)
        if scale != self.guidance.guidance_scale:
            guidance = self.guidance = replace(self.guidance, guidance_scale=scale)
        return Change(
            latents=latents,
            texts=texts,
            guidance=guidance,
            network=network,
            stop=self.run.interrupt,
        )

    def _network(self) -> tuple[Any, Hashable]:
        parts = self.pipe.core.components
        branch = None if self.call.control is None else settings_of(parts.controlnet)
        return parts.transformer, (settings_of(parts.transformer), branch)

    def _changed_since(self, before: tuple[Any, Hashable]) -> Any:
        """The transformer, where the callback exchanged it or changed any weights or adapters."""
        after = self._network()
        if after[0] is not before[0] and self.pipe._offload is not None:
            raise ConfigError(
                "the callback exchanged the transformer of a pipeline that is offloaded",
                hint="pipe.to(device) ends that; or exchange it between two calls",
            )
        return None if after[0] is before[0] and after[1] == before[1] else after[0]

    def _shown(self, stepped: Stepped) -> dict[str, Tensor]:
        latents = stepped.x if self.unit == 1.0 else self.unit * stepped.x
        shown = {"latents": latents, "prompt_embeds": self.positive.text}
        if self.negative is not None:
            shown["negative_prompt_embeds"] = self.negative.text
            if self.guidance.guidance_scale != 1.0:
                shown["prompt_embeds"] = torch.cat([self.negative.text, self.positive.text])
        return shown

    def _latents(self, changed: dict[str, Tensor], x: Tensor) -> Tensor | None:
        latents = changed.get("latents")
        if latents is None or latents is x:
            return None
        return _fitting("latents", latents, x.shape) / self.unit

    def _texts(
        self, changed: dict[str, Tensor], shown: dict[str, Tensor]
    ) -> tuple[EncodedText, EncodedText | None] | None:
        text = changed.get("prompt_embeds")
        null = changed.get("negative_prompt_embeds")
        text = None if text is shown["prompt_embeds"] else text
        null = None if null is shown.get("negative_prompt_embeds") else null
        if text is None and null is None:
            return None
        if text is not None:
            shape = self.positive.text.shape
            if self.negative is not None and text.shape == (2 * shape[0], *shape[1:]):
                behind, text = text.chunk(2)
                self.negative = replace(self.negative, text=behind)
            self.positive = replace(self.positive, text=_fitting("prompt_embeds", text, shape))
        if null is not None:
            if self.negative is None:
                raise ConfigError(
                    "the callback gave back negative_prompt_embeds, which this call does not read",
                    hint="it needs a guidance_scale above 1",
                )
            shape = self.negative.text.shape
            null = _fitting("negative_prompt_embeds", null, shape)
            self.negative = replace(self.negative, text=null)
        every = slice(None)
        negative = None if self.negative is None else self.negative.rows(every)
        return self.positive.rows(every), negative


def _fitting(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    if tensor.shape != shape:
        raise ConfigError(
            f"the callback gave back {name} of shape {tuple(tensor.shape)}",
            hint=f"this call goes on with {tuple(shape)} only",
        )
    return tensor
