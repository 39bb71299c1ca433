"""Prompts become text embeddings: instruction in front, LLM, first token and the prompt's kept.

Nothing is padded beyond the longest prompt of a call. What is kept between calls is in one object,
the encoder's `PromptCache`; it stays in memory and changes no result.
"""

from __future__ import annotations

import html
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Literal, TypedDict

import torch
from torch.nn import functional

from sanakit.errors import ConfigError, check_unicode, did_you_mean
from sanakit.models.stamp import checksum_of, settings_of
from sanakit.models.text_encoder import Prefix, TextEncoder, length_mask
from sanakit.shapes import Text, TextMask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sanakit.models.tokenizer import Tokenizer

_CAPTION_NOISE = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"<[^<>]*>", " "),  # markup
        (r"\b(?:https?://|www\.)\S+", " "),
        (r"@\w+", " "),  # mentions
        (r"\S+\.(?:png|jpe?g|gif|bmp|webp|tiff?|svg|eps|pdf|mp4)\b", " "),  # file names
        (r"#?\b\d{6,}\b|#\d+\b", " "),  # article numbers
        (r"[\u2010-\u2015\u2212]", "-"),
        (r"[\u2018\u2019]", "'"),
        (r"[\u201c\u201d\u00ab\u00bb]", '"'),
        (r"[#\u00ae\u2122\u00a9|*{}\[\]\\]+", " "),
        (r"\s+", " "),
    )
)


def cleaned(caption: str) -> str:
    """Remove markup, addresses, mentions, file names and article numbers; even out quotes.

    Our own rules: unlike the reference's they keep every script, Chinese among them.
    """
    caption = html.unescape(caption)
    for pattern, replacement in _CAPTION_NOISE:
        caption = pattern.sub(replacement, caption)
    return caption.strip()


Compat = Literal["diffusers", "nvlabs"]

# Part of the contract of the published weights: they were trained behind these very words.
COMPLEX_HUMAN_INSTRUCTION = (
    "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions "
    "suitable for image generation. Evaluate the level of detail in the user prompt:",
    "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, "
    "and spatial relationships to create vivid and concrete scenes.",
    "- If the prompt is already detailed, refine and enhance the existing details slightly without "
    "overcomplicating.",
    "Here are examples of how to transform or refine prompts:",
    "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round "
    "shape, sleeping peacefully on a warm sunny windowsill, surrounded by pots of blooming red "
    "flowers.",
    "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, "
    "featuring glowing street lamps, a diverse crowd of people in colorful clothing, and a "
    "double-decker bus passing by towering glass skyscrapers.",
    "Please generate only the enhanced description for the prompt below and avoid including any "
    "additional commentary or evaluations:",
    "User Prompt: ",
)


MODEL_DEFAULT = ("the model's own",)
"""In the place of an instruction: that of the model."""
COMPATS: tuple[Compat, ...] = ("diffusers", "nvlabs")


def check_compat(value: str) -> Compat:
    """Give ``value`` if it names a published stack."""
    for known in COMPATS:
        if value == known:
            return known
    hint = did_you_mean(str(value).lower(), COMPATS)
    raise ConfigError(f"compat={value!r} is unknown", hint=hint)


def instruction_lines(quotes: Literal["single", "double"] = "single") -> tuple[str, ...]:
    """Give the published instruction; diffusers quotes with single marks, NVlabs with double ones.

    The marks are tokens of their own, so the choice changes the embeddings a little.
    """
    mark = {"single": "'", "double": '"'}[quotes]
    return tuple(line.replace("'", mark) for line in COMPLEX_HUMAN_INSTRUCTION)


def instruction_as(instruction: Sequence[str] | None, compat: Compat) -> Sequence[str] | None:
    """Quote the published instruction as the stack does; any other stays as it is."""
    if compat == "nvlabs" and instruction == COMPLEX_HUMAN_INSTRUCTION:
        return instruction_lines("double")
    return instruction


