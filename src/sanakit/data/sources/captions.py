"""Captions from text, JSON and rows of tables: which keys are captions, and who wrote them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from sanakit.data.samples import Caption, Refusal, Sample
from sanakit.data.sources.names import is_unicode, listed, shown
from sanakit.errors import ConfigError, DataError
from sanakit.untrusted import parse_json

BAD_CAPTIONS = "bad captions"
ORIGINAL, USER, FILE_NAME, FOLDER_NAME = "original", "user", "file name", "folder name"

# The key that holds *the* caption: the first of these that is there.
MAIN = listed(
    "caption text prompt captions texts prompts description sentence sentences caption_text"
    " title alt_text alt tags"
)
_CAPTION_LIKE = re.compile(r"caption|prompt|description|(^|_)text($|_)")
_NOT_CAPTION = re.compile(
    r"negative|_(id|ids|url|path|file|hash|key|source|model|lang|language|type|style|score|length"
    r"|embedding|embeddings|token|tokens|license|licence)$"
)
_FACTS = frozenset(
    listed(
        "file_name filename file path filepath file_path image image_path img url urls key __key__"
        " id uid sha256 md5 phash width height original_width original_height version status"
        " error_message exif licence license source source_url origin author credit format mode"
        " size hash date created time datetime make model captioner score weight"
        " sanakit"
    )
)


CAPTION_USES = ("source", "whole", "none")


class BadCaptions(DataError):
    """Captions that cannot be read; the picture beside them is not to blame."""


@dataclass(frozen=True, kw_only=True)
class CaptionPolicy:
    """Which captions a source gives.

    ``use`` "none" gives none, so that training sees the null prompt; "whole" takes a text file as
    one caption, its paragraphs together, where "source" takes each line as one. ``user`` is one
    caption for every picture, instead of those of the source.
    """

    use: Literal["source", "whole", "none"] = "source"
    user: str = ""

    def __post_init__(self) -> None:
        if self.use not in CAPTION_USES:
            raise ConfigError(f"use={self.use!r} is not one of {', '.join(CAPTION_USES)}")
        if self.user and self.use != "source":
            raise ConfigError(
                "user replaces the captions of the source, so it goes with no other choice",
                hint=f'leave out use="{self.use}"',
            )

    @property
    def reads(self) -> bool:
        """Whether the source's captions matter at all."""
        return self.use != "none" and not self.user

    def applied(
        self, sample: Sample, found: Iterable[Caption], problems: Iterable[str] = ()
    ) -> Iterator[Sample | Refusal]:
        """The sample with its captions, and a refusal for each problem with one of them.

        Empty and repeated texts are left out. The second text of one captioner is by "NAME-2",
        and so on. A sample may end without captions: it trains the null prompt.
        """
        if not self.reads:
            user = (Caption(text=self.user, captioner=USER),) if self.user else ()
            yield replace(sample, captions=user)
            return
        kept: dict[str, Caption] = {}
        seen = set()
        problems = list(problems)
        for caption in found:
            text, name, number = caption.text.strip(), caption.captioner, 1
            if not is_unicode(text + name):
                problems.append(f"a text by {shown(name)} is not UTF-8")
            elif text and (name, text) not in seen:
                seen.add((name, text))
                while name in kept:
                    number += 1
                    name = f"{caption.captioner}-{number}"
                kept[name] = replace(caption, text=text, captioner=name)
        yield from (Refusal(id=sample.id, reason=BAD_CAPTIONS, detail=text) for text in problems)
        yield replace(sample, captions=tuple(kept.values()))


def decoded(data: bytes) -> str:
    """UTF-8 text, a byte order mark removed."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte {error.start}"
        raise BadCaptions(f"not UTF-8 ({kind})", hint="save the file as UTF-8") from error


def parsed(data: bytes | str) -> Any:
    """The value of JSON.

    Raises:
        BadCaptions: it is not UTF-8, not JSON, or nested without end.
    """
    text = decoded(data) if isinstance(data, bytes) else data
    try:
        return parse_json(text)
    except ValueError as error:
        raise BadCaptions(f"not JSON ({error})") from error


def from_text(data: bytes, captioner: str = ORIGINAL, *, whole: bool = False) -> list[Caption]:
    """The captions of a text file, one a line; or the ``whole`` text as one."""
    if whole:
        return [Caption(text=decoded(data).strip(), captioner=captioner)]
    lines = re.split(r"[\r\n]+", decoded(data))
    return [Caption(text=line.strip(), captioner=captioner) for line in lines if line.strip()]


def from_json(value: Any, *, key: str = "") -> list[Caption]:
    """The captions of a JSON file of one picture.

    A text, a list of texts, {"caption" or another known name: text}, {captioner: text}, the same
    below the picture's ``key``, or the captions of a shard that `sanakit data build` wrote.
    """
    if not isinstance(value, Mapping):
        return captions_in(value, ORIGINAL)
    own = value.get("sanakit")
    if isinstance(own, Mapping):
        return captions_in(own.get("captions"), ORIGINAL)
    inner = value.get(key)
    if key and isinstance(inner, Mapping):
        return from_json(inner)
    named = [key for key in value if key.lower() not in _FACTS]  # {captioner: text}
    return from_keys(value, caption_keys(value) or named)


def caption_keys(keys: Iterable[str], *, all_texts: bool = False) -> list[str]:
    """The keys or columns that hold captions, the main one first.

    ``all_texts``: beside a main one, every key that is not a known fact counts as a captioner.
    """
    keys = list(keys)
    by_name = {key.lower(): key for key in reversed(keys)}
    main = [by_name[name] for name in MAIN if name in by_name][:1]
    others = [
        key
        for key in keys
        if key not in main
        and key.lower() not in _FACTS
        and not _NOT_CAPTION.search(key.lower())
        and (all_texts or _CAPTION_LIKE.search(key.lower()))
    ]
    return [*main, *others]


def from_keys(value: Mapping[str, Any], keys: Iterable[str]) -> list[Caption]:
    """The captions at ``keys``; the first main one is by "original", others by their key."""
    found: list[Caption] = []
    main = False
    for key in keys:
        is_main = not main and key.lower() in MAIN
        main = main or is_main
        found += captions_in(value.get(key), ORIGINAL if is_main else key)
    return found


def captions_in(value: Any, captioner: str) -> list[Caption]:
    """The captions of a text, a list of such, a record with a text, or {captioner: text}."""
    if isinstance(value, str):
        return [Caption(text=value, captioner=captioner)]
    if isinstance(value, (list, tuple)):
        return [caption for item in value for caption in captions_in(item, captioner)]
    if not isinstance(value, Mapping):
        return []
    text = next((value[name] for name in MAIN if isinstance(value.get(name), str)), None)
    if text is None:
        return [
            Caption(text=text, captioner=str(name))
            for name, text in value.items()
            if isinstance(text, str)
        ]
    author = value.get("captioner") or value.get("model")
    weight = number_in(value.get("weight"))
    return [
        Caption(
            text=text,
            captioner=author if isinstance(author, str) else captioner,
            score=number_in(value.get("score")),
            weight=1.0 if weight is None or weight < 0 else weight,
        )
    ]


def number_in(value: Any) -> float | None:
    """A finite number of JSON, None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
