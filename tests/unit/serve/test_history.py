from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sanakit.errors import ConfigError, DataError
from sanakit.serve.history import History
from serving import png

IMAGE = {"seed": 1, "width": 64, "height": 64}


def opened(folder: Path, most_bytes: int = 10**9) -> History:
    return History(folder, most_bytes=most_bytes)


def add(history: History, job: str, **more: Any) -> None:
    values = {"owner": "", "request": {"prompt": job}, "state": "done", "created": 1.0}
    history.add({"id": job, **values, **more})


def test_the_oldest_pictures_make_room(tmp_path: Path) -> None:
    history = opened(tmp_path, most_bytes=3 * len(png()))
    for job in "abcde":
        add(history, job)
        history.keep(job, 0, png(), **IMAGE)
    assert [row["id"] for row in history.recent("", 9)] == ["e", "d", "c"]
    assert sorted(path.name for path in history.pictures.iterdir()) == [
        "c-0.png",
        "d-0.png",
        "e-0.png",
    ]


def test_and_so_does_what_was_handed_in_for_jobs_that_were_never_drawn(tmp_path: Path) -> None:
    history = opened(tmp_path, most_bytes=25)
    for number in range(5):
        name = history.keep_input(b"ten bytes" + bytes([number]))
        add(history, f"{number}", request={"edit": {"image": name}}, state="cancelled")
    assert [row["id"] for row in history.recent("", 9)] == ["4", "3"]
    assert len(list(history.inputs.iterdir())) == 2


def test_jobs_without_pictures_are_forgotten_after_many_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sanakit.serve.history.MOST_JOBS", 2)
    history = opened(tmp_path)
    add(history, "drawn")
    history.keep("drawn", 0, png(), **IMAGE)
    add(history, "waiting", state="queued")
    for job in "abcde":
        add(history, job, state="cancelled")
    kept = [row["id"] for row in history.recent("", 9)]
    assert kept == ["e", "d", "c", "waiting", "drawn"]


def test_what_was_handed_in_goes_with_the_last_job_that_names_it(tmp_path: Path) -> None:
    history = opened(tmp_path)
    name = history.keep_input(b"picture")
    for job in "ab":
        add(history, job, request={"edit": {"image": name}})
    history.remove("a")
    assert history.input_file(name).is_file()
    history.remove("b")
    assert list(history.inputs.iterdir()) == []


def test_what_a_job_to_come_names_does_not_go_with_the_one_before_it(tmp_path: Path) -> None:
    history = opened(tmp_path)
    name = history.keep_input(b"picture")
    add(history, "a", request={"edit": {"image": name}})
    history.hold_input(name)
    history.remove("a")
    add(history, "b", request={"edit": {"image": name}})
    history.release_inputs([name])
    assert history.input_file(name).is_file()
    history.remove("b")
    assert list(history.inputs.iterdir()) == []


def test_files_that_a_kill_left_and_rows_without_files_are_swept(tmp_path: Path) -> None:
    history = opened(tmp_path)
    for job in "ab":
        add(history, job)
        history.keep(job, 0, png(), **IMAGE)
    history.picture("a", 0).unlink()
    (history.pictures / "stray-0.png").write_bytes(b"half")
    history.close()
    history = opened(tmp_path)
    assert [path.name for path in history.pictures.iterdir()] == ["b-0.png"]
    job = history.job("a")
    assert job is not None
    assert job["images"] == []


def test_two_servers_never_share_a_history(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(ConfigError, match="another server"):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


@pytest.mark.parametrize("name", ["sha256:../secret", "sha256:/etc/passwd", "../secret", "x"])
def test_names_of_what_was_handed_in_never_become_paths(tmp_path: Path, name: str) -> None:
    history = opened(tmp_path / "kept")
    (history.folder / "secret").write_text("of another")
    with pytest.raises(DataError, match="no such picture"):
        history.input_file(name)
