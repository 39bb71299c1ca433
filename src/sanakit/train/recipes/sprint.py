"""Distil a teacher into a model of one to four steps: consistency (sCM), against a discriminator.

States stand on the arc of docs/maths/solvers.md, data and noise of size one. The student's loss is
consistency: from two states of a path of the guided teacher it is to give the same picture. Either
they are a hop apart, and the later one's picture is what the earlier one's is drawn to, or, as the
released trainer has it (``hop=0``, continuous time), the prediction is drawn along a tangent, which
is the teacher's velocity and the student's own derivative along it. The adversarial loss (LADD)
reads its pictures with the teacher's eyes: heads on blocks of the frozen network.

Sources: SANA-Sprint (arXiv 2503.09641), section 3 and algorithm 2; NVlabs/Sana
train_scripts/train_scm_ladd.py. Hops are consistency distillation (arXiv 2303.01469, algorithm 2)
without a second network, by the loss of arXiv 2310.14189, section 3.3. Where paper and code differ
the code is followed: sCM is weighed by 1 / (sigma_data tan t), logits of all heads are averaged,
the hinge has a half, and the noises of real and made latents are different ones. Other than both:

- hops are the default: with few samples they are learned sooner, and steadier (docs/sprint.md).
- student and discriminator step on the same batch, in one step of one optimizer, where theirs take
  batches in turn; one step here is two of theirs, and the gradients of both are clipped together.
- the unguided teacher reads the null prompt with its own mask, as it was trained, and not with the
  prompt's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError, NumericsError
from sanakit.flow.grids import NoiseLevel
from sanakit.flow.path import seeded_noise
from sanakit.flow.scm import (
    MAX_TIME,
    SIGMA_DATA,
    arc_velocity,
    on_arc,
    scm_grid,
    scm_step,
    sigma_at,
)
from sanakit.flow.solvers import integrate
from sanakit.models.discriminator import FeatureDiscriminator, usual_blocks
from sanakit.models.few_steps import is_teacher, make_student, student_config
from sanakit.models.transformer import LinearDiT
from sanakit.models.unfilled import unfilled
from sanakit.pipeline.components import GenerationDefaults
from sanakit.pipeline.decoder import decode_pixels
from sanakit.pipeline.networks import SanaTransformer2DModel
from sanakit.pipeline.pixels import Pixels
from sanakit.pipeline.schedulers import SCMScheduler
from sanakit.shapes import Latent, PerSample, Text, TextMask, Tokens
from sanakit.train.checkpoint import newest_weights
from sanakit.train.config import LoopConfig
from sanakit.train.mfu import Shapes, counted
from sanakit.train.recipe import Timers
from sanakit.train.recipes.adversarial import hinge, hinge_of_judged, judged
from sanakit.train.recipes.diffusion import (
    SEEDS,
    DiffusionBatch,
    DiffusionRecipe,
    FlowObjective,
    drawn_rows,
)
from sanakit.train.recipes.diffusion_run import DiffusionData, Report, width_of
from sanakit.train.recipes.encoders import Encoders
from sanakit.train.recipes.shard_dataset import ShardDataset
from sanakit.train.recipes.sprint_teacher import begin, checked, write_model
from sanakit.train.runs.run_config import RunConfig, speaks
from sanakit.train.sample_schedule import SampleSchedule, generator_of, normal_of, uniform_of

WHAT = "sprint"
NORM_FLOOR = 0.1
"""Added to the norm that a tangent is divided by."""
TANGENT_WARMUP = 6_400
HUBER = 0.03
"""Differences of two pictures, in latents of size 1, from which their loss is about their size and
no longer their square."""
SHOWN_STEPS = (1, 2, 4)
END_STEPS = 24
"""Of the teacher's path that a student's one step is measured against; each looks twice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SprintObjective(FlowObjective):
    """What the student and its discriminator minimise.

    Defaults are the released ones, but for ``hop`` and ``adversarial``. Times are
    ``arctan(exp(n) / 0.5)`` of a normal n: ``level_mean`` and ``level_std`` are the student's.
    """

    level_mean: float = 0.2
    level_std: float = 1.6
    null_chance: float = 0.0
    guidance_scales: tuple[float, ...] = (4.0, 4.5, 5.0)
    """One of them is drawn for each sample, and the student told it."""
    hop: float = 0.1
    """Radians between the two states that are to give one picture; 0 is the released trainer's."""
    tangent_warmup: int | None = None
    """Samples over which the student's own derivative comes into the tangent; of ``hop=0`` alone,
    where None is 6,400."""
    adversarial: float = 0.0
    """Weight of the adversarial loss, 0.5 in the released trainer; 0 has no discriminator."""
    max_time_chance: float = 0.5
    """Share of samples that the discriminator sees drawn in one step from pure noise."""
    misaligned: bool = True
    """Show the discriminator real latents with captions of others, as made ones."""
    judge_mean: float = -0.6
    judge_std: float = 1.0
    """Of the times that the discriminator sees latents at."""
    head_blocks: tuple[int, ...] = ()
    """Blocks of the teacher that are judged; none: 2, 8, 14 and 19, or of fewer as spread."""

    def __post_init__(self) -> None:
        FlowObjective.__post_init__(self)
        for name, usual in (("flow_shift", None), ("levels", "logit-normal")):
            if getattr(self, name) != usual:
                raise ConfigError(
                    f"{name}={getattr(self, name)} has no meaning for a student",
                    hint="its times are level_mean's and level_std's",
                )
        if not self.guidance_scales or not all(scale > 0 for scale in self.guidance_scales):
            raise ConfigError(f"guidance_scales={self.guidance_scales} must be positive numbers")
        if not self.judge_std > 0:
            raise ConfigError(f"judge_std={self.judge_std} must be more than 0")
        if not 0 <= self.hop <= 1:
            raise ConfigError(f"hop={self.hop} must be in [0, 1]", hint="the path is 1.57 long")
        if self.hop and self.tangent_warmup is not None:
            raise ConfigError(
                f"tangent_warmup={self.tangent_warmup} with hop={self.hop}: no tangent is taken",
                hint="hop=0 takes one",
            )
        for name in ("adversarial", "tangent_warmup"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        judging = ("max_time_chance", "misaligned", "judge_mean", "judge_std", "head_blocks")
        defaults = {each.name: each.default for each in fields(self)}
        for name in judging:
            if not self.adversarial and getattr(self, name) != defaults[name]:
                raise ConfigError(
                    f"{name}={getattr(self, name)} with adversarial=0: there is no discriminator",
                    hint="adversarial=0.5 is the released weight of one",
                )
        if not 0 <= self.max_time_chance <= 1:
            raise ConfigError(f"max_time_chance={self.max_time_chance} must be in [0, 1]")


OBJECTIVE = SprintObjective
STUDENT, MADE, SEEN, JUDGED, REAL, MISALIGNED = range(6)
"""Places on the arc that a sample is seen at: by the student, for consistency and to be judged; by
the discriminator, for the student's loss and for its own, of made, real and misaligned latents."""
PLACES = 6


@dataclass(frozen=True, kw_only=True)
class SprintBatch(DiffusionBatch):
    """Pictures and captions, and all that is drawn with them."""

    noises: Tensor
    """``b 6 c h w``, one for each place."""
    times: Tensor
    """``b 6``, on the arc."""
    guidance: PerSample
    warm: PerSample
    """How much of the student's derivative is heard, in [0, 1]."""

    def place(self, number: int) -> tuple[Latent, Tensor]:
        """The noise ``b c h w`` and the time ``b 1 1 1`` of a place."""
        return self.noises[:, number], self.times[:, number].view(-1, 1, 1, 1)


class SprintRecipe(DiffusionRecipe):
    """Consistency and LADD; ``module`` is the student with what else learns.

    That is the discriminator and, without hops, the log-variance of the student's loss.
    """

    objective: SprintObjective

    def __init__(
        self,
        teacher: LinearDiT,
        student: LinearDiT,
        encoders: Encoders,
        defaults: GenerationDefaults,
        pictures: ShardDataset,
        objective: SprintObjective,
        *,
        held: ShardDataset | None = None,
        prompts: Sequence[str] = (),
    ) -> None:
        super().__init__(
            student, encoders, defaults, pictures, objective, held=held, prompts=prompts
        )
        self.teacher = teacher.requires_grad_(False).eval()
        self.discriminator: FeatureDiscriminator | None = None
        parts: dict[str, nn.Module] = {"transformer": student}
        self.log_variance = nn.Linear(student.config.width, 1)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.zeros_(self.log_variance.bias)
        if not objective.hop:
            parts["log_variance"] = self.log_variance
        if objective.adversarial:
            count = teacher.config.num_layers
            blocks = objective.head_blocks or usual_blocks(count)
            self.discriminator = FeatureDiscriminator(teacher.config.width, blocks, of=count)
            parts["discriminator"] = self.discriminator
        self.module = nn.ModuleDict(parts)
        self._null: tuple[Text, TextMask] | None = None
        self._paths: list[tuple[SprintBatch, Latent]] = []

    # What is drawn.

    def stream(self, schedule: SampleSchedule) -> Iterator[SprintBatch]:
        """A rank's part of each batch of the loader, in parts, with noise by sample number."""
        spans, objective = schedule.spans(), self.objective
        scales = torch.tensor(objective.guidance_scales)
        for batch in self.pictures.batches(schedule):
            for part in range(schedule.parts):
                rows = slice(part * schedule.size, (part + 1) * schedule.size)
                span = next(spans)
                generators = [generator_of(schedule.seed, k) for k in span]
                noises = normal_of(generators, PLACES, *self._latent_shape(batch))
                mean = torch.full((PLACES,), objective.judge_mean)
                std = torch.full((PLACES,), objective.judge_std)
                mean[[STUDENT, MADE]] = objective.level_mean
                std[[STUDENT, MADE]] = objective.level_std
                times = arc_times(mean + std * normal_of(generators, PLACES))
                chances = uniform_of(generators, 2)
                latest = chances[:, 0] < objective.max_time_chance
                times[latest, MADE] = MAX_TIME
                warmup = objective.tangent_warmup
                warmup = TANGENT_WARMUP if warmup is None else warmup
                grown = torch.arange(span.start, span.stop) / max(1, warmup)
                warm = grown.clamp_max(1) if warmup else torch.ones(len(span))
                sigma = sigma_at(times[:, STUDENT])
                drawn = drawn_rows(batch, rows, noises[:, STUDENT], NoiseLevel(sigma, sigma))
                yield SprintBatch(
                    **vars(drawn),
                    noises=noises,
                    times=times,
                    guidance=scales[(chances[:, 1] * len(scales)).long()],
                    warm=warm,
                )

    def prepare(
        self, batch: DiffusionBatch, device: torch.device, timers: Timers
    ) -> DiffusionBatch:
        """Bring it to the device, with latents and text states."""
        assert isinstance(batch, SprintBatch)
        ready = super().prepare(batch, device, timers)
        if next(self.teacher.parameters()).device != device:
            self.teacher.to(device)
        if self._null is None or self._null[0].device != device:
            with timers("text"):
                self._null = self.encoders.texts([""], device)
        drawn = {
            name: getattr(batch, name).to(device)
            for name in ("noises", "times", "guidance", "warm")
        }
        return SprintBatch(**vars(ready), **drawn)

    # What is minimised.

    def loss(self, batch: DiffusionBatch) -> dict[str, Tensor]:
        """All losses by name; ``loss`` is their weighted sum, with that of the discriminator."""
        assert isinstance(batch, SprintBatch)
        assert batch.x0 is not None
        assert batch.text is not None
        self._seen.add(len(batch.x0), batch.x0.shape[1:], batch.text.shape[1:])
        noise, time = batch.place(STUDENT)
        x = on_arc(batch.x0, noise, time)
        predicted = self._student(x, time, batch).float()
        if self.objective.hop:
            terms = self._agreement(x, time, predicted, batch)
        else:
            terms = self._along_tangent(x, time, predicted, batch)
        total = terms["consistency"]
        if self.discriminator is not None:
            made = self._made(batch)
            seen = self._features(made, SEEN, batch)
            terms["adversarial"] = hinge_of_judged(judged(self.discriminator, *seen)).mean()
            terms["discriminator"] = self._discriminated(made.detach(), batch)
            total = total + self.objective.adversarial * terms["adversarial"]
            total = total + terms["discriminator"]
        return {"loss": total, **{name: value.detach() for name, value in terms.items()}}

    def _agreement(
        self, x: Latent, time: Tensor, predicted: Latent, batch: SprintBatch
    ) -> dict[str, Tensor]:
        """How far the student's picture is from that of a state a hop nearer to it."""
        later = (time - self.objective.hop).clamp_min(0)
        with torch.no_grad():
            near = self._walked(x, time, time - later, batch)
            wanted = picture_of(near, later, self._student(near, later, batch).float())
        error = (picture_of(x, time, predicted) - wanted).square().flatten(1).mean(dim=1)
        distance = (error + HUBER**2).sqrt() - HUBER
        return {"consistency": distance.mean(), "apart": error.mean().sqrt()}

    def _along_tangent(
        self, x: Latent, time: Tensor, predicted: Latent, batch: SprintBatch
    ) -> dict[str, Tensor]:
        tangent, length = self.tangent(x, time, predicted.detach(), batch)
        # The same number as its square, and the gradient that draws the prediction along it.
        error = (predicted - predicted.detach() - tangent).square()
        spread = self._log_variance(sigma_at(time).flatten(), batch.guidance)
        weight = 1 / (SIGMA_DATA * time.tan())
        consistency = (weight / spread.exp() * error + spread).mean()
        return {"consistency": consistency, "tangent": length.mean()}

    @torch.no_grad()
    def tangent(
        self, x: Latent, time: Tensor, predicted: Latent, batch: SprintBatch
    ) -> tuple[Latent, PerSample]:
        """Where the student's prediction is to be drawn, of norm below 1, and its norm before.

        ``predicted`` is the student's prediction at ``x``.
        """
        taught = self._guided(x, time, batch)
        turn = time.cos() * time.sin()

        def student(x: Latent, time: Tensor) -> Latent:
            return self._student(x, time, batch).float()

        # Forward mode: one pass gives the change along a direction in both x and time.
        change = torch.func.jvp(student, (x, time), (turn * taught, turn))[1]
        heard = batch.warm.view(-1, 1, 1, 1)
        found = time.cos() ** 2 * (predicted - taught) + heard * (turn * x + change)
        found = -SIGMA_DATA * found
        length = found.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return found / (length + NORM_FLOOR), length.flatten()

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """How far pictures of one step are from where the guided teacher goes with their noise.

        The mean square of the difference over that of the teacher's; 0 is a student that has
        learned all of its teacher, 2 one that draws as much and other things.
        """
        device = next(module.parameters()).device
        if not self._paths:
            for drawn in self._fixed():
                batch = self.prepare(drawn, device, Timers(device))
                assert isinstance(batch, SprintBatch)
                self._paths.append((batch, self._end(batch)))
        found = []
        for batch, end in self._paths:
            x, time = self._start(batch)
            made = picture_of(x, time, self._student(x, time, batch).float())
            square = (made - end).square().flatten(1).mean(dim=1)
            found.append(square / end.square().flatten(1).mean(dim=1))
        mean = float(torch.cat(found).mean())
        return {"from_end" if self.held else "seen_from_end": mean}

    def _start(self, batch: SprintBatch) -> tuple[Latent, Tensor]:
        """Pure noise, and its time."""
        noise, time = batch.place(STUDENT)
        return noise, torch.full_like(time, MAX_TIME)

    def _end(self, batch: SprintBatch) -> Latent:
        """Where the guided teacher's path from pure noise ends, by the midpoint rule."""
        x, time = self._start(batch)
        step = time / END_STEPS
        for _ in range(END_STEPS):
            x, time = self._walked(x, time, step, batch), time - step
        return x

    def _walked(self, x: Latent, time: Tensor, step: Tensor, batch: SprintBatch) -> Latent:
        """Where the guided teacher's path is a step later, by the midpoint rule.

        By Euler's rule hops of 0.1 end up to 0.12 from the path's end, in squares of its picture.
        """
        middle = x - step / 2 * self._guided(x, time, batch).float()
        return x - step * self._guided(middle, time - step / 2, batch).float()

    def checkpoint_gradients(self) -> None:
        """Recompute blocks of both: the adversarial gradient passes through the teacher."""
        self.transformer.gradient_checkpointing = self.teacher.gradient_checkpointing = True

    def validation_grid(self, module: nn.Module) -> npt.NDArray[Any] | None:
        """A row for each prompt: pictures of one, two and four steps, of each seed."""
        rows = []
        for prompt in self.prompts:
            told = self.encoders.texts([prompt], next(module.parameters()).device)
            row = [self._drawn(*told, *how) for how in product(SEEDS, SHOWN_STEPS)]
            rows.append([picture for picture in row if picture is not None])
        if not rows or min(map(len, rows)) < len(SEEDS) * len(SHOWN_STEPS):
            return None
        return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)

    def _drawn(self, text: Text, mask: TextMask, seed: int, steps: int) -> Pixels | None:
        """A picture ``H W 3`` uint8; None if a number is not finite."""
        device, config = text.device, self.transformer.config
        side = config.sample_size
        scale = guidance_of(self.objective, self.defaults) * config.guidance_embeds_scale
        noises = [
            seeded_noise(seed + len(SEEDS) * k, config.in_channels, side, side)
            for k in range(steps + 1)
        ]

        def velocity(x: Latent, level: NoiseLevel) -> Latent:
            told = (torch.full((1,), float(value)) for value in (level.timestep, scale))
            time, guidance = (each.to(device) for each in told)
            return self._told(x, text, time, guidance, mask)

        first, grid = noises.pop().to(device), scm_grid(steps)
        latent = integrate(scm_step, velocity, first, grid, fresh=noises.__getitem__)
        try:
            with torch.autocast(device.type, enabled=False):
                return decode_pixels(self.encoders.autoencoder.to(device), latent)[0]
        except NumericsError:
            return None  # the run itself counts steps that are not finite

    @property
    def frozen(self) -> list[nn.Module]:
        """The networks beside the student."""
        return [*super().frozen, self.teacher]

    # The networks, on the arc.

    def _told(
        self,
        x: Latent,
        text: Text | None,
        level: PerSample,
        guidance: PerSample,
        mask: TextMask | None,
    ) -> Latent:
        found: Latent = self.transformer(
            x, text, level, guidance, encoder_attention_mask=mask, return_dict=False
        )[0]
        return found[:, : x.shape[1]]

    def _student(self, x: Latent, time: Tensor, batch: SprintBatch) -> Latent:
        guidance = batch.guidance * self.transformer.config.guidance_embeds_scale
        return arc_velocity(
            lambda x, sigma: self._told(x, batch.text, sigma.flatten(), guidance, batch.mask),
            x,
            time,
        )

    def _taught(
        self, x: Latent, time: Tensor, text: Text, mask: TextMask | None, **more: Any
    ) -> Latent:
        def network(x: Latent, sigma: Tensor) -> Latent:
            return self.teacher.velocity(x, sigma.flatten(), text, mask, **more)[:, : x.shape[1]]

        return arc_velocity(network, x, time)

    def _guided(self, x: Latent, time: Tensor, batch: SprintBatch) -> Latent:
        """The teacher's velocity on the arc, at each sample's guidance."""
        assert batch.text is not None
        assert self._null is not None
        told = self._taught(x, time, batch.text, batch.mask)
        text, mask = (each.expand(len(x), *each.shape[1:]) for each in self._null)
        plain = self._taught(x, time, text, mask)
        return plain + batch.guidance.view(-1, 1, 1, 1) * (told - plain)

    def _log_variance(self, level: PerSample, guidance: PerSample) -> Tensor:
        scale = self.transformer.config.guidance_embeds_scale
        embed: Any = self.transformer.time_embed
        embedded = embed(level, guidance * scale, torch.float32)[1]
        return self.log_variance(embedded).float().view(-1, 1, 1, 1)

    def _made(self, batch: SprintBatch) -> Latent:
        """The student's latents of one step, half of them from pure noise."""
        assert batch.x0 is not None
        noise, time = batch.place(MADE)
        x = on_arc(batch.x0, noise, time)
        return picture_of(x, time, self._student(x, time, batch))

    def _features(self, x0: Latent, place: int, batch: SprintBatch) -> list[Tokens]:
        """What the judged blocks of the teacher make of latents, with a place's noise."""
        assert self.discriminator is not None
        assert batch.text is not None
        found: list[Tokens] = []
        blocks = self.discriminator.blocks

        def steer(index: int, tokens: Tokens) -> Tokens:
            if index in blocks:
                found.append(tokens)
            return tokens

        noise, time = batch.place(place)
        self._taught(on_arc(x0, noise, time), time, batch.text, batch.mask, steer=steer)
        return found

    def _discriminated(self, made: Latent, batch: SprintBatch) -> Tensor:
        """The discriminator's hinge loss; latents of others' captions count as made ones."""
        assert self.discriminator is not None
        assert batch.x0 is not None
        with torch.no_grad():
            real = self._features(batch.x0, REAL, batch)
            false = self._features(made, JUDGED, batch)
            if self.objective.misaligned and len(made) > 1:
                others = self._features(batch.x0.roll(1, dims=0), MISALIGNED, batch)
                false = [torch.cat(pair) for pair in zip(false, others, strict=True)]
        of_real = hinge(self.discriminator(*real).float(), real=True).mean()
        of_false = hinge(self.discriminator(*false).float(), real=False).mean()
        return (of_real + of_false) / 2

    def _operations(self, shapes: Shapes) -> float:
        def forward() -> Tensor:
            x, text = (torch.zeros(1, *shape) for shape in shapes)
            network = LinearDiT(self.transformer.config)
            return network.velocity(x, torch.zeros(1), text, None, guidance=torch.zeros(1))

        # In forward passes: three for what learns, then the teacher's four of a hop and the
        # student's one, or two and two for the tangent. The discriminator takes the student anew,
        # the teacher to learn through, and three looks of the teacher.
        passes = 3 + (5 if self.objective.hop else 4) + (9 if self.discriminator else 0)
        return passes / 3 * counted(forward)

    def _fixed(self) -> Iterator[DiffusionBatch]:
        """The first pictures in an order of their own, at times evenly over the path."""
        scale = guidance_of(self.objective, self.defaults)
        for drawn in super()._fixed():
            sigma = drawn.level.sigma
            yield SprintBatch(
                **vars(drawn),
                noises=drawn.noise[:, None],
                times=torch.atan2(sigma, 1 - sigma)[:, None],
                guidance=torch.full_like(sigma, scale),
                warm=torch.ones_like(sigma),
            )


