"""What surrounds a call in published code: names, switches, properties, refusals."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import PixArtImageProcessor as ReferenceProcessor
from PIL import Image
from torch import nn

import sanakit
from sanakit import (
    AutoModel,
    AutoPipelineForText2Image,
    DiffusionPipeline,
    Pipeline,
    PipelineQuantizationConfig,
    SanaPAGPipeline,
    SanaPipeline,
    load_image,
    make_image_grid,
)
from sanakit.elsewhere import INSTEAD as NAMES_INSTEAD
from sanakit.errors import ConfigError, DataError, MissingModelError, UnknownArgumentError
from sanakit.models.published import say_once
from sanakit.pipeline import offloading
from sanakit.pipeline.published.placing import INSTEAD, NO_OPS, SILENT
from sanakit.quant.method import mapping_of, method_of
from tiny import tiny_components, write_sprint

CALL: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_inference_steps": 1,
    "use_resolution_binning": False,
}


@pytest.fixture
def pipe() -> SanaPipeline:
    return SanaPipeline(Pipeline(tiny_components()))


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    say_once.cache_clear()
    caplog.set_level(logging.WARNING, logger="sanakit")
    yield caplog
    say_once.cache_clear()


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Networks that a stage brought to a device, or back."""
    seen: list[nn.Module] = []
    bring = offloading.bring

    def watched(module: nn.Module, device: torch.device) -> None:
        seen.append(module)
        bring(module, device)

    monkeypatch.setattr(offloading, "bring", watched)
    return seen


def offloaded(pipe: SanaPipeline, brought: list[nn.Module]) -> str:
    """By what the parts are offloaded, as a call shows it; "" where they are not."""
    pipe.core.components.prompts.cache.clear()
    brought.clear()
    draw(pipe)
    away = pipe.transformer.transformer_blocks[0].attn1.to_q.weight.is_meta
    if away:
        assert not brought
        return "layer"
    come = list(dict.fromkeys(brought))
    assert come in ([], [pipe.text_encoder, pipe.transformer, pipe.vae])
    return "stage" if come else ""


def draw(pipe: SanaPipeline, **more: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    return pipe("a tree", generator=generator, **(CALL | {"output_type": "pt"} | more)).images


@pytest.mark.parametrize("name", NO_OPS)
def test_a_switch_that_changes_nothing_is_taken_and_says_so_once(
    name: str, pipe: SanaPipeline, said: pytest.LogCaptureFixture
) -> None:
    before = draw(pipe)
    assert name in dir(pipe)
    getattr(pipe, name)()
    getattr(pipe, name)("max", attention_op=None)
    assert torch.equal(draw(pipe), before)
    expected = [] if name in SILENT else [f"pipe.{name}() does nothing here: {NO_OPS[name]}"]
    assert said.messages == expected


@pytest.mark.parametrize("name", INSTEAD)
def test_a_published_name_that_is_not_here_says_what_to_write(
    name: str, pipe: SanaPipeline
) -> None:
    assert not hasattr(pipe, name)
    with pytest.raises(AttributeError) as found:
        getattr(pipe, name)
    assert INSTEAD[name] in str(found.value)


def test_a_name_with_a_slip_names_its_neighbour(pipe: SanaPipeline) -> None:
    with pytest.raises(AttributeError, match="did you mean 'enable_model_cpu_offload'"):
        _ = pipe.enable_model_offload


@pytest.mark.parametrize("name", NAMES_INSTEAD)
def test_a_name_of_the_other_package_says_what_to_write(name: str) -> None:
    with pytest.raises(AttributeError, match=f"no attribute '{name}'; write ") as found:
        getattr(sanakit, name)
    assert NAMES_INSTEAD[name] in str(found.value)
    with pytest.raises(ImportError):
        exec(f"from sanakit import {name}")


def test_other_names_are_no_more_than_unknown() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'Sanity'$"):
        _ = sanakit.Sanity
    with pytest.raises(AttributeError, match="write DPMSolverMultistepScheduler"):
        _ = sanakit.KarrasVeScheduler


def test_a_pipeline_is_moved_in_all_published_ways(pipe: SanaPipeline) -> None:
    cpu = torch.device("cpu")
    for arguments, named, dtype in [
        (("cpu",), {}, torch.float32),
        ((cpu, torch.bfloat16), {}, torch.bfloat16),
        ((torch.float32,), {"silence_dtype_warnings": True}, torch.float32),
        ((), {"device": "cpu", "dtype": torch.bfloat16, "non_blocking": True}, torch.bfloat16),
        (("cpu",), {"dtype": torch.float32}, torch.float32),
        ((None,), {}, torch.float32),
    ]:
        assert pipe.to(*arguments, **named) is pipe
        assert (pipe.dtype, pipe.device, pipe._execution_device) == (dtype, cpu, cpu)
    with pytest.raises(ConfigError, match="is given the devices cpu and cpu"):
        pipe.to("cpu", device="cpu")
    with pytest.raises(ConfigError, match="is given the dtypes"):
        pipe.to(torch.float32, torch.bfloat16)
    with pytest.raises(ConfigError, match="device 'cdua' cannot be used"):
        pipe.to("cdua")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), {"device": "cpu"}),
        (("cpu",), {}),
        ((0,), {"device": "cpu"}),
        ((), {"gpu_id": 0, "device": "cpu"}),
    ],
)
@pytest.mark.parametrize(
    ("way", "by"),
    [("enable_model_cpu_offload", "stage"), ("enable_sequential_cpu_offload", "layer")],
)
def test_offloading_is_asked_for_in_all_published_ways(
    way: str,
    by: str,
    arguments: tuple[Any, ...],
    named: dict[str, Any],
    pipe: SanaPipeline,
    brought: list[nn.Module],
) -> None:
    before = draw(pipe)
    getattr(pipe, way)(*arguments, **named)
    assert pipe._execution_device.type == "cpu"
    assert offloaded(pipe, brought) == by
    assert torch.equal(draw(pipe), before)
    pipe.maybe_free_model_hooks()
    assert offloaded(pipe, brought) == by
    pipe.remove_all_hooks()
    pipe.reset_device_map()
    assert offloaded(pipe, brought) == ""
    assert torch.equal(draw(pipe), before)
    assert pipe.hf_device_map is None


