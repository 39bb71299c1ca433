"""The stateless core: a request becomes pictures; the command line and `SanaPipeline` are faces."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from sanakit.errors import ConfigError, NumericsError, did_you_mean
from sanakit.flow.grids import Leg, SigmaGrid
from sanakit.flow.guidance import Guidance
from sanakit.flow.solvers import Past, SolverStep, Stepped, Velocity, integrate
from sanakit.models.autoencoder import Autoencoder
from sanakit.pipeline.components import Components, load_components
from sanakit.pipeline.decoder import Origin, decode_image, decode_pixels
from sanakit.pipeline.images import Pixels
from sanakit.pipeline.numerics import (
    all_finite,
    report_constant,
    report_constant_pixels,
    require_finite,
    safer_copy,
)
from sanakit.pipeline.prompts import EncodedText, PromptEncoder
from sanakit.pipeline.sampler import Change, Denoiser, GuardedDenoiser
from sanakit.pipeline.schedulers import Scheduler, scheduler_named
from sanakit.shapes import Image, Latent

MOST_PIXELS = 16384
LARGEST_SEED = 2**63 - 1


def check_size(name: str, value: int, multiple: int) -> None:
    """Refuse a side that the latent grid cannot hold.

    Raises:
        ConfigError: naming the two nearest sides that work.
    """
    if 0 < value <= MOST_PIXELS and value % multiple == 0:
        return
    low = min(max(value // multiple, 1), MOST_PIXELS // multiple) * multiple
    high = min(low + multiple, MOST_PIXELS)
    works = f"{low}" if value < multiple or low == high else f"{low} and {high}"
    raise ConfigError(
        f"{name}={value} is not a positive multiple of {multiple} up to {MOST_PIXELS}",
        hint=f"nearest that work: {works}",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateRequest:
    """One prompt and everything that decides its pictures; None means the model's own default.

    ``count`` pictures are drawn, the i-th with seed ``seed + i``: each is the picture that its seed
    draws alone.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    count: int = 1
    height: int | None = None
    width: int | None = None
    num_steps: int = 20
    guidance_scale: float | None = None
    pag_scale: float = 0.0
    pag_layers: tuple[int, ...] = (0,)
    sigma_interval: tuple[float, float] = (0.0, 1.0)
    solver: str | None = None
    flow_shift: float | None = None

    def __post_init__(self) -> None:
        for name in ("seed", "count", "num_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name}={value!r} must be a whole number")
        if self.num_steps < 1 or self.num_steps > 1000:
            raise ConfigError(f"num_steps={self.num_steps} must be 1 to 1000", hint="20 is usual")
        if self.count < 1:
            raise ConfigError(f"count={self.count} must be at least 1")
        if not 0 <= self.seed <= LARGEST_SEED - self.count:
            raise ConfigError(f"seed={self.seed} must be 0 to 2^63 - 1", hint="try --seed 0")
        if self.solver is not None:
            scheduler_named(self.solver, 1.0)
        if self.flow_shift is not None and not self.flow_shift > 0:
            raise ConfigError(
                f"flow_shift={self.flow_shift} must be positive", hint="1 is no shift"
            )
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"{name}={value} must be positive", hint="leave it out for the default"
                )
        self.guidance(1.0)

    def guidance(self, default_scale: float) -> Guidance:
        """Give the guidance as a value; ``default_scale`` stands in where none was asked for."""
        scale = default_scale if self.guidance_scale is None else self.guidance_scale
        return Guidance(
            guidance_scale=scale, pag_scale=self.pag_scale, sigma_interval=self.sigma_interval
        )

    def to_json(self) -> dict[str, Any]:
        """Give all fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GenerateRequest:
        """Undo :meth:`to_json`.

        Raises:
            ConfigError: for an unknown key, a missing prompt or a value out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values.keys() - set(known):
            raise ConfigError(f"{key!r} is no setting of a request", hint=did_you_mean(key, known))
        if "prompt" not in values:
            raise ConfigError("a request needs a prompt", hint='an empty one is ""')
        frozen: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**frozen)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One drawn picture: ``H W 3`` uint8, and all it takes to draw it again."""

    pixels: Pixels
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class GenerateResult:
    """The pictures of a request in seed order, and where the time went.

    ``seconds`` has the stages ``text``, ``denoise`` and ``decode``.
    """

    pictures: tuple[Picture, ...]
    seconds: dict[str, float]


OnStep = Callable[[int, int], None]
OnSampled = Callable[[int, Stepped], "Change | None"]
Texts = tuple[EncodedText, "EncodedText | None"]
Decoded = TypeVar("Decoded", Image, Pixels)


def seeded_noise(seed: int, channels: int, height: int, width: int) -> Latent:
    """Noise ``1 c h w`` of one picture, drawn on the CPU in fp32: the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, channels, height, width, generator=generator)


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


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to walk from noise to a latent: a solver's step, its grid, and the guidance."""

    step: SolverStep
    grid: SigmaGrid
    guidance: Guidance
    pag_layers: frozenset[int] = frozenset()