def picture_of(x: Latent, time: Tensor, velocity: Latent) -> Latent:
    """The latent that a state of the arc comes from, by its velocity there."""
    return time.cos() * x - time.sin() * velocity


def arc_times(normal: Tensor) -> Tensor:
    """The times of normal numbers, in (0, pi / 2)."""
    return torch.arctan(normal.exp() / SIGMA_DATA)


def guidance_of(objective: SprintObjective, defaults: GenerationDefaults) -> float:
    """The guidance that a student is drawn with: the model's, or the nearest that was learned."""
    scales = objective.guidance_scales
    return min(max(defaults.guidance_scale, min(scales)), max(scales))


def usual_loop(width: int) -> LoopConfig:
    """The loop of a run where no setting is given.

    Published are CAME at 2e-6 with batches of 512, 20,000 steps of which half are the student's;
    at SANA 1.6B the rate is about seven times that. Three times as much is worse for glyph.
    """
    narrow = (384 / width) ** 1.5
    return LoopConfig(
        batch_size=32,
        total_images=24_000,
        peak_lr=1e-4 * narrow,
        warmup_images=640,
        decay_share=0.5,
        weight_decay=0.0,
        betas=(0.9, 0.99),
        average_halflife=1_000,
        log_every=20,
        evaluate_every=100,
        pictures_every=200,
    )


