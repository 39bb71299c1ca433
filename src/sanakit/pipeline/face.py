"""What a published pipeline shows of itself: its parts, and facts of the call that ran last."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.arguments import TENSOR_INPUTS, Call
from sanakit.pipeline.compat import check_compat
from sanakit.pipeline.generate import Pipeline
from sanakit.pipeline.keywords import nearest
from sanakit.pipeline.parts import remember_habits
from sanakit.pipeline.prompt import Compat
from sanakit.pipeline.schedulers import Scheduler, as_scheduler

BAR_OPTIONS = ("desc", "disable", "leave", "file", "ncols", "position", "mininterval")


class PipelineFace:
    """The core and the names that users of diffusers know its parts by."""

    # Read by the callback objects of the ecosystem.
    _callback_tensor_inputs: ClassVar[list[str]] = list(TENSOR_INPUTS)

    def __init__(self, core: Pipeline, *, scheduler: object | None, compat: Compat) -> None:
        remember_habits(core.components)
        self.core = core
        self.compat: Compat = check_compat(compat)
        self._scheduler = None if scheduler is None else as_scheduler(scheduler)
        self._bar_options: dict[str, Any] = {"disable": None}
        self._call: Call | None = None
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._interrupt = False

    @property
    def components(self) -> dict[str, Any]:
        """The parts by their published names: ``SanaPAGPipeline(**pipe.components)``."""
        return {
            "tokenizer": self.tokenizer,
            "text_encoder": self.text_encoder,
            "vae": self.vae,
            "transformer": self.transformer,
            "scheduler": self.scheduler,
        }

    @property
    def scheduler(self) -> Scheduler:
        """How noise becomes a latent: the model's own unless set to another.

        One of the ecosystem's own classes is taken by its settings.
        """
        return self._scheduler or self.core.components.habits.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: object) -> None:
        self._scheduler = as_scheduler(scheduler)

    @property
    def transformer(self) -> LinearDiT:
        """The linear diffusion transformer."""
        return self.core.components.transformer

    @property
    def vae(self) -> Autoencoder:
        """The deep-compression autoencoder."""
        return self.core.components.autoencoder

    @property
    def text_encoder(self) -> PreTrainedModel:
        """The decoder-only LLM."""
        return self.core.components.prompts.text_encoder.llm

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The LLM's tokenizer."""
        return self.core.components.prompts.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return next(self.transformer.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer."""
        return next(self.transformer.parameters()).dtype

    @property
    def guidance_scale(self) -> float:
        """Of the call that runs or ran last."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether that call has a negative side."""
        return self._guidance_scale > 1.0

    @property
    def num_timesteps(self) -> int:
        """Steps of that call."""
        return self._num_timesteps

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """As given to that call."""
        return None if self._call is None else self._call.attention_kwargs

    @property
    def interrupt(self) -> bool:
        """Whether that call was told to leave its remaining steps undone; set it to tell it so."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, stop: bool) -> None:
        self._interrupt = stop

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

    def set_progress_bar_config(self, **options: Any) -> None:
        """Choose how progress is shown; by default only a terminal shows it.

        Raises:
            ConfigError: for an option that is not one of tqdm's common ones.
        """
        for name in options:
            if name not in BAR_OPTIONS:
                raise ConfigError(
                    f"a progress bar has no option {name!r}", hint=nearest(name, BAR_OPTIONS)
                )
        self._bar_options = {"disable": None, **options}