def test_a_subclass_is_told_which_of_its_methods_no_call_asks(
    said: pytest.LogCaptureFixture,
) -> None:
    class Mine(SanaPipeline):
        def _clean_caption(self, caption: str) -> str:
            return caption

        def prepare_latents(self, *given: Any, **named: Any) -> Any:
            return super().prepare_latents(*given, **named)

    assert [record.getMessage() for record in said.records] == [
        "Mine._clean_caption decides nothing in a call: override encode_prompt, which is called"
    ]
    assert issubclass(Mine, SanaPipeline)


@pytest.mark.parametrize(("kind", "by"), [("block_level", "stage"), ("leaf_level", "layer")])
def test_groups_are_offloaded_by_stage_or_by_layer_and_it_is_said(
    kind: str, by: str, pipe: SanaPipeline, brought: list[nn.Module], said: pytest.LogCaptureFixture
) -> None:
    before = draw(pipe)
    pipe.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type=kind,
        num_blocks_per_group=2,
        use_stream=True,
    )
    assert torch.equal(draw(pipe), before)
    assert offloaded(pipe, brought) == by
    assert "enable_group_offload" in said.messages[0]
    with pytest.raises(ConfigError, match="offload_type='none'"):
        pipe.enable_group_offload("cpu", offload_type="none")
    for wrong in (
        {"offload_device": "meta"},
        {"offload_to_disk_path": "x"},
        {"exclude_modules": "vae"},
    ):
        with pytest.raises(ConfigError, match="on the CPU, and nothing on the disk"):
            pipe.enable_group_offload("cpu", **wrong)
    assert offloaded(pipe, brought) == by


def test_a_loop_of_ones_own_decodes_what_a_call_draws(pipe: SanaPipeline) -> None:
    latents = draw(pipe, output_type="latent")
    scaled = latents / pipe.vae.config.scaling_factor
    with torch.no_grad():
        decoded = pipe.vae.decode(scaled, return_dict=False)[0]
    for kind in ("pt", "np"):
        np.testing.assert_allclose(
            pipe.image_processor.postprocess(decoded, output_type=kind),
            draw(pipe, output_type=kind),
            atol=1e-5,
        )
    picture = pipe.image_processor.postprocess(decoded)[0]
    expected = np.asarray(draw(pipe, output_type="pil")[0], dtype=int)
    assert abs(np.asarray(picture, dtype=int) - expected).max() <= 1
    assert pipe.vae_scale_factor == pipe.image_processor.config["vae_scale_factor"] == 32


