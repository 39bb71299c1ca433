"""A model's folder once more with its large networks in 8 or 4 bits, and what that changes.

Layers are compared on what they are given while the original draws, pictures seed by seed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError
from sanakit.files import check_parent, disk_errors, replacing_folder, write_json
from sanakit.nn.cpu import PointConv
from sanakit.nn.int8 import Int8Layer
from sanakit.pipeline.components import Components
from sanakit.pipeline.networks import write
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.request import GenerateRequest
from sanakit.quant.method import Method, method_of
from sanakit.quant.quantize import is_quantized
from sanakit.weights.layout import LM_STEM
from sanakit.weights.resolve import resolve_model
from sanakit.weights.store import read_quantization, write_weights

METHODS = {"int8": "w8a8", "int4": "bnb-nf4"}
"""By what is asked for: the method, of those that have a layout on disk."""
REPORT = "quantization.json"
LANGUAGE = "text_encoder"
PARTS = ("transformer", "controlnet", LANGUAGE)
"""By their folders."""
ROWS = 256
PEAK = 255.0
Report = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Of one layer: root mean square errors of weights and outputs, relative to their own."""

    layer: str
    weight: float | None
    """None where a library holds the weights in a form of its own."""
    output: float | None
    """None where the layer was not reached."""


def quantized_copy(
    model: str,
    target: Path,
    kind: str,
    *,
    request: GenerateRequest,
    offline: bool = False,
    force: bool = False,
    report: Report = lambda line: None,
) -> dict[str, Any]:
    """Write ``model`` to a folder with its large networks quantized; give what that changes.

    The folder is whole or not there; ``quantization.json`` in it is what is given.

    Raises:
        ConfigError: a model that is quantized already, a folder that is in the way, a library that
            is missing. MissingModelError, WeightsError: as loading. DataError: the disk.
    """
    if target.exists() and not force:
        raise ConfigError(f"{target} is there already", hint="name another, or pass --force")
    check_parent(target)
    folder = resolve_model(model, offline=offline)
    if target.exists() and target.resolve() == folder.resolve():
        raise ConfigError(f"{target} is the model itself", hint="name another folder")
    parts = [part for part in PARTS if (folder / part / "config.json").is_file()]
    for part in parts:
        if read_quantization(folder / part) is not None:
            raise ConfigError(
                f"{folder / part}: is quantized already", hint="begin with the real weights"
            )
    methods: dict[str, Method] = {part: method_of(METHODS[kind]) for part in parts}
    if kind == "int8" and LANGUAGE in parts:
        methods[LANGUAGE] = method_of("w8a16")
    report("loading")
    exact = Pipeline.load(model, offline=offline)
    report("rounding")
    rounded = Pipeline.load(model, offline=offline, quantization=methods)
    report("drawing")
    told = _compared(exact, rounded, request)
    told = {
        "model": model,
        "kind": kind,
        "methods": {p: str(m.kind) for p, m in methods.items()},
        "bytes": {"before": _size(folder, parts)},
        **told,
    }
    with disk_errors(target), replacing_folder(target) as staging:
        report("writing")
        written = [
            part for part, each in _by_folder(rounded.components).items() if is_quantized(each)
        ]
        _copy(folder, staging, written)
        _write_networks(rounded.components, staging)
        told["bytes"]["after"] = _size(staging, parts)
        write_json(staging / REPORT, told)
    return told


def _by_folder(components: Components) -> dict[str, nn.Module]:
    return {name.replace(" ", "_"): each for name, each in components.networks.items()}


def _size(folder: Path, parts: list[str]) -> int:
    return sum(
        path.stat().st_size for part in parts for path in (folder / part).glob("*.safetensors")
    )


def _copy(folder: Path, staging: Path, without: Collection[str]) -> None:
    """Copy what stays as it is, through links of the hub's cache."""
    for path in folder.iterdir():
        if path.name in without or path.name.startswith("."):
            continue
        if path.is_dir():
            shutil.copytree(path, staging / path.name)
        else:
            shutil.copyfile(path, staging / path.name)


def _write_networks(components: Components, staging: Path) -> None:
    for part, network in _by_folder(components).items():
        if not is_quantized(network):
            continue
        if part == LANGUAGE:
            llm: Any = network
            llm.config.architectures = [type(llm).__name__]
            llm.config.save_pretrained(str(staging / part))
            write_weights(staging / part, llm.state_dict(), stem=LM_STEM)
        else:
            ours: Any = network
            write(ours, staging / part, published_name=ours.published_name)


def _compared(exact: Pipeline, rounded: Pipeline, request: GenerateRequest) -> dict[str, Any]:
    """Draw with both, and lay layers and pictures side by side."""
    seen: dict[str, Tensor] = {}
    real, small = _by_folder(exact.components), _by_folder(rounded.components)
    names = [
        (part, name)
        for part in PARTS
        if part in small
        for name, layer in small[part].named_modules()
        if isinstance(layer, nn.Linear | PointConv) and _is_rounded(layer)
    ]
    hooks = [
        real[part].get_submodule(name).register_forward_pre_hook(_keeper(f"{part}.{name}", seen))
        for part, name in names
    ]
    drawn = exact.generate(request).pictures
    for hook in hooks:
        hook.remove()
    again = rounded.generate(request).pictures
    layers = []
    for part, name in names:
        a: Any = real[part].get_submodule(name)
        b = small[part].get_submodule(name)
        x = seen.get(f"{part}.{name}")
        with torch.inference_mode():
            output = None if x is None else _relative(b(x), a(x))
            weight = None
            if isinstance(b, Int8Layer):
                scale = b.weight_scale.view(-1, *[1] * (b.weight.ndim - 1))
                weight = _relative(b.weight * scale, a.weight)
        layers.append(Errors(layer=f"{part}.{name}", weight=weight, output=output))
    pictures = [
        {"seed": one.settings["seed"], "psnr": _psnr(two.pixels, one.pixels)}
        for one, two in zip(drawn, again, strict=True)
    ]
    return {
        "prompt": request.prompt,
        "pictures": pictures,
        "layers": [vars(each) for each in layers],
    }


def _is_rounded(layer: nn.Module) -> bool:
    """One layer by itself, not what holds some."""
    return is_quantized(layer) and not any(True for _ in layer.children())


def _keeper(name: str, seen: dict[str, Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def keep(layer: nn.Module, given: tuple[Any, ...]) -> None:
        if name not in seen:
            x = given[0].detach()
            seen[name] = (
                x[:2].clone()
                if isinstance(layer, PointConv)
                else x.reshape(-1, x.shape[-1])[:ROWS].clone()
            )

    return keep


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact.float()).norm() / exact.float().norm().clamp(min=1e-30))


def _psnr(found: Any, exact: Any) -> float | None:
    """Of pixels in whole numbers, dB; None where none differs."""
    error = (torch.as_tensor(found).float() - torch.as_tensor(exact).float()).square().mean()
    return None if error == 0 else float(10 * torch.log10(PEAK**2 / error))


def by_kind(told: dict[str, Any]) -> list[dict[str, Any]]:
    """The layers' errors, gathered by what a layer is: their count, the mean, and the worst."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for each in told["layers"]:
        kind = ".".join(word for word in each["layer"].split(".") if not word.isdecimal())
        kinds.setdefault(kind, []).append(each)
    return [
        {
            "layers": kind,
            "count": len(group),
            **{
                key: (sum(values) / len(values), max(values))
                for key in ("weight", "output")
                if (values := [one[key] for one in group if one[key] is not None])
            },
        }
        for kind, group in kinds.items()
    ]
