"""Commands that draw, read and decode pictures, as a user types them, on a tiny random model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from command_line import sanakit
from sanakit import __main__ as entry
from sanakit.cli.main import app
from sanakit.cli.progress import StopFlag
from sanakit.errors import Interrupted
from sanakit.pipeline import decoder
from sanakit.pipeline.decoder import Origin, read_latents, write_latents
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.png import encode_png, read_settings
from sanakit.pipeline.published.sana import SanaPipeline
from tiny import write_tiny

AT_WORK = 40 << 20
"""Bytes that a command holds soon after its own first line ran, and before torch is there."""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_generate_writes_a_picture_that_says_how_it_was_made(model: str) -> None:
    out, _ = sanakit("generate", "a tree", "--model", model, "--steps", "2", "--seed", "3")
    assert out.startswith("out.png  seed 3")
    with Image.open("out.png") as image:
        assert image.size == (64, 64)
        assert "Steps: 2" in image.text["parameters"]
    settings = json.loads(sanakit("info", "out.png", "--json")[0])
    assert settings["prompt"] == "a tree"
    assert settings["seed"] == 3
    assert "a tree" in sanakit("info", "out.png")[0]


def test_again_draws_the_same_bits(model: str) -> None:
    sanakit("generate", "a tree", "--model", model, "--steps", "2", "--width", "96", "-o", "a.png")
    sanakit("again", "a.png", "-o", "b.png", "--quiet")
    with Image.open("a.png") as first, Image.open("b.png") as second:
        assert first.tobytes() == second.tobytes()
    sanakit("again", "a.png", "--quiet")
    assert Path("a-again.png").read_bytes() == Path("b.png").read_bytes()


def test_count_numbers_the_files_by_seed(model: str) -> None:
    out, _ = sanakit(
        "generate", "a tree", "--model", model, "--steps", "1", "-n", "2", "--seed", "8", "--json"
    )
    report = json.loads(out)
    assert report["files"] == ["out-8.png", "out-9.png"]
    assert report["seeds"] == [8, 9]
    assert set(report["seconds"]) == {"start", "load", "text", "denoise", "decode", "total"}
    assert report["peak_memory_mb"] > 0
    assert sorted(os.listdir()) == ["out-8.png", "out-9.png"]


def test_a_folder_gets_a_picture_and_endings_may_be_capitals(model: str) -> None:
    Path("pictures").mkdir()
    call = ("generate", "a tree", "--model", model, "--steps", "1", "-q", "-o")
    sanakit(*call, "pictures")
    sanakit(*call, "pictures/other.PNG")
    assert sorted(os.listdir("pictures")) == ["other.PNG", "out.png"]


def test_a_picture_on_standard_output_leaves_the_report_to_standard_error(model: str) -> None:
    call = ["generate", "a tree", "--model", model, "--steps", "1", "-o", "-", "--json"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0
    assert result.stdout_bytes.startswith(b"\x89PNG")
    assert json.loads(result.stderr)["files"] == ["-"]


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (["--guidance-interval", "0.1", "0.7"], "guidance_interval", [0.1, 0.7]),
        (["--step-cache", "9"], "step_cache", 9.0),
    ],
)
def test_again_spares_the_evaluations_that_were_spared(
    model: str, options: list[str], key: str, value: object
) -> None:
    call = ["generate", "a tree", "-m", model, "--steps", "6", "-q"]
    sanakit(*call, "-o", "whole.png")
    sanakit(*call, *options, "-o", "a.png")
    assert read_settings("a.png")[key] == value
    sanakit("again", "a.png", "-o", "b.png", "-q")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    with Image.open("a.png") as spared, Image.open("whole.png") as whole:
        assert spared.tobytes() != whole.tobytes()


def test_again_with_another_model_says_so(model: str, tmp_path: Path) -> None:
    sanakit("generate", "a tree", "--model", model, "--steps", "1", "-q")
    assert sanakit("again", "out.png", "-q") == ("", "")
    folder = write_tiny(tmp_path / "other")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    changed = {name: value * 0.5 for name, value in load_file(weights).items()}
    save_file(changed, weights)
    out, err = sanakit("again", "out.png", "--model", str(folder), "--json", "-o", "other.png")
    assert "are not those that drew it" in err
    assert json.loads(out)["model"] == str(folder)
    with Image.open("out.png") as first, Image.open("other.png") as second:
        assert first.tobytes() != second.tobytes()


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [("count", 2, "count=2 is not that of one"), ("height", 10**9, "height=1000000000 is not")],
)
def test_again_draws_one_picture_of_a_size_that_can_be(
    model: str, setting: str, value: int, said: str
) -> None:
    settings = {"prompt": "", "seed": 1, "count": 1, "model": model, setting: value}
    Path("a.png").write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8), settings))
    assert said in sanakit("again", "a.png", code=2)[1]
    assert os.listdir() == ["a.png"]


def test_quiet_prints_nothing(model: str) -> None:
    assert sanakit("generate", "", "--model", model, "--steps", "1", "-q") == ("", "")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--width", "1000"], 2, "hint: nearest that work: 992 and 1024"),
        (["--steps", "0"], 2, "--steps '0' must be at least 1"),
        (["--seed", "-4"], 2, "write --seed 0"),
        (["--solver", "flow-dpm"], 2, "did you mean 'flow-dpm-solver'"),
        (["--model", "glyhp"], 3, "did you mean 'glyph'"),
        (["--model", "./nowhere"], 3, "no such folder"),
        (["-o", "picture.jpg"], 2, "hint: try picture.png"),
        (["-o", "nowhere/picture.png"], 2, "mkdir -p nowhere"),
        (["--seed", "9" * 5000], 2, "must be a whole number"),
        (["--count", "1000000000"], 2, "count=1000000000 must be a whole number from 1 to"),
        (["--seed", str(2**63)], 2, "must be 0 to 2^63 - 1"),
        (["-o", "-", "--count", "2"], 2, "one picture goes to standard output"),
        (["--stepz", "3"], 2, "stepz"),
    ],
)
def test_a_bad_wish_ends_with_one_line_and_nothing_written(
    model: str, arguments: list[str], code: int, said: str
) -> None:
    given = arguments if "--model" in arguments else [*arguments, "--model", model]
    out, err = sanakit("generate", "a tree", *given, code=code)
    assert said in err
    assert out == ""
    assert os.listdir() == []


@pytest.mark.parametrize("damage", ["truncated", "pickle", "reshaped", "missing"])
def test_damaged_weights_end_with_one_line_and_nothing_written(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tiny(tmp_path / "m")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    code = 2
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "pickle":
        weights.rename(weights.with_suffix(".bin"))
    elif damage == "missing":
        weights.unlink()
        code = 3
    else:
        config = folder / "transformer" / "config.json"
        values = json.loads(config.read_text())
        config.write_text(json.dumps(values | {"mlp_ratio": 3.0}))
    _, err = sanakit("generate", "a tree", "--model", str(folder), code=code)
    assert err.startswith("error: ")
    assert "hint: " in err
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_info_refuses_what_carries_no_settings(content: bytes) -> None:
    Path("x.png").write_bytes(content)
    _, err = sanakit("info", "x.png", code=2)
    assert err.startswith("error: x.png")
    sanakit("again", "x.png", code=2)
    assert os.listdir() == ["x.png"]


def test_a_picture_can_go_to_standard_output(model: str) -> None:
    command = [sys.executable, "-m", "sanakit", "generate", "a tree", "--model", model]
    done = subprocess.run([*command, "--steps", "1", "-o", "-"], capture_output=True, check=True)
    assert done.stdout.startswith(b"\x89PNG")
    assert os.listdir() == []


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_stops_from_the_first_second_on_and_leaves_nothing(model: str) -> None:
    command = [sys.executable, "-m", "sanakit", "generate", "a tree", "--model", model]
    process = subprocess.Popen([*command, "--steps", "1000", "-n", "1000"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    # Before that much is in memory it is Python's own start that a signal would meet.
    memory = psutil.Process(process.pid).memory_info
    while memory().rss < AT_WORK and time.monotonic() < deadline:
        time.sleep(0.01)
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGINT)
        # A second one while Python takes itself down would end it as a signal does.
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    assert os.listdir() == []


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_waits_for_the_end_of_the_step(model: str) -> None:
    command = [sys.executable, "-m", "sanakit", "generate", "a tree", "--model", model]
    command += ["--steps", "1000", "-n", "1000", "--progress"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert any(line.startswith(b"drawing 1/") for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert any(line.startswith(b"error: stopped after step ") for line in process.stderr)
    assert process.returncode == 130
    assert os.listdir() == []


def test_ctrl_c_while_the_command_is_imported_is_as_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sanakit.cli.main.main", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        entry.run()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # until this process has ended
    signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "stopped; nothing was written\n"


def test_the_stop_flag_ends_the_run_at_the_next_step() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopFlag() as stop:
        stop.check(1, 3)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted, match="after step 2 of 3"):
            stop.check(2, 3)
        # The second one does not wait.
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("binned", [False, True], ids=["as asked", "drawn larger and cut"])
def test_a_run_without_memory_is_finished_by_the_command_its_error_names(
    model: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    binned: bool,
) -> None:
    call = ["generate", "a tree", "--steps", "2", "--seed", "7", "-q"]
    if binned:
        model = shutil.copytree(model, tmp_path_factory.mktemp("binned") / "m")
        config = model / "transformer" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 16}))
        call += ["--height", "64", "--width", "128"]
    call += ["--model", str(model)]
    sanakit(*call, "-o", "expected.png")

    def never(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")

    with monkeypatch.context() as patched:
        patched.setattr(decoder, "_fill", never)
        _, err = sanakit(*call, "-o", "lost.png", code=4)
    (path,) = Path().glob("latents-*.safetensors")
    assert sorted(os.listdir()) == sorted(["expected.png", path.name])
    assert "nothing is lost" in err
    command = err.split("then: sanakit ")[1].split()
    assert command[:1] == ["decode"]
    assert sanakit(*command)[0] == "out.png\n"
    with Image.open("out.png") as again, Image.open("expected.png") as expected:
        assert again.tobytes() == expected.tobytes()
    assert read_settings(Path("out.png")) == read_settings(Path("expected.png"))


def test_tiles_give_the_same_picture_and_json_says_what_was_done(model: str) -> None:
    write_latents(Path("x.safetensors"), torch.randn(1, 4, 5, 4), Origin(model=model))
    sanakit("decode", "x.safetensors", "-q")
    out, _ = sanakit("decode", "x.safetensors", "--tile", "48", "-o", "tiled.png", "--json")
    report = json.loads(out)
    assert report["files"] == ["tiled.png"]
    assert set(report["seconds"]) == {"start", "load", "decode", "total"}
    with Image.open("out.png") as whole, Image.open("tiled.png") as tiled:
        assert whole.size == (128, 160)
        difference = np.asarray(whole).astype(int) - np.asarray(tiled)
    assert abs(difference).max() <= 1


def test_the_dtype_that_is_asked_for_decodes(model: str) -> None:
    write_latents(Path("x.safetensors"), torch.randn(1, 4, 4, 4), Origin(model=model))
    pixels = {}
    for dtype in ("float32", "bfloat16"):
        sanakit("decode", "x.safetensors", "--dtype", dtype, "-q")
        with Image.open("out.png") as image:
            pixels[dtype] = np.asarray(image).astype(int)
    difference = np.abs(pixels["float32"] - pixels["bfloat16"])
    assert 0 < difference.max() <= 8  # three bits of eight are lost on the way


def test_several_latents_give_numbered_files(model: str) -> None:
    write_latents(Path("x.safetensors"), torch.randn(2, 4, 2, 2), Origin(model=model))
    assert sanakit("decode", "x.safetensors")[0] == "out-0.png\nout-1.png\n"


def test_latents_of_the_pipeline_need_only_the_name_of_a_model(model: str) -> None:
    pipe = SanaPipeline.from_pretrained(model)
    call = {"num_inference_steps": 2, "height": 64, "width": 64}
    seed = torch.Generator().manual_seed
    latent = pipe("a tree", generator=seed(0), output_type="latent", **call).images
    (picture,) = pipe("a tree", generator=seed(0), **call).images
    save_file({"anything": latent}, "x.safetensors")
    _, err = sanakit("decode", "x.safetensors", code=2)
    assert "hint: name one with --model" in err
    sanakit("decode", "x.safetensors", "--model", model, "-q")
    with Image.open("out.png") as image:
        assert image.tobytes() == picture.tobytes()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["absent.safetensors"], 2, "no such file"),
        (["."], 2, "is a folder\nhint: name the file of latents in it: x.safetensors"),
        (["x.safetensors", "--tile", "0"], 2, "--tile 0"),
        (["x.safetensors", "--dtype", "float16"], 2, "write --dtype bfloat16"),
        (["x.safetensors", "--device", "mps"], 2, "this machine has cpu"),
        (["x.safetensors", "-o", "out.jpg"], 2, "try out.png"),
        (["x.safetensors", "--model", "glyph"], 2, "4 channels"),
        (["x.safetensors", "--model", "./absent"], 3, "no such folder"),
    ],
)
def test_a_bad_wish_of_decode_ends_with_one_line_and_nothing_written(
    model: str, arguments: list[str], code: int, said: str
) -> None:
    write_latents(Path("x.safetensors"), torch.randn(1, 4, 2, 2), Origin(model=model))
    out, err = sanakit("decode", *arguments, code=code)
    assert said in err
    assert out == ""
    assert os.listdir() == ["x.safetensors"]


def test_weights_that_did_not_draw_it_are_mentioned(model: str) -> None:
    origin = Origin(model=model, model_hash="0" * 16)
    write_latents(Path("x.safetensors"), torch.randn(1, 4, 2, 2), origin)
    assert "not those that drew it" in sanakit("decode", "x.safetensors")[1]


def test_pipelines_take_the_calls_that_users_know(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = SanaPipeline.from_pretrained(model)
    seen: list[str] = []
    fill = decoder._fill

    def watched(out: object, way: decoder.Way, *more: object) -> None:
        seen.append(str(way))
        fill(out, way, *more)

    monkeypatch.setattr(decoder, "_fill", watched)
    call = {"num_inference_steps": 1, "height": 96, "width": 96}
    pipe.vae.enable_tiling(tile_sample_min_height=64, tile_sample_min_width=64)
    pipe("a tree", **call)
    pipe.enable_vae_tiling()
    pipe("a tree", **call)
    pipe.disable_vae_tiling()
    pipe.enable_vae_slicing()
    assert pipe.vae.slicing
    pipe.disable_vae_slicing()
    pipe("a tree", **call)
    assert seen == ["tiles of 56 x 56 px", "whole", "whole"]


def test_the_core_saves_what_it_knows_of_the_model(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Pipeline.load(model)
    monkeypatch.setattr(decoder, "free_bytes", lambda _: 0)

    def never(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoder, "_fill", never)
    with pytest.raises(decoder.OutOfMemory) as caught:
        core.decode(torch.randn(1, 4, 2, 2))
    assert caught.value.latents is not None
    origin = read_latents(caught.value.latents)[1]
    assert origin == Origin(model=model, model_hash=core.components.fingerprint)
