"""LoRA files: low-rank changes of a transformer's layers, by the names that trainers give them."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sanakit.errors import ConfigError, MissingModelError, WeightsError
from sanakit.files import listed, names_in
from sanakit.nn.lora import is_plain
from sanakit.untrusted import number, parse_json, read_file, shown
from sanakit.weights.convert.keymaps import original_layers
from sanakit.weights.resolve import REPOSITORY
from sanakit.weights.store import read_tensors, write_tensors

LORA_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
METADATA = "lora_adapter_metadata"
PREFIX = "transformer."
_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", PREFIX)
_FLAT = ("lora_unet_", "lora_transformer_")
"""How kohya's names begin, in which every dot is an underscore."""
_WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
_REAL = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
_ADAPTER = r"(?:\.[^.]+)?"
_PART = re.compile(
    r"(?P<layer>.+)\.(?:"
    rf"(?P<down>lora_A{_ADAPTER}\.weight|lora\.down\.weight|lora_down\.weight)|"
    rf"(?P<up>lora_B{_ADAPTER}\.weight|lora\.up\.weight|lora_up\.weight)|"
    rf"(?P<bias>lora_B{_ADAPTER}\.bias)|"
    rf"(?P<magnitude>lora_magnitude_vector{_ADAPTER}(?:\.weight)?|dora_scale)|"
    r"(?P<alpha>alpha))"
)
_PATTERN = re.compile(r"\^?(?:[\w.-]|\\\.)+\$?")
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways to begin a training that leave the model's own weights as they are."""
_OTHERS = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
"""Options of PEFT under which the same tensors mean something else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraPair:
    """The change of one layer: ``scale * up @ down``, for DoRA with the length of its rows."""

    down: Tensor  # rank in, or rank in h w
    up: Tensor  # out rank, or out rank 1 1
    alpha: float | None = None
    """None: as much as the rank, so that the factor is one."""
    rslora: bool = False
    """The factor is alpha / sqrt(rank), after arXiv 2312.03732, not alpha / rank."""
    bias: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of ``down``."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """The factor before the product."""
        if self.alpha is None:
            return math.sqrt(self.rank) if self.rslora else 1.0
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What PEFT's config of a LoRA says, under its names."""

    r: int = 8
    lora_alpha: float | None = None
    """None: each layer's rank."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    target_modules: list[str] = field(default_factory=list)
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False

    # Read by functions of PEFT.
    peft_type: ClassVar[str] = "LORA"
    bias: ClassVar[str] = "none"
    is_prompt_learning: ClassVar[bool] = False
    inference_mode: ClassVar[bool] = False
    modules_to_save: ClassVar[None] = None

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    @classmethod
    def read(cls, values: object, *, source: str) -> AdapterConfig:
        """Read what somebody wrote: a mapping of any content.

        Raises:
            WeightsError: no mapping, or an option under which the tensors mean other changes.
            ConfigError: a number that is none.
        """
        if not isinstance(values, Mapping):
            raise WeightsError(f"{source}: its LoRA config is a {type(values).__name__}")
        if values.get("peft_type") not in (None, "LORA"):
            raise WeightsError(f"{source}: is a {shown(values['peft_type'])}, no LoRA")
        start = values.get("init_lora_weights")
        if not (start is None or isinstance(start, bool) or start in _PLAIN_STARTS):
            raise WeightsError(
                f"{source}: began as {shown(start)}, which changes the model's own weights",
                hint="save it as a plain LoRA where it was trained",
            )
        for name in _OTHERS:
            if values.get(name):
                raise WeightsError(
                    f"{source}: {name} of PEFT is not supported",
                    hint="merge it into the weights where it was trained",
                )
        alpha = values.get("lora_alpha")
        patterns = values.get("alpha_pattern") or {}
        if not isinstance(patterns, Mapping):
            raise WeightsError(f"{source}: alpha_pattern is a {type(patterns).__name__}")
        return cls(
            lora_alpha=None if alpha is None else number(alpha, name=f"{source}: lora_alpha"),
            alpha_pattern={
                _checked(name, source): number(each, name=f"{source}: alpha_pattern")
                for name, each in patterns.items()
            },
            use_rslora=values.get("use_rslora") is True,
        )

    @classmethod
    def of(cls, pairs: Mapping[str, LoraPair]) -> AdapterConfig:
        """Describe pairs as PEFT does: what most of them have, and the exceptions."""
        ranks = {layer: pair.rank for layer, pair in pairs.items()}
        rslora = any(pair.rslora for pair in pairs.values())
        alphas = {layer: _alpha_as(pair, rslora=rslora) for layer, pair in pairs.items()}
        rank = Counter(ranks.values()).most_common(1)[0][0]
        alpha = Counter(alphas.values()).most_common(1)[0][0]
        return cls(
            r=rank,
            lora_alpha=alpha,
            rank_pattern={layer: each for layer, each in ranks.items() if each != rank},
            alpha_pattern={layer: each for layer, each in alphas.items() if each != alpha},
            target_modules=sorted(pairs),
            use_rslora=rslora,
            use_dora=any(pair.magnitude is not None for pair in pairs.values()),
            lora_bias=any(pair.bias is not None for pair in pairs.values()),
        )

    def alpha_of(self, layer: str) -> float | None:
        """Alpha of a layer: its own pattern, else that of all."""
        for pattern, alpha in self.alpha_pattern.items():
            if _fits(layer, pattern):
                return alpha
        return self.lora_alpha


def find_lora(
    source: str | Path,
    weight_name: str | None = None,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> Path:
    """Give the LoRA file: ``source`` itself, the one in that folder or in that hub repository.

    Raises:
        MissingModelError: there is none, or more than one and none of the usual names; and as
        `hub.fetch_files`.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        folder = path / (subfolder or "")
        return folder / _weights_in(names_in(folder), weight_name, folder)[0]
    if not isinstance(source, str) or not REPOSITORY.fullmatch(source):
        raise MissingModelError(
            f"{path}: no such file or folder", hint="a path, or a repository of the hub: owner/name"
        )
    below = f"{subfolder}/" if subfolder else ""

    def choose(names: Collection[str]) -> list[str]:
        own = [name.removeprefix(below) for name in names if name.startswith(below)]
        return [below + name for name in _weights_in(own, weight_name, source)]

    from sanakit.weights.hub import fetch_files  # noqa: PLC0415 - slow

    place, chosen = fetch_files(source, choose, revision=revision, offline=offline)
    return place / chosen[0]


