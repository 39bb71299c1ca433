"""Fetching, verifying and reading the pinned archives."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from sanakit.data.glyph.packages import Package, fetch, read_members, verify
from sanakit.errors import DataError


def archive_bytes(files: dict[str, bytes], links: tuple[str, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    return buffer.getvalue()


def package_of(content: bytes) -> Package:
    digest = hashlib.sha256(content).hexdigest()
    return Package(name="@some/art", version="1.2.3", filename="some-art-1.2.3.tgz", sha256=digest)


def install_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_an_archive_with_the_pinned_content_is_accepted(tmp_path: Path) -> None:
    package = package_of(b"art")
    (tmp_path / package.filename).write_bytes(b"art")
    assert verify(package, tmp_path) == tmp_path / package.filename


def test_an_archive_with_other_content_is_refused_with_both_hashes(tmp_path: Path) -> None:
    package = package_of(b"art")
    (tmp_path / package.filename).write_bytes(b"Art")
    with pytest.raises(DataError, match=package.sha256) as raised:
        verify(package, tmp_path)
    assert hashlib.sha256(b"Art").hexdigest() in str(raised.value)
    assert "fetch it again" in str(raised.value)


def test_a_missing_archive_is_named_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"npm pack @some/art@1\.2\.3"):
        verify(package_of(b"art"), tmp_path)


def test_npm_is_asked_for_the_exact_version_and_its_archive_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = package_of(b"art")
    script = f'printf "%s" "$*" > {tmp_path}/asked; printf art > "$4/{package.filename}"'
    install_npm(tmp_path / "bin", script, monkeypatch)
    folder = tmp_path / "new" / "packages"
    assert fetch(package, folder).read_bytes() == b"art"
    asked = (tmp_path / "asked").read_text()
    assert asked == f"pack @some/art@1.2.3 --pack-destination {folder}"


def test_an_archive_at_hand_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = package_of(b"art")
    install_npm(tmp_path / "bin", "exit 1", monkeypatch)
    (tmp_path / package.filename).write_bytes(b"art")
    assert fetch(package, tmp_path).read_bytes() == b"art"


def test_a_failure_of_npm_is_reported_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_npm(tmp_path / "bin", "echo first >&2; echo no route >&2; exit 7", monkeypatch)
    with pytest.raises(DataError, match="status 7: no route"):
        fetch(package_of(b"art"), tmp_path)


def test_without_npm_the_hint_offers_a_folder_of_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm client is not installed") as raised:
        fetch(package_of(b"art"), tmp_path)
    assert raised.value.hint is not None
    assert "packages" in raised.value.hint


def test_only_wanted_regular_files_are_read_and_nothing_is_written(tmp_path: Path) -> None:
    files = {"package/a.json": b"{}", "package/b.txt": b"b", "../../evil.json": b"e"}
    path = tmp_path / "art.tgz"
    path.write_bytes(archive_bytes(files, links=("package/link.json",)))
    members = read_members(path, lambda name: name.endswith(".json"))
    assert members == {"package/a.json": b"{}", "../../evil.json": b"e"}
    assert [found.name for found in tmp_path.iterdir()] == ["art.tgz"]
    assert not (tmp_path.parent.parent / "evil.json").exists()


@pytest.mark.parametrize("content", [b"no archive", archive_bytes({"a": bytes(5000)})[:-20]])
def test_a_damaged_archive_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "art.tgz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"art\.tgz cannot be read"):
        read_members(path, lambda _: True)
