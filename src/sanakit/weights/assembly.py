"""Converted parts and the rest of another model, put together as one published folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sanakit.errors import ConfigError
from sanakit.models.config import AutoencoderConfig, TransformerConfig, config_to_dict
from sanakit.weights.atomic import write_atomically
from sanakit.weights.component_files import copy_other_files, weight_files, write_variant
from sanakit.weights.embedded import INDEX
from sanakit.weights.parts import BRANCH, Part
from sanakit.weights.store import CONFIG, read_json

SCHEDULER, SCHEDULER_CONFIG = "scheduler", "scheduler_config.json"
# What a transformer's config has and a published control branch's has not.
NOT_OF_BRANCHES = ("guidance_embeds", "guidance_embeds_scale", "qk_norm", "timestep_scale")
# Published shifts by the side of the latent grid; source: reference 2.2.
FLOW_SHIFTS = {16: 3.0, 32: 3.0, 64: 3.0, 128: 6.0}
SPRINT, CONTROLLED = "SanaSprintPipeline", "SanaControlNetPipeline"
SCM: Mapping[str, Any] = {
    "_class_name": "SCMScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "trigflow",
    "sigma_data": 0.5,
}


def write_part_config(folder: Path, part: Part) -> None:
    """Write ``config.json`` with the fields that its published class has."""
    fields = config_to_dict(part.config)
    if part.class_name == BRANCH:
        fields = {name: value for name, value in fields.items() if name not in NOT_OF_BRANCHES}
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / CONFIG, {"_class_name": part.class_name, **fields})


def assembled(
    base: Path,
    folder: Path | None,
    parts: tuple[Part, ...],
    *,
    variant: str | None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Fill ``folder``, which holds ``parts`` already, with what else a model needs, from ``base``.

    The scheduler becomes that of the transformer: its published shift, or SCM for Sprint models.
    With ``folder`` None only check that base and parts fit together.

    Raises:
        ConfigError: widths of text or latent that differ, or a base of another sampler.
    """
    index = read_json(base / INDEX)
    new = {part.folder: part for part in parts}
    _check_fit(base, index, new)
    components = {
        name: value
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and all(value)
    }
    files = {name: weight_files(base / name) for name in components if name not in new}
    if folder is None:
        return
    for name, weights in files.items():
        report(f"copying {name}")
        copy_other_files(base / name, folder / name)
        if weights is not None:
            write_variant(folder / name, weights.read(), stem=weights.stem, variant=variant)
    index |= {name: ["diffusers", part.class_name] for name, part in new.items()}
    if "controlnet" in new:
        index["_class_name"] = CONTROLLED
    if "transformer" in new:
        _write_scheduler(folder, index, new["transformer"])
    _write_json(folder / INDEX, index)


def _write_scheduler(folder: Path, index: dict[str, Any], transformer: Part) -> None:
    config = transformer.config
    assert isinstance(config, TransformerConfig)
    path = folder / SCHEDULER / SCHEDULER_CONFIG
    if config.guidance_embeds:
        index["_class_name"] = SPRINT
        index[SCHEDULER] = ["diffusers", SCM["_class_name"]]
        _write_json(path, SCM)
        return
    scheduler = read_json(path)
    shift = FLOW_SHIFTS.get(config.sample_size)
    if shift is not None and transformer.presets:
        scheduler |= {key: shift for key in ("flow_shift", "shift") if key in scheduler}
        _write_json(path, scheduler)


def _check_fit(base: Path, index: Mapping[str, Any], new: Mapping[str, Part]) -> None:
    transformer = new["transformer"].config if "transformer" in new else None
    if isinstance(transformer, TransformerConfig):
        text = read_json(base / "text_encoder" / CONFIG).get("hidden_size")
        if text != transformer.caption_channels:
            raise ConfigError(
                f"{base}: its text encoder gives {text} channels, the transformer takes "
                f"{transformer.caption_channels}",
                hint="give a base with the text encoder that the model was trained with",
            )
        sprint = index.get("_class_name") == SPRINT
        if sprint and not transformer.guidance_embeds:
            raise ConfigError(
                f"{base}: is a Sprint model, its scheduler cannot sample this transformer",
                hint="give a base that is not distilled",
            )
        channels = transformer.in_channels
    else:
        channels = int(read_json(base / "transformer" / CONFIG).get("in_channels", 32))
    vae = new["vae"].config if "vae" in new else None
    latent = (
        vae.latent_channels
        if isinstance(vae, AutoencoderConfig)
        else read_json(base / "vae" / CONFIG).get("latent_channels")
    )
    if latent != channels:
        raise ConfigError(
            f"{base}: its autoencoder has {latent} latent channels, its transformer {channels}"
            if not new.keys() & {"vae", "transformer"}
            else f"the autoencoder has {latent} latent channels, the transformer {channels}",
            hint="give a base of the same family",
        )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