def _weights_in(names: Collection[str], weight_name: str | None, where: object) -> list[str]:
    """The file of a LoRA among others, and PEFT's config of it where there is one."""
    held = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    usual = [name for name in (LORA_FILE, PEFT_FILE) if name in held]
    wanted = weight_name or (held[0] if len(held) == 1 else [*usual, LORA_FILE][0])
    if wanted not in names:
        raise MissingModelError(
            f"{where}: has no {wanted}; it holds {listed(held)}", hint="name it with weight_name="
        )
    return [wanted, *(name for name in (PEFT_CONFIG,) if name in names and wanted == PEFT_FILE)]


def read_lora(path: Path) -> dict[str, LoraPair]:
    """Read a LoRA file: pairs by the name of their layer, ``transformer_blocks.0.attn1.to_q``.

    PEFT's config is read from the file's metadata, or from ``adapter_config.json`` beside it.

    Raises:
        WeightsError: for a damaged file, or as :func:`lora_pairs`.
    """
    return lora_pairs(read_tensors(path), source=str(path), metadata=read_metadata(path))


def read_metadata(path: Path) -> dict[str, Any] | None:
    """PEFT's config of a LoRA file, unchecked but for being a JSON object; None: it has none.

    Raises:
        WeightsError: no JSON object.
    """
    written: str | bytes | None
    with safe_open(path, framework="pt") as file:
        written = (file.metadata() or {}).get(METADATA)
    beside = path.with_name(PEFT_CONFIG)
    try:
        if written is None and path.name == PEFT_FILE and beside.is_file():
            written = read_file(beside)
        values = None if written is None else parse_json(written)
    except (ValueError, OSError) as error:
        raise WeightsError(f"{path}: its {METADATA} is no JSON ({error})") from error
    if values is not None and not isinstance(values, dict):
        raise WeightsError(f"{path}: its {METADATA} is no JSON object")
    return values


