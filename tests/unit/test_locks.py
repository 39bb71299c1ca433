"""A folder is one process's at a time, and a killed one's is the next one's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sanakit.errors import ConfigError, DataError
from sanakit.locks import HOLDER, in_use

HOLD = """
import sys
from pathlib import Path
from sanakit.locks import in_use
with in_use(Path(sys.argv[1]), by="a test"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def enter(folder: Path) -> None:
    with in_use(folder, by="me"):
        pass


def test_the_second_process_is_told_who_the_first_is_and_a_killed_one_is_succeeded(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "a" / "set"
    process = holder(folder)
    try:
        with pytest.raises(ConfigError, match=rf"in use by process {process.pid} \(a test\)"):
            enter(folder)
    finally:
        process.kill()
        process.communicate()
    assert (folder / HOLDER).exists()  # stale
    with in_use(folder, by="me"):
        assert json.loads((folder / HOLDER).read_text())["pid"] == os.getpid()
        with in_use(folder, by="a part of me"):
            pass
        assert (folder / HOLDER).exists()
    assert not (folder / HOLDER).exists()


@pytest.mark.parametrize("note", ["", "[]", '{"pid": "x"}', '{"pid": 1e400}', "\0"])
def test_a_note_that_says_nothing_names_nobody(tmp_path: Path, note: str) -> None:
    process = holder(tmp_path)
    (tmp_path / HOLDER).write_text(note)
    with pytest.raises(ConfigError, match="in use by another process"):
        enter(tmp_path)
    process.communicate(b"")
    enter(tmp_path)


def test_a_file_where_the_folder_should_be_is_an_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("")
    with pytest.raises(DataError, match="cannot be written"), in_use(tmp_path / "set", by="me"):
        pass
