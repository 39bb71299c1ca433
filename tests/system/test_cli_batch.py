"""`sanakit batch` as a user types it, on a tiny random model: pictures, resuming, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from command_line import sanakit
from sanakit.errors import NumericsError
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.png import read_settings


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, *lines: dict[str, Any] | str) -> str:
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    Path(name).write_text(text + "\n", encoding="utf-8")
    return name


def manifest(folder: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "manifest.jsonl").read_text().splitlines()]


def other_weights(folder: str) -> None:
    [file] = Path(folder, "transformer").glob("*.safetensors")
    save_file({name: value + 0.01 for name, value in load_file(file).items()}, file)


def drawn(*arguments: object) -> tuple[int, int]:
    report = json.loads(sanakit("batch", *arguments, "-o", "out", "--json")[0])
    return report["drawn"], report["there"]


def test_pictures_are_those_of_generate(model: str) -> None:
    lines = [
        {"prompt": "a cat", "seed": 4, "steps": 2, "output": "cats/one.png"},
        {"prompt": "a dog", "negative": "a tail", "guidance": 3, "width": 96, "count": 2},
        {"prompt": "", "solver": "flow-euler", "output": "none.png"},
    ]
    sanakit("batch", write("p.jsonl", *lines), "-o", "out", "-m", model, "--steps", "1", "-q")
    call = ("generate", "--model", model, "-q")
    sanakit(*call, "a cat", "--seed", 4, "--steps", 2, "-o", "1.png")
    sanakit(
        *call, "a dog", "--negative", "a tail", "--guidance", 3, "--width", 96, "-n", 2,
        "--steps", 1, "-o", "2.png",
    )  # fmt: skip
    sanakit(*call, "", "--solver", "flow-euler", "--steps", 1, "-o", "3.png")
    theirs = ["1.png", "2-0.png", "2-1.png", "3.png"]
    ours = ["cats/one.png", "00002-0.png", "00002-1.png", "none.png"]
    for one, other in zip(ours, theirs, strict=True):
        assert Path("out", one).read_bytes() == Path(other).read_bytes()
    assert [record["file"] for record in manifest()] == ours
    assert [record["line"] for record in manifest()] == [1, 2, 2, 3]
    assert manifest()[0]["settings"] == read_settings(Path("out/cats/one.png"))


def test_a_folder_is_a_training_set_with_its_prompts_as_captions(model: str) -> None:
    lines = write("prompts.txt", "a red apple", "a cat")
    drawn(lines, "--model", model, "--steps", 1, "--count", 2)
    sanakit("data", "build", "out", "--out", "set", "--resolution", 64, "--buckets", "square")
    shown = [sanakit("data", "show", "set", number)[0] for number in range(4)]
    captions = {line.split()[1]: text for text in shown for line in text.splitlines()[:1]}
    assert sorted(captions) == ["00001-0", "00001-1", "00002-0", "00002-1"]
    for id, text in captions.items():
        assert f"caption  {'a red apple' if id[4] == '1' else 'a cat'}  (original)" in text


def test_each_format_says_the_same(model: str) -> None:
    texts = {
        "a.txt": "a cat, black\n\n  a dog  \n",
        "b.jsonl": '{"prompt": "a cat, black"}\n\n{"prompt": "a dog", "seed": null}\n',
        "c.csv": '\ufeffprompt,seed,width\r\n"a cat, black",,\r\na dog,,64\r\n',
    }
    found = []
    for name, text in texts.items():
        Path(name).write_text(text, encoding="utf-8", newline="")
        sanakit("batch", name, "-o", name[0], "-m", model, "--steps", "1", "-q")
        records = manifest(name[0])
        assert [record["settings"]["prompt"] for record in records] == ["a cat, black", "a dog"]
        found.append([record["line"] for record in records])
    assert found == [[1, 3], [1, 3], [2, 3]]


def test_comments_of_a_text_are_not_drawn_and_keep_the_numbers_of_lines(model: str) -> None:
    call = ("-m", model, "--steps", "1")
    assert drawn(write("p.txt", "# animals", "a cat", "  #2: a dog", "a #3"), *call) == (2, 0)
    assert [record["file"] for record in manifest()] == ["00002.png", "00004.png"]
    assert manifest()[1]["settings"]["prompt"] == "a #3"
    for name, lines in (("p.jsonl", [{"prompt": "# a"}]), ("p.csv", ["prompt", "# a"])):
        assert drawn(write(name, *lines), *call) == (1, 0)
        assert manifest()[-1]["settings"]["prompt"] == "# a"


def test_only_what_is_missing_changed_or_damaged_is_drawn(model: str) -> None:
    cat, dog, cow = ({"prompt": one} for one in ("a cat", "a dog", "a cow"))
    call = (write("p.jsonl", cat, dog, cow), "-m", model, "--steps", "1")
    assert drawn(*call) == (3, 0)
    before = Path("out/00002.png").read_bytes()
    assert drawn(*call) == (0, 3)
    write("p.jsonl", cat, {**dog, "seed": 7}, cow)
    assert drawn(*call) == (1, 2)
    assert Path("out/00002.png").read_bytes() != before
    Path("out/00001.png").unlink()
    Path("out/00003.png").write_bytes(Path("out/00003.png").read_bytes()[:100])
    assert drawn(*call) == (2, 1)
    assert drawn(*call, "--no-metadata") == (3, 0)
    assert len(manifest()) == 3


def test_other_weights_under_the_same_name_draw_again(model: str) -> None:
    shutil.copytree(model, "mine")
    call = (write("p.txt", "a cat"), "-m", "mine", "--steps", "1")
    assert drawn(*call) == (1, 0)
    other_weights("mine")
    assert drawn(*call) == (1, 0)


def test_a_torn_manifest_costs_one_picture(model: str) -> None:
    call = (write("p.txt", "a cat", "a dog"), "-m", model, "--steps", "1")
    assert drawn(*call) == (2, 0)
    text = Path("out/manifest.jsonl").read_text()
    Path("out/manifest.jsonl").write_text(text[:-40])
    assert drawn(*call) == (1, 1)
    assert [record["line"] for record in manifest()] == [1, 2]


def test_each_model_is_loaded_once(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(model, "other")
    loaded = []
    load = Pipeline.load

    def counted(name: str, **more: Any) -> Pipeline:
        loaded.append(name)
        return load(name, **more)

    monkeypatch.setattr(Pipeline, "load", counted)
    lines = [{"prompt": "a", "model": name} for name in ("other", model, "other", model)]
    sanakit("batch", write("p.jsonl", *lines), "-o", "out", "--steps", "1", "-q")
    assert loaded == ["other", model]
    sanakit("batch", "p.jsonl", "-o", "out", "--steps", "1", "-q")
    assert loaded == ["other", model]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"prompt": "a", "sead": 1}, "unknown key 'sead'\nhint: did you mean 'seed'?"),
        ({"prompt": "a", "num_inference_steps": 1}, "hint: it is 'steps' here"),
        ({"prompt": "a", "negative": "b", "negative_prompt": "c"}, "says negative twice"),
        ({"seed": 1}, "has no prompt"),
        ({"prompt": 3}, "prompt=3 must be a text"),
        ({"prompt": "\ud800"}, "no whole character"),
        ({"prompt": "a", "seed": -1}, "seed=-1 must be at least 0"),
        ({"prompt": "a", "seed": 1.5}, "seed=1.5 must be a whole number"),
        ({"prompt": "a", "seed": 2**63}, "2^63 - 1"),
        ({"prompt": "a", "steps": 1001}, "steps=1001 must be at most 1000"),
        ({"prompt": "a", "guidance": "high"}, "guidance='high' must be a number"),
        ({"prompt": "a", "width": 65}, "width=65"),
        ({"prompt": "a", "solver": "euler"}, "did you mean 'flow-euler'?"),
        ({"prompt": "a", "model": "no/such/model"}, "no/such/model"),
        ('{"prompt": "a", "prompt": "b"}', "twice"),
        ('{"prompt": "a", "guidance": NaN}', "guidance=nan must be a number"),
        ('["a"]', "is a list, not an object"),
        ("a cat", "is not JSON"),
    ],
)
def test_a_line_is_refused_with_its_number_before_anything_is_drawn(
    model: str, line: dict[str, Any] | str, said: str
) -> None:
    write("p.jsonl", {"prompt": "fine"}, line)
    code = 3 if "model" in line and isinstance(line, dict) else 2
    _, err = sanakit("batch", "p.jsonl", "-o", "out", "--model", model, code=code)
    assert "p.jsonl, line 2: " in err
    assert said in err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "output",
    [
        "../a.png", "/tmp/a.png", "b/../../a.png", "C:\\a.png", "C:a.png", "a\\b.png", "~/../a.png",
        "", ".", "..", "a", "a.jpg", ".png", ".hidden/a.png", "a\n.png", "a\x00.png", "con.png",
        "b/aux.x.png", "manifest.jsonl", "x" * 300 + ".png", " a.png", "b./a.png", "a\u202egnp.png",
    ],
)  # fmt: skip
def test_an_output_never_leaves_the_folder(model: str, output: str) -> None:
    write("p.jsonl", {"prompt": "fine", "output": output})
    _, err = sanakit("batch", "p.jsonl", "-o", "out", "--model", model, code=2)
    assert "line 1: output=" in err
    assert sorted(os.listdir()) == ["p.jsonl"]


def test_an_output_does_not_follow_a_link_out_of_the_folder(model: str) -> None:
    Path("out").mkdir()
    Path("elsewhere").mkdir()
    Path("out/link").symlink_to(Path("elsewhere").absolute())
    write("p.jsonl", {"prompt": "fine", "output": "link/a.png"})
    assert "a link leads out" in sanakit("batch", "p.jsonl", "-o", "out", "-m", model, code=2)[1]
    # A link in the place of the picture is replaced, and what it leads to is left alone.
    Path("kept.png").write_text("kept")
    Path("out/a.png").symlink_to(Path("kept.png").absolute())
    write("p.jsonl", {"prompt": "fine", "output": "a.png"})
    sanakit("batch", "p.jsonl", "-o", "out", "-m", model, "--steps", "1", "-q")
    assert Path("kept.png").read_text() == "kept"
    assert not Path("out/a.png").is_symlink()


def test_two_lines_cannot_have_one_file(model: str) -> None:
    write("p.jsonl", {"prompt": "a", "output": "A.png"}, {"prompt": "b", "output": "a.PNG"})
    _, err = sanakit("batch", "p.jsonl", "-o", "out", "-m", model, code=2)
    assert "line 2: a.PNG is also the picture of line 1" in err


def test_all_wrong_lines_are_told(model: str) -> None:
    write("p.jsonl", {"seed": 1}, {"prompt": "a"}, {"prompt": "a", "widht": 1}, "{")
    _, err = sanakit("batch", "p.jsonl", "-o", "out", "-m", model, code=2)
    assert all(f"p.jsonl, line {number}: " in err for number in (1, 3, 4))
    assert "2 other lines cannot be drawn either" in err


def test_files_that_hold_no_prompts_are_refused(model: str) -> None:
    for name, text, said in (
        ("p.yaml", "a", "does not end in .txt, .jsonl, .csv"),
        ("p.txt", "\n \n", "holds no prompt"),
        ("p.txt", "# a cat\n", "holds no prompt"),
        ("p.csv", "prompt;seed\na;1\n", "unknown key 'prompt;seed'"),
        ("p.csv", "prompt,seed\na,1,2\n", "line 2: has 3 cells, the first row 2 names"),
        ("p.csv", 'prompt\n"a\n', "is no row of a .csv"),
    ):
        Path(name).write_text(text)
        assert said in sanakit("batch", name, "-o", "out", "-m", model, code=2)[1]
    Path("p.txt").write_bytes(b"\xff\xfe")
    assert "is not UTF-8" in sanakit("batch", "p.txt", "-o", "out", code=2)[1]
    assert "No such file" in sanakit("batch", "absent.txt", "-o", "out", code=2)[1]


def test_pictures_that_fail_are_listed_and_tried_again(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = Pipeline.generate

    def failing(self: Pipeline, request: Any, **more: Any) -> Any:
        if request.prompt == "bad":
            raise NumericsError("transformer: not finite at step 1")
        return generate(self, request, **more)

    call = ("batch", write("p.txt", "a", "bad", "b"), "-o", "out", "-m", model, "--steps", "1")
    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "generate", failing)
        out, err = sanakit(*call, code=6)
    assert out.splitlines() == ["out/00001.png  seed 0", "out/00003.png  seed 0"]
    assert "line 2, 00002.png: transformer: not finite at step 1" in err
    assert "error: 1 of 3 pictures failed" in err
    assert [record.get("error") is not None for record in manifest()] == [False, True, False]
    assert sanakit(*call)[0] == "out/00002.png  seed 0\n"
    assert len(manifest()) == 3


def test_ctrl_c_leaves_whole_files_and_the_next_run_goes_on(model: str) -> None:
    lines = [f"prompt {number}" for number in range(200)]
    call = [sys.executable, "-m", "sanakit", "batch", write("p.txt", *lines), "-o", "out"]
    call += ["--model", model, "--steps", "20"]
    with subprocess.Popen(call, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        run.stdout.readline()
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "stopped; " in err
    assert "Traceback" not in err
    records = manifest()
    assert 1 <= len(records) < 200
    assert not list(Path("out").glob("*.tmp"))
    for record in records:
        assert read_settings(Path("out", record["file"]))["prompt"] == record["settings"]["prompt"]
    write("p.txt", *lines[: len(records) + 1])
    assert drawn("p.txt", "--model", model, "--steps", "20") == (1, len(records))


def test_a_folder_takes_one_batch_at_a_time(model: str) -> None:
    call = [sys.executable, "-m", "sanakit", "batch", write("p.txt", *"abcdefgh" * 20), "-o", "out"]
    call += ["--model", model, "--steps", "50"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        run.stdout.readline()
        err = sanakit("batch", "p.txt", "-o", "out", "-m", model, code=2)[1]
        run.kill()
    assert f"out is in use by process {run.pid} (sanakit batch)" in err


def test_torchrun_is_refused(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one process" in sanakit("batch", write("p.txt", "a"), "-o", "out", code=2)[1]
