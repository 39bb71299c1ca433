"""LoRA adapters of a network: put on, chosen, weighed, merged, saved and taken off, by name.

The functions are the methods that users of diffusers know on a network (`SanaTransformer2DModel`);
`LoraMethods` has those of a pipeline.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError, did_you_mean
from sanakit.files import disk_errors
from sanakit.nn.lora import ByAdapter, LoraLayer, adapt, is_plain, lora_layers, restore
from sanakit.pipeline.load_arguments import heed_other_arguments, refuse_pickle_readers
from sanakit.pipeline.placement import changing
from sanakit.untrusted import LARGEST, shown
from sanakit.weights.lockfile import asking
from sanakit.weights.lora import (
    LORA_FILE,
    AdapterConfig,
    LoraPair,
    find_lora,
    fit_lora,
    lora_pairs,
    read_lora,
    write_lora,
)

Weight = float | Mapping[str, float] | None
"""Of an adapter: for all of its layers, or by names of layers or of what holds them."""
STARTS = (True, False, "gaussian")
P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger(__name__)


def while_nobody_draws(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function of a network refuse, by name, while another thread draws with it."""

    @functools.wraps(function)
    def alone(*given: P.args, **named: P.kwargs) -> R:
        network: Any = given[0] if given else named["network"]
        with changing([network], function.__name__):
            return function(*given, **named)

    return alone


def load_lora_adapter(
    network: nn.Module,
    pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
    prefix: str | None = "transformer",
    hotswap: bool = False,
    *,
    adapter_name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    **where: Any,
) -> None:
    """Put an adapter on, which alone is active from then on.

    Args:
        network: whose layers it changes.
        pretrained_model_name_or_path_or_dict: a file, a folder or a repository of the hub that
            holds one, or its tensors.
        prefix: only names that begin with it are read, "transformer" and None are no restriction.
        hotswap: take the place of the adapter that is called ``adapter_name``.
        adapter_name: "default_0" and so on if not given.
        metadata: PEFT's config of tensors.
        **where: arguments of `locate_lora`.

    Raises:
        MissingModelError: no such file. WeightsError: it does not fit. ConfigError: the name is
        taken, or for a hot swap is not.
    """
    given = pretrained_model_name_or_path_or_dict
    if isinstance(given, Mapping):
        _heed(where)
        source, tensors = "LoRA", given
        if prefix not in (None, "transformer"):
            tensors = {name: t for name, t in given.items() if str(name).startswith(f"{prefix}.")}
            tensors = {name.removeprefix(f"{prefix}."): t for name, t in tensors.items()}
        pairs = lora_pairs(tensors, source=source, metadata=metadata)
    else:
        path = locate_lora(given, **where)
        source, pairs = str(path), read_lora(path)
    held = _held(network)
    name = _free_name(held) if adapter_name is None else adapter_name
    if hotswap:
        _require_known(network, [name])
        _require_unmerged(network)
    else:
        _require_new(held, name)
    fitted = fit_lora(network, pairs, source=source)
    with changing([network], "load_lora_adapter"):
        active = active_adapters(network) if hotswap else [name]
        for layer in lora_layers(network).values() if hotswap else ():
            layer.delete_adapter(name)
        for layer_name, pair in fitted.items():
            layer = adapt(network.get_submodule(layer_name))
            _put(network, layer, name, pair)
        _register(network, name, AdapterConfig.of(fitted), active)


def locate_lora(
    source: str | Path,
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    use_safetensors: bool | None = None,
    **needless: Any,
) -> Path:
    """Give the file of a LoRA by the arguments that published code names it with.

    ``weight_name`` is that of the file where a folder or repository has several. What decides
    nothing here is said, and an unknown keyword is an error. Other errors are those of `find_lora`.
    """
    _heed(needless)
    refuse_pickle_readers(use_safetensors)
    with asking(cache_dir=cache_dir, token=token, force_download=force_download):
        return find_lora(
            source, weight_name, subfolder=subfolder, revision=revision, offline=local_files_only
        )


