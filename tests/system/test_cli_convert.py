"""`sanakit convert` as a user types it: original files, model folders, pickles, and bad input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel
from typer.testing import CliRunner

from command_line import sanakit
from original_files import original_autoencoder, original_transformer
from sanakit.cli.main import app
from sanakit.models.config import TRANSFORMERS, config_to_dict
from sanakit.pipeline.components import load_components
from sanakit.weights.store import read_weights
from tiny import AUTOENCODER, TRANSFORMER, write_tiny

TINY = TRANSFORMERS["tiny"]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_original_file(name: str, *, branch: int = 0, **changes: object) -> dict[str, Tensor]:
    state = original_transformer(replace(TRANSFORMER, **changes), branch=branch)
    torch.save({"state_dict": state}, name)
    Path("config.json").write_text(json.dumps(config_to_dict(replace(TRANSFORMER, **changes))))
    return state


def nothing_was_left(*expected: str) -> None:
    assert sorted(path.name for path in Path().iterdir()) == sorted(expected)


# From an original file.


def test_an_original_file_becomes_a_component_folder() -> None:
    original = original_transformer(TINY)
    torch.save({"state_dict": original}, "m.pth")
    out, _ = sanakit("convert", "m.pth", "out")
    assert "m.pth: transformer" in out
    assert "SanaTransformer2DModel (tiny)" in out
    assert "num_layers 2" in out
    state = load_file(f"out/{WEIGHTS}")
    assert torch.equal(state["proj_out.weight"], original["final_layer.linear.weight"])
    assert json.loads(Path("out/config.json").read_text())["num_attention_heads"] == 2
    nothing_was_left("m.pth", "out")


def test_with_a_base_it_becomes_a_model_that_draws(model: Path) -> None:
    original = write_original_file("m.pth")
    sanakit("convert", "m.pth", "out", "--base", model, "--config", "config.json")
    components = load_components("out")
    weight = original["final_layer.linear.weight"]
    assert torch.equal(components.transformer.proj_out.weight, weight)
    assert torch.equal(
        components.autoencoder.decoder.conv_in.weight,
        load_file(model / "vae" / WEIGHTS)["decoder.conv_in.weight"],
    )
    sanakit("generate", "a tree", "--model", "out", "--steps", "2")
    assert Path("out.png").is_file()


def test_a_dry_run_says_all_and_writes_nothing(model: Path) -> None:
    write_original_file("m.pth")
    before = sorted(Path().iterdir())
    options = ("--base", model, "--config", "config.json", "--dtype", "bf16", "--dry-run")
    out, _ = sanakit("convert", "m.pth", "out", *options)
    assert "out: would be written" in out
    assert sorted(Path().iterdir()) == before
    report = json.loads(sanakit("convert", "m.pth", "out", *options, "--json")[0])
    (part,) = report["parts"]
    assert report["kind"] == "transformer"
    assert part["config"]["num_attention_heads"] == 2
    assert part["numbers"] == sum(t.numel() for t in read_weights(model / "transformer").values())
    assert part["bytes"] == 2 * part["numbers"]
    assert not report["written"]


@pytest.mark.parametrize(
    ("dtype", "expected"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", None)]
)
def test_a_dtype_and_a_variant_are_those_of_the_published_files(
    dtype: str, expected: torch.dtype | None
) -> None:
    torch.save(original_transformer(TINY), "m.pth")
    sanakit("convert", "m.pth", "out", "--dtype", dtype, "--variant", dtype)
    state = load_file(f"out/diffusion_pytorch_model.{dtype}.safetensors")
    assert {t.dtype for t in state.values()} == {expected or torch.float32}
    assert read_weights("out", variant=dtype).keys() == state.keys()


def test_a_variant_in_shards_has_the_published_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from sanakit.weights.convert import conversion
    from sanakit.weights.store import write_weights

    def in_shards(folder: Path, state: dict[str, Tensor], **named: str) -> None:
        write_weights(folder, state, max_shard_bytes=4000, **named)

    monkeypatch.setattr(conversion, "write_weights", in_shards)
    torch.save(original_transformer(TINY), "m.pth")
    sanakit("convert", "m.pth", "out", "--variant", "bf16")
    names = {path.name for path in Path("out").iterdir()}
    assert "diffusion_pytorch_model.safetensors.index.bf16.json" in names
    assert any(name.startswith("diffusion_pytorch_model.bf16-00001-of-") for name in names)
    sanakit("convert", "out", "back.pth", "--variant", "bf16")
    sanakit("convert", "back.pth", "again")
    again = read_weights("again")
    assert all(torch.equal(t, again[n]) for n, t in read_weights("out", variant="bf16").items())


def test_a_value_too_large_for_fp16_is_named_not_stored_as_infinity() -> None:
    original = original_transformer(TINY)
    original["t_block.1.bias"][3] = 70_000.0
    torch.save(original, "m.pth")
    _, said = sanakit("convert", "m.pth", "out", "--dtype", "fp16", code=2)
    assert "time_embed.linear.bias holds 7e+04, too large for fp16" in said
    nothing_was_left("m.pth")


def test_a_control_file_becomes_a_branch_or_with_a_base_a_whole_model(model: Path) -> None:
    original = write_original_file("c.pth", branch=2, num_layers=3)
    out, _ = sanakit("convert", "c.pth", "branch", "--config", "config.json")
    assert "--base writes both" in out
    config = json.loads(Path("branch/config.json").read_text())
    assert config["_class_name"] == "SanaControlNetModel"
    assert config["num_layers"] == 2
    assert "qk_norm" not in config
    assert config["_wiring"] == "original"
    assert "wired as the original" in out
    sanakit("convert", "c.pth", "whole", "--config", "config.json", "--base", model)
    index = json.loads(Path("whole/model_index.json").read_text())
    assert index["_class_name"] == "SanaControlNetPipeline"
    assert index["controlnet"] == ["diffusers", "SanaControlNetModel"]
    sanakit("convert", "whole", "back.pth")
    back = torch.load("back.pth", weights_only=True)["state_dict"]
    assert back.keys() == original.keys()
    assert all(torch.equal(back[n], t) for n, t in original.items() if "embedding" not in n)
    _, said = sanakit("convert", "branch", "b.pth", code=2)
    assert "is a control branch alone" in said


def test_an_autoencoder_takes_the_place_of_the_bases(model: Path) -> None:
    original = original_autoencoder(AUTOENCODER)
    torch.save(original, "vae.ckpt")
    Path("vae.json").write_text(json.dumps(config_to_dict(AUTOENCODER)))
    sanakit("convert", "vae.ckpt", "out", "--config", "vae.json", "--base", model)
    weight = load_components("out").autoencoder.decoder.conv_in.weight
    assert torch.equal(weight, original["decoder.project_in.main.conv.weight"])
    sanakit("convert", "out/vae", "back.safetensors")
    back = load_file("back.safetensors")
    assert back.keys() == original.keys()
    assert all(torch.equal(back[name], original[name]) for name in original)
    other = replace(AUTOENCODER, latent_channels=8)
    torch.save(original_autoencoder(other), "other.pth")
    Path("vae.json").write_text(json.dumps(config_to_dict(other)))
    _, said = sanakit("convert", "other.pth", "o2", "--config", "vae.json", "--base", model, code=2)
    assert "the autoencoder gives 8 channels, the transformer takes 4" in said


def test_the_scheduler_becomes_that_of_the_transformer(model: Path) -> None:
    write_original_file("s.pth", guidance_embeds=True, qk_norm="rms_norm_across_heads")
    sanakit("convert", "s.pth", "sprint", "--config", "config.json", "--base", model)
    index = json.loads(Path("sprint/model_index.json").read_text())
    scheduler = json.loads(Path("sprint/scheduler/scheduler_config.json").read_text())
    assert index["_class_name"] == "SanaSprintPipeline"
    assert scheduler["_class_name"] == index["scheduler"][1] == "SCMScheduler"
    write_original_file("m.pth")
    _, said = sanakit(
        "convert", "m.pth", "out", "--config", "config.json", "--base", "sprint", code=2
    )
    assert "is a Sprint model" in said


def test_a_published_model_gets_its_published_shift(model: Path) -> None:
    shutil.copytree(model, "base")
    path = Path("base/scheduler/scheduler_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "flow_shift": 9.0}))
    torch.save(original_transformer(TINY), "m.pth")
    sanakit("convert", "m.pth", "out", "--base", "base")
    scheduler = json.loads(Path("out/scheduler/scheduler_config.json").read_text())
    assert scheduler["flow_shift"] == 3.0
    assert scheduler["use_flow_sigmas"]
    # Of a shape nobody published nothing is known: the base's shift stays.
    write_original_file("n.pth", sample_size=32)
    sanakit("convert", "n.pth", "own", "--base", "base", "--config", "config.json")
    scheduler = json.loads(Path("own/scheduler/scheduler_config.json").read_text())
    assert scheduler["flow_shift"] == 9.0


def test_a_base_with_another_text_encoder_is_refused(model: Path) -> None:
    write_original_file("m.pth", caption_channels=12)
    _, said = sanakit("convert", "m.pth", "out", "--config", "config.json", "--base", model, code=2)
    assert "gives 8 channels, the transformer takes 12" in said
    nothing_was_left("m.pth", "config.json")


# From a folder.


def test_a_model_folder_becomes_an_original_file_and_comes_back_equal(model: Path) -> None:
    sanakit("convert", model, "m.pth")
    content = torch.load("m.pth", weights_only=True)
    assert content["state_dict"]["blocks.0.attn.qkv.weight"].shape == (48, 16)
    config = str(model / "transformer" / "config.json")
    sanakit("convert", "m.pth", "back", "--config", config)
    given, expected = load_file(f"back/{WEIGHTS}"), read_weights(model / "transformer")
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], expected[name]) for name in expected)


def test_pickled_folders_become_safetensors(model: Path) -> None:
    shutil.copytree(model, "pickled")
    for name, stem, old in (
        ("transformer", "diffusion_pytorch_model", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model", "diffusion_pytorch_model"),
        ("text_encoder", "model", "pytorch_model"),
    ):
        folder = Path("pickled") / name
        state = read_weights(folder, stem=stem)
        (folder / f"{stem}.safetensors").unlink()
        names = sorted(state)
        if name == "text_encoder":  # in shards
            half = len(names) // 2
            files = {"pytorch_model-00001-of-00002.bin": names[:half]}
            files["pytorch_model-00002-of-00002.bin"] = names[half:]
            places = {each: file for file, inside in files.items() for each in inside}
            index = {"metadata": {}, "weight_map": places}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        else:
            files = {f"{old}.bin": names}
        for file, inside in files.items():
            torch.save({each: state[each] for each in inside}, folder / file)
    Path("pickled/vae/evil.py").write_text("raise SystemExit")
    sanakit("convert", "pickled", "out")
    assert not [path for path in Path("out").rglob("*") if path.suffix in (".bin", ".py")]
    given, expected = load_components("out"), load_components(model)
    for name in ("transformer", "autoencoder"):
        theirs = getattr(expected, name).state_dict()
        own = getattr(given, name).state_dict()
        assert all(torch.equal(own[each], theirs[each]) for each in theirs)
    AutoModel.from_pretrained("out/text_encoder")


def test_a_folder_is_stored_in_another_dtype_where_that_is_safe(model: Path) -> None:
    out, _ = sanakit("convert", model, "out", "--dtype", "fp16")
    assert "text_encoder, vae keep their dtype" in out
    dtypes = {
        name: {t.dtype for t in load_file(next(Path("out", name).glob("*.safetensors"))).values()}
        for name in ("transformer", "vae", "text_encoder")
    }
    assert dtypes["transformer"] == {torch.float16}
    assert dtypes["vae"] == dtypes["text_encoder"] == {torch.float32}
    _, said = sanakit("convert", model / "vae", "v", "--dtype", "fp16", code=2)
    assert "AutoencoderDC overflows in fp16" in said
    sanakit("convert", model / "vae", "v", "--dtype", "bf16")


def test_a_shard_index_that_leads_out_of_its_folder_is_refused(model: Path) -> None:
    shutil.copytree(model / "transformer", "t")
    Path("t", WEIGHTS).unlink()
    torch.save({"x": torch.ones(1)}, "outside.bin")
    index = {"weight_map": {"x": "../outside.bin"}}
    Path("t/diffusion_pytorch_model.bin.index.json").write_text(json.dumps(index))
    _, said = sanakit("convert", "t", "out", code=2)
    assert "leads out of its folder" in said


# What is in the way.


def test_nothing_is_overwritten_without_force_and_then_as_a_whole(model: Path) -> None:
    torch.save(original_transformer(TINY), "m.pth")
    sanakit("convert", "m.pth", "out")
    Path("out/old.txt").touch()
    _, said = sanakit("convert", "m.pth", "out", code=2)
    assert "out is there already" in said
    assert Path("out/old.txt").exists()
    sanakit("convert", "m.pth", "out", "--force")
    assert not Path("out/old.txt").exists()
    assert Path("out", WEIGHTS).exists()
    Path("mine").mkdir()
    Path("mine/letter.txt").touch()
    _, said = sanakit("convert", "m.pth", "mine", "--force", code=2)
    assert "holds no model but letter.txt" in said
    sanakit("convert", model, "n.pth")
    _, said = sanakit("convert", model, "n.pth", code=2)
    assert "n.pth is there already" in said
    sanakit("convert", model, "n.pth", "--force")
    nothing_was_left("m.pth", "out", "mine", "n.pth")


def test_a_target_never_destroys_what_it_is_made_from(model: Path) -> None:
    shutil.copytree(model, "m")
    for arguments, reason in (
        (("m", "m"), "IN and OUT are the same"),
        (("m/vae", "m"), "replacing it would lose that"),
        (("m", "m/new"), "lies inside IN"),
        (("x.pth", "m", "--base", "m"), "--base and OUT are the same"),
    ):
        torch.save(original_transformer(TINY), "x.pth")
        _, said = sanakit("convert", *arguments, "--force", code=2)
        assert reason in said
    assert load_components("m")


def test_a_failure_while_writing_leaves_nothing_behind(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    torch.save(original_transformer(TINY), "m.pth")
    sanakit("convert", "m.pth", "out")
    before = Path("out", WEIGHTS).read_bytes()
    monkeypatch.setattr("sanakit.weights.store.save_file", full)
    _, said = sanakit("convert", "m.pth", "out", "--force", code=2)
    assert "No space left" in said
    assert Path("out", WEIGHTS).read_bytes() == before
    monkeypatch.setattr("torch.save", full)
    _, said = sanakit("convert", model, "n.pth", code=2)
    assert "No space left" in said
    nothing_was_left("m.pth", "out")


def test_a_folder_that_cannot_be_made_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    torch.save(original_transformer(TINY), "m.pth")
    monkeypatch.setattr(Path, "mkdir", forbidden)
    _, said = sanakit("convert", "m.pth", "out", code=2)
    assert "out: cannot be written (Permission denied)" in said


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("m.pth", "no/such/out"), "does not exist"),
        (("m.pth", "out.pth"), "becomes a folder"),
        (("no.pth", "out"), "no such file"),
        (("empty", "out"), "neither model_index.json nor config.json"),
        (("m.pth", "m.pth"), "IN and OUT are the same"),
        (("cut.pth", "out"), "damaged"),
        (("m.pth", "out", "--average"), "no moving average"),
        (("m.pth", "out", "--config", "sana-9b"), "neither a preset nor a config.json"),
        (("m.pth", "out", "--config", "sana-1.6b"), "do not fit"),
        (("empty", "out.pth"), "config.json: no such file"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_named_and_nothing_is_written(arguments: tuple[str, ...], reason: str) -> None:
    torch.save(original_transformer(TINY), "m.pth")
    Path("cut.pth").write_bytes(Path("m.pth").read_bytes()[:5000])
    Path("empty").mkdir()
    result = CliRunner().invoke(app, ["convert", *arguments])
    assert result.exit_code in (2, 3)
    assert reason in result.stderr
    assert "Traceback" not in result.output
    nothing_was_left("m.pth", "cut.pth", "empty")
