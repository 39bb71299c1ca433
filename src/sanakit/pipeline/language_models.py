"""Language models and their tokenizers, out of folders that nobody has checked.

No code of a model runs, nobody is asked whether it may, and nothing is looked up elsewhere: the
classes are ours or those of transformers, the files those of the folder. What a folder asks for is
counted before it is built.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules import module as registration

from sanakit.errors import ConfigError, MissingModelError
from sanakit.files import listed, names_in, read_json
from sanakit.models.gemma2 import Gemma2Model, config_of
from sanakit.models.text_encoder import other_llms
from sanakit.models.tokenizer import IGNORED as BESIDE_TOKENIZERS
from sanakit.models.tokenizer import READ, SPECIAL_MAP, Tokenizer, tokenizer_of
from sanakit.models.unfilled import unfilled
from sanakit.untrusted import other_readers, parse_json, read_file, shown
from sanakit.weights.layout import CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

TOKENIZER_CONFIG = "tokenizer_config.json"
USUAL = "gemma2"
DAMAGED = "download it again, or name another model"
NEVER_RUN = "code of a model is never run here: use a model that transformers has a class for"
# Instructions to load code, kernels or files from elsewhere; quantized weights are ours to read.
IGNORED = re.compile(
    r"auto_map|quantization_config|_?name_or_path|_commit_hash|use_kernels"
    r"|_?(attn|experts)_implementation(_\w+)?"
)
COUNTED = re.compile(r"layer|block|depth|expert|stage")
MOST_COUNTED, LARGEST_NUMBER = 4096, 1 << 31
MOST_MODULES, MOST_BUFFER_BYTES = 200_000, 1 << 30


def build_llm(folder: Path, *, by_transformers: bool = False) -> nn.Module:
    """Build the LLM on the meta device.

    The Gemma-2 family is our own `Gemma2Model`, unless its weights are quantized or the model of
    transformers is asked for, which all others are.

    Raises:
        ConfigError: a model of no class of transformers, or a config that cannot be built.
    """
    path = folder / CONFIG
    values = read_json(path)
    if not by_transformers and not values.get("quantization_config"):
        ours = config_of(_without_ignored(values))
        if ours is not None:
            _check_values(values, path)
            with unfilled():
                return Gemma2Model(ours)
    config = read_llm_config(folder)
    with other_readers(path, ConfigError, what="cannot be built", hint=DAMAGED):
        with _counted(path):
            other_llms().built(config, empty=True)
        llm: nn.Module = other_llms().built(config)
        return llm


def read_llm_config(folder: Path) -> PreTrainedConfig:
    """Read the ``config.json`` of a model that transformers has a class for.

    Raises:
        ConfigError: it has none, or a value is of the wrong type or beyond any model.
    """
    from transformers import CONFIG_MAPPING, AutoConfig  # noqa: PLC0415 - slow

    path = folder / CONFIG
    values = read_json(path)
    kind = values.pop("model_type", None)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        own = _own_code(values)
        raise ConfigError(
            f"{path}: needs code of its own ({own})"
            if own
            else f"{path}: model_type {shown(kind)} is none of transformers",
            hint=NEVER_RUN if own else f"SANA's is {USUAL}",
        )
    _check_values(values, path)
    with other_readers(path, ConfigError, what="cannot be built", hint=DAMAGED):
        config: PreTrainedConfig = AutoConfig.for_model(kind, **_without_ignored(values))
    return config


def _own_code(values: Mapping[str, Any]) -> str | None:
    """The first class of its own that a config names."""
    named = values.get("auto_map")
    while isinstance(named, dict | list | tuple):
        inside = list(named.values()) if isinstance(named, dict) else list(named)
        named = next((one for one in inside if one), None)
    return None if named is None else shown(named)


def _without_ignored(values: Any) -> Any:
    if isinstance(values, list):
        return [_without_ignored(one) for one in values]
    if not isinstance(values, dict):
        return values
    return {k: _without_ignored(v) for k, v in values.items() if not IGNORED.fullmatch(k)}


def _check_values(values: Any, path: Path, name: str = "") -> None:
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        place = key if isinstance(key, str) else name
        if isinstance(value, dict | list):
            _check_values(value, path, place)
        elif isinstance(value, int):
            most = MOST_COUNTED if COUNTED.search(place.lower()) else LARGEST_NUMBER
            if abs(value) > most:
                raise ConfigError(f"{path}: {place}={shown(value)} is beyond any model")


@contextmanager
def _counted(path: Path) -> Iterator[None]:
    """Refuse a model while it is built, once it has too many modules or too large buffers."""
    modules = held = 0

    def module_comes(owner: nn.Module, name: str, module: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > MOST_MODULES:
            raise ConfigError(f"{path}: more than {MOST_MODULES} modules")

    def buffer_comes(owner: nn.Module, name: str, buffer: torch.Tensor | None) -> None:
        nonlocal held
        held += 0 if buffer is None else buffer.nbytes
        if held > MOST_BUFFER_BYTES:
            raise ConfigError(f"{path}: its tables of positions are larger than any model's")

    hooks = [
        registration.register_module_module_registration_hook(module_comes),
        registration.register_module_buffer_registration_hook(buffer_comes),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def open_tokenizer(
    folder: Path, *, by_transformers: bool = False
) -> Tokenizer | PreTrainedTokenizerBase:
    """Open the tokenizer in a folder: our own where it has the same ids as that of transformers.

    Raises:
        MissingModelError: no such folder, or nothing in it. ConfigError: files that are damaged,
            a tokenizer with code of its own, or one whose rules could take any time or memory.
    """
    held = names_in(folder)
    if not held:
        raise MissingModelError(f"{folder}: holds no tokenizer", hint=DAMAGED)
    settings: dict[str, Any] = {}
    if TOKENIZER_CONFIG in held:
        settings = read_json(folder / TOKENIZER_CONFIG)
    _check_settings(settings, folder)
    shared = folder / CONFIG
    with other_readers(folder, ConfigError, what="its tokenizer cannot be read", hint=DAMAGED):
        if not by_transformers and not shared.is_file():
            ours = _own_tokenizer(folder, held, settings)
            if ours is not None:
                check_rules(ours, source=folder)
                return ours
        from transformers import AutoTokenizer, PreTrainedConfig  # noqa: PLC0415 - slow

        config = read_llm_config(folder) if shared.is_file() else PreTrainedConfig()
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), config=config, trust_remote_code=False, local_files_only=True
        )
        check_rules(tokenizer, source=folder)
    return tokenizer


def _own_tokenizer(
    folder: Path, held: Collection[str], settings: Mapping[str, Any]
) -> Tokenizer | None:
    """The tokenizer of a folder in which nothing else stands that could change its ids."""
    if set(held) - {*READ, *BESIDE_TOKENIZERS}:
        return None
    special = read_json(folder / SPECIAL_MAP) if SPECIAL_MAP in held else {}
    files = {name: read_file(folder / name) for name in READ if name in held}
    return tokenizer_of(settings, special, files)


def _check_settings(settings: Mapping[str, Any], folder: Path) -> None:
    path = folder / TOKENIZER_CONFIG
    kind = settings.get("tokenizer_class")
    if kind is not None and not isinstance(kind, str):
        raise ConfigError(f"{path}: tokenizer_class={shown(kind)} is no name", hint=DAMAGED)
    if own := _own_code(settings):
        from transformers.models.auto.tokenization_auto import (  # noqa: PLC0415 - slow
            tokenizer_class_from_name,
        )

        if kind is None or tokenizer_class_from_name(kind) is None:
            raise ConfigError(f"{path}: needs code of its own ({own})", hint=NEVER_RUN)
    for key, value in settings.items():
        elsewhere = key.endswith("_file") and key != "special_tokens_map_file"
        if elsewhere and value is not None:
            name = Path(value).name if isinstance(value, str) else ""
            if key == "gguf_file" or not (folder / name).is_file():
                raise ConfigError(
                    f"{path}: {key}={shown(value)} is not beside it; it holds "
                    f"{listed(names_in(folder))}",
                    hint=DAMAGED,
                )


MOST_RULES, MOST_GROWTH, LONGEST_PATTERN, MOST_SPECIAL = 64, 1000, 2000, 64
# A repeated group, and a repetition repeated, can be matched in exponentially many ways. Of plain
# repetitions after each other published tokenizers have two, which take the square of a text's
# length at worst; those that never give back ("++") are one.
REPEATED_GROUP = re.compile(r"\)\s*(?:[*+]|\{\d*,?\d*\})|\{\d*,?\d*\}[*+{]|[*+]\{\d")
REPETITION = re.compile(r"(?<!\\)[*+]\+?|\{\d*,\d*\}")
INNERMOST = re.compile(r"\(([^()]*)\)")
MOST_REPETITIONS = 2


def check_rules(tokenizer: Tokenizer | PreTrainedTokenizerBase, *, source: object) -> None:
    """Refuse a tokenizer that could take any time or memory over a short text.

    Raises:
        ConfigError: texts grow, are searched with expressions that never end, or get more special
            tokens than any prompt has.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    growth, rules = 1, 0
    for part in (backend.normalizer, backend.pre_tokenizer, backend.post_processor):
        if part is None:
            continue
        for rule in _rules(parse_json(part.__getstate__())):
            rules += 1
            growth *= _growth(rule)
            _check_pattern(rule, source)
            if rule.get("type") == "TemplateProcessing" and len(rule["single"]) > MOST_SPECIAL:
                raise ConfigError(f"{source}: its tokenizer adds {len(rule['single'])} tokens")
            for token in (rule.get("special_tokens") or {}).values():
                if isinstance(token, dict) and len(token.get("ids", ())) > MOST_SPECIAL:
                    raise ConfigError(f"{source}: a special token of its tokenizer is many")
    if rules > MOST_RULES or growth > MOST_GROWTH:
        raise ConfigError(
            f"{source}: its tokenizer makes texts up to {shown(growth)} times as long "
            f"by {rules} rules",
            hint=DAMAGED,
        )