@while_nobody_draws
def add_adapter(network: nn.Module, adapter_config: Any, adapter_name: str = "default") -> None:
    """Put on a new adapter to train, described by PEFT's ``LoraConfig``; all else is frozen.

    The numbers it begins with are those that PEFT draws.

    Raises:
        ConfigError: a taken name, a layer that is not there or an option that is not supported.
        WeightsError: an option that makes it another method than LoRA.
    """
    _require_new(_held(network), adapter_name)
    config = adapter_config
    if not hasattr(config, "target_modules") or not hasattr(config, "to_dict"):
        raise ConfigError(
            f"adapter_config is a {type(config).__name__}", hint="pass a LoraConfig of PEFT"
        )
    AdapterConfig.read({**config.to_dict(), "alpha_pattern": {}}, source="adapter_config")
    begin = config.init_lora_weights
    if begin not in STARTS:
        raise ConfigError(f"init_lora_weights={begin!r}", hint="use True, False or 'gaussian'")
    names = _targets(network, config)
    started = {name: _started(network.get_submodule(name), name, config) for name in names}
    fitted = fit_lora(network, started, source="adapter_config")
    network.requires_grad_(False)
    for name, pair in fitted.items():
        layer = adapt(network.get_submodule(name))
        _put(network, layer, adapter_name, pair, dropout=config.lora_dropout, trained=True)
    _register(network, adapter_name, config, [adapter_name])


@while_nobody_draws
def set_adapters(
    network: nn.Module,
    adapter_names: str | Sequence[str],
    weights: Weight | Sequence[Weight] = None,
) -> None:
    """Make the named adapters, and no others, active, each with its weight, one if not given.

    A weight by layers, ``{"attn1": 0.5, "transformer_blocks.1": 2.0}``, leaves those that it does
    not name at one; the first entry that holds a layer counts.

    Raises:
        ConfigError: for a name that is not loaded or comes twice, another number of weights than
            names, a weight that is no finite number, or adapters that are merged at the moment.
    """
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    several = isinstance(weights, list | tuple)
    each: list[Any] = list(weights) if several else [weights] * len(names)  # type: ignore[arg-type]
    if len(each) != len(names):
        raise ConfigError(f"{len(each)} adapter_weights for {len(names)} adapters")
    _require_known(network, names)
    if len(set(names)) < len(names):
        raise ConfigError(f"adapter_names has one twice: {', '.join(names)}")
    _require_unmerged(network)
    layers = lora_layers(network)
    chosen = {
        name: _weights_of(
            weight, name, [at for at, layer in layers.items() if name in layer.lora_A]
        )
        for name, weight in zip(names, each, strict=True)
    }
    for name, by_layer in chosen.items():
        for at, number in by_layer.items():
            layers[at].weights[name] = number
    _activate(network, names)


@while_nobody_draws
def set_adapter(network: nn.Module, adapter_name: str | Sequence[str]) -> None:
    """Make the named adapters, and no others, active, with the weights that they have.

    Raises:
        ConfigError: for a name that is not loaded.
    """
    names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
    _require_known(network, names)
    _require_unmerged(network)
    _activate(network, names)


def active_adapters(network: nn.Module) -> list[str]:
    """Names of the adapters that act unless LoRA is disabled."""
    return next((list(x.active_adapters) for x in lora_layers(network).values()), [])


@while_nobody_draws
def enable_lora(network: nn.Module) -> None:
    """Undo :func:`disable_lora`."""
    for layer in lora_layers(network).values():
        layer.disable_adapters = False


@while_nobody_draws
def disable_lora(network: nn.Module) -> None:
    """Let no adapter act until :func:`enable_lora`; merged ones are taken out of the weights."""
    for layer in lora_layers(network).values():
        layer.unmerge()
        layer.disable_adapters = True


@while_nobody_draws
def delete_adapters(network: nn.Module, adapter_names: str | Sequence[str]) -> None:
    """Let go of adapters; where none is active then, the oldest that is left becomes it.

    Raises:
        ConfigError: for a name that is not loaded, or one that is merged at the moment.
    """
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    _require_known(network, names)
    _require_unmerged(network)
    for name in names:
        _held(network).pop(name, None)
    left = list(_held(network))
    active = [name for name in active_adapters(network) if name in left] or left[:1]
    for layer in lora_layers(network).values():
        for name in names:
            layer.delete_adapter(name)
        if not layer.lora_A:
            restore(layer)
    if left:
        _activate(network, active)
    else:
        _forget(network)


