"""A model folder becomes the parts of a pipeline, and goes back to disk in the published layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.initialization import no_init_weights

from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AutoencoderConfig, TransformerConfig
from sanakit.models.text_encoder import TextEncoder
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.prompt import COMPLEX_HUMAN_INSTRUCTION, PromptEncoder
from sanakit.pipeline.schedulers import (
    DPMSolverMultistepScheduler,
    Scheduler,
    read_scheduler,
)
from sanakit.weights.atomic import write_atomically
from sanakit.weights.embedded import INDEX, resolve_model
from sanakit.weights.load import load_strict
from sanakit.weights.store import (
    Storage,
    read_config,
    read_json,
    read_weights,
    write_config,
    write_weights,
)

LM_STEM = "model"
PUBLISHED_SCHEDULER = DPMSolverMultistepScheduler(flow_shift=3.0)
PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What a model expects of a caller who says nothing; ``_sanakit`` in ``model_index.json``."""

    instruction: tuple[str, ...] | None = COMPLEX_HUMAN_INSTRUCTION
    guidance_scale: float = 4.5
    scheduler: Scheduler = PUBLISHED_SCHEDULER


@dataclass(frozen=True, kw_only=True)
class Components:
    """The networks of one model, ready to run. Nothing in here changes from call to call."""

    transformer: LinearDiT
    autoencoder: Autoencoder
    prompts: PromptEncoder
    habits: Habits = field(default_factory=Habits)
    name: str = "unnamed"
    fingerprint: str = ""


def load_components(
    name_or_folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    text_dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    variant: str | None = None,
) -> Components:
    """Load all parts of a model. Text encoder and autoencoder are never run in fp16.

    Args:
        name_or_folder: an embedded name, a folder in the published layout, or ``owner/name``.
        dtype: of the transformer.
        text_dtype: of the text encoder and the autoencoder; fp32 unless ``dtype`` is 16 bit, then
            bf16: fp16 overflows in both.
        device: where all parts go.
        variant: the ``fp16`` of ``diffusion_pytorch_model.fp16.safetensors``.

    Raises:
        MissingModelError: nothing of that name. WeightsError: files that are damaged or misfit.
        ConfigError: a config that cannot be built.
    """
    folder = resolve_model(name_or_folder)
    index = read_json(folder / INDEX)
    if text_dtype is None:
        text_dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16
    if text_dtype == torch.float16:
        raise ConfigError(
            "text encoder and autoencoder overflow in float16",
            hint="pass bfloat16 or float32; the transformer alone may be float16",
        )
    transformer_config = read_config(folder / "transformer", TransformerConfig)
    autoencoder_config = read_config(folder / "vae", AutoencoderConfig)
    with torch.device("meta"):
        transformer = LinearDiT(transformer_config)
        autoencoder = Autoencoder(autoencoder_config)
    _fill(transformer, folder / "transformer", dtype, variant)
    _fill(autoencoder, folder / "vae", text_dtype, variant)
    habits = _habits(folder, index)
    llm = _load_llm(folder / "text_encoder", text_dtype)
    if llm.config.hidden_size != transformer_config.caption_channels:
        raise ConfigError(
            f"{folder}: the text encoder gives {llm.config.hidden_size} channels, the transformer "
            f"takes {transformer_config.caption_channels}",
            hint="the two parts are of different models",
        )
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer"))
    prompts = PromptEncoder(tokenizer, TextEncoder(llm), instruction=habits.instruction)
    for module in (transformer, autoencoder, prompts.text_encoder):
        module.eval().requires_grad_(False).to(device)
    return Components(
        transformer=transformer,
        autoencoder=autoencoder,
        prompts=prompts,
        habits=habits,
        name=str(name_or_folder),
        fingerprint=fingerprint(folder),
    )


def save_components(
    components: Components, folder: Path, *, storage: Storage = "as-is", **notes: str
) -> None:
    """Write a model in the published layout; the index, by which it is found, goes last."""
    folder.mkdir(parents=True, exist_ok=True)
    transformer, autoencoder = components.transformer, components.autoencoder
    write_config(folder / "transformer", transformer.config, "SanaTransformer2DModel")
    write_weights(folder / "transformer", transformer.state_dict(), storage=storage)
    write_config(folder / "vae", autoencoder.config, "AutoencoderDC")
    write_weights(folder / "vae", autoencoder.state_dict(), storage=storage)
    llm = components.prompts.text_encoder.llm
    llm.config.architectures = [type(llm).__name__]
    llm.config.save_pretrained(str(folder / "text_encoder"))
    write_weights(folder / "text_encoder", llm.state_dict(), stem=LM_STEM, storage=storage)
    components.prompts.tokenizer.save_pretrained(str(folder / "tokenizer"))
    habits = components.habits
    habits.scheduler.save_pretrained(folder / "scheduler")
    instruction = None if habits.instruction is None else list(habits.instruction)
    tokenizer_class = type(components.prompts.tokenizer).__name__
    index: dict[str, Any] = {
        "_class_name": "SanaPipeline",
        "_sanakit": {"instruction": instruction, "guidance_scale": habits.guidance_scale, **notes},
        "scheduler": ["diffusers", type(habits.scheduler).__name__],
        "text_encoder": ["transformers", type(llm).__name__],
        "tokenizer": ["transformers", tokenizer_class],
        "transformer": ["diffusers", "SanaTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderDC"],
    }
    _write_json(folder / INDEX, index)


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits that differ between models: size and both ends of every weights file."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}:{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def _fill(module: nn.Module, folder: Path, dtype: torch.dtype, variant: str | None) -> None:
    state = read_weights(folder, variant=variant)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    load_strict(module, state, source=str(folder))


def _load_llm(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Build the LLM eagerly attending: Gemma-2's softcap is skipped by fused attention."""
    read_json(folder / "config.json")
    config = AutoConfig.from_pretrained(str(folder))
    state = read_weights(folder, stem=LM_STEM)
    with no_init_weights():
        llm: PreTrainedModel = AutoModel.from_config(config, attn_implementation="eager")
    state = {name.removeprefix("model."): v.to(dtype) for name, v in state.items()}
    state.pop("lm_head.weight", None)
    load_strict(llm, state, source=str(folder))
    return llm


def _habits(folder: Path, index: Mapping[str, Any]) -> Habits:
    ours = index.get("_sanakit", {})
    instruction = ours.get("instruction", COMPLEX_HUMAN_INSTRUCTION)
    return Habits(
        instruction=None if instruction is None else tuple(instruction),
        guidance_scale=float(ours.get("guidance_scale", 4.5)),
        scheduler=read_scheduler(folder / "scheduler"),
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
