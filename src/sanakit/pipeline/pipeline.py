"""How a picture is drawn: `Pipeline.generate`, for the command and for the published pipelines."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from sanakit.errors import ConfigError, NumericsError
from sanakit.flow.grids import Leg
from sanakit.flow.guidance import Guidance
from sanakit.flow.solvers import Past, Stepped, Velocity, integrate
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.parts import draws_as_built, first_weight
from sanakit.pipeline.aspect_ratios import TABLES, Table, check_size, nearest_bin, nearest_size
from sanakit.pipeline.components import (
    Components,
    load_components,
    present,
    require,
    scheduler_as,
)
from sanakit.pipeline.decoder import Origin, decode_image, decode_pixels
from sanakit.pipeline.numerics import (
    all_finite,
    report_constant,
    require_finite,
    safer_copy,
)
from sanakit.pipeline.pixels import Pixels, cut_to, to_pixels
from sanakit.pipeline.placement import Visit, drawing
from sanakit.pipeline.prompts import (
    MODEL_DEFAULT,
    Compat,
    EncodedText,
    PromptEncoder,
    instruction_as,
)
from sanakit.pipeline.request import Call, GenerateRequest, listed
from sanakit.pipeline.sampler import Change, Denoiser, GuardedDenoiser, Sampling
from sanakit.pipeline.schedulers import Scheduler
from sanakit.shapes import Image, Latent


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One generated picture: ``H W 3`` uint8, and all it takes to draw it again."""

    pixels: Pixels
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class GenerateResult:
    """The pictures of a request in seed order, and where the time went.

    ``seconds`` has the stages ``text``, ``denoise`` and ``decode``, and ``encode`` of pictures that
    are edited or followed. Where a call asks for tensors there are no pictures, but ``tensors``:
    ``b 3 H W`` in [-1, 1], or scaled latents.
    """

    pictures: tuple[Picture, ...]
    seconds: dict[str, float]
    tensors: Tensor | None = None


OnStep = Callable[[int, int], None]
OnSampled = Callable[[int, Stepped], "Change | None"]
Texts = tuple[EncodedText, "EncodedText | None"]
Made = TypeVar("Made", Tensor, Pixels)
Draws = TypeVar("Draws", bound=Callable[..., Any])


@dataclass
class Stopwatch:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Any:
        """Add the time inside the block to ``name``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + passed


class StepCount:
    """Counts the steps of all batches, tells of each, and hands on what a listener answers."""

    def __init__(self, total: int, on_step: OnStep) -> None:
        self.total, self.on_step = total, on_step
        self.done = 0
        self.stopped = False
        self.listener: OnSampled | None = None

    def __call__(self, index: int, stepped: Stepped) -> Change | None:
        """Take part after step ``index`` of a batch."""
        self.done += 1
        self.on_step(self.done, self.total)
        change = None if self.listener is None else self.listener(index, stepped)
        self.stopped = change is not None and change.stop
        return change


def draws(method: Draws) -> Draws:
    """Make a method one that draws with its pipeline's parts, which nobody may change meanwhile."""

    @functools.wraps(method)
    def counted(self: Pipeline, *given: Any, **named: Any) -> Any:
        with drawing(self.components.networks.values()):
            return method(self, *given, **named)

    return cast(Draws, counted)


Begin = Callable[[Sampling, EncodedText, "EncodedText | None", int], OnSampled]