def lora_pairs(
    tensors: Mapping[str, Tensor], *, source: str, metadata: Mapping[str, Any] | None = None
) -> dict[str, LoraPair]:
    """Sort tensors by the layer that they change; ``metadata`` is PEFT's config, which has alpha.

    Names are those of PEFT, of older diffusers, of kohya and of ComfyUI; of layers, also those of
    the original code, which :func:`fit_lora` translates.

    Raises:
        WeightsError: for a name that is no part of a LoRA of a transformer, half a pair, shapes
            that do not multiply, a number that is none, or a config that is not one.
    """
    own = {key.removeprefix(PREFIX): value for key, value in (metadata or {}).items()}
    config = AdapterConfig.read(own, source=source)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise WeightsError(f"{source}: {name} is a {type(tensor).__name__}, no tensor")
        match = _PART.fullmatch(name) if isinstance(name, str) else None
        if match is None or name.startswith(("text_encoder", "lora_te")):
            raise WeightsError(
                f"{source}: {name} is no part of a LoRA of a transformer", hint=_instead(str(name))
            )
        kind = next(kind for kind, found in match.groupdict().items() if found and kind != "layer")
        part = parts.setdefault(_bare(match["layer"]), {})
        if kind in part:
            raise WeightsError(f"{source}: {_bare(match['layer'])} has two tensors for {kind}")
        part[kind] = tensor
    if not parts:
        raise WeightsError(f"{source}: holds no tensor")
    return {layer: _pair(layer, part, config, source) for layer, part in parts.items()}


def lora_tensors(pairs: Mapping[str, LoraPair], *, prefix: str = PREFIX) -> dict[str, Tensor]:
    """Undo :func:`lora_pairs`: tensors by name, each layer's alpha beside it."""
    tensors = {}
    for layer, pair in pairs.items():
        tensors[f"{prefix}{layer}.lora_A.weight"] = pair.down
        tensors[f"{prefix}{layer}.lora_B.weight"] = pair.up
        if pair.bias is not None:
            tensors[f"{prefix}{layer}.lora_B.bias"] = pair.bias
        if pair.magnitude is not None:
            tensors[f"{prefix}{layer}.lora_magnitude_vector"] = pair.magnitude
        if pair.alpha is not None:
            tensors[f"{prefix}{layer}.alpha"] = torch.tensor(pair.alpha)
    return tensors


def write_lora(
    path: Path,
    pairs: Mapping[str, LoraPair],
    *,
    metadata: Mapping[str, Any] | None = None,
    prefix: str = PREFIX,
) -> None:
    """Write a LoRA file that diffusers loads; ``metadata`` is PEFT's config where there is one.

    ``prefix`` begins all names.

    Raises:
        DataError: the disk refuses. WeightsError: no pair. ConfigError: metadata of no JSON.
    """
    if not pairs:
        raise WeightsError(f"{path}: no LoRA layer to write")
    bare = {layer: replace(pair, alpha=None) for layer, pair in pairs.items()}
    config = dict(metadata or {})
    if not config and any(pair.alpha is not None or pair.rslora for pair in pairs.values()):
        config = AdapterConfig.of(pairs).to_dict()
    notes = {}
    if config:
        prefixed = {f"{prefix}{key}": value for key, value in config.items()}
        try:
            notes[METADATA] = json.dumps(prefixed, indent=2, sort_keys=True, default=_as_list)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the LoRA's metadata are no JSON ({error})") from error
    write_tensors(path, lora_tensors(bare, prefix=prefix), notes)


