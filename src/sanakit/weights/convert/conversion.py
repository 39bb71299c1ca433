"""From original files to published folders and back: what `sanakit convert` plans, then does.

A plan reads and checks everything and writes nothing; carrying it out writes beside the target and
renames, so that a target is whole or not there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanakit.errors import ConfigError, DataError, MissingModelError, WeightsError
from sanakit.files import (
    check_parent,
    check_room,
    disk_errors,
    listed,
    names_in,
    read_json,
    replacing_folder,
    write_json,
)
from sanakit.models.config import (
    FP16_END,
    AutoencoderConfig,
    ControlBranchConfig,
    TransformerConfig,
    check_fit,
    config_to_dict,
)
from sanakit.models.tiny_decoder import TinyDecoderConfig
from sanakit.weights.catalog import checkpoint_of_file
from sanakit.weights.convert.gguf_file import SUFFIX
from sanakit.weights.convert.original_format import (
    AUTOENCODER,
    BRANCH,
    DECODER,
    FOLDERS,
    PICKLED,
    SAFE,
    TRANSFORMER,
    Config,
    OriginalModel,
    Part,
    original_state,
    read_file,
    read_original,
    unwrapped,
    write_original,
)
from sanakit.weights.dtypes import as_trained
from sanakit.weights.layout import (
    CONFIG,
    INDEX,
    LM_STEM,
    PICKLES,
    STEM,
    index_name,
    weights_name,
    whole_name,
)
from sanakit.weights.resolve import resolve_model
from sanakit.weights.store import (
    read_config,
    read_index,
    read_weights,
    tensor_bytes,
    write_config,
    write_weights,
)

Report = Callable[[str], object]
OF_ORIGINALS = ("base", "config", "average", "attention_clip")
"""Options that folders refuse."""
FP16 = (TRANSFORMER, BRANCH, DECODER)
"""What may be stored in fp16; the others overflow in it."""
CAST = ("transformer", "controlnet")
"""Components of a pipeline that ``dtype`` is for."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the caller may choose; the command line's options of the same names."""

    base: str | None = None
    config: str | None = None
    average: bool = False
    dtype: str | None = None
    variant: str | None = None
    force: bool = False
    attention_clip: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A conversion that was checked and not begun."""

    source: Path
    target: Path
    force: bool
    kind: str
    parts: tuple[dict[str, Any], ...]
    """For each component: name, class, presets, config, count of numbers, dtypes and bytes."""
    notes: tuple[str, ...]
    bytes: int
    """About how much will be written."""
    write: Callable[[Path, Report], None]
    """Fill a folder, or write a file, of the given name."""

    def summary(self) -> dict[str, Any]:
        """Give the plan as JSON-ready values."""
        return {
            "source": str(self.source),
            "target": str(self.target),
            "kind": self.kind,
            "parts": list(self.parts),
            "notes": list(self.notes),
            "bytes": self.bytes,
        }


def plan(source: Path, target: Path, options: Options) -> Plan:
    """Say what converting ``source`` to ``target`` would do, having read and checked all of it.

    A file becomes a component folder, or with ``base`` a model folder. A folder becomes an
    original file where ``target`` ends like one, else a folder of safetensors.

    Raises:
        WeightsError, ConfigError, MissingModelError: the source, the base or the options are at
            fault. DataError: the target is in the way or cannot be written.
    """
    _check_apart(source, target, "IN", inside=_is_file(target))
    if options.base is not None and Path(options.base).exists():
        _check_apart(Path(options.base), target, "--base")
    if _is_file(target):
        _check_file(target, force=options.force)
    else:
        _check_folder(target, force=options.force)
    from_folder = _to_file if _is_file(target) else _to_folder
    made = (from_folder if source.is_dir() else _from_file)(source, target, options)
    hint = "free some, or name another OUT"
    check_room(target.parent, made.bytes, what=target, hint=hint)
    return made


def _is_file(target: Path) -> bool:
    if target.suffix == SUFFIX:
        raise ConfigError(
            f"{target}: GGUF is read and not written", hint=f"name {target.with_suffix(SAFE)}"
        )
    return target.suffix in (*PICKLED, SAFE)


def carry_out(plan: Plan, report: Report = lambda line: None) -> None:
    """Do what was planned; the target is whole afterwards, or as it was.

    Raises:
        DataError: the disk refuses. WeightsError: a tensor that cannot be stored as asked.
    """
    if _is_file(plan.target):
        plan.write(plan.target, report)
    else:
        _check_folder(plan.target, force=plan.force)
        with disk_errors(plan.target), replacing_folder(plan.target) as staging:
            plan.write(staging, report)


def _from_file(source: Path, target: Path, options: Options) -> Plan:
    if _is_file(target):
        raise ConfigError(
            f"{target}: an original file becomes a folder, not another file",
            hint=f"name a folder: {target.with_suffix('')}",
        )
    model = read_original(source, config=options.config, average=options.average)
    model, notes = _bounded(model, source, options)
    if options.base is not None and model.kind == "decoder":
        raise ConfigError(
            f"--base {options.base}: a tiny decoder is no part of a model",
            hint="leave it out, and draw with --decoder OUT",
        )
    if options.base is not None:
        base = resolve_model(options.base)
        _check_apart(base, target, "--base")
        chosen = model.parts
    else:
        chosen = model.parts[:1]
        if len(model.parts) > 1:
            notes += ("the transformer in the same file was left out; --base writes both",)
    for part in chosen:
        _check_dtype(part.class_name, options.dtype)
        if isinstance(part.config, ControlBranchConfig):
            notes += ("its control branch is wired as the original, which diffusers is not",)

    def write(folder: Path, report: Report) -> None:
        for part in chosen:
            place = folder if options.base is None else folder / part.folder
            report(f"writing {part.folder}")
            write_config(place, part.config, part.class_name)
            state = _cast(part.state, options.dtype, source=part.folder)
            write_weights(place, state, stem=STEM, variant=options.variant)
        if options.base is not None:
            _complete(base, folder, chosen, variant=options.variant, report=report)

    if options.base is not None:  # before anything is written
        _complete(base, None, chosen, variant=options.variant)
        notes += (f"the other components come from {base}",)
    return Plan(
        source=source,
        target=target,
        force=options.force,
        kind=model.kind,
        parts=tuple(_described(part, options.dtype) for part in chosen),
        notes=notes,
        bytes=sum(_size(part.state, options.dtype) for part in chosen),
        write=write,
    )


def _bounded(
    model: OriginalModel, source: Path, options: Options
) -> tuple[OriginalModel, tuple[str, ...]]:
    """Give a network that was trained in fp16 its bound of attention, which no file tells."""
    if model.kind in ("autoencoder", "decoder"):
        _refuse(options, "attention_clip", why=f"{model.kind}s have no such bound")
        return model, model.notes
    published = checkpoint_of_file(source)
    parts = []
    for part in model.parts:
        assert isinstance(part.config, TransformerConfig)
        config = as_trained(part.config, published)
        if options.attention_clip is not None:
            config = replace(config, attention_clip=options.attention_clip)
        parts.append(replace(part, config=config))
    clip = config.attention_clip
    if clip is not None:
        note = f"self-attention is bounded by {clip:g} in every dtype, as in training"
    elif published is None:
        note = f"if it was trained in fp16, add --attention-clip {FP16_END:.0f}"
    else:
        return model, model.notes
    return replace(model, parts=tuple(parts)), (*model.notes, note)


def _to_file(source: Path, target: Path, options: Options) -> Plan:
    """Published folder to original file."""
    _refuse(options, *OF_ORIGINALS, why="a folder says itself what it is")
    main = source / "transformer" if (source / INDEX).is_file() else source
    class_name = str(read_json(main / CONFIG).get("_class_name"))
    if class_name == BRANCH:
        raise ConfigError(
            f"{source}: is a control branch alone; original ControlNet files hold its transformer",
            hint=f"name the model folder that holds both, with {INDEX} in it",
        )
    if class_name not in FOLDERS:
        raise ConfigError(
            f"{source}: {class_name} has no original format here",
            hint="transformers, control branches, autoencoders and tiny decoders have",
        )
    part = _published(main, class_name, options)
    branch = None
    notes: tuple[str, ...] = ()
    if main != source and (source / "controlnet").is_dir():
        branch = _published(source / "controlnet", BRANCH, options)
        notes = ("the original code wires every control branch in its own way",)
    parts = [part] if branch is None else [branch, part]
    state = original_state(part, branch, source=str(source))

    def write(path: Path, report: Report) -> None:
        report(f"writing {path.name}")
        write_original(path, _cast(state, options.dtype, source=str(source)))

    return Plan(
        source=source,
        target=target,
        force=options.force,
        kind=parts[0].folder,
        parts=tuple(_described(part, options.dtype) for part in parts),
        notes=notes,
        bytes=_size(state, options.dtype),
        write=write,
    )


def _to_folder(source: Path, target: Path, options: Options) -> Plan:
    """Published folder to published folder: safetensors for pickles, another dtype or variant."""
    _refuse(options, *OF_ORIGINALS, why="a folder says itself what it is")
    whole = (source / INDEX).is_file()
    if not whole and not (source / CONFIG).is_file():
        raise MissingModelError(
            f"{source}: is no model and no component, it has neither {INDEX} nor {CONFIG}",
            hint="name a folder in the published layout",
        )
    places = sorted(p for p in source.iterdir() if p.is_dir()) if whole else [source]
    found = {place: _weight_files(place) for place in places}
    if not any(found.values()):
        raise MissingModelError(f"{source}: holds no weights", hint="the download is incomplete")
    states: dict[Path, tuple[dict[str, Tensor], str | None]] = {}
    parts: list[dict[str, Any]] = []
    kept = []
    for place, files in found.items():
        if files is None:
            continue
        config = read_json(place / CONFIG)
        class_name = str(config.get("_class_name") or (config.get("architectures") or ["?"])[0])
        dtype = options.dtype
        if whole and place.name not in CAST:
            dtype = None
            kept.append(place.name)
        _check_dtype(class_name, dtype)
        state = files.read()
        name = place.name if whole else class_name
        parts.append(_account(name, class_name, [], config, state, dtype))
        states[place] = state, dtype

    def write(folder: Path, report: Report) -> None:
        if whole:
            _copy_other_files(source, folder)
        for place, files in found.items():
            into = folder / place.name if whole else folder
            report(f"writing {place.name}")
            _copy_other_files(place, into)
            if files is not None:
                state, dtype = states[place]
                state = _cast(state, dtype, source=str(place))
                write_weights(into, state, stem=files.stem, variant=options.variant)

    notes = (f"{', '.join(kept)} keep their dtype",) if kept and options.dtype else ()
    return Plan(
        source=source,
        target=target,
        force=options.force,
        kind="model folder" if whole else "component folder",
        parts=tuple(parts),
        notes=notes,
        bytes=sum(part["bytes"] for part in parts),
        write=write,
    )


def _published(folder: Path, class_name: str, options: Options) -> Part:
    """Read a component strictly."""
    files = _weight_files(folder, variant=options.variant)
    if files is None:
        raise MissingModelError(f"{folder}: holds no weights", hint="the download is incomplete")
    _check_dtype(class_name, options.dtype)
    kinds: dict[str, type[Config]] = {
        AUTOENCODER: AutoencoderConfig,
        BRANCH: ControlBranchConfig,
        DECODER: TinyDecoderConfig,
    }
    config = read_config(folder, kinds.get(class_name, TransformerConfig))
    return Part.checked(class_name, config, files.read(), source=str(folder))


def _described(part: Part, dtype: str | None) -> dict[str, Any]:
    config = config_to_dict(part.config)
    return _account(part.folder, part.class_name, part.presets, config, part.state, dtype)


def _account(
    name: str,
    class_name: str,
    presets: list[str],
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    dtype: str | None,
) -> dict[str, Any]:
    stored = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})
    return {
        "name": name,
        "class": class_name,
        "presets": presets,
        "config": {key: value for key, value in config.items() if not key.startswith("_")},
        "numbers": sum(tensor.numel() for tensor in state.values()),
        "stored": stored,
        "written": dtype or "as stored",
        "bytes": _size(state, dtype),
    }


def _size(state: Mapping[str, Tensor], dtype: str | None) -> int:
    width = {None: 0, "fp32": 4, "fp16": 2, "bf16": 2}[dtype]
    return sum(
        tensor.numel() * width if width and tensor.is_floating_point() else tensor_bytes(tensor)
        for tensor in state.values()
    )


def _check_dtype(class_name: str, dtype: str | None) -> None:
    if dtype == "fp16" and class_name not in FP16:
        raise ConfigError(
            f"{class_name} overflows in fp16", hint="store it as bf16, or as fp32 as published"
        )


def _refuse(options: Options, *names: str, why: str) -> None:
    if given := [name for name in names if getattr(options, name)]:
        option = given[0].replace("_", "-")
        raise ConfigError(f"--{option} is for original files: {why}", hint="leave it out")


def _check_folder(path: Path, *, force: bool) -> None:
    """Refuse a folder that must not be written; one of other things than a model never is."""
    check_parent(path)
    if path.is_symlink() or path.is_file():
        raise DataError(f"{path} is there and is no folder", hint="name another folder")
    if not path.exists():
        return
    held = names_in(path)
    if held and not force:
        raise DataError(f"{path} is there already", hint="--force replaces it as a whole")
    if held and not {CONFIG, INDEX} & set(held):
        raise DataError(
            f"{path} holds no model but {', '.join(held[:4])}: it is not replaced",
            hint="name another folder",
        )


def _check_file(path: Path, *, force: bool) -> None:
    """Refuse a file that must not be written."""
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a file", hint="name a file inside it")
    if path.exists() and not force:
        raise DataError(f"{path} is there already", hint="--force replaces it")
    check_parent(path)


def _check_apart(source: Path, target: Path, what: str, *, inside: bool = False) -> None:
    """Refuse a target that is, holds or lies in its source; a file may lie ``inside``."""
    theirs, ours = source.resolve(), target.resolve()
    if theirs == ours:
        raise ConfigError(f"{target}: {what} and OUT are the same", hint="name another OUT")
    if ours in theirs.parents:
        raise ConfigError(
            f"{target}: holds {what} ({source}), replacing it would lose that",
            hint="name another OUT",
        )
    if theirs in ours.parents and theirs.is_dir() and not inside:
        raise ConfigError(f"{target}: lies inside {what} ({source})", hint="name another OUT")


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Pickled stems, and what their safetensors are called.
STEMS = {"pytorch_model": LM_STEM}


@dataclass(frozen=True, kw_only=True)
class _WeightFiles:
    """One set of weights in a folder: safetensors where there are some, else a pickle."""

    folder: Path
    stem: str
    """Of the safetensors: ``diffusion_pytorch_model``, or a language model's ``model``."""
    variant: str | None
    pickled: bool

    def read(self) -> dict[str, Tensor]:
        """Give all tensors, in their stored dtype."""
        if not self.pickled:
            return read_weights(self.folder, stem=self.stem, variant=self.variant)
        stem = "pytorch_model" if self.stem == LM_STEM else self.stem
        index = self.folder / index_name(stem, self.variant, "bin")
        if not index.is_file():
            return _unpickled(self.folder / whole_name(stem, self.variant, "bin"))
        state: dict[str, Tensor] = {}
        for path, names in read_index(index, kind="bin").items():
            state |= _unpickled(path)
            if absent := sorted(set(names) - state.keys()):
                raise WeightsError(f"{index}: {absent[0]} is in none of its files")
        return state


