"""What to do to which linear layers: read from the ecosystem's config objects or a short name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sanakit.errors import ConfigError, did_you_mean
from sanakit.untrusted import number, shown

TORCHAO_KINDS = ("int8", "int4", "fp8")
# Published names of the same weight-only formats.
TORCHAO_ALIASES = {
    "int8wo": "int8",
    "int8_weight_only": "int8",
    "int4wo": "int4",
    "int4_weight_only": "int4",
    "float8wo": "fp8",
    "float8_weight_only": "fp8",
    "float8wo_e4m3": "fp8",
}
Bits = Literal["int8", "nf4", "fp4"]
BNB_KINDS: dict[str, Bits] = {"bnb-int8": "int8", "bnb-nf4": "nf4", "bnb-fp4": "fp4"}
INT8_KINDS = ("w8a8", "w8a16")
# Published names of the same arithmetic.
INT8_ALIASES = {"int8dq": "w8a8", "int8_dynamic_activation_int8_weight": "w8a8"}
NAMES = (*BNB_KINDS, *TORCHAO_KINDS, *INT8_KINDS)
INT8_THRESHOLD = 6.0
COMPUTE = (None, "float32", "float16", "bfloat16")
REFUSED = ("llm_int8_has_fp16_weight", "llm_int8_enable_fp32_cpu_offload")


@dataclass(frozen=True, kw_only=True)
class BitsAndBytes:
    """LLM.int8() (Dettmers 2022), or 4 bits in pieces of 64 values (QLoRA, Dettmers 2023)."""

    kind: Bits
    skip: tuple[str, ...] | None = None
    """Names of modules, or of their parents, that stay as they are; None leaves it to the model."""
    threshold: float = INT8_THRESHOLD
    """int8: columns of activations that exceed it are multiplied in 16 bits."""
    nested: bool = False
    """4 bits: the scales are quantized too."""
    compute_dtype: str | None = None
    """4 bits: what products are made in, e.g. ``bfloat16``; None is that of the activations."""

    def to_json(self) -> dict[str, Any]:
        """As published ``config.json`` files have it under ``quantization_config``."""
        common: dict[str, Any] = {
            "quant_method": "bitsandbytes",
            "load_in_8bit": self.kind == "int8",
            "load_in_4bit": self.kind != "int8",
            "llm_int8_skip_modules": None if self.skip is None else list(self.skip),
        }
        if self.kind == "int8":
            return {**common, "llm_int8_threshold": self.threshold}
        return {
            **common,
            "bnb_4bit_quant_type": self.kind,
            "bnb_4bit_use_double_quant": self.nested,
            "bnb_4bit_compute_dtype": self.compute_dtype,
        }


@dataclass(frozen=True, kw_only=True)
class TorchAo:
    """Weight-only formats of torchao: a short name, or one of its own config objects."""

    kind: Any
    skip: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Int8:
    """Int8 weights with a scale for each output, in this package's own layers.

    ``w8a8`` rounds the activations of each token as they come, ``w8a16`` leaves them as they are.
    """

    kind: str = "w8a8"
    skip: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """As ``config.json`` files of the ``compressed-tensors`` format have it."""
        group = {
            "targets": ["Linear"],
            "weights": WEIGHTS,
            "input_activations": TOKENS if self.kind == "w8a8" else None,
        }
        return {
            "quant_method": COMPRESSED,
            "format": "int-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": list(self.skip or ()),
        }


COMPRESSED = "compressed-tensors"
WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
Method = BitsAndBytes | TorchAo | Int8


def of_language_model(method: Method) -> Method:
    """The method for a text encoder: a few channels of its activations are too large to round."""
    if isinstance(method, Int8) and method.kind == "w8a8":
        return replace(method, kind="w8a16")
    return method


def method_of(config: Any) -> Method:
    """Read a method from what a user passed as ``quantization_config``.

    Args:
        config: a ``BitsAndBytesConfig`` or ``TorchAoConfig`` of transformers or diffusers, what
            ``config.json`` holds of one, or one of ``w8a8 w8a16
            bnb-int8 bnb-nf4 bnb-fp4 int8 int4 fp8``.

    Raises:
        ConfigError: for another method or name, or a setting that would not be honoured.
    """
    if isinstance(config, BitsAndBytes | TorchAo | Int8):
        return config
    if isinstance(config, str):
        return _named(config)
    if isinstance(config, Mapping):
        values: dict[str, Any] = dict(config)
    elif hasattr(config, "quant_method"):
        # vars(), because to_dict() turns torchao's own objects into text.
        values = {name.removeprefix("_"): value for name, value in vars(config).items()}
    else:
        raise ConfigError(
            f"quantization_config is a {type(config).__name__}",
            hint=f"pass a BitsAndBytesConfig, a TorchAoConfig, or one of {', '.join(NAMES)}",
        )
    library = values.get("quant_method")
    library = getattr(library, "value", library)
    if library == "bitsandbytes":
        return _bits_and_bytes(values)
    if library == "torchao":
        kind, skip = values.get("quant_type"), _skipped(values, "modules_to_not_convert")
        if isinstance(kind, str) and kind in INT8_ALIASES:
            return Int8(kind=INT8_ALIASES[kind], skip=skip)
        return TorchAo(kind=_torchao_kind(kind), skip=skip)
    if library == COMPRESSED:
        return _compressed(values)
    raise ConfigError(
        f"quantization method {shown(library)} is not supported",
        hint="bitsandbytes, torchao and compressed-tensors in int8 are",
    )


def _torchao_kind(kind: Any) -> Any:
    """Our short name of a published one; an object of torchao's own is taken as it is."""
    return TORCHAO_ALIASES.get(kind, kind) if isinstance(kind, str) else kind


