"""Texts to tokens by `tokenizers` alone, where transformers would give the very same ids.

What transformers makes of a folder is decided by its ``tokenizer.json`` and by settings beside it.
Those that are known to change nothing are listed here; with any other a folder is not of these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import tokenizers

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
READ = (TOKENIZER, SETTINGS, SPECIAL_MAP)
IGNORED = ("tokenizer.model", "chat_template.jinja", "README.md", ".gitattributes")
AS_IT_IS = (None, "TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that take ``tokenizer.json`` as it is."""
REBUILT = ("GemmaTokenizer", "GemmaTokenizerFast")
"""Classes that build Gemma's tokenizer of its pieces, merges, template and listed tokens."""
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "mask_token")
LISTED = ("additional_special_tokens", "extra_special_tokens")
NEEDLESS = {
    *("tokenizer_class", "model_max_length", "padding_side", "truncation_side", "backend"),
    *("is_local", "local_files_only", "chat_template", "use_default_system_prompt"),
    *("sp_model_kwargs", "spaces_between_special_tokens", "processor_class", "name_or_path"),
}
HEEDED = {*NAMED, *LISTED, "add_bos_token", "add_eos_token", "added_tokens_decoder"}
HEEDED |= {"clean_up_tokenization_spaces"}
SIDES = ("padding_side", "truncation_side")
SPACE, PIECES = {"String": " "}, "MergedWithPrevious"
GEMMA = {
    "normalizer": {"type": "Replace", "pattern": SPACE, "content": "▁"},
    "pre_tokenizer": {"type": "Split", "pattern": SPACE, "behavior": PIECES, "invert": False},
}
MODEL = {"byte_fallback": True, "fuse_unk": True, "dropout": None, "ignore_merges": False}
FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_CHANGING = Lock()


class Tokenizer:
    """Maps texts to ids as the published tokenizer does: bos in front, nothing cut, no padding."""

    def __init__(
        self, backend: tokenizers.Tokenizer, named: Mapping[str, str], files: Mapping[str, bytes]
    ) -> None:
        """Take a tokenizer, its special tokens by their published names, and its files."""
        self._backend, self._files = backend, files
        self._published: Any = None
        ids = {name: backend.token_to_id(token) for name, token in named.items()}
        self.eos_token_id: Any = ids["eos_token"]
        self.pad_token_id: Any = ids["pad_token"]

    @property
    def backend_tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer inside, by its published name."""
        return self._backend

    def __call__(self, texts: Sequence[str], verbose: bool = False) -> Mapping[str, Any]:
        """Give ``input_ids``, a list for each text; nothing is said about long ones."""
        if self._published is not None:
            ids: Mapping[str, Any] = self._published(list(texts), verbose=verbose)
            return ids
        one = len(texts) == 1  # a batch starts threads
        found = [self._backend.encode(texts[0])] if one else self._backend.encode_batch(list(texts))
        return {"input_ids": [each.ids for each in found]}

    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of tokens, special ones spelt out."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=False)
        return text

    def published(self) -> Any:
        """The tokenizer of transformers, made once; what is set there acts from then on."""
        with _CHANGING:
            if self._published is None:
                from transformers import AutoTokenizer, PreTrainedConfig  # noqa: PLC0415 - slow

                with TemporaryDirectory() as folder:
                    for name, content in self._files.items():
                        (Path(folder) / name).write_bytes(content)
                    self._published = AutoTokenizer.from_pretrained(
                        folder,
                        config=PreTrainedConfig(),
                        trust_remote_code=False,
                        local_files_only=True,
                    )
            return self._published


def tokenizer_of(
    settings: Mapping[str, Any], special: Mapping[str, Any], files: Mapping[str, bytes]
) -> Tokenizer | None:
    """Make a tokenizer of what a folder's files say; None: only transformers knows its ids.

    Args:
        settings: of ``tokenizer_config.json``.
        special: of ``special_tokens_map.json``.
        files: all that is in the folder and read by anybody.
    """
    kind = settings.get("tokenizer_class")
    if kind not in (*AS_IT_IS, *REBUILT) or settings.keys() - NEEDLESS - HEEDED:
        return None
    if special.keys() - {*NAMED, *LISTED} or TOKENIZER not in files:
        return None
    backend = tokenizers.Tokenizer.from_buffer(files[TOKENIZER])
    backend.no_truncation()
    backend.no_padding()
    known = {number: _flags(token) for number, token in backend.get_added_tokens_decoder().items()}
    contents = {flags["content"] for flags in known.values() if flags["special"]}
    mapped = {name: _content(special[name]) for name in NAMED if special.get(name) is not None}
    given = {name: settings[name] for name in NAMED if settings.get(name) is not None}
    named = {"mask_token": "<mask>"} if kind in REBUILT else {}
    named |= mapped | given
    wanted = {*named.values(), *(_content(each) for each in _listed(settings, special))}
    alike = True
    if "added_tokens_decoder" in settings:
        stated = {int(k): token for k, token in settings["added_tokens_decoder"].items()}
        alike = stated == known if kind in REBUILT else stated.items() <= known.items()
    adds = [settings.get(name, False) for name in ("add_bos_token", "add_eos_token")]
    told = not {"add_bos_token", "add_eos_token"} & settings.keys() or adds == [True, False]
    usual = (
        all(isinstance(token, str) for token in wanted)
        and wanted <= contents
        and mapped.items() <= named.items()
        and {"bos_token", "eos_token", "pad_token"} <= named.keys()
        and alike
        and told
        and not settings.get("clean_up_tokenization_spaces")
        and all(settings.get(name, "right") in ("right", "left") for name in SIDES)
        and _begins_with(backend, named["bos_token"])
        and (kind in AS_IT_IS or _is_gemmas(backend, named.get("unk_token")))
    )
    return Tokenizer(backend, named, files) if usual else None


def _flags(token: Any) -> dict[str, Any]:
    return {name: getattr(token, name) for name in FLAGS}


def _listed(*given: Mapping[str, Any]) -> list[Any]:
    return [token for one in given for name in LISTED for token in one.get(name) or ()]


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _begins_with(backend: tokenizers.Tokenizer, bos: Any) -> bool:
    """Whether all that is put around a text is one bos in front."""
    template = _state(backend.post_processor) or {}
    bos_id = backend.token_to_id(bos)
    return (
        template.get("type") == "TemplateProcessing"
        and template["single"]
        == [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        and template["special_tokens"].get(bos, {}).get("ids") == [bos_id]
    )


def _is_gemmas(backend: tokenizers.Tokenizer, unknown: Any) -> bool:
    model = backend.model
    return (
        type(model) is tokenizers.models.BPE
        and all(getattr(model, name) == value for name, value in MODEL.items())
        and model.unk_token == unknown == "<unk>"
        and not (model.continuing_subword_prefix or model.end_of_word_suffix)
        and all(_state(getattr(backend, part)) == state for part, state in GEMMA.items())
    )
