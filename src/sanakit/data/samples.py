"""What is known of one picture of a training set, and where its bytes are; as JSON and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_type_hints

from sanakit.errors import DataError, SanakitError
from sanakit.untrusted import fits, shown, shown_text

PlaceKind: TypeAlias = Literal["file", "span", "row"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a picture's bytes lie.

    A ``file`` is read whole. A ``span`` is ``length`` bytes from ``start`` of a file: a member of
    an uncompressed tar. A ``row`` is the number ``start`` of the table ``file`` (parquet, arrow),
    whose pictures are in ``column``. ``file`` is relative to the source's folder.
    """

    kind: PlaceKind
    file: str
    start: int = 0
    length: int = 0
    column: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """A text about a picture and who wrote it; a sample has one caption of a captioner.

    ``score`` is 100 times the cosine of picture and text in the space of a CLIP-like model, None
    before it was computed; ``weight`` multiplies the chance that training picks this caption.
    """

    text: str
    captioner: str
    score: float | None = None
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One picture with its captions.

    ``id`` is unique in its set and never changes. ``height`` and ``width`` are pixels as shown
    (after the EXIF rotation), 0 until the picture was scanned; so are ``sha256`` of the bytes and
    ``phash``, a perceptual hash of 64 bits as 16 hexadecimal digits.
    """

    id: str
    place: Place
    captions: tuple[Caption, ...] = ()
    licence: str = ""
    source: str = ""
    height: int = 0
    width: int = 0
    sha256: str = ""
    phash: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Something that stays out of the set: what it is, a reason of a fixed few, and the detail."""

    id: str
    reason: str
    detail: str = ""


@contextmanager
def reading(path: Path, hint: str) -> Iterator[None]:
    """Say of what goes wrong with a file of a set that it is damaged, and how it is made again."""
    try:
        yield
    except SanakitError:  # said in our own words already
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = shown_text(str(error))
        raise DataError(f"{path} is missing or damaged ({reason})", hint=hint) from error


def to_line(record: Sample | Refusal) -> str:
    """One line of JSON with an end; equal records give equal lines."""
    return json.dumps(asdict(record), ensure_ascii=False, separators=(",", ":")) + "\n"


def sample_from(value: dict[str, Any]) -> Sample:
    """Undo :func:`to_line` for a sample."""
    try:
        captions = tuple(_checked(Caption(**caption)) for caption in value["captions"])
        place = _checked(Place(**value["place"]))
        return _checked(Sample(**{**value, "place": place, "captions": captions}))
    except (KeyError, TypeError) as error:
        raise DataError(
            f"not a sample: {shown(value)} ({error})", hint="run `sanakit data scan` again"
        ) from error


_Record = TypeVar("_Record", Caption, Place, Sample, Refusal)
_KINDS = {kind.__name__: get_type_hints(kind) for kind in (Caption, Place, Sample, Refusal)}


def _checked(record: _Record) -> _Record:
    """The record, whose fields have their types; of a set that others made nothing is sure."""
    for name, kind in _KINDS[type(record).__name__].items():
        if not fits(getattr(record, name), kind):
            raise TypeError(f"{name}={shown(getattr(record, name))}")
    return record


def refusal_from(value: dict[str, Any]) -> Refusal:
    """Undo :func:`to_line` for a refusal."""
    try:
        return _checked(Refusal(**value))
    except TypeError as error:
        raise DataError(
            f"not a refusal: {shown(value)} ({error})", hint="run `sanakit data scan` again"
        ) from error
