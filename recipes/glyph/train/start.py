"""What diffusion training begins with: the trained parts and a fresh transformer, as one model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import Gemma2Model

from recipes.glyph.train.language_model import LM_SHAPES, glyph_lm_config
from sanakit.errors import ConfigError, DataError, did_you_mean
from sanakit.models.config import TRANSFORMERS
from sanakit.models.init import grow_into, init_transformer
from sanakit.models.text_encoder import TextEncoder
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import (
    Components,
    GenerationDefaults,
    load_components,
    save_components,
)
from sanakit.pipeline.language_models import open_tokenizer
from sanakit.pipeline.prompts import PromptEncoder
from sanakit.pipeline.schedulers import DPMSolverMultistepScheduler
from sanakit.train.checkpoint import newest_weights
from sanakit.train.recipes.autoencoder_run import start_autoencoder
from sanakit.weights.store import load_strict

TEXT = "text"
"""Folder inside a data set: ``tokenizer/``, ``rows.npy`` and ``held.npy``."""
GUIDANCE = 5.0
FLOW_SHIFT = 2.0
"""Of 8 x 8 latents; 4 x 4 were learned well at 1. With twice the places a side, an outline is seen
through twice the noise (Esser et al. 2024, equation 23)."""
INSTRUCTION = "draw the subject, number, color, style and place of: "
"""The idea of the published instruction in one line: what an answer in pixels has to settle."""
M = TypeVar("M", bound=nn.Module)


def write_start(
    out: Path,
    data: Path,
    *,
    autoencoder: str,
    lm: Path,
    shape: str = "glyph",
    layers: int | None = None,
    side: int = 256,
    start: str | None = None,
    instruction: str = INSTRUCTION,
) -> None:
    """Write a model folder whose transformer has learned nothing yet.

    ``autoencoder`` is a run or a model, ``lm`` a run of the language model, ``side`` that of the
    pictures in px. ``start`` is a model whose transformer is taken, grown to ``layers`` blocks.

    Raises:
        ConfigError: an unknown shape. MissingModelError: a run has no checkpoint.
        DataError: there is no tokenizer. WeightsError: weights of another shape.
    """
    if shape not in LM_SHAPES:
        raise ConfigError(f"no shape {shape!r}", hint=did_you_mean(shape, list(LM_SHAPES)))
    restorer = start_autoencoder(autoencoder)
    channels = restorer.config.latent_channels
    tokenizer_folder = data / TEXT / "tokenizer"
    if not tokenizer_folder.is_dir():
        raise DataError(
            f"{tokenizer_folder} is missing", hint="run `python -m recipes.glyph tokenizer` first"
        )
    tokenizer = open_tokenizer(tokenizer_folder)
    llm = Gemma2Model._from_config(glyph_lm_config(shape), attn_implementation="eager")
    _trained(llm, lm)
    config = TRANSFORMERS[shape]
    config = replace(
        config,
        num_layers=config.num_layers if layers is None else layers,
        in_channels=channels,
        out_channels=channels,
        caption_channels=llm.config.hidden_size,
        sample_size=side // restorer.config.spatial_factor,
    )
    transformer = LinearDiT(config)
    init_transformer(transformer, generator=torch.Generator().manual_seed(0))
    # The published 0.01 tames LLMs whose states are large; ours has states of unit size, and at
    # 0.01 captions were hardly heard in 25,000 pictures (docs/research/lab-log.md).
    nn.init.ones_(transformer.caption_norm.weight)
    if start is not None:
        grow_into(transformer, load_components(start).transformer)
    lines = (instruction,) if instruction else None
    components = Components(
        transformer=transformer,
        autoencoder=restorer,
        prompts=PromptEncoder(tokenizer, TextEncoder(llm), instruction=lines),
        defaults=GenerationDefaults(
            instruction=lines,
            guidance_scale=GUIDANCE,
            scheduler=DPMSolverMultistepScheduler(flow_shift=FLOW_SHIFT),
        ),
    )
    save_components(components, out, licence="apache-2.0")


def _trained(module: M, run: Path) -> M:
    """Fill a module with the newest weights of a run, averaged ones where there are."""
    load_strict(module, newest_weights(run), source=str(run))
    return module
