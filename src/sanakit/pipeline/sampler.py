"""A network, a text and a guidance become one velocity field for the solvers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.flow.grids import NoiseLevel, SigmaGrid
from sanakit.flow.guidance import Guidance
from sanakit.flow.solvers import Fresh, SolverStep
from sanakit.models.parts import draws_as_built, first_weight
from sanakit.models.transformer import DIFFUSERS_FIRST, LinearDiT, PreparedText, Residuals
from sanakit.nn.step_cache import StepCache
from sanakit.pipeline.numerics import all_finite, require_finite, safer_copy
from sanakit.pipeline.prompts import EncodedText
from sanakit.shapes import Latent, Text, TextMask

if TYPE_CHECKING:
    from sanakit.pipeline.control import Steering


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to walk from noise to a latent: a solver's step, its grid, and the guidance."""

    step: SolverStep
    grid: SigmaGrid
    guidance: Guidance
    pag_layers: frozenset[int] = frozenset()
    steering: Steering | None = None
    fresh: Fresh | None = None
    """Noise ``b c h w`` of each step, for solvers that add some."""
    step_cache: float = 0.0
    """Threshold of `StepCache`; 0 is off."""


class Change(NamedTuple):
    """What changes from the next step on; None stays as it is."""

    latents: Latent | None = None
    texts: tuple[EncodedText, EncodedText | None] | None = None
    """Of the prompts and of the negative ones."""
    guidance: Guidance | None = None
    network: LinearDiT | None = None
    """Another one, or the same where its numbers changed: what it made of the text is made anew."""
    stop: bool = False
    """Leave all steps to come undone: the state now is the result."""


