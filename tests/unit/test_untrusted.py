"""The one reader of JSON, numbers and typed fields that others wrote."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanakit.errors import ConfigError, DataError
from sanakit.files import read_json
from sanakit.untrusted import (
    DEEPEST,
    check_fields,
    dataclass_from,
    fits,
    number,
    other_readers,
    parse_json,
    read_file,
    shown,
    whole,
    whole_number,
)

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(LEAVES, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=20)
QUICK = settings(max_examples=150, deadline=None, derandomize=True)


@dataclass(frozen=True, kw_only=True)
class Shape:
    width: int = 1
    scale: float = 1.0
    kind: Literal["a", "b"] | None = None
    sizes: tuple[int, ...] = ()


@QUICK
@given(VALUES)
def test_json_comes_back_as_it_was_written(value: object) -> None:
    text = json.dumps(value)
    assert json.dumps(parse_json(text)) == text
    assert json.dumps(parse_json(text.encode())) == text


@QUICK
@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_json_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_json(data)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "deeper"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' twice"),
        ("9" * 10_000, "digits"),
        ('{"a": 1', "delimiter"),
    ],
)
def test_json_of_no_use_is_a_value_error_that_says_why(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_json(text)
    parse_json("[" * DEEPEST + "]" * DEEPEST)


def test_a_twin_among_many_keys_is_found_in_time() -> None:
    keys = ",".join(f'"{number}":0' for number in range(200_000))
    started = time.process_time()
    with pytest.raises(ValueError, match="'199999' twice"):
        parse_json(f'{{{keys},"199999":0}}')
    assert time.process_time() - started < 5


@pytest.mark.parametrize("one", ["[]", "{}", '{"":0}', "0"])
def test_more_values_than_the_memory_holds_are_refused_unread(
    one: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sanakit.untrusted.MOST_VALUES", 100)
    assert len(parse_json("[" + ",".join([one] * 30) + "]")) == 30
    with pytest.raises(ValueError, match="more than 100 values"):
        parse_json("[" + ",".join([one] * 110) + "]")


def test_only_regular_files_are_read_and_no_larger_than_allowed(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(OSError, match="not a file"):
            read_file(path)
        with pytest.raises(ConfigError, match="not a file"):
            read_json(path)
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")  # as all files of the hub's cache are
    assert read_file(tmp_path / "link", most=5) == b"12345"
    with pytest.raises(ValueError, match="larger than 4 bytes"):
        read_file(tmp_path / "a", most=4)


@QUICK
@given(VALUES)
def test_a_number_is_one_between_its_limits_or_a_config_error(value: object) -> None:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        assert -5 <= number(value, name="n", low=-5, high=5) <= 5
        assert real
    except ConfigError:
        assert not real or not -5 <= value <= 5  # type: ignore[operator]
    try:
        assert 0 <= whole(value, name="n", high=5) <= 5
    except ConfigError:
        assert type(value) is not int or not 0 <= value <= 5


@QUICK
@given(VALUES)
def test_a_message_shows_any_value_on_one_short_line(value: object) -> None:
    assert shown(value).isascii()
    assert "\n" not in shown(value)
    assert len(shown(value)) < 80


def test_what_has_no_end_is_shown_too() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    for value in (cycle, 10**100_000, "\x1b" * 10**6, [[10**9] * 10**5]):
        assert len(shown(value)) < 80


@QUICK
@given(st.dictionaries(st.sampled_from(["width", "scale", "kind", "sizes", "other"]), VALUES))
def test_a_dataclass_of_json_has_the_types_it_declares(values: dict[str, object]) -> None:
    try:
        built = dataclass_from(Shape, values, source="file")
    except ConfigError:
        return
    assert type(built.width) is int
    assert math.isfinite(built.scale)
    assert built.kind in ("a", "b", None)
    assert all(type(size) is int for size in built.sizes)


def test_fields_are_within_their_ranges() -> None:
    check_fields(Shape(sizes=(1, 2)), {"sizes": (1, 2), "scale": (0, 1)})
    with pytest.raises(ConfigError, match="sizes=3 must be 1 to 2"):
        check_fields(Shape(sizes=(1, 3)), {"sizes": (1, 2)})
    for scale in (math.nan, math.inf, 1e300):
        with pytest.raises(ConfigError, match=r"is no number to calculate with\n.*be finite"):
            check_fields(Shape(scale=scale))
    with pytest.raises(ConfigError, match="width=nan is of the wrong type"):
        check_fields(Shape(width=math.nan))  # type: ignore[arg-type]
    assert not fits(True, int)
    assert not fits(10**400, float)
    assert not fits(True, Literal[1])
    assert fits((1, 2.0), tuple[int, float])
    for other in ((1,), (1, 2.0, 3.0), (1.5, 2.0), [1, 2.0]):
        assert not fits(other, tuple[int, float])


class PanicException(BaseException):
    """As extensions in Rust name theirs."""


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), MemoryError(), RecursionError("deep\nmore"), PanicException("lost\nhead")],
)
def test_errors_of_other_libraries_become_one_of_ours(error: BaseException) -> None:
    with pytest.raises(DataError, match="it: cannot be read") as caught:  # noqa: SIM117
        with other_readers("it", DataError, hint="copy it again"):
            raise error
    assert "\n" not in caught.value.message
    with pytest.raises(ConfigError, match="ours"), other_readers("it", DataError, hint=None):
        raise ConfigError("ours")
    with pytest.raises(KeyboardInterrupt), other_readers("it", DataError, hint=None):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        (" 17 ", 17),
        ("9" * 18, 10**18 - 1),
        *((text, None) for text in ("", "-1", "1.5", "x", "\u00b2", "9" * 19, "9" * 5000)),
    ],
)
def test_a_number_in_text_has_few_digits(text: str, expected: int | None) -> None:
    assert whole_number(text) == expected