def _named(name: str) -> Method:
    name = INT8_ALIASES.get(name, name)
    if name not in NAMES:
        raise ConfigError(f"quantization {name!r} is unknown", hint=did_you_mean(name, NAMES))
    if name in INT8_KINDS:
        return Int8(kind=name)
    return BitsAndBytes(kind=BNB_KINDS[name]) if name in BNB_KINDS else TorchAo(kind=name)


def _compressed(values: Mapping[str, Any]) -> Int8:
    """Read the one scheme of that format that is here, as it is written in published files."""
    groups = values.get("config_groups")
    group = next(iter(groups.values())) if isinstance(groups, Mapping) and len(groups) == 1 else {}
    group = group if isinstance(group, Mapping) else {}
    weights, tokens = group.get("weights"), group.get("input_activations")
    fits = _says(weights, WEIGHTS) and (tokens is None or _says(tokens, TOKENS))
    if values.get("format") != "int-quantized" or not fits:
        raise ConfigError(
            "compressed-tensors in another scheme than int8 weights by channel",
            hint="format int-quantized, num_bits 8, symmetric; activations by token, or none",
        )
    ignored = _skipped(values, "ignore")
    return Int8(kind="w8a16" if tokens is None else "w8a8", skip=ignored or None)


def _says(found: Any, wanted: Mapping[str, Any]) -> bool:
    return isinstance(found, Mapping) and all(found.get(k) == v for k, v in wanted.items())


def _bits_and_bytes(values: Mapping[str, Any]) -> BitsAndBytes:
    for name in REFUSED:
        if values.get(name):
            raise ConfigError(f"{name}=True is not supported", hint="leave it out")
    storage = str(values.get("bnb_4bit_quant_storage") or "uint8").removeprefix("torch.")
    if storage != "uint8":
        raise ConfigError(f"bnb_4bit_quant_storage={storage} is not supported", hint="use uint8")
    skip = _skipped(values, "llm_int8_skip_modules")
    if values.get("load_in_8bit"):
        threshold = number(
            values.get("llm_int8_threshold", INT8_THRESHOLD), name="llm_int8_threshold", low=0
        )
        return BitsAndBytes(kind="int8", skip=skip, threshold=threshold)
    if not values.get("load_in_4bit"):
        raise ConfigError(
            "the BitsAndBytesConfig quantizes nothing", hint="pass load_in_8bit or load_in_4bit"
        )
    kind = values.get("bnb_4bit_quant_type", "fp4")
    if kind not in ("nf4", "fp4"):
        raise ConfigError(f"bnb_4bit_quant_type={kind!r} is unknown", hint="use nf4 or fp4")
    given = values.get("bnb_4bit_compute_dtype")
    compute = None if given is None else str(given).removeprefix("torch.")
    if compute not in COMPUTE:
        raise ConfigError(f"bnb_4bit_compute_dtype={shown(given)}", hint=f"one of {COMPUTE[1:]}")
    return BitsAndBytes(
        kind=kind,
        skip=skip,
        nested=bool(values.get("bnb_4bit_use_double_quant")),
        compute_dtype=compute,
    )


def _skipped(values: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    given = values.get(name)
    if given is None:
        return None
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise ConfigError(f"{name}={shown(given)} is no list of names of modules")
    return tuple(given)


USUAL = ("transformer", "text_encoder")
# Published backends, and the library's own name in its configs.
BACKENDS = {
    "bitsandbytes_4bit": "bitsandbytes",
    "bitsandbytes_8bit": "bitsandbytes",
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
}
OTHER_BACKENDS = ("quanto", "gguf", "modelopt", "nunchaku_lite", "auto-round")


@dataclass(frozen=True)
class PipelineQuantizationConfig:
    """A backend with its keywords for some components, or a mapping from components to configs.

    Raises:
        ConfigError: both or neither, a backend that is not here.
    """

    quant_backend: str | None = None
    quant_kwargs: Mapping[str, Any] | None = None
    components_to_quantize: str | Sequence[str] | None = None
    quant_mapping: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        mapping_of(self)


def mapping_of(config: Any) -> Mapping[str, Any]:
    """Give the components' configs of a ``PipelineQuantizationConfig``, ours or the reference's."""
    backend, mapping = getattr(config, "quant_backend", None), config.quant_mapping
    if (backend is None) == (mapping is None):
        raise ConfigError(
            "PipelineQuantizationConfig takes quant_backend or quant_mapping",
            hint='quant_backend="bitsandbytes_4bit", or quant_mapping={"transformer": config}',
        )
    if mapping is not None:
        return dict(mapping)
    if backend not in BACKENDS:
        hint = did_you_mean(backend, BACKENDS)
        if backend in OTHER_BACKENDS:
            hint = "bitsandbytes_4bit, bitsandbytes_8bit and torchao are here"
        raise ConfigError(f"quant_backend={backend!r} is not supported", hint=hint)
    values = dict(config.quant_kwargs or {})
    bits = {"bitsandbytes_4bit": "load_in_4bit", "bitsandbytes_8bit": "load_in_8bit"}.get(backend)
    if bits is not None:
        values.setdefault(bits, True)
    named = config.components_to_quantize or USUAL
    parts = [named] if isinstance(named, str) else list(named)
    return {part: {"quant_method": BACKENDS[backend], **values} for part in parts}