@while_nobody_draws
def unload_lora(network: nn.Module) -> None:
    """Take all adapters off; what is merged stays in the weights."""
    for layer in lora_layers(network).values():
        restore(layer)
    _forget(network)


@while_nobody_draws
def fuse_lora(
    network: nn.Module,
    lora_scale: float = 1.0,
    safe_fusing: bool = False,
    adapter_names: Sequence[str] | None = None,
) -> None:
    """Add adapters, the active ones if not named, to the weights, of which a copy is kept.

    ``safe_fusing`` or not, weights that are not finite are refused, and then nothing has changed.

    Raises:
        ConfigError: none is loaded or active, one is unknown, or a layer can take no merge.
    """
    names = active_adapters(network) if adapter_names is None else list(adapter_names)
    if not _held(network):
        raise ConfigError("no LoRA is loaded", hint="call load_lora_weights first")
    _require_known(network, names)
    layers = lora_layers(network).values()
    if not names or any(layer.disable_adapters for layer in layers):
        raise ConfigError("no LoRA is active", hint="call enable_lora or set_adapters first")
    scale = _finite(lora_scale, "lora_scale")
    before = [(layer, layer.state_of_merge()) for layer in layers]
    try:
        for layer in layers:
            layer.merge(names, scale)
    except BaseException:
        for layer, state in before:
            layer.back_to(state)
        raise


@while_nobody_draws
def unfuse_lora(network: nn.Module) -> None:
    """Undo :func:`fuse_lora`, to the bit."""
    for layer in lora_layers(network).values():
        layer.unmerge()


def fused_adapters(network: nn.Module) -> set[str]:
    """Names of the adapters that are in the weights and can be taken out again."""
    return {name for layer in lora_layers(network).values() for name in layer.merged_adapters}


@while_nobody_draws
def set_lora_device(
    network: nn.Module, adapter_names: Sequence[str], device: torch.device | str | int
) -> None:
    """Move adapters; one that is active must be where the network is.

    Raises:
        ConfigError: for a name that is not loaded.
    """
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    _require_known(network, names)
    for layer in lora_layers(network).values():
        for held in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
            for name in names:
                if name in held:
                    held[name].to(device)


def enable_lora_hotswap(
    network: nn.Module, target_rank: int = 128, check_compiled: str = "error"
) -> None:
    """Nothing has to be prepared: a hot swap takes a file of any rank and compiles anew."""
    logger.warning("enable_lora_hotswap does nothing: hotswap=True takes LoRA of any rank")


def save_lora_adapter(
    network: nn.Module,
    save_directory: str | Path,
    adapter_name: str = "default",
    upcast_before_saving: bool = False,
    safe_serialization: bool = True,
    weight_name: str | None = None,
) -> None:
    """Write an adapter as safetensors, which `load_lora_adapter` here and in diffusers reads.

    Raises:
        ConfigError: no such adapter. DataError: the disk refuses.
    """
    _require_known(network, [adapter_name])
    pairs = {}
    for name, layer in lora_layers(network).items():
        if adapter_name in layer.lora_A:
            pairs[name] = _pair_of(layer, adapter_name, upcast=upcast_before_saving)
    config = _held(network)[adapter_name].to_dict()
    path = lora_path(save_directory, weight_name, safe_serialization=safe_serialization)
    write_lora(path, pairs, metadata=config, prefix="")


def lora_path(
    save_directory: str | Path, weight_name: str | None, *, safe_serialization: bool
) -> Path:
    """Make the folder of a LoRA to be written, and name its file."""
    if not safe_serialization:
        logger.warning("safe_serialization=False: pickles are not written, this is safetensors")
    folder = Path(save_directory)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / (weight_name or LORA_FILE)