def fit_lora(
    module: nn.Module, pairs: Mapping[str, LoraPair], *, source: str
) -> dict[str, LoraPair]:
    """Give pairs by the layers of ``module``, in their shapes; theirs may be the original names.

    Raises:
        WeightsError: a layer that is missing, can carry no change, or has other sizes.
    """
    modules = {name: each for name, each in module.named_modules() if ".lora_" not in name}
    known = {**original_layers(modules), **{name: (name,) for name in modules}}
    known = {name.replace(".", "_"): layers for name, layers in known.items()} | known
    fitted: dict[str, LoraPair] = {}
    apart = (
        (layer, part)
        for given, pair in pairs.items()
        for layer, part in _apart(known.get(given, (given,)), pair, f"{source}: {given}")
    )
    for layer, pair in apart:
        found = modules.get(layer)
        if not isinstance(found, nn.Linear | nn.Conv2d):
            what = "is missing" if found is None else f"is a {type(found).__name__}"
            raise WeightsError(
                f"{source}: {layer} {what}, where the LoRA changes a linear layer or a convolution",
                hint="it was made for another model",
            )
        if layer in fitted:
            raise WeightsError(f"{source}: {layer} is there under two names")
        if pair.magnitude is not None and (
            not is_plain(found) or found.weight.is_meta or getattr(found, "groups", 1) > 1
        ):
            raise WeightsError(
                f"{source}: DoRA of {layer} needs its real weights, which are quantized, offloaded "
                "layer by layer, or of a grouped convolution",
                hint="load the LoRA into the model as it was published, and before offloading",
            )
        fitted[layer] = _in_shape(pair, found, f"{source}: {layer}")
    return fitted


def _apart(layers: tuple[str, ...], pair: LoraPair, what: str) -> Iterator[tuple[str, LoraPair]]:
    """Give the change of a fused layer as those of its parts, which are exactly its rows."""
    if len(layers) == 1:
        yield layers[0], pair
        return

    def rows(tensor: Tensor | None, name: str) -> Sequence[Tensor | None]:
        if tensor is None:
            return [None] * len(layers)
        if tensor.ndim < 1 or tensor.shape[0] % len(layers):
            raise WeightsError(
                f"{what}: its {name} {tuple(tensor.shape)} cannot be split into {len(layers)} "
                "equal parts"
            )
        return tensor.chunk(len(layers))

    lengths = None if pair.magnitude is None else pair.magnitude.flatten()
    parts = zip(
        layers,
        rows(pair.up, "up"),
        rows(pair.bias, "bias"),
        rows(lengths, "magnitude"),
        strict=True,
    )
    for layer, up, bias, magnitude in parts:
        assert up is not None
        yield layer, replace(pair, up=up, bias=bias, magnitude=magnitude)


