"""The text encoder's LLM: built without memory and filled, or the caller's own, made safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.initialization import no_init_weights

from sanakit.errors import ConfigError
from sanakit.models.text_encoder import TextEncoder
from sanakit.pipeline.components.types import LM_STEM
from sanakit.quant import bnb
from sanakit.quant.quantise import cast_real, is_quantised, quantise, restore
from sanakit.quant.recipe import BitsAndBytes, recipe_of
from sanakit.weights.load import load_strict
from sanakit.weights.store import CONFIG, read_json, read_quantization, read_weights

HEAD = "lm_head.weight"


def build_llm(folder: Path) -> PreTrainedModel:
    """Build the LLM on the meta device, eagerly attending: fused attention skips a softcap.

    Raises:
        MissingModelError: no config. ConfigError: not JSON.
    """
    read_json(folder / CONFIG)
    config = AutoConfig.from_pretrained(str(folder))
    if hasattr(config, "quantization_config"):  # ours to apply, from the same file
        del config.quantization_config
    # Buffers stay real: they are computed, not stored.
    with init_empty_weights(include_buffers=False), no_init_weights():
        llm: PreTrainedModel = AutoModel.from_config(config, attn_implementation="eager")
    return llm


def fill_llm(
    llm: PreTrainedModel,
    folder: Path,
    *,
    dtype: torch.dtype,
    variant: str | None,
    quantization: Any,
    device: torch.device,
) -> None:
    """Give the LLM its weights, as `networks.fill` does; a language model's head is left aside.

    Raises:
        MissingModelError, WeightsError, ConfigError: as there.
    """
    stored = read_quantization(folder)
    if stored is not None and quantization is not None:
        raise ConfigError(f"{folder}: is quantised already", hint="leave quantization_config out")
    asked = quantization if stored is None else stored
    recipe = None if asked is None else recipe_of(asked)
    raw = read_weights(
        folder, stem=LM_STEM, variant=variant, dtype=dtype if recipe is None else None
    )
    state = {name.removeprefix("model."): tensor for name, tensor in raw.items() if name != HEAD}
    del raw
    filled: list[str] = []
    if recipe is not None and stored is not None:
        filled = restore(llm, state, recipe, dtype=dtype, device=device, source=str(folder))
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    load_strict(llm, state, source=str(folder), filled=filled)
    del state
    llm.requires_grad_(False)
    if recipe is not None and stored is None:
        quantise(llm, recipe, dtype=dtype, device=device)
    if isinstance(recipe, BitsAndBytes):
        llm.config.quantization_config = recipe.to_json()
    nn.Module.to(llm, device)  # transformers' own refuses quantised models


def adopt_llm(given: Any, *, allow_unsafe: bool) -> TextEncoder:
    """Take a text encoder that the caller loaded, in place, and make it safe to run.

    Attention with a softcap is switched from sdpa, which skips it, to eager. Where a quantised
    model's other tensors are fp16 they become bf16: norms and embeddings of these models overflow
    in fp16, and it is what loading in 8 bits by the published example gives.

    Raises:
        ConfigError: something that is no decoder-only LLM, or an fp16 one that is not quantised.
    """
    llm = given.llm if isinstance(given, TextEncoder) else given
    if not isinstance(llm, PreTrainedModel):
        raise ConfigError(
            f"text_encoder is a {type(given).__name__}",
            hint="pass a model of transformers, e.g. from AutoModel.from_pretrained",
        )
    config = llm.config
    softcap = getattr(config, "attn_logit_softcapping", None)
    if softcap is not None and config._attn_implementation == "sdpa":
        llm.set_attn_implementation("eager")
    half = any(p.dtype == torch.float16 for p in llm.parameters())
    if half and not allow_unsafe:
        if not is_quantised(llm):
            raise ConfigError(
                "text_encoder in float16 overflows: pictures come out black or grey",
                hint="load it with torch_dtype=torch.bfloat16; allow_unsafe_dtype=True overrides",
            )
        cast_real(llm, torch.bfloat16)
    bnb.settle(llm)
    return given if isinstance(given, TextEncoder) else TextEncoder(llm)