class Guided(NamedTuple):
    """A velocity, and the difference that adaptive projected guidance goes on from."""

    velocity: Latent
    difference: Latent | None


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """Callable as the solvers' ``velocity``; runs all passes of a step as one batch.

    Rows are unconditional, conditional, perturbed, as in the published pipelines. Everything that
    the text alone decides was computed once, in :meth:`prepare`; a transformer that a user wrapped
    or patched is called as published instead, with the text itself.
    """

    model: LinearDiT
    positive: EncodedText
    negative: EncodedText | None
    prepared: PreparedText | Text  # rows: [unconditional,] conditional
    mask: TextMask
    batch: int
    guidance: Guidance
    pag_layers: frozenset[int]
    steering: Steering | None

    @classmethod
    def prepare(
        cls,
        model: LinearDiT,
        positive: EncodedText,
        negative: EncodedText | None,
        guidance: Guidance,
        *,
        pag_layers: frozenset[int] = frozenset(),
        steering: Steering | None = None,
    ) -> Denoiser:
        """Project the text and compute every block's keys and values."""
        embeds = model.config.guidance_embeds
        if guidance.guidance_scale != 1.0 and negative is None and not embeds:
            raise ConfigError(
                f"guidance_scale={guidance.guidance_scale} needs a negative prompt's embeddings",
                hint="pass them, or guidance_scale=1 to do without",
            )
        weight = first_weight(model)
        both = positive if negative is None else EncodedText.joined([negative, positive])
        text = both.text.to(device=weight.device, dtype=weight.dtype)
        return cls(
            model=model,
            positive=positive,
            negative=negative,
            prepared=model.prepare_text(text) if draws_as_built(model) else text,
            mask=both.mask.to(weight.device),
            batch=positive.text.shape[0],
            guidance=guidance,
            pag_layers=pag_layers,
            steering=None if steering is None else steering.reading(both.text),
        )

    def safer(self, where: str) -> Denoiser:
        """Give the same of networks of the same weights in a safer dtype, where there is one."""
        steering = self.steering
        if steering is not None and first_weight(steering.branch).dtype != torch.float32:
            steering = steering.safer(where)
        model = self.model
        if steering is self.steering or self.dtype != torch.float32:
            model = safer_copy(model, "transformer", where)
        return Denoiser.prepare(
            model,
            self.positive,
            self.negative,
            self.guidance,
            pag_layers=self.pag_layers,
            steering=steering,
        )

    def changed(self, change: Change) -> Denoiser:
        """Give the same with another text, guidance or network; guidance alone costs nothing."""
        guidance, model = change.guidance or self.guidance, change.network
        kept = change.texts is None and model is None
        if kept and (guidance.guidance_scale == 1.0 or self.negative is not None):
            return replace(self, guidance=guidance)
        positive, negative = change.texts or (self.positive, self.negative)
        return Denoiser.prepare(
            model or self.model,
            positive,
            negative,
            guidance,
            pag_layers=self.pag_layers,
            steering=self.steering,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the network; states stay in fp32 between calls."""
        return first_weight(self.model).dtype

    def __call__(self, x: Latent, level: NoiseLevel) -> Latent:
        """Velocity at a state ``b c h w``, guided, fp32, without memory of other levels."""
        return self.guided(x, level, None).velocity

    def guided(
        self, x: Latent, level: NoiseLevel, before: Latent | None, cache: StepCache | None = None
    ) -> Guided:
        """The same, given what the evaluations before it left."""
        config = self.model.config
        if config.guidance_embeds:
            return Guided(self._run(x, level, self._rows(0), mix=None).float(), before)
        passes = self.guidance.passes(level)
        conditional = self._rows(self.mask.shape[0] - self.batch)
        rows = [conditional]
        if passes.uncond:
            rows.insert(0, self._rows(0))
        if passes.perturbed:
            rows.append(conditional)
        mix = None
        if passes.perturbed:
            mix = torch.ones(len(rows) * self.batch, dtype=torch.bool, device=x.device)
            mix[-self.batch :] = False
        parts = list(self._run(x, level, torch.cat(rows), mix=mix, cache=cache).split(self.batch))
        uncond = parts.pop(0) if passes.uncond else None
        perturbed = parts.pop() if passes.perturbed else None
        cond, guider = parts[0], self.guidance.guider
        if guider is None or uncond is None:
            guided = self.guidance.combine(level, cond, uncond=uncond, perturbed=perturbed)
            return Guided(guided, before)
        uncond, difference = guider.project(level, x, cond, uncond, before)
        guided = self.guidance.combine(level, cond, uncond=uncond, perturbed=perturbed)
        return Guided(guider.rescaled(level, x, guided, cond), difference)

    def _rows(self, start: int) -> Tensor:
        return torch.arange(start, start + self.batch, device=self.mask.device)

    def _run(
        self,
        x: Latent,
        level: NoiseLevel,
        rows: Tensor,
        *,
        mix: Tensor | None,
        cache: StepCache | None = None,
    ) -> Latent:
        config = self.model.config
        count = rows.shape[0]
        every = count == self.mask.shape[0] and mix is None
        prepared, mask = self.prepared, self.mask
        if not every:
            prepared = prepared.rows(rows) if isinstance(prepared, PreparedText) else prepared[rows]
            mask = mask[rows]
        x = x.to(self.dtype).repeat(count // self.batch, 1, 1, 1)
        timestep = (level.timestep * config.timestep_scale).to(x.device).expand(count)
        embedded = None
        if config.guidance_embeds:
            scale = self.guidance.guidance_scale * config.guidance_embeds_scale
            embedded = torch.full((count,), scale, device=x.device, dtype=self.dtype)
        more: dict[str, Any] = {} if embedded is None else {"guidance": embedded}
        if mix is not None:
            more |= {"mix": mix, "mix_layers": self.pag_layers}
        if cache is not None:
            more["cache"] = cache
        if self.steering is not None:
            more["steer"] = self.steering.steer(x, timestep, None if every else rows, mask)
        if isinstance(prepared, PreparedText):
            velocity = self.model.velocity(x, timestep, prepared, mask, **more)
        else:
            given = more.get("steer")
            if isinstance(given, Residuals) and given.first == DIFFUSERS_FIRST:
                more["controlnet_block_samples"] = more.pop("steer").tokens  # as published
            velocity = self.model(
                x,
                encoder_hidden_states=prepared,
                encoder_attention_mask=mask.long(),
                timestep=timestep,
                return_dict=False,
                **more,
            )[0]
        # Old published heads also predict a variance, which no flow solver reads.
        return velocity[:, : x.shape[1]]


class GuardedDenoiser:
    """A denoiser for one run: a step that failed starts again in a safer dtype, kept from there on.

    The run sets ``step``, counted from 0, for the messages. What is remembered of a run is here, of
    finished evaluations only.
    """

    def __init__(self, denoiser: Denoiser, num_steps: int, *, step_cache: float = 0.0) -> None:
        self.denoiser = denoiser
        self.num_steps = num_steps
        self.step = 0
        self.difference: Latent | None = None
        self.cache = StepCache(step_cache, denoiser.batch) if step_cache else None

    def change(self, change: Change) -> None:
        """Go on with another text, guidance or network."""
        self.denoiser = self.denoiser.changed(change)
        self._forget()

    @property
    def where(self) -> str:
        """The step in words."""
        return f" at step {self.step + 1} of {self.num_steps}"

    def __call__(self, x: Latent, level: NoiseLevel) -> Latent:
        """Velocity at a state ``b c h w``, guided, fp32 and finite."""
        guided = self.denoiser.guided(x, level, self.difference, self.cache)
        if not all_finite(guided.velocity):
            guided = self._again(x, level, guided.velocity)
        self.difference = guided.difference
        return guided.velocity

    def _again(self, x: Latent, level: NoiseLevel, failed: Latent) -> Guided:
        if not isinstance(self.denoiser.prepared, PreparedText):  # a copy may not be a copy
            require_finite(failed, "transformer", self.where, dtype=self.denoiser.dtype)
        self.denoiser = self.denoiser.safer(self.where)
        self._forget()
        guided = self.denoiser.guided(x, level, self.difference, self.cache)
        require_finite(guided.velocity, "transformer", self.where, dtype=self.denoiser.dtype)
        return guided

    def _forget(self) -> None:
        self.cache = self.cache and self.cache.anew()