def _heed(where: Mapping[str, object]) -> None:
    """Refuse keywords that `locate_lora` does not have, and say which decide nothing."""
    known = inspect.signature(locate_lora).parameters
    others = {name: value for name, value in where.items() if name not in known}
    heed_other_arguments("load_lora_weights", others, known)


def _held(network: nn.Module) -> dict[str, Any]:
    """The adapters of a network by name with their configs, where PEFT's functions look."""
    held: dict[str, Any] = getattr(network, "peft_config", {})
    return held


def _register(network: nn.Module, name: str, config: Any, active: list[str]) -> None:
    network.peft_config = {**_held(network), name: config}  # type: ignore[assignment]
    disabled = any(layer.disable_adapters for layer in lora_layers(network).values())
    for layer in lora_layers(network).values():
        layer.disable_adapters = disabled
    _activate(network, active)


def _forget(network: nn.Module) -> None:
    if hasattr(network, "peft_config"):
        del network.peft_config


def _activate(network: nn.Module, names: Iterable[str]) -> None:
    for layer in lora_layers(network).values():
        layer.set_adapter(names)


def _put(
    network: nn.Module,
    layer: LoraLayer,
    name: str,
    pair: LoraPair,
    *,
    dropout: float = 0.0,
    trained: bool = False,
) -> None:
    real = layer.weight.is_floating_point()
    held = (parameter.dtype for parameter in network.parameters() if parameter.is_floating_point())
    device = layer.weight.device
    if layer.weight.is_meta:  # offloaded: its weights are on a device only while it runs
        device = torch.device(getattr(layer, "_hf_hook").execution_device)  # noqa: B009
    layer.add(
        name,
        pair.down,
        pair.up,
        pair.scale,
        bias=pair.bias,
        magnitude=pair.magnitude,
        dtype=layer.weight.dtype if real else next(held),
        device=device,
        dropout=dropout,
        trained=trained,
    )


def _pair_of(layer: LoraLayer, name: str, *, upcast: bool) -> LoraPair:
    def own(held: ByAdapter, kind: str) -> Tensor | None:
        tensor = getattr(held[name], kind) if name in held else None
        return tensor.detach().float() if upcast and tensor is not None else tensor

    down, up = own(layer.lora_A, "weight"), own(layer.lora_B, "weight")
    assert down is not None
    assert up is not None
    return LoraPair(
        down=down,
        up=up,
        bias=own(layer.lora_B, "bias"),
        magnitude=own(layer.lora_magnitude_vector, "weight"),
    )


def _weights_of(weight: Weight, adapter: str, layers: Sequence[str]) -> dict[str, float]:
    """The weight of an adapter for each of the layers that it changes."""
    if weight is None:
        return dict.fromkeys(layers, 1.0)
    if not isinstance(weight, Mapping):
        return dict.fromkeys(layers, _finite(weight, f"weight of adapter {adapter!r}"))
    numbers = {part: _finite(each, f"weight of {part}") for part, each in weight.items()}
    for part in numbers:
        if not any(f".{part}." in f".{layer}." for layer in layers):
            raise ConfigError(
                f"adapter {adapter!r} has a weight for {part!r}, which none of its layers is in",
                hint=f"its layers are like {layers[0]}",
            )
    return {
        layer: next((n for part, n in numbers.items() if f".{part}." in f".{layer}."), 1.0)
        for layer in layers
    }


def _targets(network: nn.Module, config: Any) -> list[str]:
    """The layers that PEFT's config means: by the end of their names, or by an expression."""

    def meant(name: str, wanted: Any) -> bool:
        if isinstance(wanted, str):
            return re.fullmatch(wanted, name) is not None
        return any(name == each or name.endswith(f".{each}") for each in wanted or ())

    wanted, omitted = config.target_modules, config.exclude_modules
    for option in ("layers_to_transform", "layers_pattern"):
        if getattr(config, option):
            raise ConfigError(
                f"{option}={getattr(config, option)!r} is not supported",
                hint=r"name the layers: target_modules=r'transformer_blocks\.1\..*\.to_[qkv]'",
            )
    found = []
    for name, module in network.named_modules():
        layer = isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in name
        every = wanted == "all-linear" and isinstance(module, nn.Linear)
        if layer and (every or meant(name, wanted)) and not meant(name, omitted):
            found.append(name)
    if not found:
        raise ConfigError(
            f"target_modules={wanted!r}: no linear layer or convolution is called so",
            hint='target_modules=["to_q", "to_k", "to_v"]',
        )
    return found