def new_run(typed: Mapping[str, Any], pairs: Sequence[str] = ()) -> RunConfig:
    """A run from arguments by name, None for those not given, and ``key=value`` settings.

    Raises:
        ConfigError: an argument that is missing, or settings that break a rule.
        DataError: no shards. MissingModelError: no such model.
    """
    given = checked(typed, "a teacher: sanakit train sprint-teacher --from MODEL makes one")
    width = width_of(DiffusionData(data=given["data"], start=given["start"]))
    run = RunConfig(what=WHAT, data=given, objective=SprintObjective(), loop=usual_loop(width))
    return run.with_settings(pairs)


def build(run: RunConfig, *, report: Report = print) -> tuple[SprintRecipe, RunConfig]:
    """Load, check and put together; the run comes back with what was found out of its data.

    Raises:
        ConfigError: a model that is no teacher; as `sprint_teacher.begin`.
    """
    begun = begin(run, report)
    teacher = begun.parts.transformer
    if not is_teacher(teacher.config):
        raise ConfigError(
            f"--from {begun.data.start}: is no teacher of few steps",
            hint=f"make one of it: sanakit train sprint-teacher --from {begun.data.start}",
        )
    with unfilled():
        student = SanaTransformer2DModel(student_config(teacher.config))
    student = student.to_empty(device="cpu")
    random = torch.Generator().manual_seed(run.loop.seed)
    make_student(student, teacher, generator=random)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.loop.seed)
        recipe = SprintRecipe(
            teacher,
            student,
            begun.encoders,
            begun.parts.defaults,
            begun.pictures,
            run.objective,
            held=begun.held,
            prompts=begun.data.prompts,
        )
    return recipe, replace(run, data=asdict(begun.data))


def finish(recipe: SprintRecipe, run: Path, *, report: Report) -> None:
    """Write the student, averaged where there is an average, into the run's own folder."""
    if not speaks():
        return
    prefix = "transformer."
    weights = {
        name.removeprefix(prefix): value
        for name, value in newest_weights(run).items()
        if name.startswith(prefix)
    }
    scale = guidance_of(recipe.objective, recipe.defaults)
    defaults = replace(recipe.defaults, scheduler=SCMScheduler(), guidance_scale=scale)
    write_model(recipe, weights, run, defaults, "SanaSprintPipeline")
    report(f"draw: sanakit generate PROMPT --model {run} --steps 2")