def _rules(value: Any) -> Iterator[dict[str, Any]]:
    """All steps of a part, those inside a sequence one by one."""
    if isinstance(value, dict):
        inside = [value.get(name) for name in ("normalizers", "pretokenizers", "processors")]
        if any(isinstance(one, list) for one in inside):
            for steps in inside:
                for step in steps or ():
                    yield from _rules(step)
        else:
            yield value


def _growth(rule: Mapping[str, Any]) -> int:
    kind = rule.get("type")
    if kind == "Replace":
        pattern, content = rule["pattern"], len(rule["content"])
        text = pattern.get("String")
        # An expression may match nothing, and so between all characters.
        return max(1, -(-content // len(text))) if text else 1 + content
    if kind == "Prepend":
        return 1 + len(rule["prepend"]) // 64
    if kind == "Precompiled":
        return 18  # of NFKC
    return 1


def _check_pattern(rule: Mapping[str, Any], source: object) -> None:
    pattern = rule.get("pattern")
    expression = pattern.get("Regex") if isinstance(pattern, dict) else None
    if expression is None:
        return
    bare = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", "x", expression)
    if (
        len(expression) > LONGEST_PATTERN
        or REPEATED_GROUP.search(bare)
        or _repetitions(bare) > MOST_REPETITIONS
    ):
        raise ConfigError(
            f"{source}: its tokenizer searches with {shown(expression)}, which may never end",
            hint=DAMAGED,
        )


def _repetitions(expression: str) -> int:
    """The most repetitions that stand after each other in an expression without its escapes."""
    while group := INNERMOST.search(expression):
        inside = "x+" * _repetitions(group[1])
        expression = expression[: group.start()] + inside + expression[group.end() :]
    return max(len(REPETITION.findall(one)) for one in expression.split("|"))