def test_pictures_are_processed_as_by_the_reference(pipe: SanaPipeline) -> None:
    ours, theirs = pipe.image_processor, ReferenceProcessor(vae_scale_factor=32)
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    for kind in ("pt", "np"):
        for flags in (None, [True, False]):
            np.testing.assert_allclose(
                ours.postprocess(image, kind, flags),
                theirs.postprocess(image, kind, flags).clip(0, 1),
                atol=1e-6,
            )
    pictures = ours.postprocess(image)
    again = theirs.postprocess(image, "pil")
    for one, other in zip(pictures, again, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    torch.testing.assert_close(ours.preprocess(pictures), theirs.preprocess(pictures))
    ratios = {"0.5": [512.0, 1024.0], "1.0": [1024.0, 1024.0]}
    for size in ((64, 64), (30, 90)):
        bins = [p.classify_height_width_bin(*size, ratios=ratios) for p in (ours, theirs)]
        assert bins[0] == bins[1]
    torch.testing.assert_close(
        ours.resize_and_crop_tensor(image, 48, 64), theirs.resize_and_crop_tensor(image, 48, 64)
    )
    arrays = ours.pt_to_numpy(image.clamp(0, 1))
    np.testing.assert_array_equal(arrays, theirs.pt_to_numpy(image.clamp(0, 1)))
    for one, other in zip(ours.numpy_to_pil(arrays), theirs.numpy_to_pil(arrays), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    with pytest.raises(ConfigError, match="output_type='jpeg'"):
        ours.postprocess(image, "jpeg")


def test_any_pipeline_is_loaded_under_the_general_names(folder: Path) -> None:
    for general in (AutoPipelineForText2Image, DiffusionPipeline):
        plain = general.from_pretrained(folder, torch_dtype=torch.float32)
        assert type(plain) is SanaPipeline
        strong = general.from_pretrained(folder, enable_pag=True, pag_applied_layers=[1])
        assert type(strong) is SanaPAGPipeline
        assert strong.pag_applied_layers == [1]
        assert type(general.from_pipe(plain)) is SanaPipeline
        assert isinstance(strong, DiffusionPipeline)
        assert type(general.from_pipe(plain, enable_pag=True)) is SanaPAGPipeline
        assert type(general.from_pipe(strong)) is SanaPAGPipeline
        assert type(general.from_pipe(strong, enable_pag=False)) is SanaPipeline
        with pytest.raises(ConfigError, match="is made by from_pretrained"):
            general()


def test_a_saved_pipeline_is_loaded_as_what_it_was(folder: Path, tmp_path: Path) -> None:
    class Mine(SanaPAGPipeline):
        pass

    for kind in (SanaPipeline, SanaPAGPipeline, Mine):
        kind.from_pretrained(folder).save_pretrained(tmp_path / kind.__name__)
        again = DiffusionPipeline.from_pretrained(tmp_path / kind.__name__)
        assert type(again) is (SanaPAGPipeline if kind is Mine else kind)
        assert type(sanakit.load(tmp_path / kind.__name__)) is type(again)
    plain = DiffusionPipeline.from_pretrained(tmp_path / "Mine", enable_pag=False, device_map="cpu")
    assert type(plain) is SanaPipeline
    assert plain.hf_device_map is not None


def test_load_gives_what_a_folder_asks_for_ready_to_call(tmp_path: Path) -> None:
    write_sprint(tmp_path)
    pipe = sanakit.load(tmp_path, torch_dtype=torch.float32)
    assert type(pipe) is sanakit.SanaSprintPipeline
    assert len(pipe("a red apple", height=64, width=64).images) == 1
    assert type(sanakit.load("glyph")) is SanaPipeline
    with pytest.raises(MissingModelError):
        sanakit.load(tmp_path / "nothing", local_files_only=True)
    with pytest.raises(UnknownArgumentError, match="'variants'"):
        sanakit.load(tmp_path, variants="fp16")


def test_a_pipeline_tells_what_it_is_made_of(folder: Path, pipe: SanaPipeline) -> None:
    loaded = SanaPipeline.from_pretrained(folder)
    assert loaded.name_or_path == loaded.config["_name_or_path"] == str(folder)
    assert loaded.config["vae"] == ("diffusers", "AutoencoderDC")
    assert loaded.config["_class_name"] == "SanaPipeline"
    assert SanaPipeline.model_cpu_offload_seq == "text_encoder->transformer->vae"
    pipe.vae = None
    assert pipe.config["vae"] is None


def test_parts_are_taken_in_their_published_order(pipe: SanaPipeline) -> None:
    tokenizer, encoder, vae, transformer, scheduler = pipe.components.values()
    made = SanaPipeline(tokenizer, encoder, vae, transformer, scheduler)
    assert torch.equal(draw(made), draw(pipe))
    strong = SanaPAGPipeline(tokenizer, encoder, vae, transformer, scheduler, [1])
    assert strong.pag_applied_layers == [1]
    for kind in (SanaPipeline, SanaPAGPipeline):
        with pytest.raises(ConfigError, match="lacks tokenizer, text_encoder, vae, transformer"):
            kind()
        assert kind(core=pipe.core).vae is vae
        assert kind(pipe.core).vae is vae


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_shared_parts_are_cast_where_a_dtype_is_named(name: str, pipe: SanaPipeline) -> None:
    for kind in (SanaPipeline, SanaPAGPipeline):
        assert kind.from_pipe(pipe, **{name: torch.bfloat16}).dtype == torch.bfloat16
    assert pipe.dtype == torch.bfloat16
    assert SanaPipeline.from_pipe(pipe).dtype == torch.bfloat16


@pytest.mark.parametrize("published", ["int8wo", "int8_weight_only", "float8wo", "int4wo"])
def test_formats_of_torchao_are_known_by_their_published_names(published: str) -> None:
    mapping = mapping_of(PipelineQuantizationConfig("torchao", {"quant_type": published}))
    assert method_of(mapping["transformer"]).kind in ("int8", "fp8", "int4")


def test_an_output_is_read_in_all_published_ways(pipe: SanaPipeline) -> None:
    output = pipe("a tree", **CALL)
    assert output.images is output[0] is output["images"] is output.to_tuple()[0]
    assert list(output.keys()) == ["images"]
    (images,) = pipe("a tree", return_dict=False, **CALL)
    assert images[0].size == (64, 64)


def test_a_bar_is_shown_for_a_loop_of_ones_own(pipe: SanaPipeline) -> None:
    shown = io.StringIO()
    pipe.set_progress_bar_config(disable=False, file=shown, desc="mine")
    assert list(pipe.progress_bar(range(3))) == [0, 1, 2]
    with pipe.progress_bar(total=2) as bar:
        bar.update()
    assert "mine: 100%" in shown.getvalue()
    with pytest.raises(ConfigError, match="iterable or total"):
        pipe.progress_bar()


@pytest.mark.parametrize(
    "library", [PipelineQuantizationConfig, diffusers.PipelineQuantizationConfig]
)
def test_several_parts_are_quantized_by_one_object(library: Any, folder: Path) -> None:
    whole = library(
        quant_backend="bitsandbytes_4bit",
        quant_kwargs={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        components_to_quantize=["transformer"],
    )
    assert list(mapping_of(whole)) == ["transformer"]
    pipe = SanaPipeline.from_pretrained(folder, quantization_config=whole)
    assert pipe.transformer.quantized_with.kind == "nf4"
    named = library(quant_mapping={"text_encoder": sanakit.BitsAndBytesConfig(load_in_8bit=True)})
    pipe = SanaPipeline.from_pretrained(folder, quantization_config=named)
    assert pipe.transformer.quantized_with is None
    assert pipe.text_encoder.config.quantization_config["load_in_8bit"]


def test_a_backend_that_is_not_here_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"quant_backend='quanto' is not supported\n.*torchao are"
    ):
        PipelineQuantizationConfig(quant_backend="quanto", quant_kwargs={"weights_dtype": "int8"})
    for both in ({}, {"quant_backend": "torchao", "quant_mapping": {}}):
        with pytest.raises(ConfigError, match="takes quant_backend or quant_mapping"):
            PipelineQuantizationConfig(**both)


def test_pictures_are_read_and_laid_out(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (8, 4), (255, 0, 0, 255))
    picture.save(tmp_path / "a.png")
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), picture):
        assert (load_image(given).mode, load_image(given).size) == ("RGB", (8, 4))
    assert load_image(picture, convert_method=lambda image: image.convert("L")).mode == "L"
    with pytest.raises(DataError, match="cannot be read as a picture"):
        load_image(tmp_path / "b.png")
    with pytest.raises(ConfigError, match="is given a int"):
        load_image(3)
    assert make_image_grid([picture] * 6, rows=2, cols=3).size == (24, 8)
    assert make_image_grid([picture] * 2, rows=1, cols=2, resize=5).size == (10, 5)
    with pytest.raises(ConfigError, match="1 pictures do not fill 1 rows of 2"):
        make_image_grid([picture], rows=1, cols=2)


