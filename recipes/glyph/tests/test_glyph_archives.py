"""Reading .tgz and .deb archives in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipes.glyph.data.archives import each_member, read_members

from sanakit.errors import DataError
from tiny_art import ar_bytes, deb_bytes, tar_bytes


def test_only_wanted_regular_files_are_read_and_nothing_is_written(tmp_path: Path) -> None:
    files = {"package/a.json": b"{}", "package/b.txt": b"b", "../../evil.json": b"e"}
    path = tmp_path / "art.tgz"
    path.write_bytes(tar_bytes(files, links=("package/link.json",)))
    members = read_members(path, lambda name: name.endswith(".json"))
    assert members == {"package/a.json": b"{}", "../../evil.json": b"e"}
    assert [found.name for found in tmp_path.iterdir()] == ["art.tgz"]
    assert not (tmp_path.parent.parent / "evil.json").exists()


@pytest.mark.parametrize(
    "content", [b"no archive", tar_bytes({"a": bytes(5000)})[:-20]], ids=["none", "cut"]
)
def test_a_damaged_archive_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "art.tgz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"art\.tgz cannot be read"):
        read_members(path, lambda _: True)


@pytest.mark.parametrize("packing", ["xz", "gz", "bz2"])
def test_a_debian_package_gives_its_files_in_order_by_their_plain_names(
    tmp_path: Path, packing: str
) -> None:
    files = {"usr/share/b.svg": b"two", "usr/share/a.svg": b"one", "usr/doc": b"no"}
    path = tmp_path / "art.deb"
    path.write_bytes(deb_bytes(files, packing))
    found = list(each_member(path, lambda name: name.endswith(".svg")))
    assert found == [("usr/share/b.svg", b"two"), ("usr/share/a.svg", b"one")]


def test_bytes_after_the_data_of_a_debian_package_are_not_read_as_data(tmp_path: Path) -> None:
    data = tar_bytes({"./a": b"one"}, "w:xz")
    path = tmp_path / "art.deb"
    path.write_bytes(ar_bytes({"odd": b"123", "data.tar.xz": data, "more": b"x" * 4096}))
    assert read_members(path, lambda _: True) == {"a": b"one"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "begin as an ar archive"),
        (b"!<arch>\n", "no data.tar"),
        (ar_bytes({"data.tar.zst": b"z"}), "packed as zst"),
        (ar_bytes({"data.tar.xz": b"zzzz"}), "cannot be read"),
        (b"!<arch>\n" + b"x" * 60, "header of the ar archive is damaged"),
        (deb_bytes({"a": bytes(9000)})[:-40], "cut short"),
    ],
)
def test_what_is_no_debian_package_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "art.deb"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_members(path, lambda _: True)
