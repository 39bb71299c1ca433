"""`sanakit models` as a user types it, against a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import command_line
from sanakit.cli.main import app
from sanakit.pipeline.components import load_components
from sanakit.weights.lockfile import repository_folder
from stand_in_hub import StandInHub, pipeline_files, serving
from tiny import write_tiny

SANA = "Efficient-Large-Model/Sana_600M_1024px_diffusers"
WEIGHTS = "transformer/diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    monkeypatch.chdir(tmp_path)
    with serving(tmp_path / "cache", monkeypatch) as server:
        server.publish(SANA, pipeline_files())
        yield server


def sanakit(*arguments: object, code: int = 0) -> tuple[str, str]:
    return command_line.sanakit("models", *arguments, code=code)


def listed(*arguments: str) -> dict[str, dict[str, object]]:
    rows = json.loads(sanakit("list", "--json", *arguments)[0])["models"]
    return {row["alias"]: row for row in rows}


def test_list_says_what_there_is_and_what_is_on_this_disk(hub: StandInHub) -> None:
    before = listed()
    glyph = load_components("glyph")
    assert before["glyph"]["on_disk"] == "whole"
    assert before["glyph"]["resolution"] == 32 * glyph.transformer.config.sample_size
    assert before["glyph"]["parameters"] == sum(p.numel() for p in glyph.transformer.parameters())
    assert sanakit("list")[0].splitlines()[1].split()[:4] == ["glyph", "29M", "-", "float32"]
    assert before["sana-0.6b"]["on_disk"] is None
    assert before["sana-0.6b"]["parameters"] == 591_747_872
    assert before["sana-1.6b-4k"]["dtype"] == "bfloat16"
    assert "sana-0.6b-pth" not in before
    assert "sana-0.6b-pth" in listed("--all")
    sanakit("pull", "sana-0.6b", "--json")
    assert listed()["sana-0.6b"]["on_disk"] == "whole"
    table = sanakit("list")[0].splitlines()
    (row,) = [line for line in table if line.startswith("sana-0.6b ")]
    assert row.split()[1] == "592M"
    assert row.endswith(SANA)
    assert " kB " in row
    (repository_folder(SANA) / "snapshots").rename(repository_folder(SANA) / "elsewhere")
    assert listed()["sana-0.6b"]["on_disk"] == "partial"


def test_a_model_of_the_hub_is_drawn_with_by_its_alias(hub: StandInHub, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny")
    files = [path for path in folder.rglob("*") if path.is_file()]
    hub.publish(
        "Efficient-Large-Model/Sana_600M_512px_diffusers",
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in files},
    )
    call = ["generate", "a tree", "--model", "sana-0.6b-512", "--steps", "1"]
    for _ in range(2):
        result = CliRunner().invoke(app, call)
        assert result.exit_code == 0, result.output
    assert Path("out.png").is_file()
    assert len(hub.downloaded()) == len(set(hub.downloaded()))


def test_pull_shows_the_licences_says_where_it_is_and_needs_no_second_time(
    hub: StandInHub,
) -> None:
    out, err = sanakit("pull", "sana-0.6b")
    assert "NSCL v2-custom" in err
    assert "Gemma Terms of Use" in err
    folder = Path(out.split(" is in ")[1].strip())
    assert (folder / WEIGHTS).is_file()
    loaded = len(hub.downloaded())
    report = json.loads(sanakit("pull", SANA, "--offline", "--json")[0])
    assert report == {
        "repository": SANA,
        "commit": folder.name,
        "folder": str(folder),
        "notes": [],
    }
    assert len(hub.downloaded()) == loaded


def test_pull_notes_a_revision_that_moved_and_takes_it_with_update(hub: StandInHub) -> None:
    first = json.loads(sanakit("pull", "sana-0.6b", "--json")[0])["commit"]
    second = hub.publish(SANA, pipeline_files({"transformer": [None]}))
    _, err = sanakit("pull", "sana-0.6b")
    assert f"main has moved from {first[:7]} to {second[:7]}" in err
    report = json.loads(sanakit("pull", "sana-0.6b", "--update", "--json")[0])
    assert report["commit"] == second
    assert "no fp16 variant" in report["notes"][0]


def test_pull_offline_names_what_is_missing_with_exit_code_3(hub: StandInHub) -> None:
    _, err = sanakit("pull", "sana-0.6b", "--offline", code=3)
    assert "nothing of its revision main" in err
    folder = Path(json.loads(sanakit("pull", "sana-0.6b", "--json")[0])["folder"])
    (folder / WEIGHTS).unlink()
    _, err = sanakit("pull", "sana-0.6b", "--offline", code=3)
    assert WEIGHTS in err
    sanakit("pull", "sana-0.6b", "--variant", "bf16", code=3)


def test_a_picture_offline_asks_nobody_and_names_what_is_missing(hub: StandInHub) -> None:
    call = ["generate", "a tree", "--model", "sana-0.6b", "--offline"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 3
    assert "nothing of its revision main" in result.stderr
    assert not hub.requests
    assert not list(Path().glob("*.png"))


def test_show_tells_licences_dtype_rule_and_files(hub: StandInHub) -> None:
    out, _ = sanakit("show", "sana-0.6b")
    assert "NSCL v2-custom" in out
    assert "Gemma Prohibited Use Policy" in out
    assert "transformer float16 or float32" in out
    assert "never float16" in out
    assert "3.0; 4.0 in the original code" in out
    assert "files:" not in out
    sanakit("pull", "sana-0.6b")
    facts = json.loads(sanakit("show", SANA, "--json")[0])
    assert any(WEIGHTS in line for line in facts["files"])
    assert facts["licence on its page when fetched"] == "nscl-v2-custom"
    assert facts["pinned"].startswith("main = ")
    assert "embedded" in sanakit("show", "glyph")[0]


def test_verify_ends_with_exit_code_2_when_a_file_was_changed(hub: StandInHub) -> None:
    assert "no published checkpoint" in sanakit("verify")[0]
    folder = Path(json.loads(sanakit("pull", "sana-0.6b", "--json")[0])["folder"])
    assert "none changed" in sanakit("verify")[0]
    assert json.loads(sanakit("verify", "sana-0.6b", "--json")[0])["ok"] is True
    blob = (folder / WEIGHTS).resolve()
    blob.write_bytes(blob.read_bytes() + b"!")
    out, err = sanakit("verify", code=2)
    assert f"{WEIGHTS}: was changed" in out
    assert "sanakit models rm" in err
    report = json.loads(sanakit("verify", "sana-0.6b", "--json", code=2)[0])
    assert report["ok"] is False
    sanakit("verify", "sana-1.6b", code=3)


def test_rm_asks_first_and_removes_everything(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sanakit("pull", "sana-0.6b", "--json")
    _, err = sanakit("rm", "sana-0.6b", code=2)
    assert "--yes" in err
    assert repository_folder(SANA).is_dir()
    assert "removed" in sanakit("rm", "sana-0.6b", "--yes")[0]
    assert not repository_folder(SANA).exists()
    sanakit("rm", "sana-0.6b", "--yes", code=3)


@pytest.mark.parametrize("command", ["show", "pull", "verify", "rm"])
def test_a_name_that_is_none_says_what_was_meant(hub: StandInHub, command: str) -> None:
    for name in ("sana-1.6", "../sana-1.6b", "a/b/c", "/", ""):
        _, err = sanakit(command, name, code=3)
        assert "is no alias" in err
    assert "did you mean 'sana-1.6b'" in sanakit(command, "sana-1.6", code=3)[1]
    assert hub.requests == []


@pytest.mark.parametrize("command", ["pull", "verify", "rm"])
def test_the_embedded_model_needs_none_of_it(command: str) -> None:
    assert "ships with sanakit" in sanakit(command, "glyph", code=2)[1]


def test_list_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom sanakit.cli.main import main\nsys.argv = ['sanakit', 'models', 'list']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HOME": str(tmp_path)},
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert "sana-1.6b" in done.stdout
