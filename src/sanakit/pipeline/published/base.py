"""What all published pipelines share: parts, loading, saving, settings, and how a call is drawn.

A pipeline of its own adds ``__call__``, which turns its arguments into a `Call`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeAlias, TypeVar

import torch
from huggingface_hub.utils.tqdm import tqdm

from sanakit.errors import ConfigError, did_you_mean, refuse_unknown
from sanakit.files import read_json
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import TransformerConfig
from sanakit.models.outputs import ModelOutput
from sanakit.models.parts import network_in
from sanakit.models.text_encoder import TextEncoder
from sanakit.models.tokenizer import Tokenizer
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.aspect_ratios import TABLES
from sanakit.pipeline.components import (
    LOADED,
    assemble,
    load_components,
    present,
    published_tokenizer,
    save_components,
)
from sanakit.pipeline.load_arguments import (
    heed_other_arguments,
    one_dtype,
    refuse_pickle_readers,
)
from sanakit.pipeline.networks import Saved
from sanakit.pipeline.pipeline import OnSampled, Pipeline
from sanakit.pipeline.pixels import to_pil
from sanakit.pipeline.placement import (
    MaxMemory,
    Networks,
    Placed,
    Visit,
)
from sanakit.pipeline.prompts import Compat, EncodedText, check_compat
from sanakit.pipeline.published.callbacks import StepHook, effective_scale
from sanakit.pipeline.published.image_processor import Images, PixArtImageProcessor, as_output
from sanakit.pipeline.published.lora import LoraMethods, strength_of_call
from sanakit.pipeline.published.placing import Placing, offloaded
from sanakit.pipeline.published.running import Run, Runs
from sanakit.pipeline.published.steps import Steps
from sanakit.pipeline.request import (
    TENSOR_INPUTS,
    Call,
)
from sanakit.pipeline.sampler import Sampling
from sanakit.pipeline.schedulers import Scheduler, as_scheduler
from sanakit.weights.dtypes import Requested
from sanakit.weights.layout import INDEX
from sanakit.weights.lockfile import asking
from sanakit.weights.resolve import resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BAR_OPTIONS = ("desc", "disable", "leave", "file", "ncols", "position", "mininterval")
PUBLISHED_SIZE = 1024


@dataclass
class SanaPipelineOutput(ModelOutput):
    """``images``: PIL pictures, ``b H W 3`` or ``b 3 H W`` in [0, 1], or scaled latents."""

    images: Images


P = TypeVar("P", bound="PublishedPipeline")
A = ParamSpec("A")
Output: TypeAlias = "SanaPipelineOutput | tuple[Any]"


def draws_a_call(own: Callable[A, dict[str, Any]]) -> Callable[A, Output]:
    """Make a ``__call__`` that gives what of a `Call` is its own one that draws it.

    Arguments that a call has go into it by their names; others ``own`` makes something of.
    """
    signature = inspect.signature(own)
    shared = [each.name for each in fields(Call) if each.name in signature.parameters]

    @refuse_unknown
    @functools.wraps(own)
    def draw(*given: A.args, **named: A.kwargs) -> Output:
        asked = signature.bind(*given, **named)
        asked.apply_defaults()
        pipe = asked.arguments["self"]
        values = {name: asked.arguments[name] for name in shared} | own(*given, **named)
        return pipe._draw(Call(**values | {"compat": values["compat"] or pipe.compat}))

    vars(draw)["__signature__"] = signature.replace(return_annotation="SanaPipelineOutput")
    return draw


def published_face(pipeline: PublishedPipeline) -> str:
    """Give the published name of a pipeline, or of the nearest that a user's one is of.

    A class that has no published counterpart says in ``written_as`` whose folder it writes.
    """
    own = next(c for c in type(pipeline).__mro__ if c.__module__.startswith("sanakit."))
    return str(getattr(pipeline, "written_as", own.__name__))


class PublishedPipeline(Steps, Saved, Placing, LoraMethods):
    """Parts under their published names, and all that a pipeline does beside its own call.

    ``compat`` is the published stack whose way with text and noise is followed: "diffusers", or
    "nvlabs", as the weights were trained. It may be set, and given to a single call.
    """

    own_parts: ClassVar[tuple[str, ...]] = ()
    """Parts that not all pipelines have, which loading takes."""
    few_steps: ClassVar[bool | None] = False
    """Whether it draws with Sprint models, which embed their guidance; None is with all models."""
    # Read by the callback objects of the ecosystem.
    _callback_tensor_inputs: ClassVar[list[str]] = list(TENSOR_INPUTS)

    @refuse_unknown
    def __init__(
        self,
        tokenizer: Tokenizer | PreTrainedTokenizerBase | Pipeline | None = LOADED,
        text_encoder: PreTrainedModel | TextEncoder | None = LOADED,
        vae: Autoencoder | None = LOADED,
        transformer: LinearDiT | None = LOADED,
        scheduler: object | None = None,
        *,
        core: Pipeline | None = None,
        compat: Compat = "diffusers",
    ) -> None:
        """Take the parts in their published order, or a core, which may stand alone in front.

        Pipelines of the same parts share their memory. A part may be None: the pipeline then does
        what can be done without it.

        Raises:
            ConfigError: parts that are missing, of another package or do not fit each other.
        """
        if isinstance(tokenizer, Pipeline):
            core = tokenizer
        elif core is None:
            parts = assemble(
                tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer
            )
            core = Pipeline(parts)
        elif not isinstance(core, Pipeline):
            raise ConfigError(
                f"core is a {type(core).__name__}",
                hint=f"name the parts: {type(self).__name__}(vae=...)",
            )
        self._check_kind(present(core.components.transformer))
        if (known := present(core.components.transformer)) is not None:
            # For pipelines that are made of its parts.
            network_in(known, LinearDiT).generation_defaults = core.components.defaults
        self.core = core
        self.compat: Compat = check_compat(compat)
        self._scheduler = None if scheduler is None else as_scheduler(scheduler)
        # A copy: it may be stepped by hand, and models of one default share it.
        self._own_scheduler = copy(core.components.defaults.scheduler)
        self._bar_options: dict[str, Any] = {"disable": None}
        self._offload: Callable[[Networks], Visit] | None = None
        self._runs = Runs()

    @classmethod
    def _check_kind(cls, transformer: LinearDiT | None) -> None:
        """Refuse a transformer that is for another pipeline."""
        config = getattr(transformer, "config", None)
        any_model = cls is PublishedPipeline or cls.few_steps is None
        if any_model or not isinstance(config, TransformerConfig):
            return
        if config.guidance_embeds and not cls.few_steps:
            raise ConfigError(
                f"{cls.__name__} does not draw with a Sprint model, which embeds its guidance",
                hint="SanaSprintPipeline and SanaSprintImg2ImgPipeline do, in 1 to 4 steps; "
                "SanaInpaintPipeline does with any model",
            )
        if cls.few_steps and not config.guidance_embeds:
            teacher = config.timestep_scale != 1.0
            raise ConfigError(
                f"{cls.__name__} does not draw with "
                + ("the teacher of a Sprint model" if teacher else "a model of many steps")
                + ", which embeds no guidance",
                hint="SanaPipeline does, in 20 steps",
            )

    @classmethod
    def from_pretrained(
        cls: type[P],
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: Requested = None,
        dtype: Requested = None,
        variant: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        use_safetensors: bool | None = None,
        transformer: LinearDiT | None = LOADED,
        vae: Autoencoder | None = LOADED,
        text_encoder: Any = LOADED,
        tokenizer: Any = LOADED,
        scheduler: object | None = None,
        quantization_config: Any = None,
        device_map: Placed | None = None,
        max_memory: MaxMemory | None = None,
        allow_unsafe_dtype: bool = False,
        compat: Compat = "diffusers",
        **needless: Any,
    ) -> P:
        """Load a model: an embedded name, a folder in the published layout, or ``owner/name``.

        ``torch_dtype`` is the transformer's, or a dict by component; text encoder and autoencoder
        are bf16 beside fp16, in which they overflow, unless they are small or named. Parts that are
        passed are not read from disk, and None means none: ``text_encoder=None, tokenizer=None``
        for prompts encoded before. An fp16 text encoder quantized by bitsandbytes goes on in bf16.
        ``device_map="balanced"`` spreads whole parts over the accelerators there are.
        ``quantization_config`` is for transformer and text encoder, with ``w8a8`` the autoencoder
        too where that makes it faster, or a dict by component.
        ``dtype`` is the newer name of ``torch_dtype``; ``cache_dir``, ``token`` and
        ``force_download`` are for the hub. Other published arguments decide nothing here, and it is
        said, or are refused. Arguments and errors otherwise are those of `load_components`; an
        unknown keyword is an error.
        """
        own = {part: needless.pop(part, LOADED) for part in cls.own_parts}
        known = inspect.signature(cls.from_pretrained).parameters
        heed_other_arguments(f"{cls.__name__}.from_pretrained", needless, known)
        refuse_pickle_readers(use_safetensors)
        hub = asking(cache_dir=cache_dir, token=token, force_download=force_download)
        load = hub(load_components)
        components = load(
            pretrained_model_name_or_path,
            dtype=one_dtype(torch_dtype, dtype),
            max_memory=max_memory,
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
                "scheduler": LOADED if scheduler is None else scheduler,
                **own,
            },
            allow_unsafe_dtype=allow_unsafe_dtype,
        )
        made = cls(Pipeline(components), compat=compat)
        made._mapped = device_map is not None
        return made

    @classmethod
    @refuse_unknown
    def load_config(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> dict[str, Any]:
        """Read a model's ``model_index.json``; arguments and errors as of `from_pretrained`."""
        with asking(cache_dir=cache_dir, token=token, force_download=force_download):
            folder = resolve_model(
                pretrained_model_name_or_path, revision=revision, offline=local_files_only
            )
        return read_json(folder / INDEX)

    def _write(self, folder: Path, *, variant: str | None, max_shard_bytes: int) -> None:
        parts = self.core.components
        parts = replace(
            parts,
            controlnet=self._parts.get("controlnet"),
            defaults=replace(parts.defaults, scheduler=self.scheduler),
            pipeline_class=published_face(self),
        )
        save_components(parts, folder, variant=variant, max_shard_bytes=max_shard_bytes)

    @classmethod
    def from_pipe(
        cls: type[P],
        pipeline: PublishedPipeline,
        *,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        **parts: Any,
    ) -> P:
        """Make a pipeline of this class from another's parts, which both then share.

        ``parts`` are keywords of the constructor that take the place of the other's. A dtype, by
        either name, is that of the shared parts from then on.

        Raises:
            UnknownArgumentError: for a keyword that the constructor lacks. ConfigError: as there.
        """
        made = cls(**cls._of_pipe(pipeline, **parts))
        made._mapped = pipeline._mapped
        chosen = one_dtype(torch_dtype, dtype)
        return made.to(chosen) if isinstance(chosen, torch.dtype) else made

    @staticmethod
    def _of_pipe(pipeline: PublishedPipeline, **parts: Any) -> dict[str, Any]:
        if not isinstance(pipeline, PublishedPipeline):
            raise ConfigError(
                f"{type(pipeline).__module__}.{type(pipeline).__name__} is no pipeline of sanakit",
                hint="load it with SanaPipeline.from_pretrained",
            )
        settings = {"scheduler": pipeline._scheduler, "compat": pipeline.compat}
        if parts.keys() <= settings.keys():
            return {"core": pipeline.core, **settings, **parts}
        return {**pipeline._parts, **settings, **parts}

    @property
    def components(self) -> dict[str, Any]:
        """The parts by their published names: ``SanaPAGPipeline(**pipe.components)``."""
        parts = self._parts
        return parts | {"tokenizer": self.tokenizer, "text_encoder": self.text_encoder}

    @property
    def _parts(self) -> dict[str, Any]:
        """The same, without making those of the text ones of transformers."""
        prompts = self.core.components.prompts
        return {
            "tokenizer": present(prompts.tokenizer),
            "text_encoder": present(prompts.text_encoder),
            "vae": self.vae,
            "transformer": self.transformer,
            "scheduler": self.scheduler,
        }

    numpy_to_pil = staticmethod(PixArtImageProcessor.numpy_to_pil)

    @property
    def config(self) -> dict[str, Any]:
        """The class of each part, as ``model_index.json`` has it."""
        found = {part: type(value) for part, value in self.components.items() if value is not None}
        library = {"text_encoder": "transformers", "tokenizer": "transformers"}
        return {"_class_name": type(self).__name__, "_name_or_path": self.name_or_path} | {
            part: (library.get(part, "diffusers"), found[part].__name__) if part in found else None
            for part in self.components
        }

    @property
    def name_or_path(self) -> str:
        """What the model was loaded from."""
        return self.core.components.name

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent."""
        return self.core.components.autoencoder.config.spatial_factor

    @property
    def image_processor(self) -> PixArtImageProcessor:
        """Turns what ``pipe.vae.decode`` gave into pictures."""
        return PixArtImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @property
    def scheduler(self) -> Scheduler:
        """How noise becomes a latent: the model's own unless set to another.

        One of the ecosystem's own classes is taken by its settings. In a callback it stands at the
        levels of its call.
        """
        run = self._runs.at_work_here
        if run is not None and run.scheduler is not None:
            return run.scheduler
        return self._scheduler or self._own_scheduler

    @scheduler.setter
    def scheduler(self, scheduler: object) -> None:
        self._scheduler = as_scheduler(scheduler)
        if (run := self._runs.at_work_here) is not None:
            run.scheduler = None  # it acts in calls to come

    @property
    def transformer(self) -> Any:
        """The linear diffusion transformer. Parts may be set, and are checked as when made."""
        return present(self.core.components.transformer)

    @transformer.setter
    def transformer(self, transformer: LinearDiT | None) -> None:
        self.register_modules(transformer=transformer)

    @property
    def vae(self) -> Any:
        """The deep-compression autoencoder."""
        return present(self.core.components.autoencoder)

    @vae.setter
    def vae(self, vae: Autoencoder | None) -> None:
        self.register_modules(vae=vae)

    @property
    def text_encoder(self) -> Any:
        """The decoder-only LLM, a model of transformers."""
        encoder = present(self.core.components.prompts.text_encoder)
        return encoder and encoder.published()

    @text_encoder.setter
    def text_encoder(self, text_encoder: PreTrainedModel | TextEncoder | None) -> None:
        self.register_modules(text_encoder=text_encoder)

    @property
    def tokenizer(self) -> Any:
        """The LLM's tokenizer, one of transformers."""
        return published_tokenizer(self.core.components.prompts)

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer | PreTrainedTokenizerBase | None) -> None:
        self.register_modules(tokenizer=tokenizer)

    @refuse_unknown
    def register_modules(
        self,
        *,
        tokenizer: Tokenizer | PreTrainedTokenizerBase | None = LOADED,
        text_encoder: PreTrainedModel | TextEncoder | None = LOADED,
        vae: Autoencoder | None = LOADED,
        transformer: LinearDiT | None = LOADED,
        scheduler: object | None = LOADED,
    ) -> None:
        """Exchange parts, several at once where they only fit each other.

        Other pipelines of the same parts keep theirs. A model that is offloaded stays so.

        Raises:
            ConfigError: as the constructor.
        """
        if scheduler is not LOADED:
            self.scheduler = scheduler
        self._exchange(
            tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer
        )

    def _exchange(self, **named: Any) -> None:
        changed = {part: value for part, value in named.items() if value is not LOADED}
        if not changed:
            return
        before = self.core.components
        known = {"controlnet": before.controlnet} | {part: self._parts[part] for part in named}
        self._check_kind((known | changed).get("transformer"))
        made = replace(assemble(**known | changed), defaults=before.defaults, name=before.name)
        if changed.keys() <= {"controlnet", "transformer", "vae"}:  # its prompts stay
            made = replace(made, prompts=before.prompts)
        self.core = offloaded(made, self._offload) if self._offload else Pipeline(made)

    @property
    def guidance_scale(self) -> float:
        """Of this thread's call that runs or ran last; a callback may set ``_guidance_scale``."""
        return self._runs.here.guidance_scale

    @property
    def _guidance_scale(self) -> float:
        return self._runs.here.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, scale: float) -> None:
        self._runs.here.guidance_scale = scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether that call has a negative side."""
        return self.guidance_scale > 1.0

    @property
    def num_timesteps(self) -> int:
        """Steps of that call."""
        return self._runs.here.num_timesteps

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """As given to that call."""
        return self._runs.here.attention_kwargs

    @property
    def interrupt(self) -> bool:
        """Whether that call was told to leave its remaining steps undone; set it to tell it so.

        Set in a thread that draws nothing, a window's button say, it stops all calls at work.
        """
        return self._runs.here.interrupt

    @interrupt.setter
    def interrupt(self, stop: bool) -> None:
        self._runs.stop(stop)

    _interrupt = interrupt  # published examples write to it

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
                    f"a progress bar has no option {name!r}", hint=did_you_mean(name, BAR_OPTIONS)
                )
        self._bar_options = {"disable": None, **options}

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """Give a bar as a call shows it, for loops of one's own.

        Raises:
            ConfigError: neither something to go through, nor a number.
        """
        if iterable is None and total is None:
            raise ConfigError("progress_bar needs iterable or total", hint="total=20")
        return tqdm(iterable, total=total, **self._bar_options)

    def _draw(self, call: Call) -> SanaPipelineOutput | tuple[Any]:
        """Draw a call by `Pipeline.generate`, which shows this pipeline to the callback."""
        if unknown := sorted(set(call.tensor_inputs) - set(self._callback_tensor_inputs)):
            raise ConfigError(
                f"callback_on_step_end_tensor_inputs names {', '.join(unknown)}",
                hint=f"to be had: {', '.join(self._callback_tensor_inputs)}",
            )
        core = self.core  # another thread may exchange it
        transformer, defaults = core.components.transformer, core.components.defaults
        asked = call.guidance_scale
        scale = defaults.guidance_scale if asked is None else asked
        own_size = call.edit is None and call.control is None
        known = own_size and transformer.config.sample_size in TABLES
        published = PUBLISHED_SIZE if known else None
        call = replace(
            call,
            guidance_scale=effective_scale(scale, embedded=transformer.config.guidance_embeds),
            scheduler=self._scheduler,
            height=published if call.height is None else call.height,
            width=published if call.width is None else call.width,
        )

        run = Run(
            guidance_scale=scale,
            attention_kwargs=call.attention_kwargs,
            pag_scale=call.pag_scale,
            pag_adaptive_scale=call.pag_adaptive_scale,
        )

        def begin(
            sampling: Sampling, positive: EncodedText, negative: EncodedText | None, total: int
        ) -> OnSampled:
            if not bars:
                run.num_timesteps = len(sampling.grid.timesteps)
                run.scheduler = (call.scheduler or core.scheduler(call.compat)).along(sampling.grid)
                bars.append(ends.enter_context(self.progress_bar(total=total)))
            return StepHook(self, run, call, sampling, positive, negative)

        branch = None if call.control is None else core.components.controlnet
        weighed = strength_of_call(call.lora_scale, transformer, *([branch] if branch else []))
        bars: list[Any] = []
        with self._runs.begin(run), weighed, ExitStack() as ends:
            drawn = core.generate(
                self._by_own_steps(call), on_step=lambda *_: bars[0].update(), begin=begin
            )
        images: Images
        if drawn.tensors is None:
            images = [picture for one in drawn.pictures for picture in to_pil(one.pixels[None])]
        elif call.output_type == "latent":
            images = drawn.tensors
        else:
            images = as_output(drawn.tensors, call.output_type)
        return SanaPipelineOutput(images=images) if call.return_dict else (images,)