class PromptCutWarning(UserWarning):
    """A prompt is longer than what the model reads of it."""


SHOWN = 1000
"""Characters that are told of what was cut off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedText:
    """Embeddings of a batch of prompts, as wide as the longest of them."""

    text: Text
    mask: TextMask
    dropped: tuple[int, ...]
    """Tokens cut off the end of each prompt; 0 where it fitted."""
    lost: tuple[str, ...] = ()
    """Their text, "" where it fitted; none at all where embeddings came from elsewhere."""

    def repeat(self, count: int) -> EncodedText:
        """Give every prompt ``count`` times in a row, its own mask beside it."""
        return EncodedText(
            text=self.text.repeat_interleave(count, dim=0),
            mask=self.mask.repeat_interleave(count, dim=0),
            dropped=tuple(dropped for dropped in self.dropped for _ in range(count)),
            lost=tuple(lost for lost in self.lost for _ in range(count)),
        )

    def rows(self, rows: slice) -> EncodedText:
        """Some prompts of a batch, cut to the longest of them."""
        mask = self.mask[rows]
        longest = int(mask.any(dim=0).nonzero().max()) + 1 if mask.any() else mask.shape[1]
        return EncodedText(
            text=self.text[rows, :longest],
            mask=mask[:, :longest],
            dropped=self.dropped[rows],
            lost=self.lost[rows],
        )

    def widened(self, length: int = 300) -> EncodedText:
        """The same, ``length`` tokens wide: new places hold zeros and are masked."""
        missing = length - self.text.shape[1]
        if missing < 0:
            raise ConfigError(f"length={length} is less than the {self.text.shape[1]} tokens held")
        text = functional.pad(self.text, (0, 0, 0, missing))
        return replace(self, text=text, mask=functional.pad(self.mask, (0, missing)))

    def at_least(self, length: int) -> EncodedText:
        """The same, widened where it is less than ``length`` tokens wide."""
        return self.widened(max(length, self.text.shape[1]))

    @classmethod
    def joined(cls, parts: Sequence[EncodedText]) -> EncodedText:
        """All prompts of several batches, as wide as the widest of them."""
        width = max(part.text.shape[1] for part in parts)
        wide = [part.widened(width) for part in parts]
        return cls(
            text=torch.cat([part.text for part in wide]),
            mask=torch.cat([part.mask for part in wide]),
            dropped=tuple(dropped for part in parts for dropped in part.dropped),
            lost=tuple(lost for part in parts for lost in part.lost),
        )

    def warn_of_lost(self, what: str, most: int) -> None:
        """Tell each text that was cut off, once; ``most`` tokens of ``what`` are read."""
        for dropped, lost in dict.fromkeys(zip(self.dropped, self.lost, strict=False)):
            if dropped:
                shown = lost if len(lost) <= SHOWN else f"{lost[:SHOWN]} ..."
                warnings.warn(
                    f"the model reads {most} tokens of a {what}, the last {dropped} are cut off: "
                    f"{shown!r}",
                    PromptCutWarning,
                    stacklevel=3,
                )


MAX_PREFIXES = 4
"""Kept at a time; the published instruction has two spellings, a model may bring its own."""
PROMPT_BYTES = 64 * 2**20
"""Some 50 prompts of 300 tokens at the published width in bf16."""


class PromptCache:
    """Results of one text encoder, forgotten as soon as its weights change; safe with threads.

    A copy, by pickle too, has the same settings and holds nothing yet.
    """

    def __init__(self, *, prefixes: bool = True, prompt_bytes: int = PROMPT_BYTES) -> None:
        """Decide what is kept.

        Args:
            prefixes: whether instructions run once, rather than with every prompt.
            prompt_bytes: for finished prompts, the least recently used go first; 0: none.
        """
        if prompt_bytes < 0:
            raise ConfigError(f"prompt_bytes={prompt_bytes} must be 0 or more")
        self.keeps_prefixes, self.prompt_bytes = prefixes, prompt_bytes
        self._lock = RLock()
        self._stamp: tuple[Hashable, Hashable] = (None, None)
        self._prefixes: OrderedDict[tuple[int, ...], Prefix | None] = OrderedDict()
        self._prompts: OrderedDict[str, tuple[Text, TextMask, torch.device]] = OrderedDict()

    @classmethod
    def off(cls) -> PromptCache:
        """Keep nothing: every call runs everything."""
        return cls(prefixes=False, prompt_bytes=0)

    def __reduce__(self) -> tuple[Callable[[], PromptCache], tuple[()]]:
        make = partial(PromptCache, prefixes=self.keeps_prefixes, prompt_bytes=self.prompt_bytes)
        return make, ()

    @property
    def memory_bytes(self) -> int:
        """What finished prompts take."""
        with self._lock:
            return sum(text.nbytes + mask.nbytes for text, mask, _ in self._prompts.values())

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._stamp = (None, None)
            self._prefixes.clear()
            self._prompts.clear()

    def prefix(self, text_encoder: TextEncoder, ids: Sequence[int]) -> Prefix | None:
        """Give what is kept of the tokens, computing it where need be; None: run them each time."""
        if not self.keeps_prefixes or not ids:
            return None
        with self._lock:  # held while computing: who comes second waits instead of repeating it
            # Where finished prompts are kept, their numbers were read a moment ago.
            self._renew(text_encoder, read=not self.prompt_bytes)
            key = tuple(ids)
            if key not in self._prefixes:
                self._prefixes[key] = text_encoder.read_prefix(ids)
            self._prefixes.move_to_end(key)
            while len(self._prefixes) > MAX_PREFIXES:
                self._prefixes.popitem(last=False)
            return self._prefixes[key]

    def finished(
        self,
        text_encoder: TextEncoder,
        content: object,
        compute: Callable[[], tuple[Text, TextMask]],
    ) -> tuple[Text, TextMask]:
        """Give what ``compute`` gave for this content before, or run it now.

        What ran at once is kept whole: rows of another batch would differ from fresh ones by their
        rounding, and one seed has to give one picture. The tensors are the caller's own.
        """
        if not self.prompt_bytes:
            return compute()
        key = repr(content)
        with self._lock:
            stamp = self._renew(text_encoder, read=True)
            if key in self._prompts:
                self._prompts.move_to_end(key)
                text, mask, device = self._prompts[key]
                return text.to(device, copy=True), mask.to(device, copy=True)
        text, mask = compute()
        with self._lock:
            # Not if the weights were changed in the meantime.
            if (
                self._renew(text_encoder, read=False) == stamp
                and text.nbytes + mask.nbytes <= self.prompt_bytes
            ):
                # In the memory of the host: that of a device is for weights.
                own = text.detach().to("cpu", copy=True), mask.to("cpu", copy=True)
                self._prompts[key] = (*own, text.device)
                while self.memory_bytes > self.prompt_bytes:
                    self._prompts.popitem(last=False)
        return text, mask

    def _renew(self, text_encoder: TextEncoder, *, read: bool) -> Hashable:
        """Forget everything if the encoder may compute otherwise than before; give its stamp.

        Unless its numbers are ``read`` they are taken to be those of the last time.
        """
        settings, numbers = settings_of(text_encoder.llm), self._stamp[1]
        if read or self._stamp[0] != settings:
            numbers = checksum_of(text_encoder.llm)
        if (settings, numbers) != self._stamp:
            self.clear()
            self._stamp = settings, numbers
        return self._stamp


class _Cut(TypedDict):
    dropped: tuple[int, ...]
    lost: tuple[str, ...]


class PromptEncoder:
    """A tokenizer and a text encoder; ``instruction`` is what the model was trained behind."""

    def __init__(
        self,
        tokenizer: Tokenizer | PreTrainedTokenizerBase,
        text_encoder: TextEncoder,
        *,
        instruction: Sequence[str] | None = COMPLEX_HUMAN_INSTRUCTION,
        max_sequence_length: int = 300,
        cache: PromptCache | None = None,
    ) -> None:
        """Hold the parts; ``cache`` None is a new one with its usual settings."""
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.instruction = instruction
        self.max_sequence_length = max_sequence_length
        self.cache = PromptCache() if cache is None else cache
        # A pipeline may have no tokenizer: its prompts were encoded before.
        ends = hasattr(type(tokenizer), "decode") and self._ids(["a"])[0][-1:]
        if ends and ends[0] == tokenizer.eos_token_id:
            raise ConfigError(
                "the tokenizer ends every text with eos", hint="load it with add_eos_token=False"
            )

    def encode(
        self,
        prompts: Sequence[str],
        *,
        instruction: Sequence[str] | None,
        max_sequence_length: int | None = None,
        compat: Compat = "diffusers",
        clean_caption: bool = False,
    ) -> EncodedText:
        """Encode prompts behind an instruction, which itself is cut away again.

        Kept are the first token and all from the last place of the instruction on: a template that
        ends in a space gives it to the prompt's first word, so that place is the prompt's. ``None``
        or no lines: the plain prompt. At most ``max_sequence_length`` tokens remain of each.

        ``compat``: "diffusers" lower-cases and strips prompts, "nvlabs" only strips them.
        ``clean_caption`` first removes what alt texts drag along, see ``cleaned``.

        Source: diffusers src/diffusers/pipelines/sana/pipeline_sana.py; equal to its
        ``encode_prompt`` on real tokens.
        """
        most = self.max_sequence_length if max_sequence_length is None else max_sequence_length
        if most < 1:
            raise ConfigError(f"max_sequence_length={most} must be at least 1")
        if isinstance(instruction, str):
            raise ConfigError("instruction is a list of lines, not one string", hint="wrap it: [ ]")
        sequences, prefix_ids, cut_away = self.tokens(
            prompts, instruction=instruction, compat=compat, clean_caption=clean_caption
        )
        limit = cut_away + most - 1
        parts = []
        for batch in self._batches([ids[:limit] for ids in sequences]):
            text, mask = self.cache.finished(
                self.text_encoder,
                ("behind", cut_away, prefix_ids, batch),
                partial(self._kept_states, batch, prefix_ids, cut_away),
            )
            parts.append(EncodedText(text=text, mask=mask, dropped=()))
        return replace(EncodedText.joined(parts), **self._cut(sequences, limit))

    def tokens(
        self,
        prompts: Sequence[str],
        *,
        instruction: Sequence[str] | None,
        compat: Compat = "diffusers",
        clean_caption: bool = False,
    ) -> tuple[list[list[int]], list[int], int]:
        """Token ids of prompts behind an instruction, those of the instruction, and where it ends.

        States are kept of the first token and from that place on; the instruction's ids are without
        its last one, which the prompt's first word joins.
        """
        prefix = "\n".join(instruction or ())
        prefix_ids = self._ids([prefix])[0][:-1] if prefix else []
        sequences = self._prompt_ids(prompts, prefix, compat, clean_caption)
        return sequences, prefix_ids, len(prefix_ids) if prefix else 1

    def encode_null(
        self,
        prompts: Sequence[str],
        beside: EncodedText,
        *,
        max_sequence_length: int | None = None,
        compat: Compat = "diffusers",
        clean_caption: bool = False,
    ) -> EncodedText:
        """Encode empty or negative prompts, never behind an instruction, for guidance.

        "diffusers" gives each its own mask. "nvlabs", and so the training of the published weights,
        gives it the mask of the prompt ``beside`` it: attention then reads padding states up to
        that prompt's length and nothing beyond it.
        """
        if compat == "diffusers":
            return self.encode(
                prompts,
                instruction=None,
                max_sequence_length=max_sequence_length,
                clean_caption=clean_caption,
            )
        if len(prompts) != len(beside.mask):
            raise ConfigError(f"{len(prompts)} null prompts beside {len(beside.mask)} prompts")
        width = beside.mask.shape[1]
        sequences = self._prompt_ids(prompts, "", compat, clean_caption)
        lengths = [min(len(ids), width) for ids in sequences]
        ids = torch.full((len(prompts), width), self._special("pad_token_id"))
        for row, sequence, length in zip(ids, sequences, lengths, strict=True):
            row[:length] = torch.tensor(sequence[:length])
        device = self.text_encoder.device
        mask = length_mask(lengths, width).to(device)
        states, _ = self.cache.finished(
            self.text_encoder,
            ("null", lengths, ids.tolist()),
            lambda: (self.text_encoder.hidden_states(ids.to(device), mask), mask),
        )
        return EncodedText(text=states, mask=beside.mask, **self._cut(sequences, width))

    def _cut(self, sequences: list[list[int]], limit: int) -> _Cut:
        """What lies behind the limit."""
        ends = [ids[limit:] for ids in sequences]
        lost = tuple(str(self.tokenizer.decode(end)).strip() if end else "" for end in ends)
        return {"dropped": tuple(len(end) for end in ends), "lost": lost}

    def _batches(self, sequences: list[list[int]]) -> list[list[list[int]]]:
        """What runs at once: on the CPU one row, so that it has the bits that it has alone."""
        on_cpu = self.text_encoder.device.type == "cpu"
        return [[ids] for ids in sequences] if on_cpu else [sequences]

    def _kept_states(
        self, sequences: list[list[int]], prefix_ids: list[int], cut_away: int
    ) -> tuple[Text, TextMask]:
        """States of each first token and of all from ``cut_away`` on.

        A tokenizer may join a prompt to more of the template than its last token. A call with such
        a prompt is run as a whole.
        """
        if all(ids[:cut_away] == prefix_ids for ids in sequences):
            prefix = self.cache.prefix(self.text_encoder, prefix_ids)
            if prefix is not None:
                return self.text_encoder.encode_behind(
                    prefix, [ids[cut_away:] for ids in sequences]
                )
        states, mask = self.text_encoder.encode(sequences)
        kept = [0, *range(cut_away, states.shape[1])]
        return states[:, kept], mask[:, kept]

    def _prompt_ids(
        self, prompts: Sequence[str], prefix: str, compat: Compat, clean_caption: bool
    ) -> list[list[int]]:
        """Bring prompts into the form they were trained in and tokenise them behind ``prefix``."""
        if isinstance(prompts, str) or not prompts:
            raise ConfigError(f"prompts={prompts!r}: a list with at least one string is needed")
        texts = [cleaned(prompt) if clean_caption else prompt for prompt in prompts]
        if compat == "diffusers":
            texts = [text.lower() for text in texts]
        return self._ids([prefix + text.strip() for text in texts])

    def _special(self, name: str) -> int:
        return int(getattr(self.tokenizer, name))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise without padding or truncation, which would leave settings in the tokenizer."""
        for text in texts:
            check_unicode(text, "the prompt")
        found: list[list[int]] = self.tokenizer(list(texts), verbose=False)["input_ids"]
        # A tokenizer without bos makes nothing of an empty text; attention needs one token.
        filled = [ids or [self._special("eos_token_id")] for ids in found]
        largest = max(max(ids) for ids in filled)
        if isinstance(self.text_encoder, TextEncoder) and largest >= self.text_encoder.vocabulary:
            raise ConfigError(
                f"the tokenizer writes token {largest}, and the text encoder has "
                f"{self.text_encoder.vocabulary}",
                hint="they belong to two models: take both from one",
            )
        return filled
