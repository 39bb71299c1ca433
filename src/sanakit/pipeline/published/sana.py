"""`SanaPipeline`: the arguments that users of diffusers know, over the stateless core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.utils.tqdm import tqdm
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sanakit.errors import ConfigError, did_you_mean
from sanakit.flow.guidance import Guidance
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.text_encoder import TextEncoder
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.aspect_ratios import TABLES, nearest_bin
from sanakit.pipeline.components import (
    Components,
    GenerationDefaults,
    load_components,
    save_components,
)
from sanakit.pipeline.images import cut_to
from sanakit.pipeline.keywords import (
    bytes_of,
    refuse_other_readers,
    refuse_pickles,
    refuse_unknown,
)
from sanakit.pipeline.offload import ModelOffloaded, cast, move, offload_sequentially
from sanakit.pipeline.pipeline import Pipeline, Sampling, Texts
from sanakit.pipeline.placement import Placed
from sanakit.pipeline.prompts import Compat, EncodedText, PromptEncoder, padded
from sanakit.pipeline.published.arguments import (
    MODEL_DEFAULT,
    TENSOR_INPUTS,
    Call,
    Callback,
    Generators,
    Images,
    OutputType,
    Prompts,
    as_output,
    draw_noise,
    embedded,
    encode_texts,
    rows_of,
)
from sanakit.pipeline.published.callbacks import StepHook, effective_scale
from sanakit.pipeline.published.compat import check_compat, instruction_as, scheduler_as
from sanakit.pipeline.published.lora import LoraMethods, lora_strength
from sanakit.pipeline.schedulers import Scheduler, as_scheduler
from sanakit.shapes import Latent
from sanakit.weights.dtypes import Requested
from sanakit.weights.store import MAX_SHARD_BYTES

# Under this name a transformer carries what it was trained to expect into the next pipeline.
_DEFAULTS = "_sanakit_defaults"


def assemble(
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    text_encoder: PreTrainedModel | TextEncoder | None,
    vae: Autoencoder | None,
    transformer: LinearDiT | None,
) -> Components:
    """Make components of loaded parts, without copying any.

    Its generation defaults come with a transformer that was in a pipeline
    before; any other gets the published ones.

    Raises:
        ConfigError: a part is missing, of another package, or does not fit the others.
    """
    if tokenizer is None or text_encoder is None or vae is None or transformer is None:
        given = {
            "tokenizer": tokenizer,
            "text_encoder": text_encoder,
            "vae": vae,
            "transformer": transformer,
        }
        missing = [name for name, part in given.items() if part is None]
        raise ConfigError(
            f"the pipeline lacks {', '.join(missing)}",
            hint="pass tokenizer, text_encoder, vae and transformer, or use from_pretrained",
        )
    _require("transformer", transformer, LinearDiT)
    _require("vae", vae, Autoencoder)
    encoder = text_encoder if isinstance(text_encoder, TextEncoder) else TextEncoder(text_encoder)
    for name, theirs, takes in (
        ("text_encoder", encoder.width, transformer.config.caption_channels),
        ("vae", vae.config.latent_channels, transformer.config.in_channels),
    ):
        if theirs != takes:
            raise ConfigError(
                f"{name} has {theirs} channels, the transformer takes {takes}",
                hint="the two parts are of different models",
            )
    defaults: GenerationDefaults = vars(transformer).get(_DEFAULTS) or GenerationDefaults()
    for module in (encoder, vae, transformer):
        module.eval()
    return Components(
        transformer=transformer,
        autoencoder=vae,
        prompts=PromptEncoder(tokenizer, encoder, instruction=defaults.instruction),
        defaults=defaults,
    )


def remember_defaults(components: Components) -> None:
    """Let the transformer carry the model's defaults, for pipelines made of its parts."""
    vars(components.transformer)[_DEFAULTS] = components.defaults


def _require(name: str, part: nn.Module, kind: type[nn.Module]) -> None:
    if not isinstance(part, kind):
        raise ConfigError(
            f"{name} is a {type(part).__module__}.{type(part).__name__}",
            hint=f"load it with this package: it must be a {kind.__module__}.{kind.__name__}",
        )


BAR_OPTIONS = ("desc", "disable", "leave", "file", "ncols", "position", "mininterval")


class PipelineFace:
    """The core and the names that users of diffusers know its parts by."""

    # Read by the callback objects of the ecosystem.
    _callback_tensor_inputs: ClassVar[list[str]] = list(TENSOR_INPUTS)

    def __init__(self, core: Pipeline, *, scheduler: object | None, compat: Compat) -> None:
        remember_defaults(core.components)
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
        return self._scheduler or self.core.components.defaults.scheduler

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
                    f"a progress bar has no option {name!r}", hint=did_you_mean(name, BAR_OPTIONS)
                )
        self._bar_options = {"disable": None, **options}


PUBLISHED_SIZE = 1024


