"""Which dtype each component of a checkpoint may run in: the published rule, kept in one place.

SANA's best known failure is a black picture: fp16 ends at 65504, and the activations of Gemma-2, of
DC-AE and of the transformers trained in bf16 go beyond it. fp16 for a whole model is therefore bf16
for its text encoder and VAE. Honoured, each call would fail in them first and then run copies in
bf16 (`pipeline.numerics`): the same picture for more time and memory. Who names such a part gets
fp16 for it, with a word; a transformer trained in bf16 is refused in fp16 before it is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from sanakit.errors import ConfigError, did_you_mean
from sanakit.models.config import FP16_END, TransformerConfig
from sanakit.models.published import say_once
from sanakit.weights.catalog import Checkpoint

COMPONENTS = ("transformer", "text_encoder", "vae", "controlnet")
OVERFLOWING = ("text_encoder", "vae")
"""Those that overflow in fp16 in every published model."""
SMALL = 100_000_000
"""Parameters up to which they do not: the embedded model's are nearer to fp32 in fp16 than in bf16,
by a factor of eight."""
KEYS = (*COMPONENTS, "default")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Where 16-bit kernels are both present and faster than fp32. On CPUs they are emulated on most
# machines; on MPS users report grey pictures in fp16 and bf16.
HALF_DEVICES = ("cuda", "xpu")

Requested = torch.dtype | Mapping[str, torch.dtype] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Dtypes:
    """The dtype of each component's weights."""

    transformer: torch.dtype
    text_encoder: torch.dtype
    vae: torch.dtype
    controlnet: torch.dtype = None  # type: ignore[assignment]  # the transformer's

    def __post_init__(self) -> None:
        if self.controlnet is None:
            object.__setattr__(self, "controlnet", self.transformer)


def resolve_dtypes(
    checkpoint: Checkpoint | None,
    requested: Requested,
    *,
    allow_unsafe: bool = False,
    device: str | torch.device = "cpu",
    overflowing: Collection[str] = OVERFLOWING,
) -> Dtypes:
    """Say in which dtype each component runs, from what was asked and what is known to work.

    - A single dtype is the transformer's. A control branch, text encoder and VAE follow it, except
      that fp16 means bf16 for the last two where they overflow in fp16.
    - A mapping names components, and ``default`` for those it does not name, which is then read
      like a single dtype. It is taken at its word: fp16 for text encoder or VAE is what they get,
      and it is said once that they overflow.
    - None, for a catalogued checkpoint on a GPU: the recommended dtype for the transformer, bf16
      for the others. On a CPU and on MPS: fp32 for all, right everywhere and on most CPUs faster
      than 16 bit; who is short of memory passes ``torch.bfloat16``. For other models: fp32.

    A transformer published for bf16 is refused in fp16. The other way round is allowed: bf16 holds
    fp16's range, at three bits less, and `as_trained` keeps values within it.

    Args:
        checkpoint: None for embedded models and local folders, whose transformer runs in any.
        requested: what the caller passed as ``torch_dtype``.
        allow_unsafe: the caller's ``allow_unsafe_dtype``: run what was asked for by name anyway.
        device: where the model will run; decides what None means.
        overflowing: which of `OVERFLOWING` do, as `overflowing_of` tells of networks.

    Raises:
        ConfigError: an unknown key, something that is no real dtype, or a refused request.
    """
    if isinstance(requested, Mapping):
        named = _checked_keys(requested)
    else:
        named = {} if requested is None else {"default": requested}
    for key, dtype in named.items():
        _check_dtype(key, dtype)
    default = named.pop("default", None)
    if default is None:
        usual, beside = _usual(checkpoint, torch.device(device).type)
    else:
        usual = default
        beside = default
    followed = {
        part: torch.bfloat16 if part in overflowing and beside == torch.float16 else beside
        for part in OVERFLOWING
    }
    steering = {} if default is None else {"controlnet": default}
    chosen = Dtypes(**{"transformer": usual, **steering, **followed, **named})
    if not allow_unsafe:
        _check_policy(checkpoint, chosen)
        for part in overflowing:
            if named.get(part) == torch.float16:
                tell_of_overflow(part)
    return chosen


def overflowing_of(**parts: nn.Module | None) -> list[str]:
    """Say which of these text encoders and VAEs overflow in fp16: all but small ones."""
    counts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in parts.items()
        if part is not None
    }
    return [name for name, count in counts.items() if count > SMALL]


def tell_of_overflow(part: str) -> None:
    """Say once that a part which is fp16 by its user's wish overflows in it."""
    say_once(
        f"{part} in float16 overflows: pipelines that meet it go on with a copy in bfloat16, which "
        f"takes time and memory; torch_dtype={{{part!r}: torch.bfloat16}} draws the same"
    )


def _usual(checkpoint: Checkpoint | None, device: str) -> tuple[torch.dtype, torch.dtype]:
    """The default dtypes: of the transformer, and of the other two."""
    if checkpoint is None or checkpoint.dtype is None or device not in HALF_DEVICES:
        return torch.float32, torch.float32
    return recommended(checkpoint), torch.bfloat16


def as_trained(config: TransformerConfig, checkpoint: Checkpoint | None) -> TransformerConfig:
    """Give the config of a published network the bound that its training in fp16 had.

    Published configs do not tell it; one that does, of ours, is as it says.
    """
    fp16 = checkpoint is not None and checkpoint.dtype == "float16"
    if not fp16 or config.attention_clip is not None:
        return config
    return replace(config, attention_clip=FP16_END)


def recommended(checkpoint: Checkpoint) -> torch.dtype:
    """Give the dtype that a checkpoint's transformer was published for; fp32 for autoencoders."""
    names = {"float16": torch.float16, "bfloat16": torch.bfloat16, None: torch.float32}
    return names[checkpoint.dtype]


def _checked_keys(requested: Mapping[str, torch.dtype]) -> dict[str, torch.dtype]:
    for key in requested:
        if key not in KEYS:
            raise ConfigError(
                f"torch_dtype names {key!r}, which is no component", hint=did_you_mean(key, KEYS)
            )
    return dict(requested)


def _check_dtype(key: str, dtype: object) -> None:
    if dtype not in DTYPES:
        where = "" if key == "default" else f" of {key}"
        raise ConfigError(
            f"torch_dtype{where} is {dtype!r}",
            hint="pass torch.float16, torch.bfloat16 or torch.float32, or a dict of them by "
            f"component ({', '.join(KEYS)}); 8 and 4 bit come with a quantization_config",
        )


def _check_policy(checkpoint: Checkpoint | None, chosen: Dtypes) -> None:
    if checkpoint is None or checkpoint.dtype != "bfloat16":
        return
    if chosen.transformer == torch.float16:
        raise ConfigError(
            f"{checkpoint.alias}: its transformer was trained in bfloat16 and overflows in float16",
            hint="pass torch_dtype=torch.bfloat16 (or float32); allow_unsafe_dtype=True overrides",
        )
