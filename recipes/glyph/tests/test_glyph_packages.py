"""Fetching and verifying the pinned archives."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from recipes.glyph.data.packages import DICEBEAR, OPENCLIPART, SWEET_HOME, Package, fetch, verify

from sanakit.errors import DataError


def package_of(content: bytes) -> Package:
    digest = hashlib.sha256(content).hexdigest()
    return Package(name="@some/art", version="1.2.3", filename="some-art-1.2.3.tgz", sha256=digest)


def install_npm(
    folder: Path, script: str, monkeypatch: pytest.MonkeyPatch, *, name: str = "npm"
) -> None:
    folder.mkdir()
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
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
    script = f'printf "%s" "$*" > {tmp_path}/asked; printf art > {package.filename}'
    install_npm(tmp_path / "bin", script, monkeypatch)
    folder = tmp_path / "new" / "packages"
    assert fetch(package, folder).read_bytes() == b"art"
    asked = (tmp_path / "asked").read_text()
    assert asked == "pack @some/art@1.2.3"


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
    with pytest.raises(DataError, match="npm is not installed") as raised:
        fetch(package_of(b"art"), tmp_path)
    assert raised.value.hint is not None
    assert "packages" in raised.value.hint


def debian_package(content: bytes) -> Package:
    digest = hashlib.sha256(content).hexdigest()
    return Package(
        name="some-art", version="1:2.3-4", filename="some-art_1%3a2.3-4_all.deb", sha256=digest,
        registry="debian",
    )  # fmt: skip


def test_apt_is_asked_for_a_debian_package_of_the_exact_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = debian_package(b"art")
    script = f'printf "%s" "$*" > {tmp_path}/asked; printf art > {package.filename}'
    install_npm(tmp_path / "bin", script, monkeypatch, name="apt-get")
    assert fetch(package, tmp_path / "packages").read_bytes() == b"art"
    assert (tmp_path / "asked").read_text() == "download some-art=1:2.3-4"


def test_without_apt_the_hint_names_the_file_and_what_to_leave_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    package = debian_package(b"art")
    with pytest.raises(DataError, match="apt-get is not installed") as raised:
        fetch(package, tmp_path / "packages")
    assert raised.value.hint is not None
    assert package.filename in raised.value.hint
    assert "--without clipart,furniture" in raised.value.hint


def test_a_failure_of_apt_says_that_its_lists_may_be_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_npm(tmp_path / "bin", "exit 100", monkeypatch, name="apt-get")
    with pytest.raises(DataError, match="status 100") as raised:
        fetch(debian_package(b"art"), tmp_path / "packages")
    assert raised.value.hint is not None
    assert "apt-get update" in raised.value.hint


def test_no_two_packages_share_a_file_or_a_hash() -> None:
    packages = [OPENCLIPART, SWEET_HOME, *DICEBEAR.values()]
    assert len({package.filename for package in packages}) == len(packages)
    assert len({package.sha256 for package in packages}) == len(packages)
    assert all(len(package.sha256) == 64 for package in packages)