def draw(pipe: PipelineFace, call: Call) -> Images:
    """Draw the pictures of a call, or their latents; errors are those of `SanaPipeline`."""
    core = pipe.core
    check_compat(call.compat)
    scale = call.guidance_scale
    scale = core.components.defaults.guidance_scale if scale is None else scale
    sampling = sampling_of(pipe, call, scale)
    asked = asked_size(core, call.height, call.width)
    shape = core.latent_shape(*drawn_size(core, *asked, binned=call.use_resolution_binning))
    positive, negative = texts_of(core, call, guided=sampling.guidance.guidance_scale != 1.0)
    count = len(positive.text)
    noise = noise_of(call, count, shape)
    pipe._call, pipe._interrupt = call, False
    pipe._guidance_scale, pipe._num_timesteps = scale, len(sampling.grid.timesteps)
    # Matrix products of another batch size round differently; on a CPU one by one costs little.
    at_once = count if call.callback_on_step_end or pipe.device.type != "cpu" else 1
    latents, images = [], []
    total = len(range(0, count, at_once)) * pipe._num_timesteps
    weighed = lora_strength(core.components.transformer, call.lora_scale)
    with weighed, tqdm(total=total, **pipe._bar_options) as bar:
        for start in range(0, count, at_once):
            rows = slice(start, start + at_once)
            latent = noise[rows]
            if not pipe._interrupt:
                given = rows_of(positive, rows)
                null = None if negative is None else rows_of(negative, rows)
                hook = StepHook(pipe, call, sampling, given, null, tick=bar.update)
                latent = core.sample(latent, given, null, sampling, on_step=hook)
            latents.append(latent)
            if call.output_type != "latent":
                images.append(cut_to(core.decode(latent), *asked))
    if call.output_type == "latent":
        return torch.cat(latents)
    return as_output(torch.cat(images), call.output_type)


def sampling_of(pipe: PipelineFace, call: Call, guidance_scale: float) -> Sampling:
    """Solver, noise levels and guidance of a call: the caller's levels, else the scheduler's."""
    core = pipe.core
    guidance = Guidance(
        guidance_scale=effective_scale(guidance_scale),
        pag_scale=call.pag_scale,
        pag_adaptive_scale=call.pag_adaptive_scale,
    )
    scheduler = pipe._scheduler
    if scheduler is None:
        scheduler = scheduler_as(
            core.components.defaults, core.components.transformer.config, call.compat
        )
    sampling = core.sampling(
        scheduler=scheduler,
        num_steps=call.num_inference_steps,
        guidance=guidance,
        pag_layers=sorted(call.pag_layers),
    )
    if call.timesteps is not None or call.sigmas is not None:
        sampling = replace(sampling, grid=scheduler.custom_grid(call.timesteps, call.sigmas))
    return sampling


def texts_of(core: Pipeline, call: Call, *, guided: bool) -> Texts:
    """Embeddings of a call, as many rows as it has pictures."""
    config = core.components.transformer.config
    instruction = call.complex_human_instruction
    if instruction is MODEL_DEFAULT:
        instruction = core.components.defaults.instruction
    return encode_texts(
        core,
        prompt=call.prompt,
        negative_prompt=call.negative_prompt,
        given=embedded(
            call.prompt_embeds, call.prompt_attention_mask, "prompt", config.caption_channels
        ),
        given_null=embedded(
            call.negative_prompt_embeds,
            call.negative_prompt_attention_mask,
            "negative_prompt",
            config.caption_channels,
        ),
        guided=guided and not config.guidance_embeds,
        count_each=call.num_images_per_prompt,
        instruction=instruction_as(instruction, call.compat),
        max_sequence_length=call.max_sequence_length,
        clean_caption=call.clean_caption,
        compat=call.compat,
    )


def noise_of(call: Call, count: int, shape: tuple[int, int, int]) -> Latent:
    """Noise to start from, ``b c h w``: the caller's, or drawn.

    Raises:
        ConfigError: the caller's has another shape.
    """
    if call.latents is None:
        return draw_noise(count, shape, call.generator)
    if tuple(call.latents.shape) != (count, *shape):
        raise ConfigError(
            f"latents are {tuple(call.latents.shape)}, this call needs {(count, *shape)}",
            hint="b, latent channels, height / 32, width / 32 of the size that is drawn; "
            "use_resolution_binning=False draws the very size asked for",
        )
    return call.latents


def asked_size(core: Pipeline, height: int | None, width: int | None) -> tuple[int, int]:
    """The size of the pictures; of published models 1024 px square unless told."""
    published = core.components.transformer.config.sample_size in TABLES
    usual = PUBLISHED_SIZE if published else core.default_size
    return usual if height is None else height, usual if width is None else width


def drawn_size(core: Pipeline, height: int, width: int, *, binned: bool) -> tuple[int, int]:
    """The size to draw at; a binned model draws at a trained one and is cut afterwards."""
    core.latent_shape(height, width)  # refuses what is no multiple, binned or not
    table = TABLES.get(core.components.transformer.config.sample_size)
    return nearest_bin(height, width, table) if binned and table else (height, width)


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
    ``compat`` is the published stack whose way with text and noise is followed: "diffusers", or
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
        an fp16 text encoder quantized by bitsandbytes goes on in bf16. ``device_map="balanced"``
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
        defaults = replace(parts.defaults, scheduler=self.scheduler)
        parts = replace(parts, defaults=defaults)
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
