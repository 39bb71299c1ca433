"""Files appear whole or not at all, with the mode that the user's umask gives."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sanakit.errors import DataError
from sanakit.files import cache_folder, replacing, replacing_folder, sha256_of, write_atomically
from sanakit.weights.store import write_tensors


def test_a_weights_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(3)}, {})
    write_atomically(tmp_path / "b", b"data")
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", "a.safetensors", "b")}
    assert len(modes) == 1


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    target.write_bytes(b"old")

    def fail() -> None:
        with replacing(target) as temporary:
            temporary.write_bytes(b"ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept"]


def test_a_folder_is_replaced_as_a_whole_or_left_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    for failing in (False, True):
        with contextlib.suppress(RuntimeError), replacing_folder(target) as staging:
            (staging / str(failing)).touch()
            if failing:
                raise RuntimeError("half way")
    assert os.listdir(target) == ["False"]
    with replacing_folder(target) as staging:
        (staging / "new").touch()
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["kept"]


def test_a_file_bytes_and_a_text_have_one_digest(tmp_path: Path) -> None:
    data = b"x" * (1 << 20) + "ü".encode()
    (tmp_path / "a").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert sha256_of(tmp_path / "a") == sha256_of(data) == sha256_of(data.decode()) == expected
    assert len(sha256_of("\ud800")) == 64  # names of files may hold what is no character


def test_a_missing_folder_is_named_with_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mkdir -p"):
        write_atomically(tmp_path / "nowhere" / "x.png", b"")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other variables")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Path.home() / ".cache" / "sanakit"),
        ({"XDG_CACHE_HOME": "/x"}, Path("/x/sanakit")),
        ({"XDG_CACHE_HOME": "relative"}, Path.home() / ".cache" / "sanakit"),
        ({"XDG_CACHE_HOME": "/x", "SANAKIT_CACHE": "/y"}, Path("/y")),
        ({"SANAKIT_CACHE": "~/z"}, Path.home() / "z"),
        ({"SANAKIT_CACHE": "here"}, Path.cwd() / "here"),
        ({"SANAKIT_CACHE": ""}, Path.home() / ".cache" / "sanakit"),
        ({"SANAKIT_CACHE": "off"}, None),
        ({"SANAKIT_CACHE": " OFF "}, None),
        ({"SANAKIT_CACHE": "~nobody-of-this-name/z"}, None),
    ],
)
def test_the_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: Path | None
) -> None:
    for name in ("XDG_CACHE_HOME", "SANAKIT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == expected


KILLED = """
import os, sys
from pathlib import Path
from sanakit.files import replacing, replacing_folder
with replacing(Path(sys.argv[1])) as file, replacing_folder(Path(sys.argv[2])) as folder:
    file.write_bytes(b"half")
    (folder / "half").touch()
    os._exit(9)
"""


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "file"), str(tmp_path / "folder")]
    subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert len(os.listdir(tmp_path)) == 2
    with replacing(tmp_path / "mine") as mine:
        mine.write_bytes(b"whole")
        again = [sys.executable, "-c", KILLED.replace("os._exit(9)", ""), *arguments]
        subprocess.run(again, check=True)
        assert mine.is_file(), "that of a living process stays"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "mine"]


@pytest.mark.parametrize("killed", [True, False])
def test_a_folder_comes_back_from_between_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()

    def end(*_: object) -> None:
        raise SystemExit(143)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", end)
        if killed:
            patch.setattr("sanakit.files._settle", lambda *_: None)
        with pytest.raises(SystemExit), replacing_folder(target):
            pass
    assert target.exists() is not killed
    with pytest.raises(ValueError, match="not to be written"), replacing_folder(target):
        raise ValueError("not to be written")
    assert os.listdir(target) == ["old"]
    assert os.listdir(tmp_path) == ["model"]
