"""A training set that somebody else gave: its links lead nowhere, its files are damaged or odd."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from sanakit.cli.main import app


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    (root / "pictures").mkdir()
    for number in range(3):
        Image.effect_noise((80, 96), 40 + number).convert("RGB").save(
            root / "pictures" / f"{number}.png"
        )
    arguments = ["data", "build", str(root / "pictures"), "--out", str(root / "set")]
    assert CliRunner().invoke(app, [*arguments, "--resolution", "64"]).exit_code == 0
    return root


@pytest.fixture
def given(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "set", tmp_path / "set"))


def typed(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize("folder", ["scan", "shards", "shards/plan", "report"])
def test_nothing_is_written_or_removed_through_a_link_inside_a_set(
    made: Path, given: Path, tmp_path: Path, folder: str
) -> None:
    outside = tmp_path / "outside"
    shutil.move(given / folder, outside)
    (outside / ".mine.tmp").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in outside.rglob("*")}
    (given / folder).symlink_to(outside)
    verbs: dict[str, list[Any]] = {
        "scan": ["scan", made / "pictures", "--out", given],
        "report": ["stats", given],
    }
    code, said = typed("data", *verbs.get(folder, ["build", given, "--min-side", "5"]))
    assert code == 2, said
    assert {path: path.stat().st_mtime_ns for path in outside.rglob("*")} == before


def test_a_set_behind_a_link_that_its_user_names_is_built(given: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(given)
    assert typed("data", "build", tmp_path / "link")[0] == 0


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("set.json", "[" * 50_000),
        ("set.json", '{"format": 1, "format": 1}'),
        ("scan/duplicates.jsonl", '{"a": 1}\n'),
        ("scan/duplicates.jsonl", "5\n"),
        ("shards/plan/settings.json", '{"resolution": "64"}'),
        ("shards/plan/settings.json", '{"resolution": 64, "zzz": 1}'),
        ("shards/plan/settings.json", "[]"),
    ],
)
def test_damaged_files_of_a_set_are_one_error(given: Path, file: str, content: str) -> None:
    path = given / file
    assert path.is_file()
    path.write_text(content)
    code, said = typed("data", "build", given)
    assert code == 2, said
    assert len(said.strip().splitlines()) <= 2


@pytest.mark.parametrize("name", ["set.json", "*.colours.npy", "0*.jsonl", "64*.jsonl", "*.tar"])
def test_pipes_among_the_files_of_a_set_are_not_waited_for(given: Path, name: str) -> None:
    def waited(*_: object) -> None:
        raise AssertionError(f"a command waits for {name}")

    for path in list(given.rglob(name)):
        path.unlink()
        os.mkfifo(path)
    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(200)
    try:
        for verb in (["stats", given], ["encode", given, "--model", "glyph"], ["build", given]):
            code, said = typed("data", *verb)
            assert code in (0, 2), said
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("stage", ["scan", "shards"])
@pytest.mark.parametrize(
    "stats",
    [
        -1,
        {},
        {"samples": 10**400, "left_out": 0},
        {"samples": 3, "refused": {"x": None}, "left_out": 0, "enlarged": [1]},
    ],
)
def test_statistics_of_a_unit_that_are_no_counts_are_one_error_or_made_again(
    made: Path, given: Path, stage: str, stats: Any
) -> None:
    mark = next((given / stage).glob("*.done.json"))
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "stats": stats}))
    build = ["build", made / "pictures", "--out", given, "--resolution", "64"]
    for verb in (["stats", given], build):
        code, said = typed("data", *verb)
        assert code in (0, 2), said
        assert code == 0 or "again" in said


@pytest.mark.parametrize("limits", [{"x": 1}, {"max_pixels": "x"}, {"max_pixels": 0}, 5])
def test_limits_of_a_set_are_typed(given: Path, limits: Any) -> None:
    path = given / "set.json"
    value = json.loads(path.read_text())
    value["settings"]["limits"] = limits
    path.write_text(json.dumps(value))
    assert typed("data", "build", given, "--min-side", "9")[0] == 2