class Pipeline:
    """Components that draw; holds nothing from one call to the next."""

    def __init__(self, components: Components, *, visit: Visit = nullcontext) -> None:
        """Take components; within ``visit(network)`` a network is where it can run."""
        self.components = components
        self.visit = visit

    @classmethod
    def load(
        cls,
        name_or_folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        offline: bool = False,
        quantization: Any = None,
        controlnet: str | Path | None = None,
    ) -> Pipeline:
        """Load a model; arguments and errors are those of `load_components`.

        ``controlnet`` is where a control branch is that is not the model's own.
        """
        parts = load_components(
            name_or_folder,
            dtype=dtype,
            device=device,
            offline=offline,
            quantization=quantization,
            components={} if controlnet is None else {"controlnet": controlnet},
        )
        return cls(parts)

    @property
    def spatial_factor(self) -> int:
        """What both sides of a picture must be a multiple of."""
        patch = self.components.transformer.config.patch_size
        return self.components.autoencoder.config.spatial_factor * patch

    @property
    def _table(self) -> Table | None:
        return TABLES.get(self.components.transformer.config.sample_size)

    @property
    def default_size(self) -> int:
        """Side of the pictures that the model was trained on."""
        side = self.components.transformer.config.sample_size
        return side * self.components.autoencoder.config.spatial_factor

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Give ``c h w`` of a picture's latent.

        Raises:
            ConfigError: for a side that is no multiple of :attr:`spatial_factor`.
        """
        check_size("height", height, self.spatial_factor)
        check_size("width", width, self.spatial_factor)
        factor = self.components.autoencoder.config.spatial_factor
        channels = self.components.transformer.config.in_channels
        return channels, height // factor, width // factor

    @draws
    def generate(
        self,
        request: GenerateRequest | Call,
        *,
        on_step: OnStep = lambda done, total: None,
        begin: Begin | None = None,
    ) -> GenerateResult:
        """Draw the pictures of a request or a call.

        Args:
            request: what to draw.
            on_step: told (steps done, steps in all) after each; what it raises stops the run.
            begin: called before the steps of each batch with its sampling, its texts and the
                number of steps in all; what it gives is called after every step, and may answer
                with what changes.

        Raises:
            ConfigError: for a size, layer or combination that the model cannot do.
            NumericsError: for a number that is not finite.
        """
        if isinstance(request, GenerateRequest):
            request = request.with_digests()
            most = self.components.prompts.max_sequence_length
            own_scheduler = self.components.defaults.scheduler
            call = request.as_call(own_scheduler, max_sequence_length=most)
        else:
            call = request
        watch = Stopwatch()

        # 1. Size and sampling: what cannot be drawn is refused before any work is done.
        require(self.components.transformer)
        if call.output_type != "latent" or call.edit is not None:
            require(self.components.autoencoder)
        (height, width), size = self.sizes(call)
        scheduler = call.scheduler or self.scheduler(call.compat)
        call.check_model(scheduler, few_steps=self.components.transformer.config.guidance_embeds)
        sampling = self.sampling(
            scheduler=scheduler,
            num_steps=call.num_inference_steps or scheduler.usual_steps,
            timesteps=call.timesteps,
            sigmas=call.sigmas,
            guidance=call.guidance(self.components.defaults.guidance_scale),
            pag_layers=call.pag_layers,
            step_cache=call.step_cache,
        )
        edit = None if call.edit is None else call.edit.at(height, width)
        if edit is not None:
            sampling = replace(sampling, grid=edit.grid(sampling.grid))
        control = None if call.control is None else call.control.at(height, width)
        branch = None if control is None else control.branch_of(self.components)

        # 2. Text: embeddings of the prompts and, where guidance reads them, of the negative ones.
        embeds = self.components.transformer.config.guidance_embeds
        guided = sampling.guidance.guidance_scale != 1.0 and not embeds
        call.tell_idle(guided=guided)
        with watch.stage("text"):
            positive, negative = self.texts(call, guided=guided)

        # 3. Noise: the caller's, or drawn; one latent for each text. An edit mixes its picture in,
        # a control image is encoded; some solvers add more noise in each step.
        shape = self.latent_shape(*size)
        noise = call.noise(len(positive.text), shape)
        fresh = None
        if scheduler.solver.adds_noise:
            fresh = call.fresh_noise(len(noise), shape)
        begun = None
        if edit is not None:
            with watch.stage("encode"):
                begun = edit.begin(self.encode, size, noise, sampling.grid)
        steering = None
        if control is not None and branch is not None:
            with watch.stage("encode"):
                steering = control.steering(branch, self.encode, size, len(noise))

        batches = self._batches(call, len(noise))
        steps = StepCount(len(batches) * len(sampling.grid.timesteps), on_step)
        pictures: list[Picture] = []
        tensors: list[Tensor] = []
        for rows in batches:
            # 4. Steps: the solver carries noise to a latent.
            latent, walk = noise[rows], sampling
            if begun is not None:
                latent = begun.state(rows)
                walk = replace(sampling, step=begun.step(sampling.step, rows))
            if steering is not None:
                walk = replace(walk, steering=steering.rows(rows))
            if fresh is not None:
                walk = replace(walk, fresh=functools.partial(fresh.at, rows=rows))
            if not steps.stopped:
                given, null = positive.rows(rows), None if negative is None else negative.rows(rows)
                if not draws_as_built(self.components.transformer):
                    # As wide as published: what was compiled for one prompt serves the next.
                    wide = call.max_sequence_length
                    given, null = given.at_least(wide), null and null.at_least(wide)
                steps.listener = begin and begin(sampling, given, null, steps.total)
                with watch.stage("denoise"):
                    latent = self.sample(latent, given, null, walk, on_step=steps)

            # 5. Decode, and cut what was drawn at a trained size to the size asked for.
            with watch.stage("decode"):
                if call.output_type == "latent":
                    tensors.append(latent)
                elif call.output_type != "pil":
                    image = cut_to(self.decode(latent), height, width)
                    tensors.append(image if edit is None else edit.pasted(image, rows, len(noise)))
                else:
                    # 6. Pixels, with the settings that draw them again.
                    settings = self._settings(request, scheduler, sampling, (height, width))[rows]
                    pixels = self.decode_pixels(latent, *settings, size=(height, width))
                    if edit is not None:
                        pixels = edit.pasted_pixels(pixels, rows, len(noise))
                    for row, picture in enumerate(pixels):
                        own = settings[row] if settings else {}
                        pictures.append(Picture(pixels=picture, settings=own))
        return GenerateResult(
            pictures=tuple(pictures),
            seconds=watch.seconds,
            tensors=torch.cat(tensors) if tensors else None,
        )

    def scheduler(self, compat: Compat = "diffusers") -> Scheduler:
        """The model's own scheduler, as a published stack uses it."""
        components = self.components
        return scheduler_as(components.defaults, components.transformer.config, compat)

    def texts(self, call: Call, *, guided: bool) -> Texts:
        """Embeddings of a call's prompts and, where ``guided``, of as many negative ones.

        Each prompt stands ``num_images_per_prompt`` times in a row with its own mask, where the
        reference gives some pictures the mask of another prompt. An empty negative prompt gives
        way to embeddings.

        Raises:
            ConfigError: for a prompt beside its own embeddings, neither, or counts that do not
                agree. NumericsError: for embeddings that are not finite.
        """
        given, given_null = self.check_texts(call)
        prompts = listed(call.prompt)
        negatives = listed(call.negative_prompt, "negative_prompt")
        count = len(prompts) if prompts is not None else len(given.text) if given is not None else 0
        sides = given_null.text.shape[0] if given_null is not None else len(negatives or [""])
        if guided and sides not in (1, count):
            raise ConfigError(
                f"{sides} negative prompts for {count} prompts", hint="one, or one each"
            )
        instruction = call.complex_human_instruction
        if instruction is MODEL_DEFAULT:
            instruction = self.components.defaults.instruction

        def ask(encoder: PromptEncoder) -> Texts:
            positive, null = given, given_null
            if positive is None:
                assert prompts is not None
                positive = encoder.encode(
                    prompts,
                    instruction=instruction_as(instruction, call.compat),
                    max_sequence_length=call.max_sequence_length,
                    clean_caption=call.clean_caption,
                    compat=call.compat,
                )
            if not guided:
                return positive, None
            if null is None:
                texts = negatives or [""]
                if call.compat == "nvlabs" and len(texts) == 1:
                    texts = texts * count  # each wears the mask of another prompt
                null = encoder.encode_null(
                    texts,
                    positive,
                    max_sequence_length=call.max_sequence_length,
                    clean_caption=call.clean_caption,
                    compat=call.compat,
                )
            return positive, null if len(null.text) == count else null.repeat(count)

        positive, negative = self._encoded(ask)
        most = call.max_sequence_length
        positive.warn_of_lost("prompt", most)
        if negative is not None:
            # NVlabs' stack reads as much of it as of the prompt that it stands beside.
            width = positive.mask.shape[1] if call.compat == "nvlabs" else most
            negative.warn_of_lost("negative prompt", width)
        each = call.num_images_per_prompt
        return positive.repeat(each), None if negative is None else negative.repeat(each)

    def check_texts(self, call: Call) -> tuple[EncodedText | None, EncodedText | None]:
        """Give the embeddings that a call brings, which do without its prompts.

        Raises:
            ConfigError: for a prompt beside its own embeddings, neither, or of another model.
        """
        transformer = present(self.components.transformer)
        channels = None if transformer is None else transformer.config.caption_channels
        given, given_null = call.embeddings(channels)
        prompts = listed(call.prompt)
        negatives = listed(call.negative_prompt, "negative_prompt")
        if (prompts is None) == (given is None):
            raise ConfigError(
                "pass either prompt or prompt_embeds, and not both",
                hint='prompt="" draws without words' if prompts is None else None,
            )
        if given_null is not None and negatives and any(negatives):
            raise ConfigError("pass either negative_prompt or negative_prompt_embeds, and not both")
        return given, given_null

    def sizes(self, call: Call) -> tuple[tuple[int, int], tuple[int, int]]:
        """The size of a call's pictures and the one to draw at, both height and width.

        Pictures that are edited or followed keep their own size where the caller names none, and a
        model that has no table of trained sizes draws them at about its own area.

        Raises:
            ConfigError: as :meth:`size_to_draw`.
        """
        side, binned = self.default_size, call.use_resolution_binning
        given = call.edit or call.control
        own = (side, side) if given is None else given.size
        height = own[0] if call.height is None else call.height
        width = own[1] if call.width is None else call.width
        named = (call.height, call.width) != (None, None)
        if given is not None and binned and not named and self._table is None:
            return own, nearest_size(*own, side, self.spatial_factor)
        return (height, width), self.size_to_draw(height, width, binned=binned)

    def size_to_draw(self, height: int, width: int, *, binned: bool) -> tuple[int, int]:
        """The size to draw at; a published model draws at a trained one and is cut afterwards.

        Raises:
            ConfigError: for a side that is no multiple of :attr:`spatial_factor` and not cut to
                size afterwards.
        """
        table = self._table if binned else None
        for name, side in (("height", height), ("width", width)):
            check_size(name, side, 1 if table else self.spatial_factor)
        return nearest_bin(height, width, table) if table else (height, width)

    def sampling(
        self,
        *,
        scheduler: Scheduler,
        num_steps: int,
        guidance: Guidance,
        pag_layers: Sequence[int] = (),
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        step_cache: float = 0.0,
    ) -> Sampling:
        """Give a scheduler's step and grid, or one through the caller's levels, and the guidance.

        Raises:
            ConfigError: for a block that perturbed attention names and the model lacks, and a step
                cache for a network that is not called as we call ours.
        """
        if step_cache and not draws_as_built(self.components.transformer):
            raise ConfigError(
                f"step_cache={step_cache:g}: this transformer is wrapped, patched or compiled, and "
                "decides for itself what it computes",
                hint="leave it out",
            )
        layers = frozenset(pag_layers) if guidance.pag_scale else frozenset()
        depth = self.components.transformer.config.num_layers
        if absent := sorted(layer for layer in layers if not 0 <= layer < depth):
            raise ConfigError(
                f"pag_layers names block {absent[0]}, the model has {depth}",
                hint=f"use blocks 0 to {depth - 1}",
            )
        own_levels = timesteps is not None or sigmas is not None
        return Sampling(
            step=scheduler.solver.step,
            grid=(
                scheduler.custom_grid(timesteps, sigmas)
                if own_levels
                else scheduler.grid(num_steps)
            ),
            guidance=guidance,
            pag_layers=layers,
            step_cache=step_cache,
        )

    @torch.no_grad()
    def sample(
        self,
        noise: Latent,
        positive: EncodedText,
        negative: EncodedText | None,
        sampling: Sampling,
        *,
        on_step: OnSampled = lambda index, stepped: None,
    ) -> Latent:
        """Carry noise ``b c h w`` to scaled latents; fp32.

        A transformer whose velocity is not finite starts its step again in a safer dtype, once.
        ``on_step`` is told of every step and may answer with what changes for those to come.

        Raises:
            NumericsError: for embeddings or noise, or at the first step, that is not finite.
        """
        for text in (positive, negative):
            if text is not None:
                require_finite(text.text, "prompt embeddings")
        require_finite(noise, "latents to start from")
        steps = len(sampling.grid.timesteps)
        stopped = False

        def step(ask: Velocity, x: Latent, leg: Leg, past: Past) -> Stepped:
            return past[-1]._replace(x=x) if stopped else sampling.step(ask, x, leg, past)

        def checked(index: int, stepped: Stepped) -> Latent | None:
            nonlocal stopped
            if stopped:
                return None
            require_finite(stepped.x, "solver", velocity.where)
            change = on_step(index, stepped)
            velocity.step = index + 1
            if change is None:
                return None
            stopped = change.stop
            if (change.texts, change.guidance, change.network) != (None, None, None):
                velocity.change(change)
            if change.latents is None:
                return None
            require_finite(
                change.latents, "callback's latents", f" after step {index + 1} of {steps}"
            )
            return change.latents.to(stepped.x)

        transformer, steering = self.components.transformer, sampling.steering
        branch = nullcontext() if steering is None else self.visit(steering.branch)
        with branch, self.visit(transformer):
            velocity = GuardedDenoiser(
                Denoiser.prepare(
                    transformer,
                    positive,
                    negative,
                    sampling.guidance,
                    pag_layers=sampling.pag_layers,
                    steering=steering,
                ),
                steps,
                step_cache=sampling.step_cache,
            )
            device = first_weight(transformer).device
            x = noise.to(device=device, dtype=torch.float32)
            return integrate(
                step, velocity, x, sampling.grid, on_step=checked, fresh=sampling.fresh
            )

    def _encoded(self, ask: Callable[[PromptEncoder], Texts]) -> Texts:
        """Give what ``ask`` makes of the prompt encoder, once more in a safer dtype if need be."""
        prompts = self.components.prompts
        encoder = present(prompts.text_encoder)
        with nullcontext() if encoder is None else self.visit(encoder.llm):
            texts = ask(prompts)
        if all(all_finite(text.text) for text in texts if text is not None):
            return texts
        safer = safer_copy(prompts.text_encoder, "text encoder")
        prompts = PromptEncoder(
            prompts.tokenizer,
            safer,
            instruction=prompts.instruction,
            max_sequence_length=prompts.max_sequence_length,
        )
        texts = ask(prompts)
        for text in texts:
            if text is not None:
                require_finite(text.text, "text encoder")
        return texts

    @torch.no_grad()
    def encode(self, image: Image) -> Latent:
        """Pictures in [-1, 1], of sides that a latent grid holds, to scaled latents; fp32.

        One by one, so that no picture's latent depends on its neighbours; once more in a safer
        dtype if need be.

        Raises:
            NumericsError: latents that are not finite in that dtype either.
        """

        def run(autoencoder: Autoencoder) -> Latent:
            weight = first_weight(autoencoder)
            one_by_one = image.to(weight).split(1)
            latent = torch.cat([autoencoder.encode(one).latent for one in one_by_one]).float()
            require_finite(latent, "autoencoder", " while encoding")
            return latent * autoencoder.config.scaling_factor

        return self._by_autoencoder(run, " while encoding")

    @torch.no_grad()
    def decode(self, latent: Latent) -> Image:
        """Scaled latents to pictures, fp32, about [-1, 1], within the memory that is free.

        Once more in a safer dtype if need be; a picture of one colour is warned of.

        Raises:
            NumericsError: pixels that are not finite in that dtype either.
            OutOfMemory: if no way to decode fits; the error names the file with the latents.
        """

        def run(autoencoder: Autoencoder) -> Image:
            image = decode_image(autoencoder, latent, self._origin())
            require_finite(image, "autoencoder", " while decoding")
            return image

        image = self._by_autoencoder(run, " while decoding")
        report_constant(to_pixels(image), dtype=self._decoding_dtype)
        return image

    @torch.no_grad()
    def decode_pixels(
        self, latent: Latent, *settings: Mapping[str, Any], size: tuple[int, int] | None = None
    ) -> Pixels:
        """The same as ``b H W 3`` uint8, cut to ``size`` where that is another.

        Without a cut the whole picture is never held in fp32. ``settings`` of each picture are kept
        with latents that have to be saved.

        Raises:
            NumericsError, OutOfMemory: as :meth:`decode`.
        """
        origin = self._origin(*settings)
        pixels = self._by_autoencoder(
            lambda vae: decode_pixels(vae, latent, origin, size=size), " while decoding"
        )
        report_constant(pixels, dtype=self._decoding_dtype)
        return pixels

    def _by_autoencoder(self, run: Callable[[Autoencoder], Made], doing: str) -> Made:
        """Run the autoencoder, once more in a safer dtype if its values are not finite."""
        autoencoder = self.components.autoencoder
        with self.visit(autoencoder):
            try:
                return run(autoencoder)
            except NumericsError:
                safer = safer_copy(autoencoder, "autoencoder", doing)
            return run(safer)

    @property
    def _decoding_dtype(self) -> torch.dtype:
        return next(self.components.autoencoder.parameters()).dtype

    def _origin(self, *settings: Mapping[str, Any]) -> Origin:
        model, model_hash = self.components.name, self.components.fingerprint
        return Origin(model=model, model_hash=model_hash, settings=settings)

    def _batches(self, call: Call, count: int) -> list[slice]:
        """Which pictures run at once: all, or, on a CPU without a callback, one by one.

        Matrix products of another batch size round differently; on a CPU one by one costs little.
        """
        on_cpu = next(self.components.transformer.parameters()).device.type == "cpu"
        usual = 1 if on_cpu and call.callback_on_step_end is None else count
        at_once = call.at_once or usual
        return [slice(first, first + at_once) for first in range(0, count, at_once)]

    def _settings(
        self,
        request: GenerateRequest | Call,
        scheduler: Scheduler,
        sampling: Sampling,
        size: tuple[int, int],
    ) -> list[dict[str, Any]]:
        """What draws each picture of a request again; a call cannot be written down."""
        if isinstance(request, Call):
            return []
        # What was edited or followed has its own size, which may be none that a model draws.
        own_size = request.edit or request.control
        decided = {
            "count": 1,
            "height": request.height if own_size else size[0],
            "width": request.width if own_size else size[1],
            "num_steps": request.num_steps or scheduler.usual_steps,
            "guidance_scale": sampling.guidance.guidance_scale,
            "solver": scheduler.solver_name,
            "flow_shift": scheduler.flow_shift,
            "model": self.components.name,
            "model_hash": self.components.fingerprint,
        }
        return [
            {**request.to_json(), "seed": request.seed + index, **decided}
            for index in range(request.count)
        ]