class Pipeline:
    """Components that draw; holds nothing from one call to the next."""

    def __init__(self, components: Components) -> None:
        self.components = components

    @classmethod
    def load(
        cls,
        name_or_folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        offline: bool = False,
    ) -> Pipeline:
        """Load a model; arguments and errors are those of `load_components`."""
        parts = load_components(name_or_folder, dtype=dtype, device=device, offline=offline)
        return cls(parts)

    @property
    def spatial_factor(self) -> int:
        """What both sides of a picture must be a multiple of."""
        patch = self.components.transformer.config.patch_size
        return self.components.autoencoder.config.spatial_factor * patch

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

    def scheduler(self, request: GenerateRequest) -> Scheduler:
        """Give the scheduler that a request names, or the model's own, with the shift it asks."""
        own = self.components.defaults.scheduler
        shift = own.flow_shift if request.flow_shift is None else request.flow_shift
        if request.solver is not None:
            return scheduler_named(request.solver, shift)
        return own.shifted(shift)

    def sampling(
        self,
        *,
        scheduler: Scheduler,
        num_steps: int,
        guidance: Guidance,
        pag_layers: Sequence[int] = (),
    ) -> Sampling:
        """Give a scheduler's step and grid, and the guidance.

        Raises:
            ConfigError: for a block that perturbed attention names and the model lacks.
        """
        layers = frozenset(pag_layers) if guidance.pag_scale else frozenset()
        depth = self.components.transformer.config.num_layers
        if absent := sorted(layer for layer in layers if not 0 <= layer < depth):
            raise ConfigError(
                f"pag_layers names block {absent[0]}, the model has {depth}",
                hint=f"use blocks 0 to {depth - 1}",
            )
        return Sampling(
            step=scheduler.solver.step,
            grid=scheduler.grid(num_steps),
            guidance=guidance,
            pag_layers=layers,
        )

    @torch.inference_mode()
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
        ``on_step`` is told of every step and may answer with what shall change for those to come.

        Raises:
            NumericsError: for embeddings or noise, or at the first step, that is not finite.
        """
        for text in (positive, negative):
            if text is not None:
                require_finite(text.text, "prompt embeddings")
        require_finite(noise, "latents to start from")
        steps = len(sampling.grid.timesteps)
        velocity = GuardedDenoiser(
            Denoiser.prepare(
                self.components.transformer,
                positive,
                negative,
                sampling.guidance,
                pag_layers=sampling.pag_layers,
            ),
            steps,
        )
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
            if change.texts is not None or change.guidance is not None:
                velocity.denoiser = velocity.denoiser.changed(change)
            if change.latents is None:
                return None
            require_finite(
                change.latents, "callback's latents", f" after step {index + 1} of {steps}"
            )
            return change.latents.to(stepped.x)

        device = next(self.components.transformer.parameters()).device
        x = noise.to(device=device, dtype=torch.float32)
        return integrate(step, velocity, x, sampling.grid, on_step=checked)

    def encode(self, ask: Callable[[PromptEncoder], Texts]) -> Texts:
        """Give what ``ask`` makes of the prompt encoder, once more in a safer dtype if need be.

        Raises:
            NumericsError: embeddings that are not finite in that dtype either.
        """
        prompts = self.components.prompts
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

    @torch.inference_mode()
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

        image = self._decoded(run)
        report_constant(image, dtype=self._decoding_dtype)
        return image

    @torch.inference_mode()
    def decode_pixels(self, latent: Latent, *settings: Mapping[str, Any]) -> Pixels:
        """The same as ``b H W 3`` uint8, without the whole picture ever being held in fp32.

        ``settings`` of each picture are kept with latents that have to be saved.

        Raises:
            NumericsError, OutOfMemory: as :meth:`decode`.
        """
        origin = self._origin(*settings)
        pixels = self._decoded(lambda autoencoder: decode_pixels(autoencoder, latent, origin))
        report_constant_pixels(pixels, dtype=self._decoding_dtype)
        return pixels

    def _decoded(self, run: Callable[[Autoencoder], Decoded]) -> Decoded:
        """Run the autoencoder, once more in a safer dtype if its values are not finite."""
        autoencoder = self.components.autoencoder
        try:
            return run(autoencoder)
        except NumericsError:
            safer = safer_copy(autoencoder, "autoencoder", " while decoding")
        return run(safer)

    @property
    def _decoding_dtype(self) -> torch.dtype:
        return next(self.components.autoencoder.parameters()).dtype

    def _origin(self, *settings: Mapping[str, Any]) -> Origin:
        model, model_hash = self.components.name, self.components.fingerprint
        return Origin(model=model, model_hash=model_hash, settings=settings)

    def generate(
        self, request: GenerateRequest, *, on_step: OnStep = lambda done, total: None
    ) -> GenerateResult:
        """Draw the pictures of a request.

        Pictures are drawn one after the other: matrix products of another batch size round
        differently, and a seed must give the same picture however many were asked for.

        Args:
            request: what to draw.
            on_step: told (steps done, steps in all) after each; what it raises stops the run.

        Raises:
            ConfigError: for a size or layer that the model cannot do.
            NumericsError: for a number that is not finite.
        """
        height = request.height or self.default_size
        width = request.width or self.default_size
        shape = self.latent_shape(height, width)
        watch = Stopwatch()
        defaults = self.components.defaults
        guidance = request.guidance(defaults.guidance_scale)
        scheduler = self.scheduler(request)
        sampling = self.sampling(
            scheduler=scheduler,
            num_steps=request.num_steps,
            guidance=guidance,
            pag_layers=request.pag_layers,
        )
        with watch.stage("text"):
            positive, negative = self.encode_prompts(
                request.prompt, request.negative_prompt, guidance
            )
        total = request.count * request.num_steps
        pictures = []
        for index in range(request.count):
            seed = request.seed + index
            before = index * request.num_steps

            def stepped(step: int, _: Stepped, before: int = before) -> None:
                on_step(before + step + 1, total)

            with watch.stage("denoise"):
                latent = self.sample(
                    seeded_noise(seed, *shape), positive, negative, sampling, on_step=stepped
                )
            settings = {
                **request.to_json(),
                "seed": seed,
                "count": 1,
                "height": height,
                "width": width,
                "guidance_scale": guidance.guidance_scale,
                "solver": scheduler.solver_name,
                "flow_shift": scheduler.flow_shift,
                "model": self.components.name,
                "model_hash": self.components.fingerprint,
            }
            with watch.stage("decode"):
                pixels = self.decode_pixels(latent, settings)[0]
            pictures.append(Picture(pixels=pixels, settings=settings))
        return GenerateResult(pictures=tuple(pictures), seconds=watch.seconds)

    def encode_prompts(
        self, prompt: str, negative_prompt: str, guidance: Guidance
    ) -> tuple[EncodedText, EncodedText | None]:
        """Embed a prompt, and the negative one where guidance will read it."""
        embeds = self.components.transformer.config.guidance_embeds
        guided = guidance.guidance_scale != 1.0 and not embeds

        def ask(prompts: PromptEncoder) -> Texts:
            positive = prompts.encode([prompt], instruction=self.components.defaults.instruction)
            return positive, prompts.encode_null([negative_prompt], positive) if guided else None

        return self.encode(ask)