def _unpickled(path: Path) -> dict[str, Tensor]:
    return unwrapped(read_file(path), source=str(path))[0]


def _weight_files(folder: Path, *, variant: str | None = None) -> _WeightFiles | None:
    """Find a component's weights; None where it has none (a scheduler, a tokenizer).

    Without ``variant``: those without one, or the only variant there.
    """
    if not folder.is_dir():
        raise MissingModelError(f"{folder}: no such folder", hint="the model is incomplete")
    found: dict[str | None, _WeightFiles] = {}
    for name in filter(None, map(weights_name, names_in(folder))):
        stem, pickled = STEMS.get(name.stem, name.stem), name.kind == "bin"
        known = found.get(name.variant)
        if stem in (STEM, LM_STEM) and (known is None or (known.pickled and not pickled)):
            found[name.variant] = _WeightFiles(
                folder=folder, stem=stem, variant=name.variant, pickled=pickled
            )
    if not found and variant is None:
        return None
    if variant in found:
        return found[variant]
    if variant is None and len(found) == 1:
        return next(iter(found.values()))
    there = listed(sorted(str(name) for name in found))
    if variant is None:
        raise ConfigError(f"{folder}: holds the variants {there}", hint="choose with --variant")
    raise MissingModelError(f"{folder}: has no variant {variant}", hint=f"variants there: {there}")


