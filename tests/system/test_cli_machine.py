"""Where the command computes: devices, dtypes, memory. Accelerators are faked: none is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from command_line import sanakit
from sanakit import SanaControlNetModel, SanaControlNetPipeline, SanaPipeline
from sanakit.cli import drawing, machine, options
from sanakit.cli.machine import Machine
from sanakit.errors import ConfigError, OutOfMemory
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.png import encode_png, read_settings
from sanakit.pipeline.schedulers import NAMED

CUDA = torch.device("cuda")
CPU = torch.device("cpu")
FAST = 1.5
"""Seconds that a refusal may take on a machine that is busy; half a second where it is not."""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SANAKIT_DEVICE", raising=False)


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sanakit.pipeline.placement.accelerator", lambda: CUDA)
    monkeypatch.setattr("sanakit.pipeline.placement.device_named", torch.device)
    monkeypatch.setattr(machine, "_free", lambda device: 80e9)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """What the pipeline was asked to load with; it is loaded on the CPU."""
    seen: list[Mapping[str, Any]] = []
    load = Pipeline.load.__func__  # type: ignore[attr-defined]

    def watched(cls: type[Pipeline], name: str, **given: Any) -> Pipeline:
        seen.append(given)
        return load(cls, name, offline=given["offline"])

    monkeypatch.setattr(Pipeline, "load", classmethod(watched))
    return seen


@pytest.mark.usefixtures("with_cuda")
def test_published_models_go_to_the_accelerator_and_glyph_stays() -> None:
    assert Machine().place("owner/name") == CUDA
    assert Machine().place("glyph") == CPU
    assert Machine(device="cuda:1").place("glyph") == torch.device("cuda:1")
    assert Machine(device="cpu").place("owner/name") == CPU
    with pytest.raises(ConfigError, match="not there") as caught:
        Machine(device="mps").place("glyph")
    assert caught.value.hint == "this machine has cpu and cuda"


def test_a_machine_without_an_accelerator_has_its_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sanakit.pipeline.placement.accelerator", lambda: CPU)
    assert Machine().place("owner/name") == CPU
    with pytest.raises(ConfigError, match="'cuda' is not there") as caught:
        Machine(device="cuda").place("owner/name")
    assert caught.value.hint == "this machine has cpu"


@pytest.mark.usefixtures("with_cuda")
def test_a_small_model_says_what_stays_idle_where_nobody_chose(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for asked, quiet, told in [
        (Machine(), False, True),
        (Machine(), True, False),
        (Machine(device="cpu"), False, False),
    ]:
        assert drawing.placed(asked, "glyph", quiet=quiet) == CPU
        assert ("--device cuda moves it" in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"device": "gpu"}, "it is --device cuda"),
        ({"device": "cudda"}, "did you mean 'cuda'?"),
        ({"device": "cuda:x"}, "did you mean 'cuda'?"),
        ({"dtype": "half"}, "one of float32, bfloat16, float16"),
        ({"quantize": "int9"}, "did you mean"),
    ],
)
def test_a_name_that_is_none_is_refused_with_the_nearest(given: dict[str, str], hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Machine(**given)
    assert hint in (caught.value.hint or "")


@pytest.mark.usefixtures("with_cuda")
def test_what_is_typed_reaches_the_loader_and_the_picture(
    model: str, loaded: list[Mapping[str, Any]]
) -> None:
    call = ["generate", "a", "--model", model, "--steps", "1", "-q", "--dtype", "bf16"]
    sanakit(*call, "--quantize", "bnb-nf4")
    assert loaded[0]["device"] == CUDA
    assert loaded[0]["dtype"] == torch.bfloat16
    assert loaded[0]["quantization"] == "bnb-nf4"
    stored = {"device": "cuda", "dtype": "bfloat16", "quantize": "bnb-nf4"}
    assert stored.items() <= read_settings("out.png").items()
    sanakit("again", "out.png", "-q")
    assert loaded[1] == loaded[0]
    sanakit("again", "out.png", "-q", "--device", "cpu", "--dtype", "float32")
    assert loaded[2]["device"] == CPU
    assert loaded[2]["dtype"] == torch.float32
    assert loaded[2]["quantization"] == "bnb-nf4"


def test_a_picture_of_another_machine_is_drawn_where_one_is(
    model: str, loaded: list[Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("sanakit.pipeline.placement.accelerator", lambda: CUDA)
        patched.setattr("sanakit.pipeline.placement.device_named", torch.device)
        patched.setattr(machine, "_free", lambda device: 80e9)
        sanakit("generate", "a", "--model", model, "--steps", "1", "-q")
    _, err = sanakit("again", "out.png", "-q")
    assert "drawn on cuda, which is not here" in err
    assert loaded[1]["device"] == CPU


@pytest.mark.usefixtures("with_cuda")
def test_a_picture_of_the_cpu_is_drawn_again_there(
    model: str, loaded: list[Mapping[str, Any]]
) -> None:
    sanakit("generate", "a", "--model", model, "--steps", "1", "-q", "--device", "cpu")
    assert not {"device", "dtype", "quantize"} & set(read_settings("out.png"))
    sanakit("again", "out.png", "-q")
    assert loaded[1]["device"] == CPU


@pytest.mark.usefixtures("with_cuda")
def test_the_environment_names_a_device_and_the_option_wins(
    model: str, loaded: list[Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANAKIT_DEVICE", "cpu")
    call = ["generate", "a", "--model", model, "--steps", "1", "-q"]
    sanakit(*call)
    sanakit(*call, "--device", "cuda")
    assert [given["device"] for given in loaded] == [CPU, CUDA]


@pytest.mark.parametrize("device", ["rubbish", "gpu", "xpu"])
def test_a_device_that_cannot_be_is_refused_by_the_name_of_what_named_it(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    _, err = sanakit("generate", "a", "--device", device, code=2)
    assert err.startswith(f"error: --device '{device}' is ")
    monkeypatch.setenv("SANAKIT_DEVICE", device)
    _, err = sanakit("generate", "a", code=2)
    assert err.startswith(f"error: SANAKIT_DEVICE='{device}' is ")
    _, err = sanakit("generate", "a", "--device", "cud", code=2)
    assert err.startswith("error: --device 'cud' is ")


def test_a_dtype_draws_other_numbers_and_almost_the_same_picture(model: str) -> None:
    call = ["generate", "a", "--model", model, "--steps", "2", "-q"]
    sanakit(*call)
    sanakit(*call, "--dtype", "bfloat16", "-o", "half.png")
    with Image.open("out.png") as full, Image.open("half.png") as half:
        difference = np.abs(np.asarray(full).astype(int) - np.asarray(half))
    assert 0 < difference.mean() < 8


def test_memory_that_does_not_suffice_is_said_before_loading_with_what_would(
    model: str, loaded: list[Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = machine._sizes(model, None, ("transformer", "text_encoder", "vae"))
    need = machine._needed(sizes, Machine(), CPU, None)
    parts = Pipeline.load(model, offline=False).components.networks.values()
    assert need == 4 * sum(p.numel() for part in parts for p in part.parameters())
    monkeypatch.setattr(machine, "_drawing", lambda *_: 0)
    loaded.clear()
    monkeypatch.setattr(machine, "_free", lambda device: need * 0.7)
    _, err = sanakit("generate", "a", "--model", model, "-q", code=4)
    assert "hint: --dtype bfloat16 needs" in err
    assert loaded == []
    monkeypatch.setattr(machine, "_free", lambda device: need * 1.1)
    _, err = sanakit("generate", "a", "--model", model, "--steps", "1", "-q")
    assert "may be too few: --dtype bfloat16 needs" in err


def test_memory_of_a_large_picture_is_asked_for_first_whoever_wants_it(
    loaded: list[Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_free", lambda device: 1.5e9)
    wanted = {"prompt": "a", "count": 1, "model": "glyph", "height": 16384, "width": 16384}
    Path("p.png").write_bytes(encode_png(np.zeros((8, 8, 3), dtype=np.uint8), wanted))
    for typed in (["again", "p.png"], ["generate", "a", "--height", 16384, "--width", 16384]):
        _, err = sanakit(*typed, code=4)
        assert "glyph needs 1.8 GB" in err
        assert "hint: " in err
    assert loaded == []
    monkeypatch.setattr(machine, "_free", lambda device: 0.5e9)
    assert "hint: draw a smaller picture" in sanakit("again", "p.png", code=4)[1]


def test_memory_of_a_model_that_is_still_to_be_fetched_is_known_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "local_folder", lambda model: None)
    monkeypatch.setattr(machine, "_free", lambda device: 9e9)
    with pytest.raises(OutOfMemory, match=r"15\.3 GB in bfloat16") as caught:
        machine.check_memory("sana1.5-4.8b", Machine(dtype="bf16"), CUDA, quiet=False)
    assert "--quantize" in str(caught.value.hint)
    machine.check_memory("sana-0.6b", Machine(dtype="bf16"), CUDA, quiet=False)


def test_a_control_branch_needs_memory_too(model: str, tmp_path: Path) -> None:
    plain = SanaPipeline.from_pretrained(model)
    branch = SanaControlNetModel.from_transformer(plain.transformer, 1)
    branch.save_pretrained(tmp_path / "branch")
    SanaControlNetPipeline.from_pipe(plain, controlnet=branch).save_pretrained(tmp_path / "whole")

    def need(folder: str, **more: Any) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(machine, "_free", lambda device: 0)
            patch.setattr(machine, "_described", lambda *_: "")
            patch.setattr(machine, "_needed", lambda sizes, *_: sum(map(sum, sizes.values())) * 1e9)
            with pytest.raises(OutOfMemory) as caught:
                machine.check_memory(folder, Machine(), CPU, quiet=True, **more)
        return float(str(caught.value).partition("needs ")[2].split()[0])

    more = sum(each.numel() for each in branch.parameters())
    whole = str(tmp_path / "whole")
    assert need(whole) - need(model) == more
    assert need(model, branch=tmp_path / "branch") - need(model) == more
    assert need(whole, branch=tmp_path / "branch") == need(whole)


def test_published_layers_of_four_bits_need_about_a_quarter() -> None:
    sizes = {"transformer": (1_600_000_000, 0)}
    half = machine._needed(sizes, Machine(dtype="bf16"), CUDA, None)
    four = machine._needed(sizes, Machine(dtype="bf16", quantize="bnb-nf4"), CUDA, None)
    assert 0.25 < four / half < 0.3
    # On a CPU the network is whole before it is quantized.
    assert machine._needed(sizes, Machine(dtype="bf16", quantize="bnb-nf4"), CPU, None) == half


@pytest.mark.parametrize(
    ("names", "one"),
    [
        (("--negative", "--negative-prompt"), "a blue sky"),
        (("--count", "--num-images"), "1"),
        (("--solver", "--scheduler"), "flow-euler"),
        (("--out", "--output"), "x.png"),
    ],
)
def test_names_of_other_programs_mean_the_same(
    model: str, names: tuple[str, str], one: str
) -> None:
    pictures = []
    for name in names:
        sanakit("generate", "a", "--model", model, "--steps", "1", "-q", name, one)
        (path,) = Path().glob("*.png")
        pictures.append(path.read_bytes())
        path.unlink()
    assert pictures[0] == pictures[1]


def test_the_solvers_that_are_known_before_torch_are_those_there_are() -> None:
    assert set(options.SOLVERS) == set(NAMED)


def test_the_version_is_told() -> None:
    from sanakit import __version__

    assert sanakit("--version")[0] == f"sanakit {__version__}\n"


def test_a_picture_without_metadata_holds_no_text(model: str) -> None:
    sanakit("generate", "a", "--model", model, "--steps", "1", "-q")
    sanakit("generate", "a", "--model", model, "--steps", "1", "-q", "--no-metadata", "-o", "b.png")
    with Image.open("out.png") as first, Image.open("b.png") as second:
        assert second.info == {}
        assert first.tobytes() == second.tobytes()


def test_progress_begins_before_torch_is_loaded() -> None:
    code = (
        "import sys\nfrom sanakit.cli import progress\nfrom sanakit.cli.main import main\n"
        "def stage(self, name):\n    print(name, 'torch' in sys.modules)\n    raise SystemExit\n"
        "progress.Lines.stage = stage\nmain()"
    )
    call = [sys.executable, "-c", code, "generate", "a", "--progress"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert done.stdout == "starting False\n"


def test_progress_on_a_pipe_is_shown_when_asked_for(model: str) -> None:
    call = ["generate", "a", "--model", model, "--steps", "2"]
    _, err = sanakit(*call, "--progress")
    lines = err.splitlines()
    assert lines[0] == "starting"
    assert lines[1].startswith("loading ")
    assert "drawing 2/2" in lines
    assert len(sanakit(*call)[1].splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--width", "300"], "hint: nearest that work: 256 and 320"),
        (["--solver", "ddim"], "known: flow-dpm-solver"),
        (["--device", "gpu"], "it is --device cuda"),
        (["--dtype", "half"], "one of float32"),
        (["--steps", "0"], "write --steps 1"),
        (["--steps", "2000"], "must be at most 1000"),
        (["-o", "nowhere/x.png"], "mkdir -p nowhere"),
        (["--model", "glyhp"], "did you mean 'glyph'"),
    ],
)
def test_a_refusal_comes_before_torch(arguments: list[str], said: str) -> None:
    code = (
        "import sys\nfrom sanakit.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    begun = time.monotonic()
    call = [sys.executable, "-c", code, "generate", "a", *arguments]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert said in done.stderr
    assert done.stdout == "False\n"
    assert time.monotonic() - begun < 10 * FAST


def test_a_size_that_a_model_was_not_trained_at_is_said(model: str) -> None:
    call = ["generate", "a", "--model", model, "--steps", "1", "-q"]
    assert (
        "was trained at 64 x 64; at 96 x 128"
        in sanakit(*call, "--width", "96", "--height", "128")[1]
    )
    assert sanakit(*call, "--width", "64")[1] == ""


def test_threads_that_wait_sleep_unless_the_user_says_otherwise() -> None:
    code = (
        "import os, sys\nfrom sanakit.cli.main import main\nsys.argv = ['sanakit', '--version']\n"
        "try:\n    main()\nexcept SystemExit:\n    print(os.environ['OMP_WAIT_POLICY'])"
    )
    clean = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=clean | given,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == expected


def test_again_says_of_a_lora_that_is_another_now(model: str) -> None:
    layer = "transformer_blocks.0.attn1.to_q"
    stored = load_file(Path(model) / "transformer" / "diffusion_pytorch_model.safetensors")
    width_out, width_in = stored[f"{layer}.weight"].shape
    for name in ("a", "b"):
        Path(name).mkdir()
        pair = {"A": torch.randn(2, width_in), "B": torch.randn(width_out, 2)}
        tensors = {f"transformer.{layer}.lora_{side}.weight": pair[side] for side in pair}
        save_file(tensors, Path(name) / "pytorch_lora_weights.safetensors")
    shutil.copytree("a", "lora")
    sanakit("generate", "x", "--model", model, "--steps", "1", "-q", "--lora", "lora")
    assert sanakit("again", "out.png", "-q")[1] == ""
    shutil.rmtree("lora")
    shutil.copytree("b", "lora")
    assert "the LoRA at lora is not the one" in sanakit("again", "out.png", "-q")[1]
    shutil.rmtree("lora")
    _, err = sanakit("again", "out.png", code=3)
    assert err.splitlines()[0] == "error: out.png: its LoRA lora is not there"


def foreign(name: str, **texts: str) -> None:
    notes = PngInfo()
    for key, text in texts.items():
        notes.add_text(key, text)
    Image.new("RGB", (8, 8)).save(name, pnginfo=notes)


def test_a_sampler_of_another_program_is_said_and_left_out(model: str) -> None:
    foreign(
        "a.png",
        parameters="a tree\nSteps: 2, Sampler: DPM++ 2M, CFG scale: 3.5, Seed: 3, Size: 64x64, "
        "Model: any",
    )
    _, err = sanakit("again", "a.png", "--model", model, "-q")
    assert "sampler 'DPM++ 2M' is not here" in err
    settings = read_settings("a-again.png")
    assert settings["prompt"] == "a tree"
    assert (settings["num_steps"], settings["seed"], settings["guidance_scale"]) == (2, 3, 3.5)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"sui_image_params": {"prompt": "a snail", "seed": 5}}),
        json.dumps({"fooocus_scheme": False, "metadata": []}),
        "[" * 10000,
    ],
)
def test_json_of_another_program_is_no_prompt(model: str, text: str) -> None:
    foreign("a.png", parameters=text)
    _, err = sanakit("again", "a.png", "--model", model, code=2)
    assert "another program" in err
    assert sorted(os.listdir()) == ["a.png"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("guidance_scale", "3"),
        ("guidance_scale", 10**400),
        ("num_steps", "many"),
        ("solver", {}),
        ("model", 3),
        ("lora", [1]),
        ("device", 5),
        ("dtype", "half"),
        ("prompt", ["a"]),
        ("guidance_interval", [0.5]),
        ("height", True),
        ("use_resolution_binning", "no"),
    ],
)
def test_a_setting_of_another_type_is_one_line(key: str, value: object) -> None:
    written = {"prompt": "a", "count": 1, "model": "glyph", "num_steps": 1, key: value}
    Path("p.png").write_bytes(encode_png(np.zeros((8, 8, 3), dtype=np.uint8), written))
    _, err = sanakit("again", "p.png", code=2)
    assert err.startswith("error: ")
    assert os.listdir() == ["p.png"]


def test_a_prompt_may_begin_with_a_brace(model: str) -> None:
    foreign("a.png", parameters="{red|blue} tree\nSteps: 1, Seed: 3, Size: 64x64")
    sanakit("again", "a.png", "--model", model, "-q")
    assert read_settings("a-again.png")["prompt"] == "{red|blue} tree"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("--out", ""), "names no file"),
        (("--out", "text/out.png"), "is a file, not a folder"),
        (("--lora", ""), "names no file"),
        (("--lora", ":0.5"), "names no file"),
        (("--lora", "text:nan"), "must be finite"),
        (("--lora", "text:inf"), "must be finite"),
    ],
)
def test_files_without_a_name_are_refused(
    typed: tuple[str, str], said: str, loaded: list[Mapping[str, Any]]
) -> None:
    Path("text").touch()
    assert said in sanakit("generate", "a cat", "--steps", 1, *typed, code=2)[1]
    assert not loaded
    assert os.listdir() == ["text"]


def test_offline_is_offline_for_an_adapter_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any, **__: Any) -> None:
        pytest.fail("the network was asked")

    monkeypatch.setattr("sanakit.weights.hub.HfApi", asked)
    error = sanakit("generate", "cat", "--lora", "nobody/lora", "--offline", code=3)[1]
    assert "this is offline" in error
    written = {"prompt": "a", "count": 1, "model": "nobody/model", "lora": ["nobody/lora"]}
    Path("p.png").write_bytes(encode_png(np.zeros((8, 8, 3), dtype=np.uint8), written))
    assert "this is offline" in sanakit("again", "p.png", "--offline", code=3)[1]
    assert "this is offline" in sanakit("again", "p.png", "-m", "glyph", "--offline", code=3)[1]


def test_an_adapter_that_is_not_there_is_refused_before_its_model_is_loaded(
    loaded: list[Mapping[str, Any]],
) -> None:
    assert "no such file" in sanakit("generate", "cat", "--lora", "/no/where", code=3)[1]
    assert not loaded
    sanakit("generate", "cat", "--steps", 1, "-q")
    assert loaded
