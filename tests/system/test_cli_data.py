"""`sanakit data` as a user types it: own pictures in a folder, no captions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from command_line import sanakit
from sanakit.cli.main import app
from sanakit.data.shards import read_index
from tiny_set import picture


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with pictures of which some are broken and one is there twice."""
    pictures = tmp_path / "my-pictures"
    (pictures / "holiday").mkdir(parents=True)
    for number in range(6):
        size = [(80, 80), (60, 120), (120, 60)][number % 3]
        format_ = ("JPEG", "PNG")[number % 2]
        name = f"{'holiday/' * (number % 2)}IMG_{number:04}.{format_.lower()}"
        (pictures / name).write_bytes(picture(*size, seed=number, format_=format_))
    (pictures / "again.jpeg").write_bytes((pictures / "IMG_0000.jpeg").read_bytes())
    (pictures / "empty.jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build(*arguments: object, code: int = 0) -> tuple[str, str]:
    return sanakit("data", "build", *arguments, "--workers", 1, code=code)


def test_own_pictures_become_shards_and_a_report_by_one_command(here: Path) -> None:
    out, _ = build("my-pictures", "--out", "my-set", "--resolution", 64)
    assert "6 pictures in 3 buckets at 64 px, 3 shards" in out
    assert "left out: 2" in out
    assert "1  empty file" in out
    assert "1  duplicate picture" in out
    assert "without captions: 6" in out
    assert "report: my-set/report/index.html" in out
    assert "captions, by a model: sanakit data caption my-set --model MODEL" in out
    assert out.endswith("next: sanakit train diffusion --data my-set --from glyph\n")
    assert (here / "my-set" / "report" / "index.html").exists()
    assert read_index(here / "my-set" / "shards").samples == 6
    assert "empty" in (here / "my-set" / "shards" / "left-out.jsonl").read_text()


def test_sizes_are_those_of_the_model_and_the_last_line_trains_it(here: Path) -> None:
    said = {
        (): "next: sanakit train diffusion --data 'a set' --from glyph\n",
        ("--resolution", 256): "next: sanakit train diffusion --data 'a set' --from glyph\n",
        ("--model", "sana-0.6b-512"): "--from sana-0.6b-512\n",
        ("--resolution", 1024): "--from sana-0.6b\n",
        ("--model", "glyph"): "--from glyph\n",
    }
    sides = [(256, 64), (256, 64), (512, 32), (1024, 32), (256, 64)]
    for (options, last), (side, multiple) in zip(said.items(), sides, strict=True):
        target = ["my-pictures", "--out", "a set"] if not (here / "a set").exists() else ["a set"]
        out, _ = build(*target, *options)
        index = read_index(here / "a set" / "shards")
        assert index.resolution == side
        assert all(h % multiple == w % multiple == 0 for h, w in index.buckets)
        assert len(index.buckets) == 3
        assert out.endswith(last)
    again, _ = build("a set")  # as before
    assert again.endswith(last)


def test_pictures_that_no_model_of_patches_takes_are_refused_with_what_to_build(here: Path) -> None:
    build("my-pictures", "--out", "my-set", "--resolution", 64)
    _, err = sanakit("train", "diffusion", "--data", "my-set", "--from", "glyph", code=2)
    assert "px, are no multiples of 64, as this model needs them" in err
    assert "sanakit data build my-set --model glyph" in err.replace(str(here) + "/", "")


def test_without_a_folder_named_the_set_is_in_data(here: Path) -> None:
    build("my-pictures", "--resolution", 64, "--caption", "a holiday")
    assert read_index(here / "data" / "my-pictures" / "shards").samples == 6
    out, _ = sanakit("data", "show", "data/my-pictures", 0)
    assert "a holiday  (user)" in out


def test_a_set_is_only_built_and_keeps_the_settings_that_are_not_given(here: Path) -> None:
    build("my-pictures", "--out", "my-set", "--resolution", 96, "--store", "original")
    scanned = (here / "my-set" / "scan" / "00000.done.json").stat().st_mtime_ns
    out, _ = build("my-set", "--min-side", 70)
    index = read_index(here / "my-set" / "shards")
    assert (index.resolution, index.store, index.samples) == (96, "original", 2)
    assert "too small" in out
    build("my-set", "--min-side", 0, "--resolution", 64, "--store", "fitted")
    index = read_index(here / "my-set" / "shards")
    assert (index.resolution, index.store, index.samples) == (64, "fitted", 6)
    assert (here / "my-set" / "scan" / "00000.done.json").stat().st_mtime_ns == scanned


def test_captions_can_be_left_out_and_licences_stated(here: Path) -> None:
    (here / "my-pictures" / "IMG_0000.txt").write_text("a thing")
    build("my-pictures", "--out", "with", "--resolution", 64, "--licence", "CC0-1.0")
    out, _ = sanakit("data", "show", "with", "IMG_0000")
    assert "a thing" in out
    assert "CC0-1.0" in out
    build("my-pictures", "--out", "without", "--resolution", 64, "--captions", "none")
    assert "caption  none" in sanakit("data", "show", "without", "IMG_0000")[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("my-set", "--caption", "x"), "--caption"),
        (("my-set", "--licence", "x"), "--licence"),
        (("my-set", "--out", "other"), "--out"),
        (("my-set", "--buckets", "round"), "'round'"),
        (("my-set", "--resolution", 100), "100"),
        (("my-pictures", "--captions", "all"), "'all'"),
        (("my-pictures", "--engine", "spark"), "'spark'"),
        (("nowhere",), "nowhere"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_hint_and_nothing_is_written(
    here: Path, arguments: tuple[Any, ...], named: str
) -> None:
    build("my-pictures", "--out", "my-set", "--resolution", 64)
    before = sorted((path, path.stat().st_mtime_ns) for path in here.rglob("*"))
    _, err = build(*arguments, code=2)
    error, hint = err.splitlines()
    assert named in error
    assert hint.startswith("hint: ")
    assert sorted((path, path.stat().st_mtime_ns) for path in here.rglob("*")) == before


def test_a_sample_is_shown_by_number_and_by_id_and_saved_as_training_sees_it(
    here: Path,
) -> None:
    (here / "my-pictures" / "IMG_0002.txt").write_text("a \x1b[31mred\x07 thing")
    build("my-pictures", "--out", "my-set", "--resolution", 64)
    out, _ = sanakit("data", "show", "my-set", "IMG_0002", "--save", "one.png")
    assert "picture  120 x 60" in out
    assert "bucket   96 x 32" in out or "bucket   96 x 64" in out
    assert "\x1b" not in out
    assert "\x07" not in out
    height, width = (int(side) for side in out.split("bucket   ")[1].split("\n")[0].split(" x "))
    with Image.open("one.png") as saved:
        assert saved.size == (width, height)
    shown = [sanakit("data", "show", "my-set", number)[0].splitlines()[0] for number in range(6)]
    assert len(set(shown)) == 6
    _, err = sanakit("data", "show", "my-set", 7, code=2)
    assert "no sample 7" in err
    assert "6" in err.splitlines()[1]
    for name in ("cat", "9" * 5000):
        assert f"no sample '{name}'" in sanakit("data", "show", "my-set", name, code=2)[1]


def test_stats_writes_the_report_again_with_as_many_pictures_as_asked(here: Path) -> None:
    sanakit("data", "scan", "my-pictures", "--out", "my-set", "--workers", 1)
    out, _ = sanakit("data", "stats", "my-set", "--pictures", 2)
    assert "6 pictures, 0 captions, 2 left out" in out
    assert "no shards yet: sanakit data build my-set" in out
    page = (here / "my-set" / "report" / "index.html").read_text()
    assert page.count("<figure>") == 2
    build("my-set", "--resolution", 64)
    assert "no shards yet" not in sanakit("data", "stats", "my-set")[0]
    assert "-1" in sanakit("data", "stats", "my-set", "--pictures", -1, code=2)[1]
    assert "holds no training set" in sanakit("data", "stats", "my-pictures", code=2)[1]


def test_ctrl_c_says_that_the_same_command_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr("sanakit.data.build.BuildShards.process", interrupted)
        _, err = build("my-pictures", "--out", "my-set", "--resolution", 64, code=130)
    assert err == (
        "error: stopped; what is finished stays\nhint: the same command goes on from there\n"
    )
    assert not list((here / "my-set" / "shards").glob(".*"))
    assert "6 pictures" in build("my-pictures", "--out", "my-set")[0]


def test_building_needs_no_torch_so_its_processes_start_at_once(here: Path) -> None:
    code = (
        "import sys\nfrom sanakit.cli.main import main\n"
        "sys.argv = ['sanakit', 'data', 'build', 'my-pictures', '--out', 'my-set',"
        " '--resolution', '64', '--workers', '1']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "import json; print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "sanakit.data.build" in loaded
    assert not {"torch", "transformers"} & set(loaded)


def test_a_set_whose_files_are_damaged_is_refused_in_one_line(here: Path) -> None:
    build("my-pictures", "--out", "my-set", "--resolution", 64)
    files = ["set.json", "scan/duplicates.jsonl", "quarantine.jsonl", "shards/plan/settings.json"]
    files += ["scan/00000.jsonl", "scan/00000.refused.jsonl"]
    deep = "[" * 100_000 + "]" * 100_000
    odd = ["", "x", "[]", "{}", "null", "1e999", '{"a": 1}', deep, '{"id": 5, "of": {}}', "\0"]
    settings = json.loads((here / "my-set/set.json").read_text())
    limits = [{"x": 1}, {"max_pixels": "many"}, {"min_side": -1}, [], 5, {"first_frame": 2}]
    bad = [json.dumps({**settings, "settings": {"limits": one}}) for one in limits]
    bad += [json.dumps({**settings, "units": one}) for one in (5, ["../x"], [1], [""])]
    for name in files:
        path = here / "my-set" / name
        whole = path.read_bytes()
        for text in [*odd, *(bad if name == "set.json" else ())]:
            path.write_text(text)
            for verb in ("build", "stats", "show"):
                result = CliRunner().invoke(app, ["data", verb, "my-set"])
                assert result.exit_code in (0, 2), (name, text[:40], verb, result.exception)
                assert not isinstance(result.exception, Exception), (name, text[:40], verb)
        path.write_bytes(whole)


@pytest.mark.parametrize("share", ["-1", "1.5", "nan", "inf"])
def test_a_share_is_between_nothing_and_all(here: Path, share: str) -> None:
    _, err = build("my-pictures", "--out", "my-set", "--max-bad", share, code=2)
    assert "--max-bad" in err
    assert not (here / "my-set").exists()
