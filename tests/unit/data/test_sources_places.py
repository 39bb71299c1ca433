from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanakit.data.samples import Place
from sanakit.data.sources import places
from sanakit.data.sources.names import safe_name
from sanakit.data.sources.places import read_place
from sanakit.errors import DataError
from tiny_sources import fill

HOSTILE = [
    "",
    ".",
    "..",
    "/",
    "/etc/passwd",
    "../secret",
    "in/../../secret",
    "in/..",
    "./../secret",
    "..\\secret",
    "in\\..\\..\\secret",
    "C:\\secret",
    "C:secret",
    "\\\\server\\share",
    "//server/share",
    "out",
    "in/out",
    "folder/secret",
    "loop",
    "up/secret",
    "a\0b",
    "in/a\0/../../secret",
    "caf\udce9",
    "x" * 5000,
    "/proc/self/environ",
    "~/secret",
    "pipe",
    "in",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a secret beside it and links that lead there."""
    base = fill(tmp_path_factory.mktemp("places"), {"secret": b"SECRET", "deep/secret": b"SECRET"})
    root = fill(base / "root", {"a": b"0123456789", "in/b": b"inside", ".hidden": b"inside"})
    (root / "out").symlink_to(base / "secret")
    (root / "in/out").symlink_to("../../secret")
    (root / "folder").symlink_to(base / "deep")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (root / "fine").symlink_to("in/b")
    os.mkfifo(root / "pipe")
    return root


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["file", "span"])
def test_hostile_names_are_refused(root: Path, name: str, kind: str) -> None:
    with pytest.raises(DataError):
        read_place(root, Place(kind=kind, file=name, length=2))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pipe", "in"])
def test_what_is_no_regular_file_is_not_opened_for_reading(root: Path, name: str) -> None:
    with pytest.raises(DataError, match="is not a regular file"):
        read_place(root, Place(kind="file", file=name))


PARTS = st.sampled_from(
    ["..", ".", "", "/", "\\", "in", "a", "b", "out", "up", "folder", "secret", "fine", "\0", "C:"]
)


@given(st.lists(st.tuples(PARTS, st.sampled_from(["/", "\\", "", "//"])), max_size=7))
def test_no_name_reads_a_byte_outside(root: Path, parts: list[tuple[str, str]]) -> None:
    name = "".join(part + separator for part, separator in parts)
    try:
        data = read_place(root, Place(kind="file", file=name))
    except DataError:
        return
    assert data in (b"0123456789", b"inside")
    assert ".." not in safe_name(name).split("/")


@given(st.integers(-5, 20), st.integers(-5, 20))
def test_a_span_is_that_span_or_refused(root: Path, start: int, length: int) -> None:
    place = Place(kind="span", file="a", start=start, length=length)
    if start >= 0 and length >= 0 and start + length <= 10:
        assert read_place(root, place) == b"0123456789"[start : start + length]
    else:
        with pytest.raises(DataError, match="cut short or changed"):
            read_place(root, place)


def test_links_inside_are_followed(root: Path) -> None:
    assert read_place(root, Place(kind="file", file="fine")) == b"inside"
    linked = root.parent / "linked"
    linked.symlink_to(root)
    assert read_place(linked, Place(kind="file", file="in/b")) == b"inside"


def test_a_file_too_large_for_a_picture_is_not_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (root / "large").open("wb") as file:
        file.truncate(places.LARGEST + 1)
    with pytest.raises(DataError, match="are more than"):
        read_place(root, Place(kind="file", file="large"))
    monkeypatch.setattr(places, "LARGEST", 9)
    with pytest.raises(DataError, match="10 bytes are more than 9"):
        read_place(root, Place(kind="file", file="a"))
    assert read_place(root, Place(kind="span", file="a", length=9)) == b"012345678"
