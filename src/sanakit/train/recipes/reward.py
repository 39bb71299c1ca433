"""Post-train a SANA model with a reward, DiffusionNFT: it learns from its own drawings.

Each step draws groups, several drawings of one prompt, by the old policy, which follows what is
learned. A scorer says how good each is; how much better than its group becomes ``r`` in [0, 1].
Drawings are noised again, and the velocity is learned towards good ones and, mirrored at the old
policy, away from bad ones. Sources: DiffusionNFT (arXiv 2509.16117); NVlabs/Sana
configs/sol_rl/sana.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from sanakit.data.captions.scorers import Scorer, scores_of, weight_of, weighted_scorer
from sanakit.data.loader.folders import open_folder
from sanakit.data.loader.order import shuffled
from sanakit.data.loader.reading import ShardReader
from sanakit.errors import ConfigError, DataError, NumericsError
from sanakit.files import expanded
from sanakit.flow.grids import NoiseLevel
from sanakit.flow.path import interpolate, seeded_noise, x0_from_velocity
from sanakit.flow.solvers import integrate
from sanakit.models.config import AutoencoderConfig, TransformerConfig
from sanakit.models.transformer import LinearDiT
from sanakit.nn.lora import lora_layers
from sanakit.pipeline.components import GenerationDefaults
from sanakit.pipeline.decoder import decode_pixels
from sanakit.pipeline.pixels import Pixels, to_pil
from sanakit.shapes import Latent, PerSample, Text, TextMask
from sanakit.train.config import LoopConfig
from sanakit.train.recipe import Recipe, Timers
from sanakit.train.recipes.diffusion import SEEDS, FlowObjective
from sanakit.train.recipes.diffusion_run import (
    REWARD,
    DiffusionData,
    Report,
    diffusion_run,
    start_components,
)
from sanakit.train.recipes.encoders import Encoders
from sanakit.train.recipes.lora import NAME, USUAL_TARGETS, add_adapters
from sanakit.train.recipes.shard_dataset import shards_of
from sanakit.train.runs.run_config import RunConfig, is_run, lasting, speaks
from sanakit.train.sample_schedule import SampleSchedule, generator_of
from sanakit.untrusted import read_file
from sanakit.weights.resolve import resolve_model
from sanakit.weights.store import read_config

WHAT = REWARD
OLD = "old"
"""The adapters of the old policy, beside those that learn."""
EVALUATED = 32
EVALUATION_BATCH = 8
SHOWN = 3
"""Prompts of the validation grid where none are given."""
LEAST_DEVIATION = 1e-4
LEAST_WEIGHT = 1e-5

Rewards: TypeAlias = Float[Tensor, "groups n"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardObjective:
    """How it draws, what it learns of it, and the loss. Defaults are published values."""

    lora_rank: int = 32
    lora_alpha: float | None = 64.0
    """None: the rank, so that the factor is one."""
    lora_targets: tuple[str, ...] = USUAL_TARGETS
    group: int = 24
    """Drawings of a prompt, which are compared with each other."""
    keep: int | None = None
    """Of a group, how many are learned from: the best and the worst; None is all."""
    drawing_steps: int = 10
    levels: int = 9
    """Noise levels that a drawing is learned at, of those that it was drawn through."""
    evaluation_steps: int = 40
    nft_beta: float = 1.0
    """How far the two sides of the loss lie from the old policy."""
    reference_weight: float = 1e-4
    """Of the squared distance to the velocity without the LoRA; 0 does without it."""
    most_advantage: float = 5.0
    """Deviations from the group's mean that count wholly; what is beyond is cut."""
    old_rate: float = 0.001
    old_most: float = 0.5
    """The share of itself that the old policy keeps after step s is the least of s times
    ``old_rate`` and ``old_most``."""

    def __post_init__(self) -> None:
        least = {"lora_rank": 1, "group": 2, "drawing_steps": 1, "levels": 1, "evaluation_steps": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {low}")
        if self.keep is not None and not 2 <= self.keep <= self.group:
            raise ConfigError(f"keep={self.keep} of a group must be in [2, {self.group}]")
        if self.levels > self.drawing_steps:
            raise ConfigError(
                f"levels={self.levels}: a drawing goes through {self.drawing_steps}",
                hint=f"levels={self.drawing_steps} are all, or raise drawing_steps",
            )
        for name in ("nft_beta", "most_advantage"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be more than 0")
        if not self.reference_weight >= 0:
            raise ConfigError(f"reference_weight={self.reference_weight} must not be negative")
        for name in ("old_rate", "old_most"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be in [0, 1]")

    def kept_by_old(self, step: int) -> float:
        """The share of itself that the old policy keeps before step ``step``; 0 before the first.

        Source: schedule type 1 of DiffusionNFT's code.
        """
        return min(self.old_rate * step, self.old_most)


def advantages(rewards: Rewards, most: float) -> Rewards:
    """``r`` in [0, 1] of rewards in fp64: 1/2 is the group's mean, 1 is ``most`` deviations better.

    The deviation is that of all rewards of the step, over all ranks.
    """
    sums = torch.stack([torch.ones_like(rewards).sum(), rewards.sum(), rewards.square().sum()])
    if dist.is_initialized():
        dist.all_reduce(sums)
    count, total, squares = sums
    deviation = (squares / count - (total / count).square()).clamp_min(0).sqrt()
    apart = rewards - rewards.mean(dim=1, keepdim=True)
    advantage = (apart / (deviation + LEAST_DEVIATION)).clamp(-most, most)
    return (advantage / (2 * most) + 0.5).clamp(0, 1)


def best_and_worst(rewards: Rewards, keep: int) -> Tensor:
    """Places ``groups keep`` of the best half and the worst half, rising; of equals the first."""
    order = rewards.argsort(dim=1, descending=True, stable=True)
    worst = keep // 2
    chosen = torch.cat([order[:, : keep - worst], order[:, order.shape[1] - worst :]], dim=1)
    return chosen.sort(dim=1).values


def nft_loss(
    velocity: Latent,
    old: Latent,
    x: Latent,
    x0: Latent,
    sigma: PerSample,
    r: PerSample,
    *,
    beta: float,
    most: float,
) -> PerSample:
    """Learn towards ``x0`` where ``r`` is 1, and mirrored at the old policy away where it is 0.

    Each side is the squared error of the clean end, over its mean absolute error in fp64, through
    which no gradient goes.
    """
    good = beta * velocity + (1 - beta) * old
    bad = (1 + beta) * old - beta * velocity
    sides = [_relative_error(x0_from_velocity(x, side, sigma), x0) for side in (good, bad)]
    return most * (r * sides[0] + (1 - r) * sides[1]) / beta


def _relative_error(predicted: Latent, x0: Latent) -> Float[Tensor, " b"]:
    error = predicted - x0
    with torch.no_grad():
        size = error.double().abs().flatten(1).mean(dim=1).clamp_min(LEAST_WEIGHT)
    return (error.square().flatten(1) / size.unsqueeze(1)).mean(dim=1)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A part of a step: what this rank is to draw in all of it, and which part is learned from.

    ``noise`` is what the drawings begin with, ``places`` are the levels ``b levels`` of the grid
    at which they are learned from, with ``fresh`` noise ``b levels c h w``.
    """

    step: int
    part: int
    parts: int
    prompts: Sequence[str]
    noise: Latent
    places: Tensor
    fresh: Tensor


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a rank learns from in a step: drawings, and a row for each kept one and level.

    ``x0``, ``r``, ``text`` and ``mask`` are of drawings; ``rows`` says which one a row is of.
    """

    x0: Latent
    r: PerSample
    text: Text
    mask: TextMask
    rows: Tensor
    level: NoiseLevel
    fresh: Latent
    facts: Mapping[str, Tensor]


class RewardRecipe(Recipe[Asked]):
    """DiffusionNFT; ``module`` is the transformer with two LoRA, one that learns and the old one.

    ``held`` are prompts to measure on; without them some that are learned from are taken, and the
    measure is called ``seen_reward``. ``shown`` are what the validation grid is drawn from.
    """

    def __init__(
        self,
        transformer: LinearDiT,
        encoders: Encoders,
        defaults: GenerationDefaults,
        scorer: Scorer,
        prompts: Sequence[str],
        objective: RewardObjective,
        *,
        held: Sequence[str] = (),
        shown: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.module: nn.Module = transformer
        self.transformer, self.encoders, self.defaults = transformer, encoders, defaults
        self.scorer, self.prompts, self.objective = scorer, tuple(prompts), objective
        self.held, self.shown = tuple(held), tuple(shown)
        own = objective.lora_rank, objective.lora_alpha, objective.lora_targets
        rank, alpha, targets = own
        self.names = add_adapters(transformer, rank=rank, alpha=alpha, targets=targets, seed=seed)
        for layer in lora_layers(transformer).values():
            down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
            assert isinstance(down, Tensor)
            assert isinstance(up, Tensor)
            place: dict[str, Any] = {"dtype": down.dtype, "device": down.device}
            layer.add(OLD, down, up, layer.scales[NAME], **place)
        self._step: Learned | None = None
        self._text: tuple[Text, TextMask] | None = None

    def stream(self, schedule: SampleSchedule) -> Iterator[Asked]:
        """What a rank is to draw: groups by number, prompts in an order that changes each time."""
        objective = self.objective
        drawn, parts = schedule.size * schedule.parts, schedule.parts
        # A planner asks for one drawing, which makes no group.
        if drawn > 1:
            _check_split(drawn, parts, objective)
        spans = schedule.spans()
        while True:
            numbers = [number for _ in range(parts) for number in next(spans)]
            generators = [generator_of(schedule.seed, number) for number in numbers]
            shape = self._latent_shape
            noise, places, fresh = [], [], []
            for one in generators:
                noise.append(torch.randn(shape, generator=one))
                order = torch.randperm(objective.drawing_steps, generator=one)
                places.append(order[: objective.levels])
                fresh.append(torch.randn(objective.levels, *shape, generator=one))
            asked = Asked(
                step=numbers[0] // schedule.batch_size,
                part=0,
                parts=parts,
                prompts=[self._prompt(schedule.seed, n // objective.group) for n in numbers],
                noise=torch.stack(noise),
                places=torch.stack(places),
                fresh=torch.stack(fresh),
            )
            yield from (replace(asked, part=part) for part in range(parts))

    def prepare(self, batch: Asked, device: torch.device, timers: Timers) -> Asked:
        """Before the first part of a step, let the old policy follow and encode the prompts."""
        if batch.part:
            return batch
        self._step = None
        self._follow(self.objective.kept_by_old(batch.step))
        with timers("text"):
            self._text = self._encoded(batch.prompts, device)
        tensors = (batch.noise, batch.places, batch.fresh)
        noise, places, fresh = (tensor.to(device) for tensor in tensors)
        return replace(batch, noise=noise, places=places, fresh=fresh)

    def loss(self, batch: Asked) -> dict[str, Tensor]:
        """The loss of a part of what is learned from; before the first part, all is drawn."""
        objective = self.objective
        if batch.part == 0:
            self._step = self._drawn_and_scored(batch)
        step = self._step
        assert step is not None
        size = len(step.rows) // batch.parts
        rows = slice(batch.part * size, (batch.part + 1) * size)
        of = step.rows[rows]
        x0, r, text, mask = step.x0[of], step.r[of], step.text[of], step.mask[of]
        level = NoiseLevel(*(part[rows] for part in step.level))
        x = interpolate(x0, step.fresh[rows], level.sigma)

        def velocity(adapter: str | tuple[()]) -> Latent:
            with self._acting(adapter):
                return self._velocity(self.module, x, text, level, mask).float()

        reference: Latent | None = None
        with torch.no_grad():
            old = velocity(OLD)
            if objective.reference_weight:
                reference = velocity(())
        learned = velocity(NAME)
        how = {"beta": objective.nft_beta, "most": objective.most_advantage}
        policy = nft_loss(learned, old, x, x0, level.sigma, r, **how).mean()
        found = {"loss": policy, "policy_loss": policy, **step.facts}
        if reference is not None:
            apart = (learned - reference).square().mean()
            found |= {"loss": policy + objective.reference_weight * apart, "from_start": apart}
        found["from_old"] = (learned.detach() - old).square().mean()
        return found

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """The mean reward of drawings of fixed prompts from fixed noise."""
        prompts = (self.held or self.prompts)[:EVALUATED]
        said: list[float] = []
        for first in range(0, len(prompts), EVALUATION_BATCH):
            some = prompts[first : first + EVALUATION_BATCH]
            noise = [seeded_noise(first + place, *self._latent_shape) for place in range(len(some))]
            pixels = self._evaluated(module, some, torch.cat(noise))
            for image, prompt in zip(to_pil(pixels), some, strict=True):
                said += scores_of(self.scorer, [image], prompt)
        return {"reward" if self.held else "seen_reward": float(np.mean(said))}

    def validation_grid(self, module: nn.Module) -> npt.NDArray[Any] | None:
        """A row for each prompt, a column for each seed; None after NaN."""
        noise = torch.cat([seeded_noise(seed, *self._latent_shape) for seed in SEEDS])
        try:
            rows = [self._evaluated(module, [prompt] * len(SEEDS), noise) for prompt in self.shown]
        except NumericsError:
            return None  # the run itself counts steps that are not finite
        return np.concatenate([np.concatenate([*row], axis=1) for row in rows], axis=0)

    def blocks(self) -> Iterator[nn.Module]:
        """The transformer's blocks."""
        yield from self.transformer.transformer_blocks.children()

    def checkpoint_gradients(self) -> None:
        """Recompute the transformer's blocks."""
        self.transformer.gradient_checkpointing = True

    @property
    def frozen(self) -> list[nn.Module]:
        """The networks beside ``module``; what a scorer holds is not known."""
        return [self.encoders.autoencoder, self.encoders.prompts.text_encoder]

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        config = self.transformer.config
        return config.in_channels, config.sample_size, config.sample_size

    def _prompt(self, seed: int, group: int) -> str:
        turn, place = divmod(group, len(self.prompts))
        return self.prompts[int(shuffled(len(self.prompts), seed, turn)[place])]

    def _encoded(self, prompts: Sequence[str], device: torch.device) -> tuple[Text, TextMask]:
        """States of each prompt, which are computed once for equal ones."""
        known = list(dict.fromkeys(prompts))
        text, mask = self.encoders.texts(known, device)
        rows = [known.index(prompt) for prompt in prompts]
        return text[rows], mask[rows]

    @torch.no_grad()
    def _follow(self, kept: float) -> None:
        """Let the old policy keep so much of itself, and take the rest of what was learned."""
        for layer in lora_layers(self.transformer).values():
            for factor in (layer.lora_A, layer.lora_B):
                old, new = factor[OLD].weight, factor[NAME].weight
                assert isinstance(old, Tensor)
                assert isinstance(new, Tensor)
                old.mul_(kept).add_(new, alpha=1 - kept)

    @contextmanager
    def _acting(self, adapter: str | tuple[()]) -> Iterator[None]:
        """Let one LoRA act inside the block, or none, and afterwards that which learns."""
        layers = lora_layers(self.transformer).values()
        try:
            for layer in layers:
                layer.set_adapter(adapter)
            yield
        finally:
            for layer in layers:
                layer.set_adapter(NAME)

    @torch.no_grad()
    def _drawn_and_scored(self, batch: Asked) -> Learned:
        """Draw by the old policy, as many at a time as are in a part; score; choose."""
        assert self._text is not None
        text, mask = self._text
        objective, count = self.objective, len(batch.prompts)
        group = min(objective.group, count)
        latents, scores, pending = list[Latent](), list[float](), list[Pixels]()
        size = count // batch.parts
        for first in range(0, count, size):
            rows = slice(first, first + size)
            with self._acting(OLD):
                latents.append(
                    self._drawn(
                        self.module,
                        text[rows],
                        mask[rows],
                        batch.noise[rows],
                        objective.drawing_steps,
                    )
                )
            pending += [*self._decoded(latents[-1])]
            while len(pending) >= group:
                images, pending = to_pil(np.stack(pending[:group])), pending[group:]
                scores += scores_of(self.scorer, images, batch.prompts[len(scores)])
        x0 = torch.cat(latents)
        rewards = torch.tensor(scores, dtype=torch.float64, device=x0.device).view(-1, group)
        r = advantages(rewards, objective.most_advantage)
        keep = min(objective.keep or group, group)
        starts = torch.arange(0, count, group, device=x0.device).unsqueeze(1)
        kept = (starts + best_and_worst(rewards, keep)).flatten()
        places = batch.places[kept].flatten()
        grid = self.defaults.scheduler.grid(objective.drawing_steps)
        level = NoiseLevel(*(each.to(x0)[places] for each in (grid.sigmas, grid.timesteps)))
        deviation = rewards.std(dim=1, unbiased=False).mean()
        return Learned(
            x0=x0,
            r=r.flatten().float(),
            text=text,
            mask=mask,
            rows=kept.repeat_interleave(objective.levels),
            level=level,
            fresh=batch.fresh[kept].flatten(0, 1),
            facts={"reward": rewards.mean().float(), "reward_deviation": deviation.float()},
        )

    def _evaluated(self, module: nn.Module, prompts: Sequence[str], noise: Latent) -> Pixels:
        device = next(module.parameters()).device
        text, mask = self._encoded(prompts, device)
        steps = self.objective.evaluation_steps
        return self._decoded(self._drawn(module, text, mask, noise.to(device), steps))

    def _drawn(
        self, module: nn.Module, text: Text, mask: TextMask, noise: Latent, steps: int
    ) -> Latent:
        """Latents that the model draws without guidance."""
        scheduler = self.defaults.scheduler

        def velocity(x: Latent, level: NoiseLevel) -> Latent:
            told = NoiseLevel(*(part.to(x.device).expand(len(x)) for part in level))
            return self._velocity(module, x, text, told, mask).float()

        return integrate(scheduler.solver.step, velocity, noise, scheduler.grid(steps))

    def _decoded(self, latents: Latent) -> Pixels:
        autoencoder = self.encoders.autoencoder.to(latents.device)
        with torch.autocast(latents.device.type, enabled=False):
            return decode_pixels(autoencoder, latents)

    def _velocity(
        self, module: nn.Module, x: Latent, text: Text, level: NoiseLevel, mask: TextMask
    ) -> Latent:
        timestep = level.timestep * self.transformer.config.timestep_scale
        # By the module itself: what wraps it, DDP or FSDP, acts on its forward pass alone.
        found: Latent = module(x, text, timestep, encoder_attention_mask=mask, return_dict=False)[0]
        return found[:, : x.shape[1]]


@dataclass(frozen=True, kw_only=True)
class RewardData:
    """The arguments of a run; ``resolution`` and ``index`` are found out when it begins."""

    data: str
    """A text file with a prompt a line, or a set, whose captions are the prompts."""
    start: str
    reward: Sequence[str]
    held: str | None = None
    prompts: Sequence[str] = ()
    resolution: int | None = None
    """About the side of the pictures, px: as the model draws them."""
    index: str | None = None
    """Identifies the prompts and their order."""


def usual_loop() -> LoopConfig:
    """The loop of a run where no setting is given.

    Rate, optimizer and clipping are the published ones; published steps are of 48 groups.
    """
    return LoopConfig(
        batch_size=96,
        total_images=9_600,
        peak_lr=3e-4,
        schedule="constant",
        weight_decay=1e-4,
        betas=(0.9, 0.999),
        grad_clip=1.0,
        accumulation=12,
        log_every=1,
        evaluate_every=10,
        pictures_every=10,
    )


def new_run(typed: Mapping[str, Any], pairs: Sequence[str] = ()) -> RunConfig:
    """A run from arguments by name, None for those not given, and ``key=value`` settings.

    Raises:
        ConfigError: an argument that is missing, or settings that break a rule. DataError: no
            prompts.
    """
    given = lasting(typed)
    needed = {
        "data": "a text file with a prompt a line, or a set, whose captions are taken",
        "start": "the model to be trained: --from glyph, or --from MODEL",
        "reward": "what says how good a drawing is: FILE.py:function, module:function, or a model "
        "of CLIP",
    }
    for name, hint in needed.items():
        if given.get(name) is None:
            option = "from" if name == "start" else name
            raise ConfigError(f"--{option} is missing", hint=hint)
    prompts_of(given["data"])  # before a model is fetched
    run = RunConfig(what=WHAT, data=given, objective=RewardObjective(), loop=usual_loop())
    run = run.with_settings(pairs)
    _check_split(run.loop.batch_size, run.loop.accumulation, run.objective)
    return run


OBJECTIVE = RewardObjective


def build(
    run: RunConfig, scorer: Scorer | None = None, *, report: Report = print
) -> tuple[RewardRecipe, RunConfig]:
    """Load, check and put together; the run comes back with what was found out of its model.

    Without ``scorer`` it is the one that the run names.

    Raises:
        ConfigError: settings or parts that do not go together. MissingModelError: no such model.
        DataError: no prompts. WeightsError: damaged weights.
    """
    data, objective, loop = RewardData(**run.data), run.objective, run.loop
    if scorer is None:
        on_gpu = loop.device != "cpu" and torch.cuda.is_available()
        scorer = weighted_scorer(data.reward, device="cuda" if on_gpu else "cpu")
    prompts = prompts_of(data.data)
    held = () if data.held is None else prompts_of(data.held)
    index = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    if data.index not in (None, index):
        raise DataError(
            f"{data.data} holds other prompts than when the run began",
            hint="begin a new run from this one: --from RUN --out ANOTHER",
        )
    data = replace(
        data,
        index=index,
        resolution=_resolution(data.start),
        prompts=tuple(data.prompts) or tuple((held or prompts)[:SHOWN]),
    )
    begun = DiffusionData(data=data.data, start=data.start, resolution=data.resolution)
    parts = start_components(begun, FlowObjective(), device=loop.device, report=report)
    recipe = RewardRecipe(
        parts.transformer,
        Encoders(parts.autoencoder, parts.prompts),
        parts.defaults,
        scorer,
        prompts,
        objective,
        held=held,
        shown=data.prompts,
        seed=loop.seed,
    )
    learning = sum(p.numel() for p in parts.transformer.parameters() if p.requires_grad)
    report(
        f"{len(prompts):,} prompts; a LoRA of rank {objective.lora_rank} on {len(recipe.names)} "
        f"layers, {learning:,} weights learn"
    )
    return recipe, replace(run, data=asdict(data))


def finish(recipe: RewardRecipe, run: Path, *, report: Report) -> None:
    """Say how to draw with it; the last checkpoint is what it learned."""
    if speaks():
        report(f"draw: sanakit generate PROMPT --lora {run} --guidance 1")


def prompts_of(source: str) -> list[str]:
    """The different prompts of a text file, a line each but for # comments, or captions of a set.

    Raises:
        DataError: neither, none in it, or a file that is no text.
    """
    path = expanded(source)
    if path.is_file():
        try:
            lines = read_file(path).decode("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{source} is no text in UTF-8 ({error})") from error
        told = [line.strip() for line in lines if not line.lstrip().startswith("#")]
    else:
        folder = open_folder(shards_of(source))
        reader = ShardReader(folder)
        told = [
            caption.text.strip()
            for shard in folder.index().shards
            for row in range(shard.samples)
            for caption in reader.read(shard, row, image=False).captions
        ]
    found = [prompt for prompt in dict.fromkeys(told) if prompt]
    if not found:
        raise DataError(f"{source} holds no prompt", hint="a prompt a line, or a set with captions")
    return found


def _check_split(drawn: int, parts: int, objective: RewardObjective) -> None:
    """Refuse a rank's part of a step that is not whole groups, or does not split into its parts."""
    group = objective.group
    if drawn % group:
        raise ConfigError(
            f"batch_size: {drawn} drawings of a rank are no whole number of groups of {group}",
            hint=f"a multiple of {group} for each rank, or another --set group",
        )
    rows = drawn // group * (objective.keep or group) * objective.levels
    if rows % parts:
        raise ConfigError(
            f"accumulation={parts}: {rows} rows, of kept drawings and levels, do not split so",
            hint="use a divisor of it",
        )


def lasting_reward(spec: str) -> str:
    """The same with the whole path of a file or a folder, so that a run can go on from anywhere."""
    name, weight = weight_of(spec)
    file, colon, function = name.rpartition(":") if ".py:" in name else (name, "", "")
    path = expanded(file)
    name = f"{path.resolve() if path.exists() else file}{colon}{function}"
    return name if weight == 1 else f"{name}={weight:g}"


def _resolution(start: str) -> int:
    """About the side of the pictures that a model or a run draws, px."""
    if is_run(start):
        known = diffusion_run(start).data["resolution"]
        assert isinstance(known, int)
        return known
    folder = resolve_model(start)
    side = read_config(folder / "transformer", TransformerConfig).sample_size
    return side * read_config(folder / "vae", AutoencoderConfig).spatial_factor
