"""Train a SANA transformer, or a LoRA of one, on one's own pictures.

Source of the loss: NVlabs/Sana train_scripts/train.py. Rectified flow, logit-normal levels, whole
timesteps; the null prompt is the text encoder's own from the first step, with its own mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sanakit.data.captions.choice import CaptionChoice, Rule
from sanakit.data.loader.batches import Batch as Read
from sanakit.errors import ConfigError, NumericsError
from sanakit.flow.grids import NoiseLevel, levels_at
from sanakit.flow.guidance import Guidance
from sanakit.flow.path import flow_matching_loss, interpolate, seeded_noise
from sanakit.flow.solvers import integrate
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import GenerationDefaults
from sanakit.pipeline.decoder import decode_pixels
from sanakit.pipeline.pixels import Pixels
from sanakit.shapes import Latent, PerSample, Text, TextMask
from sanakit.train.config import LoopConfig
from sanakit.train.mfu import SeenShapes, Shapes, counted
from sanakit.train.recipe import Recipe, Timers
from sanakit.train.recipes.encoders import Encoders
from sanakit.train.recipes.lora import USUAL_TARGETS
from sanakit.train.recipes.shard_dataset import ShardDataset
from sanakit.train.sample_schedule import SampleSchedule, generator_of, normal_of, uniform_of


class LossBins:
    """Means of per-sample losses in equal bins of sigma in [0, 1], summed over steps and ranks.

    ``sums`` is fp64 ``2 bins``, losses and counts, so that ranks need one message; it moves to the
    device of what is added first and never waits for it.

    Raises:
        ConfigError: no bin, or more than a hundred.
    """

    def __init__(self, bins: int = 10) -> None:
        if not 1 <= bins <= 100:
            raise ConfigError(f"bins={bins} must be between 1 and 100")
        self.sums = torch.zeros(2, bins, dtype=torch.float64)

    @torch.no_grad()
    def add(self, losses: Tensor, sigma: Tensor) -> None:
        """Count samples in: ``losses`` and ``sigma`` of shape ``b``; sigma 1 is in the last bin.

        A loss that is not finite is left out: its step is skipped, and it would hide all others.
        """
        self.sums = self.sums.to(losses.device)
        bins = self.sums.shape[1]
        index = (sigma.to(losses.device, torch.float64) * bins).long().clamp_(0, bins - 1)
        # A product and not a scatter: sums in a fixed order, on a GPU too.
        member = torch.nn.functional.one_hot(index, bins).double()
        finite = torch.isfinite(losses)
        values = torch.where(finite, losses, 0).double()
        self.sums += torch.stack([values, finite.double()]) @ member

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sum over ranks, in one message; every rank has the same means afterwards."""
        dist.all_reduce(self.sums, group=group)

    def means(self) -> dict[str, float]:
        """The mean loss of each bin that had samples, by names such as ``loss_sigma_0.3``."""
        bins = self.sums.shape[1]
        losses, counts = self.sums.tolist()
        return {
            f"loss_sigma_{index / bins:.3g}": loss / count
            for index, (loss, count) in enumerate(zip(losses, counts, strict=True))
            if count
        }

    def reset(self) -> None:
        """Forget everything, as after a line of the log."""
        self.sums.zero_()


