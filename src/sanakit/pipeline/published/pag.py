"""`SanaPAGPipeline`: perturbed-attention guidance under the arguments users of diffusers know.

Its blocks are matched exactly, and the guidance is data: no layer of the network is exchanged, so
norms of queries and keys, and other pipelines that share the network, are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sanakit.errors import ConfigError, refuse_unknown
from sanakit.flow.path import Generators
from sanakit.flow.projection import AdaptiveProjectedGuidance
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.text_encoder import TextEncoder
from sanakit.models.tokenizer import Tokenizer
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import LOADED
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.prompts import MODEL_DEFAULT, Compat
from sanakit.pipeline.published.base import PublishedPipeline, draws_a_call
from sanakit.pipeline.request import (
    Callback,
    OutputType,
    Prompts,
)
from sanakit.shapes import Latent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Layers = int | str | Sequence[int | str]
DEFAULT_LAYERS = "transformer_blocks.0"


def layer_indices(layers: Layers, depth: int) -> frozenset[int]:
    """Give the blocks that ``layers`` names: indices, names, or patterns of names.

    A name is ``transformer_blocks.8`` or an end of it; a pattern is a regular expression over such
    names, like ``blocks.(0|1)`` or ``blocks.[4-9]``. It matches whole words: ``blocks.1`` is block
    1 and not 10 to 19, which the reference takes along.
    """
    given = [layers] if isinstance(layers, int | str) else list(layers)
    if not given:
        raise ConfigError("pag_applied_layers names no block", hint=f"try {DEFAULT_LAYERS!r}")
    found: set[int] = set()
    for layer in given:
        hint = f"the model has transformer_blocks.0 to transformer_blocks.{depth - 1}"
        if isinstance(layer, bool) or not isinstance(layer, int | str):
            raise ConfigError(f"pag_applied_layers holds {layer!r}: an index or a name", hint=hint)
        try:
            hits = {index for index in range(depth) if _names(layer, index)}
        except re.error as error:
            raise ConfigError(
                f"pag_applied_layers holds {layer!r}, no pattern ({error})", hint=hint
            ) from error
        if not hits:
            raise ConfigError(f"pag_applied_layers: {layer!r} names no block", hint=hint)
        found |= hits
    return frozenset(found)


def _names(layer: int | str, index: int) -> bool:
    if isinstance(layer, int):
        return layer == index
    name = f"transformer_blocks.{index}.attn1"
    whole_words = rf"(?<![A-Za-z0-9])(?:{layer})(?![A-Za-z0-9])"
    return re.search(whole_words, name) is not None


class SanaPAGPipeline(PublishedPipeline):
    """Text to image with perturbed-attention guidance in the blocks ``pag_applied_layers``."""

    @refuse_unknown
    def __init__(
        self,
        tokenizer: Tokenizer | PreTrainedTokenizerBase | Pipeline | None = LOADED,
        text_encoder: PreTrainedModel | TextEncoder | None = LOADED,
        vae: Autoencoder | None = LOADED,
        transformer: LinearDiT | None = LOADED,
        scheduler: object | None = None,
        pag_applied_layers: Layers = DEFAULT_LAYERS,
        *,
        core: Pipeline | None = None,
        compat: Compat = "diffusers",
    ) -> None:
        """Take parts or a core; errors are also those of `layer_indices`."""
        super().__init__(
            tokenizer, text_encoder, vae, transformer, scheduler, core=core, compat=compat
        )
        self.set_pag_applied_layers(pag_applied_layers)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        pag_applied_layers: Layers = DEFAULT_LAYERS,
        **loading: Any,
    ) -> SanaPAGPipeline:
        """Load a model; ``loading`` are the keywords of `PublishedPipeline.from_pretrained`."""
        plain = PublishedPipeline.from_pretrained(pretrained_model_name_or_path, **loading)
        return cls.from_pipe(plain, pag_applied_layers=pag_applied_layers)

    @classmethod
    def from_pipe(
        cls,
        pipeline: PublishedPipeline,
        *,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        pag_applied_layers: Layers | None = None,
        **parts: Any,
    ) -> SanaPAGPipeline:
        """Make one of another pipeline's parts; keywords as in `PublishedPipeline.from_pipe`."""
        made = super().from_pipe(pipeline, torch_dtype=torch_dtype, dtype=dtype, **parts)
        assert isinstance(made, cls)
        if pag_applied_layers is not None:
            made.set_pag_applied_layers(pag_applied_layers)
        elif isinstance(pipeline, SanaPAGPipeline):
            made.set_pag_applied_layers(pipeline.pag_applied_layers)
        return made

    def set_pag_applied_layers(self, pag_applied_layers: Layers) -> None:
        """Choose the blocks for calls to come; errors are those of `layer_indices`."""
        if self.transformer is not None:
            layer_indices(pag_applied_layers, self.transformer.config.num_layers)
        self.pag_applied_layers = pag_applied_layers

    def _pag_layers(self) -> list[int]:
        """The blocks of the transformer that is there now."""
        if self.transformer is None:
            return []
        return sorted(layer_indices(self.pag_applied_layers, self.transformer.config.num_layers))

    @property
    def pag_scale(self) -> float:
        """``pag_scale`` of the last call."""
        return self._runs.here.pag_scale

    @property
    def pag_adaptive_scale(self) -> float:
        """``pag_adaptive_scale`` of the last call."""
        return self._runs.here.pag_adaptive_scale

    @property
    def do_perturbed_attention_guidance(self) -> bool:
        """Whether the last call used perturbed attention."""
        return self.pag_scale > 0

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
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 300,
        complex_human_instruction: Sequence[str] | None = MODEL_DEFAULT,
        pag_scale: float = 3.0,
        pag_adaptive_scale: float = 0.0,
        *,
        attention_kwargs: dict[str, Any] | None = None,
        compat: Compat | None = None,
        guider: AdaptiveProjectedGuidance | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        step_cache: float = 0.0,
    ) -> dict[str, Any]:
        """Draw pictures; arguments as those of `SanaPipeline`, in the published order.

        ``pag_scale`` from 0, which is off, pushes away from the perturbed prediction;
        ``pag_adaptive_scale`` takes so much of it per timestep below 1000, down to none (G3).
        """
        return {"pag_layers": self._pag_layers()}
