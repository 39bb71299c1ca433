"""The stateless core: a request becomes pictures; the command line and `SanaPipeline` are faces."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sanakit.errors import ConfigError, NumericsError
from sanakit.flow import solvers
from sanakit.flow.grids import SigmaGrid
from sanakit.flow.guidance import Guidance
from sanakit.flow.solvers import SOLVERS, SolverStep, Stepped, integrate
from sanakit.pipeline.components import Components, load_components
from sanakit.pipeline.decoding import decode_image, decode_pixels
from sanakit.pipeline.denoiser import Denoiser
from sanakit.pipeline.images import Pixels
from sanakit.pipeline.latents_file import Origin
from sanakit.pipeline.prompt import EncodedText
from sanakit.pipeline.request import GenerateRequest, GenerateResult, Picture, check_size
from sanakit.shapes import Image, Latent

OnStep = Callable[[int, int], None]


def seeded_noise(seed: int, channels: int, height: int, width: int) -> Latent:
    """Noise ``1 c h w`` of one picture, drawn on the CPU in fp32: the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, channels, height, width, generator=generator)


def require_finite(values: torch.Tensor, component: str, where: str = "") -> None:
    """Stop at the first number that is not one, before it becomes a black picture.

    Raises:
        NumericsError: naming the component, and ``where`` it was.
    """
    if not torch.isfinite(values).all():
        raise NumericsError(
            f"the {component} gave values that are not finite{where} ({values.dtype})",
            hint="run this component in float32, or check its weights",
        )


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
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Pipeline:
        """Load a model; arguments and errors are those of `load_components`."""
        return cls(load_components(name_or_folder, dtype=dtype, device=device))

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

    def sampling(
        self,
        *,
        solver: str | None,
        num_steps: int,
        flow_shift: float | None,
        guidance: Guidance,
        pag_layers: Sequence[int] = (),
    ) -> Sampling:
        """Resolve names and defaults to a solver, a grid and the guidance.

        Raises:
            ConfigError: for a block that perturbed attention names and the model lacks.
        """
        habits = self.components.habits
        chosen = SOLVERS[solver or habits.solver]
        layers = frozenset(pag_layers) if guidance.pag_scale else frozenset()
        depth = self.components.transformer.config.num_layers
        if absent := sorted(layer for layer in layers if not 0 <= layer < depth):
            raise ConfigError(
                f"pag_layers names block {absent[0]}, the model has {depth}",
                hint=f"use blocks 0 to {depth - 1}",
            )
        shift = habits.flow_shift if flow_shift is None else flow_shift
        return Sampling(
            step=chosen.step,
            grid=chosen.grid(num_steps, shift),
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
        on_step: solvers.OnStep = lambda index, stepped: None,
    ) -> Latent:
        """Carry noise ``b c h w`` to scaled latents; fp32.

        Raises:
            NumericsError: at the first step whose state is not finite.
        """
        for text in (positive, negative):
            if text is not None:
                require_finite(text.text, "text encoder")
        denoiser = Denoiser.prepare(
            self.components.transformer,
            positive,
            negative,
            sampling.guidance,
            pag_layers=sampling.pag_layers,
        )
        steps = len(sampling.grid.timesteps)

        def checked(index: int, stepped: Stepped) -> Latent | None:
            require_finite(stepped.x, "transformer", f" at step {index + 1} of {steps}")
            return on_step(index, stepped)

        device = next(self.components.transformer.parameters()).device
        x = noise.to(device=device, dtype=torch.float32)
        return integrate(sampling.step, denoiser, x, sampling.grid, on_step=checked)

    @torch.inference_mode()
    def decode(self, latent: Latent) -> Image:
        """Scaled latents to pictures, fp32, about [-1, 1], within the memory that is free.

        Raises:
            NumericsError: if a pixel is not finite.
            OutOfMemory: if no way to decode fits; the error names the file with the latents.
        """
        image = decode_image(self.components.autoencoder, latent, self._origin())
        require_finite(image, "autoencoder", " while decoding")
        return image

    def decode_pixels(self, latent: Latent, *settings: Mapping[str, Any]) -> Pixels:
        """The same as ``b H W 3`` uint8, without the whole picture ever being held in fp32.

        ``settings`` of each picture are kept with latents that have to be saved.

        Raises:
            NumericsError, OutOfMemory: as :meth:`decode`.
        """
        return decode_pixels(self.components.autoencoder, latent, self._origin(*settings))

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
        habits = self.components.habits
        guidance = request.guidance(habits.guidance_scale)
        sampling = self.sampling(
            solver=request.solver,
            num_steps=request.num_steps,
            flow_shift=request.flow_shift,
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
                "solver": request.solver or habits.solver,
                "flow_shift": request.flow_shift or habits.flow_shift,
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
        prompts = self.components.prompts
        positive = prompts.encode([prompt], instruction=self.components.habits.instruction)
        embeds = self.components.transformer.config.guidance_embeds
        if guidance.guidance_scale == 1.0 or embeds:
            return positive, None
        return positive, prompts.encode_null([negative_prompt], positive)