def _copy_other_files(source: Path, target: Path) -> None:
    """Copy what is beside the weights: configs, vocabularies; never weights, pickles or code."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        refused = path.suffix in (*PICKLES, ".py", ".safetensors") or path.name.startswith(".")
        if path.is_file() and not refused and not weights_name(path.name):
            shutil.copyfile(path, target / path.name)


def _cast(state: Mapping[str, Tensor], dtype: str | None, *, source: str) -> dict[str, Tensor]:
    """Store real tensors in another dtype, into which their values must fit; integers stay."""
    if dtype is None:
        return dict(state)
    wanted = DTYPES[dtype]
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.dtype == wanted:
            result[name] = tensor
            continue
        result[name] = tensor.to(wanted)
        if bool(tensor.isfinite().all()) and not bool(result[name].isfinite().all()):
            raise WeightsError(
                f"{source}: {name} holds {tensor.abs().max():.3g}, too large for {dtype}",
                hint="bf16 has the range of fp32",
            )
    return result


SCHEDULER, SCHEDULER_CONFIG = "scheduler", "scheduler_config.json"
# Published shifts by the side of the latent grid; source: diffusers
# scripts/convert_sana_to_diffusers.py.
FLOW_SHIFTS = {16: 3.0, 32: 3.0, 64: 3.0, 128: 6.0}
SPRINT, CONTROLLED = "SanaSprintPipeline", "SanaControlNetPipeline"
SCM: Mapping[str, Any] = {
    "_class_name": "SCMScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "trigflow",
    "sigma_data": 0.5,
}


def _complete(
    base: Path,
    folder: Path | None,
    parts: tuple[Part, ...],
    *,
    variant: str | None,
    report: Report = lambda line: None,
) -> None:
    """Fill ``folder``, which holds ``parts`` already, with what else a model needs, from ``base``.

    The scheduler becomes that of the transformer: its published shift, or SCM for Sprint models.
    With ``folder`` None only check that base and parts fit together.
    """
    index = read_json(base / INDEX)
    new = {part.folder: part for part in parts}
    _check_fit(base, index, new)
    components = {
        name: value
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and all(value)
    }
    files = {name: _weight_files(base / name) for name in components if name not in new}
    if folder is None:
        return
    for name, weights in files.items():
        report(f"copying {name}")
        _copy_other_files(base / name, folder / name)
        if weights is not None:
            write_weights(folder / name, weights.read(), stem=weights.stem, variant=variant)
    index |= {name: ["diffusers", part.class_name] for name, part in new.items()}
    if "controlnet" in new:
        index["_class_name"] = CONTROLLED
    if "transformer" in new:
        _write_scheduler(folder, index, new["transformer"])
    write_json(folder / INDEX, index)


def _write_scheduler(folder: Path, index: dict[str, Any], transformer: Part) -> None:
    config = transformer.config
    assert isinstance(config, TransformerConfig)
    path = folder / SCHEDULER / SCHEDULER_CONFIG
    if config.guidance_embeds:
        index["_class_name"] = SPRINT
        index[SCHEDULER] = ["diffusers", SCM["_class_name"]]
        write_json(path, SCM)
        return
    scheduler = read_json(path)
    shift = FLOW_SHIFTS.get(config.sample_size)
    if shift is not None and transformer.presets:
        scheduler |= {key: shift for key in ("flow_shift", "shift") if key in scheduler}
        write_json(path, scheduler)


def _check_fit(base: Path, index: Mapping[str, Any], new: Mapping[str, Part]) -> None:
    """Compare the new parts with those that the base keeps."""
    transformer, vae = (
        new[name].config if name in new else read_config(base / name, kind)
        for name, kind in (("transformer", TransformerConfig), ("vae", AutoencoderConfig))
    )
    assert isinstance(transformer, TransformerConfig)
    assert isinstance(vae, AutoencoderConfig)
    check_fit(
        transformer,
        text_width=read_json(base / "text_encoder" / CONFIG).get("hidden_size", 0),
        latent_channels=vae.latent_channels,
        source=str(base),
    )
    sprint = index.get("_class_name") == SPRINT
    if "transformer" in new and sprint and not transformer.guidance_embeds:
        raise ConfigError(
            f"{base}: is a Sprint model, its scheduler cannot sample this transformer",
            hint="give a base that is not distilled",
        )
