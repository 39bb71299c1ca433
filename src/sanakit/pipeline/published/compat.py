"""Where the two published stacks differ: diffusers, and NVlabs' own, which the weights come from.

Besides what is here, prompts are lower-cased by diffusers alone, and the null text wears the
prompt's mask in NVlabs' stack alone; both are in `prompt`. Source: diffusers
src/diffusers/pipelines/sana/pipeline_sana.py; NVlabs/Sana
diffusion/model/nets/sana_multi_scale.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from sanakit.errors import ConfigError, did_you_mean
from sanakit.models.config import TRANSFORMERS, TransformerConfig
from sanakit.pipeline.components import GenerationDefaults
from sanakit.pipeline.prompts import COMPLEX_HUMAN_INSTRUCTION, Compat, instruction_lines
from sanakit.pipeline.schedulers import Scheduler

COMPATS: tuple[Compat, ...] = ("diffusers", "nvlabs")
# Its native config samples at 4; every converted folder says 3.
_SMALL = TRANSFORMERS["sana-0.6b"]
_SMALL_SHIFT = 4.0
_CONVERTED_SHIFT = 3.0


def check_compat(value: str) -> Compat:
    """Give ``value`` if it names a stack.

    Raises:
        ConfigError: naming the nearest stack.
    """
    for known in COMPATS:
        if value == known:
            return known
    hint = did_you_mean(str(value).lower(), COMPATS)
    raise ConfigError(f"compat={value!r} is unknown", hint=hint)


def instruction_as(instruction: Sequence[str] | None, compat: Compat) -> Sequence[str] | None:
    """Quote the published instruction as the stack does; any other stays as it is."""
    if compat == "nvlabs" and instruction == COMPLEX_HUMAN_INSTRUCTION:
        return instruction_lines("double")
    return instruction


def scheduler_as(
    defaults: GenerationDefaults, config: TransformerConfig, compat: Compat
) -> Scheduler:
    """Give a model's scheduler: NVlabs samples SANA 1.0 0.6B at 1024 px with a flow shift of 4."""
    scheduler = defaults.scheduler
    small = (
        config.width == _SMALL.width
        and config.sample_size == _SMALL.sample_size
        and config.qk_norm is None
        and not config.guidance_embeds
    )
    if compat == "nvlabs" and small and scheduler.flow_shift == _CONVERTED_SHIFT:
        return scheduler.shifted(_SMALL_SHIFT)
    return scheduler