def _in_shape(pair: LoraPair, layer: nn.Linear | nn.Conv2d, what: str) -> LoraPair:
    """Give a pair the dimensions of a layer; trainers write those of size one, or leave them out.

    A convolution's ``down`` reads all channels, its ``up`` is in as many groups as the layer.
    """
    rank = pair.rank
    if isinstance(layer, nn.Conv2d):
        if rank % layer.groups:
            raise WeightsError(
                f"{what} is in {layer.groups} groups, which rank {rank} is no multiple of"
            )
        down = (rank, layer.in_channels, *layer.kernel_size)
        up: tuple[int, ...] = (layer.out_channels, rank // layer.groups, 1, 1)
    else:
        down, up = (rank, layer.in_features), (layer.out_features, rank)
    shapes = [down, up]
    given = [tuple(pair.down.shape), tuple(pair.up.shape)]
    bare = [[_trimmed(shape) for shape in group] for group in (given, shapes)]
    rows = up[0]
    for name, tensor in (("bias", pair.bias), ("magnitude", pair.magnitude)):
        if tensor is not None and (tensor.numel() != rows or rows not in tensor.shape):
            raise WeightsError(f"{what} has a {name} {tuple(tensor.shape)}, the model {rows} rows")
    if bare[0] != bare[1]:
        raise WeightsError(
            f"{what} is made for {given[1]} times {given[0]}, the model has {up} times {down}",
            hint="it was made for another model",
        )
    return replace(pair, down=pair.down.reshape(down), up=pair.up.reshape(up))


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _pair(layer: str, part: Mapping[str, Tensor], config: AdapterConfig, source: str) -> LoraPair:
    if "down" not in part or "up" not in part:
        raise WeightsError(f"{source}: {layer} has only {', '.join(sorted(part))}")
    down, up = part["down"], part["up"]
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or 0 in (*down.shape, *up.shape):
        raise WeightsError(
            f"{source}: {layer} has lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)}",
            hint="lora_A is (rank, in), lora_B (out, rank), and 4 dimensions for a convolution",
        )
    if down.shape[0] % up.shape[1]:
        raise WeightsError(
            f"{source}: {layer} has lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)}",
            hint="lora_A is (rank, in), lora_B (out, rank): the ranks differ",
        )
    for kind, tensor in part.items():
        whole = kind == "alpha" and tensor.dtype in _WHOLE
        if tensor.dtype not in _REAL and not whole:
            raise WeightsError(f"{source}: {layer} holds {tensor.dtype} for its {kind}")
        if not torch.isfinite(tensor.float()).all():
            raise WeightsError(f"{source}: {layer} holds numbers that are not finite ({kind})")
    if "bias" in part and "magnitude" in part:
        raise WeightsError(f"{source}: {layer} is DoRA with a bias, which is not supported")
    alpha = config.alpha_of(layer)
    if "alpha" in part:
        if part["alpha"].numel() != 1:
            raise WeightsError(f"{source}: alpha of {layer} is {tuple(part['alpha'].shape)}")
        alpha = float(part["alpha"])
    return LoraPair(
        down=down,
        up=up,
        alpha=alpha,
        rslora=config.use_rslora,
        bias=part.get("bias"),
        magnitude=part.get("magnitude"),
    )


def _alpha_as(pair: LoraPair, *, rslora: bool) -> float:
    """The alpha that gives a pair's scale in a file of one way."""
    if pair.alpha is not None and pair.rslora == rslora:
        return pair.alpha
    return pair.scale * (math.sqrt(pair.rank) if rslora else pair.rank)


def _bare(layer: str) -> str:
    """A layer's name without what trainers put before it."""
    for prefix in _FLAT:
        if layer.startswith(prefix):
            return layer.removeprefix(prefix)
    for prefix in _PREFIXES:
        layer = layer.removeprefix(prefix)
    return layer


def _instead(name: str) -> str:
    if name.startswith(("text_encoder", "lora_te")):
        return "a LoRA changes the transformer alone: train it without the text encoder"
    for kind in ("hada_", "lokr_", "oft_", "lora_mid", "diff"):
        if f".{kind}" in name:
            return f"{kind.strip('_')} is another method than LoRA: merge it where it was trained"
    return f"names are like {PREFIX}transformer_blocks.0.attn1.to_q.lora_A.weight"


def _checked(pattern: object, source: str) -> str:
    """A pattern of PEFT without repetition: others are not run on foreign text."""
    if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
        raise WeightsError(
            f"{source}: alpha_pattern {shown(pattern)} is no name of a layer",
            hint="name the layers one by one",
        )
    return pattern


def _fits(layer: str, pattern: str) -> bool:
    """Whether a name is, or after a dot ends in, what a pattern says; a bare dot is any letter."""
    said = re.findall(r"\\?.", pattern.removeprefix("^").removesuffix("$"))
    end = layer[-len(said) :]
    whole = len(end) == len(layer)
    placed = whole or (not pattern.startswith("^") and layer[: -len(said)].endswith("."))
    return (
        placed
        and len(end) == len(said)
        and all(
            each in (".", letter, f"\\{letter}") for each, letter in zip(said, end, strict=True)
        )
    )


def _as_list(value: object) -> list[Any]:
    if isinstance(value, set | frozenset | tuple):
        return sorted(value)
    raise TypeError(f"a {type(value).__name__}")
