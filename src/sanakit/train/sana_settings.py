"""What a diffusion run on one's own pictures can be told, beside what its loop is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from sanakit.data.caption_choice import CaptionChoice, Rule
from sanakit.errors import ConfigError
from sanakit.train.lora import USUAL_TARGETS
from sanakit.train.settings import LoopConfig, with_overrides

Levels = Literal["logit-normal", "uniform"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SanaSettings:
    """The loss, the captions, and what is trained. Defaults are the published recipe's."""

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
    lora_rank: int = 0
    """0: all weights are trained."""
    lora_alpha: float | None = None
    """None: the rank, so that the factor is one."""
    lora_targets: tuple[str, ...] = USUAL_TARGETS
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen weights under a LoRA; bfloat16 halves their memory."""
    interpolation_scale: float | Literal["keep", "auto"] | None = "auto"
    """Of positional encoding: a number turns it on, null off; auto turns it on for pictures of 2048
    px and more where the model has none, keep leaves the model as it is."""
    caption_gain: float = 0.01
    """What the caption norm's weights begin at, from scratch."""

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
        if self.lora_rank < 0:
            raise ConfigError(f"lora_rank={self.lora_rank} must be at least 0")
        if not self.lora_rank:
            for name in ("lora_alpha", "lora_targets", "base_dtype"):
                if getattr(self, name) != SANA_DEFAULTS[name]:
                    raise ConfigError(
                        f"{name} has no meaning where all weights are trained",
                        hint="train a LoRA: --lora 16",
                    )
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


SANA_DEFAULTS = {"lora_alpha": None, "lora_targets": USUAL_TARGETS, "base_dtype": "float32"}
NAMES = {field.name for field in fields(SanaSettings)}


def split_settings(pairs: Sequence[str]) -> tuple[list[str], list[str]]:
    """``key=value`` texts for `SanaSettings`, and all others, which are the loop's.

    Raises:
        ConfigError: a key that neither knows.
    """
    loop = {field.name for field in fields(LoopConfig)}
    for pair in pairs:
        key = pair.partition("=")[0]
        if key not in NAMES | loop:
            known = ", ".join([*sorted(NAMES), *sorted(loop)])
            raise ConfigError(f"--set {pair}: no setting {key!r}", hint=f"known: {known}")
    mine = [pair for pair in pairs if pair.partition("=")[0] in NAMES]
    return mine, [pair for pair in pairs if pair not in mine]


def sana_settings(pairs: Sequence[str], *, lora: int | None = None) -> SanaSettings:
    """Settings from ``key=value`` texts; ``lora`` is a rank.

    Raises:
        ConfigError: as `with_overrides`, or a value that breaks a rule.
    """
    ranked = [] if lora is None else [f"lora_rank={lora}"]
    return with_overrides(SanaSettings(), [*ranked, *pairs])


def usual_loop(*, width: int, lora: bool, scratch: bool) -> LoopConfig:
    """How a run steps where nobody says; rates fall with the transformer's ``width``.

    From scratch: the published recipe (reference 2.5). Fine-tuning: what the embedded model was
    found to learn thirty pictures with (docs/training.md).
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
