"""`sanakit decode` as a user types it, after a run that ended without memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import sanakit
from sanakit.pipeline import decoder
from sanakit.pipeline.decoder import Origin, read_latents, write_latents
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.png import read_settings
from sanakit.pipeline.published.sana import SanaPipeline
from tiny import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_without_memory_is_finished_by_the_command_its_error_names(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ("generate", "a tree", "--model", model, "--steps", "2", "--seed", "7", "-q")
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
    assert set(report["seconds"]) == {"load", "decode", "total"}
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
    from safetensors.torch import save_file

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
        (["x.safetensors", "--tile", "0"], 2, "--tile 0"),
        (["x.safetensors", "--dtype", "float16"], 2, "one of float32, bfloat16"),
        (["x.safetensors", "--device", "tpu"], 2, "this machine has cpu"),
        (["x.safetensors", "-o", "out.jpg"], 2, "try out.png"),
        (["x.safetensors", "--model", "glyph"], 2, "4 channels"),
        (["x.safetensors", "--model", "./absent"], 3, "no such folder"),
    ],
)
def test_a_bad_wish_ends_with_one_line_and_nothing_written(
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