class StandInApi:
    """A hub that takes everything and notes it."""

    made: list[tuple[Any, ...]]

    def __init__(self, endpoint: str, token: str | None) -> None:
        self.token = token

    def create_repo(self, name: str, *, private: bool | None, exist_ok: bool) -> Any:
        if name == "nobody/model":
            raise ValueError("you may not")
        StandInApi.made = [(name, private, self.token)]
        return type("Made", (), {"repo_id": f"me/{name}"})

    def upload_folder(self, *, folder_path: Path, **told: Any) -> Any:
        names = {path.name for path in Path(folder_path).iterdir()}
        StandInApi.made.append((told, names))
        return type("Done", (), {"commit_url": "https://hub/commit"})


def test_a_pipeline_is_uploaded_as_it_is_saved(
    pipe: SanaPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sanakit.weights.hub.HfApi", StandInApi)
    pipe.push_to_hub("mine", private=True, token="hf_x", commit_message="First")
    told, names = StandInApi.made[1]
    assert StandInApi.made[0] == ("mine", True, "hf_x")
    assert told == {"repo_id": "me/mine", "commit_message": "First", "create_pr": False}
    assert {"model_index.json", "transformer", "vae"} <= names
    pipe.save_pretrained(tmp_path / "painter", push_to_hub=True)
    assert StandInApi.made[0] == ("painter", None, None)
    with pytest.raises(
        MissingModelError, match=r"nobody/model: cannot be written to \(you may not"
    ):
        pipe.push_to_hub("nobody/model")


def test_a_network_is_uploaded_as_it_is_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sanakit.weights.hub.HfApi", StandInApi)
    pipe = SanaPipeline.from_pretrained(folder)
    pipe.vae.push_to_hub("part")
    told, names = StandInApi.made[1]
    assert told["commit_message"] == "Upload AutoencoderDC"
    assert names == {"config.json", "diffusion_pytorch_model.safetensors"}
    pipe.transformer.save_pretrained(tmp_path / "rank 1", is_main_process=False)
    assert not (tmp_path / "rank 1").exists()


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_auto_model_loads_any_part(part: str, folder: Path) -> None:
    pipe = SanaPipeline.from_pretrained(folder)
    found = AutoModel.from_pretrained(folder, subfolder=part, torch_dtype=torch.bfloat16)
    expected = getattr(pipe, part)
    assert type(found) is type(expected)
    assert found.dtype == torch.bfloat16
    assert not found.training
    state = expected.state_dict()
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor.float(), state[name].bfloat16().float(), rtol=0, atol=0)
    alone = AutoModel.from_pretrained(folder / part)
    loaded = SanaPipeline.from_pretrained(folder, **{part: alone})
    call = {"height": 64, "width": 64, "num_inference_steps": 1, "output_type": "latent"}
    call |= {"use_resolution_binning": False}
    one, other = (
        p("a tree", **call, generator=torch.Generator().manual_seed(0)).images
        for p in (pipe, loaded)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_auto_model_refuses_what_is_no_part(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(ConfigError, match="UNet2DConditionModel"):
        AutoModel.from_pretrained(tmp_path)
    with pytest.raises(MissingModelError, match="subfolder"):
        AutoModel.from_pretrained(folder)
    with pytest.raises(TypeError, match="torch_dtyp"):
        AutoModel.from_pretrained(folder, subfolder="text_encoder", torch_dtyp=torch.float32)
    with pytest.raises(ConfigError, match="made by from_pretrained"):
        AutoModel()