Levels = Literal["logit-normal", "uniform"]
InterpolationScale: TypeAlias = float | Literal["keep", "auto"] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowObjective:
    """The loss and the captions. Defaults are the published recipe's."""

    flow_shift: float | None = None
    """Of the noise levels; None: as the model draws with."""
    levels: Levels = "logit-normal"
    level_mean: float = 0.0
    level_std: float = 1.0
    """Of the logit of a level, before the shift."""
    null_chance: float = 0.1
    """Share of samples that show the null prompt."""
    caption_rule: Rule = "softmax"
    caption_temperature: float = 1.0
    caption_threshold: float | None = None
    max_tokens: int = 300
    """Of a caption; what is beyond is cut off."""

    def __post_init__(self) -> None:
        if self.flow_shift is not None and not self.flow_shift > 0:
            raise ConfigError(f"flow_shift={self.flow_shift} must be more than 0")
        if not self.level_std > 0:
            raise ConfigError(f"level_std={self.level_std} must be more than 0")
        if self.levels == "uniform" and (self.level_mean, self.level_std) != (0.0, 1.0):
            raise ConfigError(
                "level_mean and level_std have no meaning for levels=uniform",
                hint="leave them out, or use levels=logit-normal",
            )
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens={self.max_tokens} must be at least 1")
        self.choice()

    def choice(self, *, null: bool = True) -> CaptionChoice:
        """How a caption is chosen; without ``null`` never the null prompt.

        Raises:
            ConfigError: settings that do not go together.
        """
        return CaptionChoice(
            rule=self.caption_rule,
            temperature=self.caption_temperature,
            threshold=self.caption_threshold,
            null_chance=self.null_chance if null else 0.0,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionObjective(FlowObjective):
    """What of the transformer is trained, beside the loss and the captions."""

    lora_rank: int = 0
    """0: all weights are trained."""
    lora_alpha: float | None = None
    """None: the rank, so that the factor is one."""
    lora_targets: tuple[str, ...] = USUAL_TARGETS
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen weights under a LoRA; bfloat16 halves their memory."""
    interpolation_scale: InterpolationScale = "auto"
    """Of positional encoding: a number turns it on, null off; auto turns it on for pictures of 2048
    px and more where the model has none, keep leaves the model as it is."""
    caption_gain: float = 0.01
    """What the caption norm's weights begin at, from scratch."""
    prior_weight: float = 1.0
    """Of the loss on pictures of what must not be forgotten, where there are any."""

    def __post_init__(self) -> None:
        FlowObjective.__post_init__(self)
        if self.lora_rank < 0:
            raise ConfigError(f"lora_rank={self.lora_rank} must be at least 0")
        if not self.prior_weight > 0:
            raise ConfigError(
                f"prior_weight={self.prior_weight} must be more than 0", hint="leave out --prior"
            )
        if not self.lora_rank:
            usual = {"lora_alpha": None, "lora_targets": USUAL_TARGETS, "base_dtype": "float32"}
            for name, value in usual.items():
                if getattr(self, name) != value:
                    raise ConfigError(
                        f"{name} has no meaning where all weights are trained",
                        hint="train a LoRA: --lora 16",
                    )


def usual_loop(*, width: int, lora: bool, scratch: bool) -> LoopConfig:
    """The loop of a run where no setting is given; rates fall with the transformer's ``width``.

    From scratch: the published recipe (NVlabs/Sana configs/sana_config). Fine-tuning: what the
    embedded model was found to learn thirty pictures with (docs/training.md).
    """
    if scratch:
        return LoopConfig(
            batch_size=256,
            total_images=50_000_000,
            peak_lr=1e-4,
            lr_rule="sqrt",
            schedule="constant",
            warmup_images=2_000 * 256,
            optimizer="came",
            betas=(0.9, 0.999, 0.9999),
            weight_decay=0.0,
            grad_clip=0.1,
            average_halflife=1_000_000,
            pictures_every=500,
        )
    # At SANA 1.6B it gives 2e-5 for all weights, the published rate, and 3.5e-4 for a LoRA.
    narrow = (384 / width) ** 1.5
    return LoopConfig(
        batch_size=16,
        total_images=4_800 if lora else 3_200,
        peak_lr=(5e-3 if lora else 3e-4) * narrow,
        warmup_images=320,
        decay_share=0.3,
        weight_decay=0.01,
        betas=(0.9, 0.99),
        average_halflife=None,
        log_every=20,
        evaluate_every=100,
        pictures_every=50,
    )


EVALUATED = 32
EVALUATION_BATCH = 8
STEPS = 20
"""Of the solver, for the validation grid."""
SEEDS = (0, 1)


@dataclass(frozen=True, kw_only=True)
class DiffusionBatch:
    """Pictures and captions of one size, and where on the path they are seen.

    As drawn it has ``pixels``, uint8 ``b H W 3``, and ``captions``, or what was computed of them in
    advance; as prepared it has scaled latents ``x0``, states ``text`` and their ``mask``.
    """

    noise: Latent
    level: NoiseLevel
    ids: Sequence[str] = ()
    source: str = ""
    """Tells pictures of one id apart, where they come from several sets."""
    captions: Sequence[str] = ()
    pixels: Tensor | None = None
    x0: Latent | None = None
    text: Text | None = None
    mask: TextMask | None = None
    control: Latent | None = None
    """Of a control image, scaled as ``x0``."""
    prior: DiffusionBatch | None = None
    """As many samples of what must not be forgotten."""

    @property
    def names(self) -> list[str]:
        """What the pictures' latents are remembered by."""
        return [f"{self.source}{id}" for id in self.ids]


class DiffusionRecipe(Recipe[DiffusionBatch]):
    """Velocity regression on latents; ``module`` is the transformer, whose weights or LoRA learn.

    With ``tune_text`` the text encoder learns along, and ``module`` is a `ModuleDict` of both.

    ``held`` are pictures to measure on; without them some that are trained on are taken, and the
    measure is called ``seen_loss``. ``prompts`` are what the validation grid is drawn from.
    ``prior`` are pictures of what must not be forgotten (DreamBooth, arXiv 2208.12242, equation 2):
    with each batch as many of them are seen, and their loss is added.
    """

    def __init__(
        self,
        transformer: LinearDiT,
        encoders: Encoders,
        defaults: GenerationDefaults,
        pictures: ShardDataset,
        objective: FlowObjective,
        *,
        held: ShardDataset | None = None,
        prior: ShardDataset | None = None,
        prompts: Sequence[str] = (),
        tune_text: bool = False,
    ) -> None:
        self.transformer, self.encoders, self.defaults = transformer, encoders, defaults
        self.module: nn.Module = transformer
        self.llm: Any = None
        if tune_text:
            self.llm = llm = encoders.prompts.text_encoder.published()
            self.module = nn.ModuleDict({"transformer": transformer, "text_encoder": llm})
            llm.requires_grad_(True)
        self.pictures, self.held, self.prior = pictures, held, prior
        self.objective, self.shards = objective, pictures.shards
        self.prompts = tuple(prompts)
        shift = objective.flow_shift
        self.flow_shift = defaults.scheduler.flow_shift if shift is None else shift
        self.bins = LossBins()
        self._measured: list[DiffusionBatch] = []
        self._seen = SeenShapes(self._operations)

    def stream(self, schedule: SampleSchedule) -> Iterator[DiffusionBatch]:
        """A rank's part of each batch of the loader, in parts, with noise by sample number."""
        drawn = self._samples(self.pictures, schedule)
        if self.prior is None:
            yield from drawn
            return
        # Noise of their own: the pictures of one step would else be seen through the same.
        others = self._samples(self.prior, replace(schedule, seed=schedule.seed + 1))
        for batch, prior in zip(drawn, others, strict=True):
            yield replace(batch, prior=replace(prior, source=f"{self.prior.shards}: "))

    def _samples(
        self, pictures: ShardDataset, schedule: SampleSchedule
    ) -> Iterator[DiffusionBatch]:
        spans = schedule.spans()
        for batch in pictures.batches(schedule):
            for part in range(schedule.parts):
                rows = slice(part * schedule.size, (part + 1) * schedule.size)
                generators = [generator_of(schedule.seed, k) for k in next(spans)]
                level = levels_at(self._positions(generators), self.flow_shift)
                noise = normal_of(generators, *self._latent_shape(batch))
                yield drawn_rows(batch, rows, noise, level)

    def prepare(
        self, batch: DiffusionBatch, device: torch.device, timers: Timers
    ) -> DiffusionBatch:
        """Bring it to the device, with latents and text states, computed or read."""
        x0, text, mask = batch.x0, batch.text, batch.mask
        if x0 is None:
            assert batch.pixels is not None
            with timers("autoencoder"):
                x0 = self.encoders.latents(batch.names, batch.pixels, device)
        if (text is None or mask is None) and self.llm is None:
            with timers("text"):
                text, mask = self.encoders.texts(batch.captions, device)
        return DiffusionBatch(
            captions=batch.captions,
            noise=batch.noise.to(device),
            level=NoiseLevel(*(part.to(device) for part in batch.level)),
            x0=x0.to(device).float(),
            text=None if text is None else text.to(device).float(),
            mask=None if mask is None else mask.to(device),
            prior=None if batch.prior is None else self.prepare(batch.prior, device, timers),
        )

    def loss(self, batch: DiffusionBatch) -> dict[str, Tensor]:
        """Mean squared velocity error; by noise level too, see :meth:`log_extras`."""
        errors = self._errors(self.module, batch, seen=True)
        self.bins.add(errors.detach(), batch.level.sigma)
        if batch.prior is None:
            return {"loss": errors.mean()}
        assert isinstance(self.objective, DiffusionObjective)
        own, prior = errors.mean(), self._errors(self.module, batch.prior).mean()
        total = own + self.objective.prior_weight * prior
        return {"loss": total, "own_loss": own.detach(), "prior_loss": prior.detach()}

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """The same loss on fixed pictures with fixed noise, at levels evenly over the path."""
        device = next(module.parameters()).device
        if not self._measured:
            self._measured = [self.prepare(b, device, Timers(device)) for b in self._fixed()]
        errors = torch.cat([self._errors(module, batch) for batch in self._measured])
        return {"loss" if self.held else "seen_loss": float(errors.mean())}

    def blocks(self) -> Iterator[nn.Module]:
        """The transformer's blocks."""
        yield from self.transformer.transformer_blocks.children()
        if self.llm is not None:
            yield from self.llm.get_submodule("layers").children()

    def checkpoint_gradients(self) -> None:
        """Recompute the transformer's blocks."""
        self.transformer.gradient_checkpointing = True
        if self.llm is not None:
            self.llm.gradient_checkpointing_enable({"use_reentrant": False})

    def log_extras(self) -> dict[str, float]:
        """Mean losses of ten bins of sigma since the last line, over all ranks."""
        if dist.is_initialized():
            self.bins.all_reduce()
        means = {name: round(value, 4) for name, value in self.bins.means().items()}
        self.bins.reset()
        return means

    def validation_grid(self, module: nn.Module) -> npt.NDArray[Any] | None:
        """A row for each prompt, a column for each seed; None without prompts, or after NaN."""
        if not self.prompts:
            return None
        rows = [self._drawn_of(module, prompt) for prompt in self.prompts]
        whole = [np.concatenate(row, axis=1) for row in rows if row is not None]
        return np.concatenate(whole, axis=0) if len(whole) == len(rows) else None

    def flops(self) -> float:
        """Of the transformer without adapters, at the shapes that :meth:`loss` has seen."""
        return self._seen.mean() * (1 if self.prior is None else 2)

    @property
    def frozen(self) -> list[nn.Module]:
        """The networks beside ``module``."""
        text = [] if self.llm is not None else [self.encoders.prompts.text_encoder]
        return [self.encoders.autoencoder, *text]

    def _operations(self, shapes: Shapes) -> float:
        def forward() -> Tensor:
            x, text = (torch.zeros(1, *shape) for shape in shapes)
            mask = torch.ones(text.shape[:2], dtype=torch.bool)
            network = LinearDiT(self.transformer.config)
            velocity: Tensor = network.velocity(x, torch.zeros(1), text, mask)
            return velocity

        return counted(forward)

    def _drawn_of(
        self, module: nn.Module, prompt: str, control: Latent | None = None
    ) -> Pixels | None:
        """A picture ``H W 3`` uint8 for each seed; None if a number is not finite.

        Not by the pipeline, which projects texts outside of the network's forward pass: there, FSDP
        has no whole weights.
        """
        device = next(module.parameters()).device
        autoencoder = self.encoders.autoencoder.to(device)
        config = self.transformer.config
        side = config.sample_size
        size = (side, side) if control is None else control.shape[-2:]
        noise = [seeded_noise(seed, config.in_channels, *size) for seed in SEEDS]
        guidance = Guidance(guidance_scale=self.defaults.guidance_scale)
        text, mask = self.encoders.texts([prompt, ""], device)
        text, mask = (each.repeat_interleave(len(SEEDS), dim=0) for each in (text, mask))
        learned = module["transformer"] if isinstance(module, nn.ModuleDict) else module
        if control is not None:
            control = control.expand(len(text), *control.shape[1:])

        def velocity(x: Latent, level: NoiseLevel) -> Latent:
            timestep = (level.timestep * config.timestep_scale).to(device)
            twice = x.repeat(2, 1, 1, 1)
            both = self._velocity(learned, twice, text, timestep.expand(len(text)), mask, control)
            cond, uncond = both[:, : x.shape[1]].float().chunk(2)
            return guidance.combine(level, cond, uncond=uncond, perturbed=None)

        scheduler = self.defaults.scheduler
        latent = integrate(
            scheduler.solver.step, velocity, torch.cat(noise).to(device), scheduler.grid(STEPS)
        )
        try:
            with torch.autocast(device.type, enabled=False):
                return decode_pixels(autoencoder, latent)
        except NumericsError:
            return None  # the run itself counts steps that are not finite

    def _errors(self, module: nn.Module, batch: DiffusionBatch, *, seen: bool = False) -> PerSample:
        assert batch.x0 is not None
        text, mask, transformer = batch.text, batch.mask, module
        if isinstance(module, nn.ModuleDict):
            transformer, llm = module["transformer"], module["text_encoder"]
            text, mask = self.encoders.texts_with_gradient(llm, batch.captions, batch.x0.device)
        assert text is not None
        if seen:
            self._seen.add(len(batch.x0), batch.x0.shape[1:], text.shape[1:])
        x = interpolate(batch.x0, batch.noise, batch.level.sigma)
        timestep = batch.level.timestep * self.transformer.config.timestep_scale
        # By the module itself: what wraps it, DDP or FSDP, acts on its forward pass alone.
        velocity = self._velocity(transformer, x, text, timestep, mask, batch.control)
        return flow_matching_loss(velocity[:, : x.shape[1]], batch.x0, batch.noise)

    def _velocity(
        self,
        module: nn.Module,
        x: Latent,
        text: Text,
        timestep: PerSample,
        mask: TextMask | None,
        control: Latent | None,
    ) -> Latent:
        """What the networks say, ``module`` being the one that learns."""
        velocity: Latent = module(
            x, text, timestep, encoder_attention_mask=mask, return_dict=False
        )[0]
        return velocity

    def _positions(self, generators: list[torch.Generator]) -> Tensor:
        """Places in [0, 1] of the path before its shift, one for each sample."""
        objective = self.objective
        if objective.levels == "uniform":
            return uniform_of(generators)
        return torch.sigmoid(objective.level_mean + objective.level_std * normal_of(generators))

    def _latent_shape(self, batch: Read) -> tuple[int, int, int]:
        factor = self.encoders.autoencoder.config.spatial_factor
        return self.transformer.config.in_channels, batch.height // factor, batch.width // factor

    def _fixed(self) -> Iterator[DiffusionBatch]:
        """The first pictures in an order of their own; never the null prompt."""
        source = replace(self.held or self.pictures, captions=self.objective.choice(null=False))
        generator = torch.Generator().manual_seed(0)
        schedule = SampleSchedule(seed=1, batch_size=EVALUATION_BATCH)
        count = EVALUATED // EVALUATION_BATCH
        levels = (torch.arange(EVALUATED) + 0.5) / EVALUATED
        for number, batch in enumerate(islice(source.batches(schedule), count)):
            sigma = levels[number::count]
            shape = (EVALUATION_BATCH, *self._latent_shape(batch))
            noise = torch.randn(shape, generator=generator)
            level = NoiseLevel(sigma, (1000 * sigma).floor())
            drawn = drawn_rows(batch, slice(None), noise, level)
            yield replace(drawn, source=f"{source.shards}: ")


def drawn_rows(batch: Read, rows: slice, noise: Latent, level: NoiseLevel) -> DiffusionBatch:
    """Some samples of a batch that was read."""

    def some(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[rows]

    return DiffusionBatch(
        noise=noise,
        level=level,
        ids=batch.ids[rows],
        captions=batch.captions[rows],
        pixels=some(batch.pixels),
        x0=some(batch.latents),
        text=some(batch.text),
        mask=some(batch.text_mask),
    )
