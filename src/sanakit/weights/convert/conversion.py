"""From original files to published folders and back: what `sanakit convert` plans, then does.

A plan reads and checks everything and writes nothing; carrying it out writes beside the target and
renames, so that a target is whole or not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sanakit.errors import ConfigError, MissingModelError
from sanakit.files import disk_errors, replacing_folder
from sanakit.models.config import AutoencoderConfig, TransformerConfig, config_to_dict
from sanakit.weights.convert.folders import (
    assembled,
    cast,
    check_apart,
    check_file,
    check_folder,
    check_room,
    copy_other_files,
    weight_files,
    write_part_config,
    write_variant,
)
from sanakit.weights.convert.original_format import PICKLED, SAFE, read_original, write_original
from sanakit.weights.convert.parts import (
    AUTOENCODER,
    BRANCH,
    FOLDERS,
    TRANSFORMER,
    Config,
    Part,
    original_state,
)
from sanakit.weights.resolve import INDEX, resolve_model
from sanakit.weights.store import CONFIG, STEM, read_config, read_json, tensor_bytes

Report = Callable[[str], None]
FP16 = (TRANSFORMER, BRANCH)
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
    check_apart(source, target, "IN", inside=_is_file(target))
    if options.base is not None and Path(options.base).exists():
        check_apart(Path(options.base), target, "--base")
    if _is_file(target):
        check_file(target, force=options.force)
    else:
        check_folder(target, force=options.force)
    from_folder = _to_file if _is_file(target) else _to_folder
    made = (from_folder if source.is_dir() else _from_file)(source, target, options)
    check_room(target, made.bytes)
    return made


def _is_file(target: Path) -> bool:
    return target.suffix in (*PICKLED, SAFE)


def carry_out(plan: Plan, report: Report = lambda line: None) -> None:
    """Do what was planned; the target is whole afterwards, or as it was.

    Raises:
        DataError: the disk refuses. WeightsError: a tensor that cannot be stored as asked.
    """
    if _is_file(plan.target):
        plan.write(plan.target, report)
    else:
        check_folder(plan.target, force=plan.force)
        with disk_errors(plan.target), replacing_folder(plan.target) as staging:
            plan.write(staging, report)


def _from_file(source: Path, target: Path, options: Options) -> Plan:
    if _is_file(target):
        raise ConfigError(
            f"{target}: an original file becomes a folder, not another file",
            hint=f"name a folder: {target.with_suffix('')}",
        )
    model = read_original(source, config=options.config, average=options.average)
    notes = model.notes
    if options.base is not None:
        base = resolve_model(options.base)
        check_apart(base, target, "--base")
        chosen = model.parts
    else:
        chosen = model.parts[:1]
        if len(model.parts) > 1:
            notes += ("the transformer in the same file was left out; --base writes both",)
    for part in chosen:
        _check_dtype(part.class_name, options.dtype)

    def write(folder: Path, report: Report) -> None:
        for part in chosen:
            place = folder if options.base is None else folder / part.folder
            report(f"writing {part.folder}")
            write_part_config(place, part)
            state = cast(part.state, options.dtype, source=part.folder)
            write_variant(place, state, stem=STEM, variant=options.variant)
        if options.base is not None:
            assembled(base, folder, chosen, variant=options.variant, report=report)

    if options.base is not None:  # before anything is written
        assembled(base, None, chosen, variant=options.variant)
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


def _to_file(source: Path, target: Path, options: Options) -> Plan:
    """Published folder to original file."""
    _refuse(options, "base", "config", "average", why="a folder says itself what it is")
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
            hint="transformers, control branches and autoencoders have",
        )
    part = _published(main, class_name, options)
    branch = None
    if main != source and (source / "controlnet").is_dir():
        branch = _published(source / "controlnet", BRANCH, options)
    parts = [part] if branch is None else [branch, part]
    state = original_state(part, branch, source=str(source))

    def write(path: Path, report: Report) -> None:
        report(f"writing {path.name}")
        write_original(path, cast(state, options.dtype, source=str(source)))

    return Plan(
        source=source,
        target=target,
        force=options.force,
        kind=parts[0].folder,
        parts=tuple(_described(part, options.dtype) for part in parts),
        notes=(),
        bytes=_size(state, options.dtype),
        write=write,
    )


def _to_folder(source: Path, target: Path, options: Options) -> Plan:
    """Published folder to published folder: safetensors for pickles, another dtype or variant."""
    _refuse(options, "base", "config", "average", why="a folder says itself what it is")
    whole = (source / INDEX).is_file()
    if not whole and not (source / CONFIG).is_file():
        raise MissingModelError(
            f"{source}: is no model and no component, it has neither {INDEX} nor {CONFIG}",
            hint="name a folder in the published layout",
        )
    places = sorted(p for p in source.iterdir() if p.is_dir()) if whole else [source]
    found = {place: weight_files(place) for place in places}
    if not any(found.values()):
        raise MissingModelError(f"{source}: holds no weights", hint="the download is incomplete")
    states: dict[Path, dict[str, Tensor]] = {}
    dtypes: dict[Path, str | None] = {}
    parts: list[dict[str, Any]] = []
    for place, files in found.items():
        if files is None:
            continue
        config = read_json(place / CONFIG)
        class_name = str(config.get("_class_name") or (config.get("architectures") or ["?"])[0])
        dtypes[place] = options.dtype if not whole or place.name in CAST else None
        _check_dtype(class_name, dtypes[place])
        states[place] = files.read()
        name = place.name if whole else class_name
        parts.append(_account(name, class_name, [], config, states[place], dtypes[place]))

    def write(folder: Path, report: Report) -> None:
        if whole:
            copy_other_files(source, folder)
        for place, files in found.items():
            into = folder / place.name if whole else folder
            report(f"writing {place.name}")
            copy_other_files(place, into)
            if files is not None:
                state = cast(states[place], dtypes[place], source=str(place))
                write_variant(into, state, stem=files.stem, variant=options.variant)

    kept = [each["name"] for each in parts if whole and each["name"] not in CAST]
    notes = (f"{', '.join(kept)} keep their dtype",) if kept and options.dtype else ()
    return Plan(
        source=source,
        target=target,
        force=options.force,
        kind="model folder" if whole else "component folder",
        parts=tuple(parts),
        notes=notes,
        bytes=sum(_size(state, dtypes[place]) for place, state in states.items()),
        write=write,
    )


def _published(folder: Path, class_name: str, options: Options) -> Part:
    """Read a component strictly."""
    files = weight_files(folder, variant=options.variant)
    if files is None:
        raise MissingModelError(f"{folder}: holds no weights", hint="the download is incomplete")
    _check_dtype(class_name, options.dtype)
    config: Config = (
        read_config(folder, AutoencoderConfig)
        if class_name == AUTOENCODER
        else read_config(folder, TransformerConfig)
    )
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
        raise ConfigError(f"--{given[0]} is for original files: {why}", hint="leave it out")