def _started(layer: nn.Module, name: str, config: Any) -> LoraPair:
    """What PEFT begins with; its random numbers are drawn in the same order."""
    rank = _by_pattern(config.rank_pattern, name, config.r)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"rank {rank!r} of {name} must be a whole number of at least 1")
    down: nn.Linear | nn.Conv2d
    up: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Conv2d):
        if rank % layer.groups:
            raise ConfigError(
                f"rank {rank}: {name} is in {layer.groups} groups", hint="leave it out"
            )
        window = (layer.kernel_size, layer.stride, layer.padding)
        down = nn.Conv2d(layer.in_channels, rank, *window, bias=False)  # type: ignore[arg-type]
        up = nn.Conv2d(rank, layer.out_channels, 1, groups=layer.groups, bias=config.lora_bias)
    else:
        assert isinstance(layer, nn.Linear)
        down = nn.Linear(layer.in_features, rank, bias=False)
        up = nn.Linear(rank, layer.out_features, bias=config.lora_bias)
    if config.init_lora_weights is not False:
        if config.init_lora_weights == "gaussian":
            nn.init.normal_(down.weight, std=1 / rank)
        else:
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
        if up.bias is not None:
            nn.init.zeros_(up.bias)
    pair = LoraPair(
        down=down.weight.detach(),
        up=up.weight.detach(),
        alpha=_finite(_by_pattern(config.alpha_pattern, name, config.lora_alpha), "lora_alpha"),
        rslora=config.use_rslora,
        bias=None if up.bias is None else up.bias.detach(),
    )
    return replace(pair, magnitude=_row_lengths(layer, pair)) if config.use_dora else pair


def _row_lengths(layer: nn.Linear | nn.Conv2d, pair: LoraPair) -> Tensor:
    """The magnitude that DoRA begins with, in the shape that PEFT saves it in."""
    if not is_plain(layer):
        raise ConfigError("use_dora=True: the layer is quantized", hint="train a plain LoRA")
    change = pair.scale * pair.up.flatten(1) @ pair.down.flatten(1)
    rows = (layer.weight.detach().float().flatten(1) + change.to(layer.weight.device)).norm(dim=1)
    return rows.view(1, -1, 1, 1) if isinstance(layer, nn.Conv2d) else rows


def _by_pattern(patterns: Mapping[str, Any], name: str, usual: Any) -> Any:
    """The value for a layer: that of the first expression that its name ends in, as in PEFT."""
    return next(
        (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), usual
    )


def _free_name(held: Iterable[str]) -> str:
    taken = set(held)
    return next(
        n for i in range(len(taken), 2 * len(taken) + 1) if (n := f"default_{i}") not in taken
    )


def _require_new(held: Mapping[str, Any], name: str) -> None:
    if name in held:
        raise ConfigError(
            f"adapter_name={name!r} is taken",
            hint=f"loaded: {', '.join(held)}; hotswap=True takes its place",
        )
    if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
        raise ConfigError(f"adapter_name={name!r} cannot be one", hint="letters and digits do")


def _require_known(network: nn.Module, names: Iterable[str]) -> None:
    held = _held(network)
    for name in names:
        if name not in held:
            raise ConfigError(
                f"adapter {name!r} is not in the list of present adapters: {', '.join(held)}",
                hint=did_you_mean(name, held) if held else "call load_lora_weights first",
            )


def _require_unmerged(network: nn.Module) -> None:
    if fused := fused_adapters(network):
        raise ConfigError(
            f"LoRA {', '.join(sorted(fused))} is merged into the weights",
            hint="call unfuse_lora first, or unload_lora_weights to keep it there",
        )


def _finite(value: Any, name: str) -> float:
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not -LARGEST < value < LARGEST:
        raise ConfigError(f"{name} is {shown(value)}, no finite number")
    return float(value)
