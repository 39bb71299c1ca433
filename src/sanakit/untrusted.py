"""What others wrote and nobody has checked: their files, their JSON, their numbers, their types.

Everything that comes out of a model's folder, a data set, a picture or a checkpoint is read by what
is here, so that one rule holds: what cannot be used is one error with a name, in bounded time and
memory, and nothing that it says is run.
"""

from __future__ import annotations

import json
import math
import os
import stat
import types
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from inspect import formatannotation
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from sanakit.errors import ConfigError, SanakitError, did_you_mean

LARGEST_FILE = 1 << 29
"""Bytes of a file that is read at once; as text, one sign takes up to four times its bytes."""
MOST_VALUES = 1 << 24
"""Values in a JSON text, about: the smallest takes three bytes of text and 100 of memory."""
DEEPEST = 100
"""Objects and arrays inside each other; deeper ones would exhaust the stack of their reader."""
LARGEST = 2**31 - 1
MOST_DIGITS = 18
SHOWN = 60

T = TypeVar("T")


def open_file(path: Path) -> BufferedReader:
    """Open a regular file to be read; a pipe or a device, which might never end, is none.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """

    def waiting_for_nobody(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=waiting_for_nobody)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("is a pipe or a device, not a file")
    return file


def read_file(path: Path, *, most: int = LARGEST_FILE) -> bytes:
    """Give the content of a file.

    Raises:
        OSError: as :func:`open_file`. ValueError: more than ``most`` bytes.
    """
    with open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"larger than {most} bytes")
    return content


def parse_json(text: str | bytes) -> Any:
    """Give the value of a JSON text; bytes are UTF-8.

    NaN and the infinities pass: published schedulers have a setting of -Infinity. Whoever needs a
    number reads it with :func:`number`.

    Raises:
        ValueError: not JSON, nested without end, too many values for the memory, or an object that
            says one thing twice.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    # Signs inside texts count too, so the bound is far above what files of models and sets have.
    if len(text) > MOST_VALUES and sum(map(text.count, ",[{")) > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES} values")
    try:
        value = json.loads(text, object_pairs_hook=_without_twins)
    except RecursionError:
        raise ValueError("nested without end") from None
    _check_depth(value)
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        [(twin, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"an object has the key {shown(twin)} twice")
    return found


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        if not level:
            return
        inside = (one.values() if isinstance(one, dict) else one for one in level)
        level = [each for one in inside for each in one if isinstance(each, dict | list)]
    if level:
        raise ValueError(f"nested deeper than {DEEPEST}")


def shown(value: object) -> str:
    """Give a value for a message: short, on one line, however long and odd it is."""
    if isinstance(value, int) and abs(value) > 10**SHOWN:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, str):
        value = value[: 2 * SHOWN]
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # a cycle, or a whole number too long for text
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def whole(value: object, *, name: str, low: int = 0, high: int = LARGEST) -> int:
    """Give a whole number between ``low`` and ``high``, both included.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name}={shown(value)} must be a whole number from {low} to {high}")
    return value


def number(
    value: object, *, name: str, low: float = -float(LARGEST), high: float = float(LARGEST)
) -> float:
    """Give a finite number between ``low`` and ``high``, both included.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name}={shown(value)} must be a number from {low:g} to {high:g}")
    return float(value)


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of an annotated type; a whole number serves as a real one.

    Real numbers are finite, and whole ones no larger than a real one may be.
    """
    options = get_args(kind)
    origin = get_origin(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in options)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if options[-1] is Ellipsis:
            return all(fits(one, options[0]) for one in value)
        return len(value) == len(options) and all(map(fits, value, options))
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return isinstance(value, Mapping)
    if isinstance(kind, types.UnionType) or options:
        return any(fits(value, option) for option in options)
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value)
    return isinstance(value, kind)


def check_fields(config: Any, ranges: Mapping[str, tuple[float, float]] | None = None) -> None:
    """Make sure that the fields of a dataclass have the types that it declares.

    ``ranges`` are lowest and highest values, both included, of a field or of each of its items.

    Raises:
        ConfigError: naming the first field that has not.
    """
    kinds = get_type_hints(type(config))
    for field in fields(config):
        value, kind = getattr(config, field.name), kinds[field.name]
        if not fits(value, kind):
            if type(value) in (int, float) and fits(0.0, kind):
                raise ConfigError(
                    f"{field.name}={shown(value)} is no number to calculate with",
                    hint="it must be finite, and below 1e300",
                )
            raise ConfigError(
                f"{field.name}={shown(value)} is of the wrong type",
                hint=f"its type is {formatannotation(kind)}",
            )
    for name, (low, high) in (ranges or {}).items():
        for value in _leaves(getattr(config, name)):
            if not low <= value <= high:
                raise ConfigError(f"{name}={shown(value)} must be {low:g} to {high:g}")


def _leaves(value: Any) -> Iterator[float]:
    if isinstance(value, tuple):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, int | float):
        yield value


def dataclass_from(kind: type[T], values: object, *, source: str) -> T:
    """Build a dataclass from the value of JSON: lists become tuples, all the way down.

    Raises:
        ConfigError: no object, a key that the dataclass does not have or one that is missing, or a
            value that is not of the field's type.
    """
    assert is_dataclass(kind)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: is a {type(values).__name__}, not an object")
    known = [field.name for field in fields(kind)]
    try:
        refuse_unknown_keys(values, known, source=f"for {kind.__name__}")
        built: T = kind(**{key: frozen(value) for key, value in values.items()})
    except TypeError as error:
        raise ConfigError(f"{source}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.message}", hint=error.hint) from error
    try:
        check_fields(built)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.message}", hint=error.hint) from error
    return built


def refuse_unknown_keys(values: Mapping[Any, Any], known: Collection[str], *, source: str) -> None:
    """Refuse a key that is not among the known ones, naming the nearest; ``source`` ends the line.

    Raises:
        ConfigError: there is one.
    """
    for key in values:
        if key not in known:
            name = key if str(key).isidentifier() and len(key) < SHOWN else shown(key)
            raise ConfigError(
                f"unknown key {name} {source}", hint=did_you_mean(str(key)[:SHOWN], known)
            )


def frozen(value: Any) -> Any:
    """Turn the lists of JSON into tuples, all the way down, so that configs are hashable."""
    return tuple(frozen(item) for item in value) if isinstance(value, list | tuple) else value


def whole_number(text: str) -> int | None:
    """The number that a text of decimal digits is; None of any other, and of more than 18 digits.

    Python refuses thousands of them with an error of its own.
    """
    digits = text.strip()
    return int(digits) if digits.isdecimal() and len(digits) <= MOST_DIGITS else None


@contextmanager
def other_readers(
    source: object, kind: type[SanakitError], *, what: str = "cannot be read", hint: str | None
) -> Iterator[None]:
    """Turn whatever another library raises over somebody's file into one error of ours.

    What such a reader raises depends on where a file is damaged, and is documented nowhere; so
    everything counts, want of memory too: it is the file that asks for it.

    Raises:
        SanakitError: of ``kind``; one of ours passes through.
    """
    try:
        yield
    except SanakitError:
        raise
    except BaseException as error:
        # A panic in Rust is no Exception to Python.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = shown_text(str(error)) or type(error).__name__
        raise kind(f"{source}: {what} ({reason})", hint=hint) from error


def shown_text(text: str) -> str:
    """The first line of a message of others, at most 200 characters."""
    lines = text.strip().splitlines()
    return lines[0][:200] if lines else ""
