"""A model's folder once more with its large networks in 8 or 4 bits, and what that changes.

Layers are compared on what they are given while the original draws, pictures seed by seed. The
original is let go before the other is loaded.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError
from sanakit.files import disk_errors, replacing_folder, write_json
from sanakit.nn.int8 import round_weight
from sanakit.nn.int8_convolution import pays
from sanakit.pipeline.components import Components
from sanakit.pipeline.networks import write
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.request import GenerateRequest
from sanakit.quant.method import Method, method_of
from sanakit.quant.quantize import ROUNDED_LAYERS, is_quantized
from sanakit.weights.layout import LM_STEM
from sanakit.weights.resolve import model_to_copy
from sanakit.weights.store import read_quantization, write_weights

METHODS = {"int8": "w8a8", "int4": "bnb-nf4"}
"""By what is asked for: the method, of those that have a layout on disk."""
REPORT = "quantization.json"
LANGUAGE = "text_encoder"
AUTOENCODER = "vae"
"""Rounded where it gains something, like all else by its folder."""
PARTS = ("transformer", "controlnet", LANGUAGE)
"""By their folders."""
ROWS = 64
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
    folder = model_to_copy(model, target, offline=offline, force=force)
    parts = [part for part in PARTS if (folder / part / "config.json").is_file()]
    if kind == "int8" and pays("cpu"):
        parts.append(AUTOENCODER)
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
    report("drawing")
    seen, weights, drawn = _observed(exact, request, parts, weigh=kind == "int8")
    del exact  # before the other one comes: they are not in memory at once
    gc.collect()
    report("rounding")
    rounded = Pipeline.load(model, offline=offline, quantization=methods)
    report("drawing again")
    again = [picture.pixels for picture in rounded.generate(request).pictures]
    pictures = [
        {"seed": seed, "psnr": _psnr(two, one)}
        for (seed, one), two in zip(drawn, again, strict=True)
    ]
    told: dict[str, Any] = {
        "prompt": request.prompt,
        "pictures": pictures,
        "layers": _errors(rounded, seen, weights),
    }
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
    folders = {"autoencoder": AUTOENCODER}
    networks = components.networks.items()
    return {folders.get(name, name.replace(" ", "_")): each for name, each in networks}


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


Seen = dict[str, tuple[Tensor, Tensor]]
"""By a layer's name, its part's first: some of what it was given, and what it made of that."""


def _observed(
    exact: Pipeline, request: GenerateRequest, parts: Collection[str], *, weigh: bool
) -> tuple[Seen, dict[str, float], list[tuple[int, Any]]]:
    """Draw, and give what layers did; what rounding their weights changes; seeds and pixels."""
    seen: Seen = {}
    weights = {}
    hooks = []
    for part, network in _by_folder(exact.components).items():
        if part not in parts:
            continue
        for name, layer in network.named_modules():
            if isinstance(layer, ROUNDED_LAYERS):
                hooks.append(layer.register_forward_hook(_keeper(f"{part}.{name}", seen)))
                if weigh:
                    levels, scale = round_weight(layer.weight, name=f"{part}.{name}")
                    real = layer.weight.detach().flatten(1)
                    weights[f"{part}.{name}"] = _relative(levels.flatten(1) * scale, real)
    drawn = exact.generate(request).pictures
    for hook in hooks:
        hook.remove()
    return seen, weights, [(one.settings["seed"], one.pixels) for one in drawn]


def _errors(rounded: Pipeline, seen: Seen, weights: dict[str, float]) -> list[dict[str, Any]]:
    """What rounding changes in each layer."""
    layers = []
    for part, network in _by_folder(rounded.components).items():
        for name, layer in network.named_modules():
            if not isinstance(layer, ROUNDED_LAYERS) or not _is_rounded(layer):
                continue
            place, output = f"{part}.{name}", None
            if place in seen:
                x, y = seen[place]
                with torch.inference_mode():
                    output = _relative(layer(x)[:, :, : y.shape[2]] if y.ndim > 3 else layer(x), y)
            layers.append(Errors(layer=place, weight=weights.get(place), output=output))
    return [vars(each) for each in layers]


def _is_rounded(layer: nn.Module) -> bool:
    """One layer by itself, not what holds some."""
    return is_quantized(layer) and not any(True for _ in layer.children())


def _keeper(name: str, seen: Seen) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def keep(layer: nn.Module, given: tuple[Any, ...], made: Tensor) -> None:
        if name not in seen:
            seen[name] = _some(layer, given[0], beside=1), _some(layer, made)

    return keep


def _some(layer: nn.Module, x: Tensor, *, beside: int = 0) -> Tensor:
    """The first tokens of a linear layer, or rows of a map and so many beside those."""
    if isinstance(layer, nn.Conv2d):
        return x.detach()[:1, :, : max(1, ROWS // x.shape[-1]) + beside].clone()
    return x.detach().reshape(-1, x.shape[-1])[:ROWS].clone()


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
