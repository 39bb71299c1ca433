"""Sprint models from a folder to a picture: the command, its defaults, and what is refused."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from command_line import sanakit
from sanakit import (
    AdaptiveProjectedGuidance,
    AutoencoderDC,
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    Pipeline,
    SanaImg2ImgPipeline,
    SanaInpaintPipeline,
    SanaPAGPipeline,
    SanaPipeline,
    SanaSprintImg2ImgPipeline,
    SanaSprintPipeline,
    SCMScheduler,
)
from sanakit.errors import ConfigError
from sanakit.flow.path import draw_noise
from sanakit.models.config import AUTOENCODERS
from sanakit.pipeline.png import read_settings
from sanakit.pipeline.request import Call, GenerateRequest
from tiny import write_sprint, write_tiny
from tiny_sana import tiny_sana


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sprint(tmp_path_factory.mktemp("sprint"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pixels(name: str) -> bytes:
    with Image.open(name) as image:
        return image.tobytes()


@pytest.mark.usefixtures("elsewhere")
def test_the_command_draws_by_the_models_own_defaults(folder: Path) -> None:
    sanakit("generate", "a tree", "-m", folder)
    settings = read_settings("out.png")
    assert settings["num_steps"] == 2
    assert settings["guidance_scale"] == 4.5
    sanakit("again", "out.png")
    assert pixels("out-again.png") == pixels("out.png")
    generator = torch.Generator().manual_seed(0)
    picture = SanaSprintPipeline.from_pretrained(folder)("a tree", generator=generator).images[0]
    assert picture.tobytes() == pixels("out.png")
    # However many are drawn, each is the picture of its seed.
    sanakit("generate", "a tree", "-m", folder, "--seed", 3, "-n", 2, "-o", "n.png")
    sanakit("generate", "a tree", "-m", folder, "--seed", 4)
    assert pixels("n-4.png") == pixels("out.png")


@pytest.mark.usefixtures("elsewhere")
def test_the_number_of_steps_and_the_guidance_are_heeded(folder: Path) -> None:
    seen = set()
    for more in (["--steps", 1], ["--steps", 2], ["--steps", 4], ["--guidance", 8]):
        sanakit("generate", "a tree", "-m", folder, *more)
        seen.add(pixels("out.png"))
    assert len(seen) == 4


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    "option",
    [
        ["--negative", "blurry"],
        ["--solver", "flow-euler"],
        ["--apg-eta", "0"],
        ["--guidance-interval", "0.2", "0.8"],
        ["--step-cache", "0.1"],
    ],
)
def test_options_that_do_nothing_are_refused_by_name(option: list[str], folder: Path) -> None:
    for model in (folder, "sprint-0.6b"):  # of one that is to be fetched, before it is
        _, error = sanakit("generate", "a tree", "-m", model, *option, code=2)
        assert option[0] in error
        assert "Sprint" in error
    assert not Path("out.png").exists()


@pytest.mark.parametrize(
    "given",
    [
        {"negative_prompt": "blurry"},
        {"pag_scale": 2.0},
        {"guidance_interval": (0.1, 0.9)},
        {"step_cache": 0.1},
        {"solver": "flow-euler"},
        {"flow_shift": 3.0},
    ],
)
def test_fields_that_do_nothing_are_refused_by_name(given: dict[str, Any], folder: Path) -> None:
    name = {"solver": "FlowMatchEulerDiscreteScheduler"}.get(next(iter(given)), next(iter(given)))
    with pytest.raises(ConfigError, match=name):
        Pipeline.load(folder).generate(GenerateRequest(prompt="a tree", **given))


def test_a_folder_is_loaded_as_what_it_says(folder: Path, tmp_path: Path) -> None:
    assert type(DiffusionPipeline.from_pretrained(folder)) is SanaSprintPipeline
    assert type(AutoPipelineForText2Image.from_pretrained(folder)) is SanaSprintPipeline
    edit = AutoPipelineForImage2Image.from_pretrained(folder)
    assert type(edit) is SanaSprintImg2ImgPipeline
    edit.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text("utf-8"))
    assert index["_class_name"] == "SanaSprintImg2ImgPipeline"
    assert index["scheduler"] == ["diffusers", "SCMScheduler"]
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is SanaSprintImg2ImgPipeline
    assert type(AutoPipelineForText2Image.from_pretrained(tmp_path)) is SanaSprintPipeline
    again = SanaSprintPipeline(**edit.components)
    assert isinstance(again.scheduler, SCMScheduler)


def write_scheduler(folder: Path, scheduler: Any) -> Path:
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def test_the_scheduler_follows_the_model_with_a_word(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = SanaSprintPipeline.from_pretrained(folder)("a tree", generator=seeded()).images[0]
    odd = write_scheduler(
        write_sprint(tmp_path / "sprint"), DPMSolverMultistepScheduler(flow_shift=3.0)
    )
    with caplog.at_level(logging.WARNING):
        pipe = SanaSprintPipeline.from_pretrained(odd)
    assert "DPMSolverMultistepScheduler does not sample its transformer" in caplog.text
    assert pipe("a tree", generator=seeded()).images[0].tobytes() == drawn.tobytes()
    pipe.scheduler = DPMSolverMultistepScheduler()
    with pytest.raises(ConfigError, match=r"DPMSolver.*does not sample this model"):
        pipe("a tree")
    pipe.scheduler = SCMScheduler.from_config(pipe.scheduler.config)
    assert pipe("a tree", generator=seeded()).images[0].tobytes() == drawn.tobytes()


def test_a_teacher_is_drawn_with_by_the_flow(tmp_path: Path, plain: Path) -> None:
    teacher = write_scheduler(write_tiny(tmp_path / "teacher"), SCMScheduler())
    expected = SanaPipeline.from_pretrained(plain)
    expected.scheduler = expected.scheduler.shifted(3.0)
    found = SanaPipeline.from_pretrained(teacher)
    pictures = [p("a tree", generator=seeded()).images[0].tobytes() for p in (found, expected)]
    assert pictures[0] == pictures[1]


def test_a_teacher_is_trained_on_by_the_flow(tmp_path: Path) -> None:
    sana = tiny_sana(tmp_path)
    write_scheduler(sana.model, SCMScheduler())
    assert not sana.recipe().defaults.scheduler.solver.adds_noise
    write_sprint(sana.model)
    with pytest.raises(ConfigError, match="embeds its guidance scale"):
        sana.recipe()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_pipelines_of_the_other_kind_name_the_right_one(folder: Path, plain: Path) -> None:
    for kind in (SanaPipeline, SanaPAGPipeline, SanaImg2ImgPipeline):
        with pytest.raises(ConfigError, match=kind.__name__) as caught:
            kind.from_pretrained(folder)
        assert "SanaSprintPipeline" in str(caught.value.hint)
    sprint = SanaSprintPipeline.from_pretrained(folder)
    for kind in (SanaSprintPipeline, SanaSprintImg2ImgPipeline):
        with pytest.raises(ConfigError, match="a model of many steps") as caught:
            kind.from_pretrained(plain)
        assert "SanaPipeline" in str(caught.value.hint)
    other = SanaPipeline.from_pretrained(plain)
    for pipe, part in ((sprint, other), (other, sprint)):
        before = pipe.transformer
        with pytest.raises(ConfigError, match="does not draw with"):
            pipe.transformer = part.transformer
        assert pipe.transformer is before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_inference_steps": 0}, "num_steps=0"),
        ({"timesteps": [0.3, 0.5, 0]}, "must fall"),
        ({"timesteps": [1.7, 0.5, 0]}, "must fall, within"),
        ({"timesteps": [1.5, 0.5, 0], "max_timesteps": 1.2}, "max_timesteps=1.2: both"),
        ({"timesteps": [1.5, 0.5, 0], "num_inference_steps": 3}, "are 2 steps, and 3 asked"),
        ({"max_timesteps": None}, "neither timesteps nor"),
        ({"max_timesteps": 2.0, "intermediate_timesteps": None}, "max_timesteps=2.0"),
        ({"num_inference_steps": 3, "intermediate_timesteps": 1.0}, "intermediate_timesteps=1.0"),
        ({"num_inference_steps": 4, "intermediate_timesteps": 1.3}, "1.3 with 4 steps"),
        ({"timesteps": [1.5, 0.5, 0], "intermediate_timesteps": 1.3}, "steps=1.3: both given"),
        ({"callback_on_step_end_tensor_inputs": ["negative_prompt_embeds"]}, "negative_prompt"),
        ({"eta": 0.5}, "eta=0.5 does nothing: it is of DDIM"),
    ],
)
def test_arguments_that_cannot_be_drawn_are_refused(
    given: dict[str, Any], said: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        SanaSprintPipeline.from_pretrained(folder)("a tree", **given)
    with pytest.raises(TypeError, match="negative_prompt"):
        SanaSprintPipeline.from_pretrained(folder)("a tree", negative_prompt="blurry")
    with pytest.raises(ConfigError, match="image is missing"):
        SanaSprintImg2ImgPipeline.from_pretrained(folder)("a tree")


PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
MASK = np.zeros((64, 64), np.uint8)
MASK[:, 40:] = 255


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.filterwarnings("ignore:the picture is .* and is drawn at")
def test_a_mask_is_drawn_as_by_the_command(folder: Path) -> None:
    Image.fromarray(PICTURE).save("in.png")
    Image.fromarray(MASK).save("mask.png")
    sanakit("edit", "in.png", "a tree", "-m", folder, "--mask", "mask.png", "--seed", 7)
    pipe = AutoPipelineForInpainting.from_pretrained(folder)
    assert type(pipe) is SanaInpaintPipeline
    drawn = pipe("a tree", "in.png", "mask.png", generator=seeded()).images[0]
    assert pipe.num_timesteps == 2
    assert drawn.tobytes() == pixels("in-edited.png")
    assert (np.asarray(drawn)[MASK == 0] == PICTURE[MASK == 0]).all()
    named = pipe("a tree", PICTURE, MASK, timesteps=[1.5708, 1.3], generator=seeded()).images[0]
    assert named.tobytes() == drawn.tobytes()
    pipe.save_pretrained("saved")
    assert type(DiffusionPipeline.from_pretrained("saved")) is SanaSprintPipeline
    with pytest.raises(ConfigError, match="guider does nothing here"):
        pipe("a tree", PICTURE, MASK, guider=AdaptiveProjectedGuidance())

    class Mine(SanaInpaintPipeline):
        def encode_prompt(self, prompt: Any, *given: Any, **named: Any) -> Any:
            return super().encode_prompt("a tree", *given, **named)

    mine = Mine.from_pipe(pipe)("a fox", PICTURE, MASK, generator=seeded()).images[0]
    assert mine.tobytes() == drawn.tobytes()


@pytest.mark.parametrize("generators", ["one", "each", "none"])
def test_noise_is_drawn_when_its_step_comes(
    generators: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline.load(folder)
    each = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    given = {"one": each[0], "each": each, "none": None}[generators]
    drawn: list[int] = []

    def noise(count: int, *more: Any) -> torch.Tensor:
        drawn.append(count)
        return draw_noise(count, *more)

    monkeypatch.setattr("sanakit.pipeline.request.draw_noise", noise)
    steps = Call(prompt="a tree", num_images_per_prompt=2, num_inference_steps=4, generator=given)
    seen: list[int] = []
    pipe.generate(steps, on_step=lambda *_: seen.append(len(drawn)))
    own = generators == "each"
    assert drawn == [2, *[1 if own else 2] * (8 if own else 4)]
    assert seen == [2, 3, 4, 5, *([6, 7, 8, 9] if own else [5] * 4)]


@pytest.mark.parametrize("count", [1, 2])
def test_one_generator_draws_each_steps_noise_for_all_pictures(count: int, folder: Path) -> None:
    """As the published sampler does, whatever runs at once."""
    pipe = Pipeline.load(folder)
    call = Call(prompt="a tree", num_images_per_prompt=2, generator=seeded(), output_type="latent")
    found = pipe.generate(replace(call, at_once=count)).tensors
    generator = seeded()
    noise, *fresh = [draw_noise(2, (4, 2, 2), generator) for _ in range(3)]
    monkey = iter([noise, *fresh])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sanakit.pipeline.request.draw_noise", lambda *_: next(monkey))
        expected = pipe.generate(replace(call, at_once=2)).tensors
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_subclass_has_its_own_way_with_prompts(folder: Path) -> None:
    asked = []

    class Mine(SanaSprintPipeline):
        def encode_prompt(self, prompt: Any, *given: Any, **named: Any) -> Any:
            asked.append(prompt)
            return super().encode_prompt("a red apple", *given, **named)

        def check_inputs(self, prompt: Any, height: int, width: int, *_: Any, **named: Any) -> None:
            asked.append((height, width, named["num_inference_steps"]))
            super().check_inputs(prompt, height, width, *_, **named)

    mine = Mine.from_pretrained(folder)("a tree", generator=seeded()).images[0]
    usual = SanaSprintPipeline.from_pretrained(folder)("a red apple", generator=seeded()).images[0]
    assert asked == [(64, 64, 2), "a tree"]
    assert mine.tobytes() == usual.tobytes()


@pytest.mark.usefixtures("elsewhere")
def test_edit_begins_at_the_picture_at_any_number_of_steps(folder: Path) -> None:
    sanakit("generate", "a tree", "-m", folder)
    seen = {pixels("out.png")}
    for more in ([], ["--strength", 1], ["--steps", 1], ["--steps", 1, "--strength", 0.1]):
        sanakit("edit", "out.png", "a cat", "-m", folder, *more, "-o", "cat.png")
        seen.add(pixels("cat.png"))
    assert len(seen) == 5
    sanakit("again", "cat.png", "-o", "again.png")
    assert pixels("again.png") == pixels("cat.png")


@pytest.mark.usefixtures("elsewhere")
def test_the_command_takes_a_lora_of_such_a_model(folder: Path) -> None:
    transformer = SanaSprintPipeline.from_pretrained(folder).transformer
    width = transformer.transformer_blocks[0].attn1.to_q.weight.shape[1]
    query = "transformer.transformer_blocks.0.attn1.to_q.lora"
    tensors = {f"{query}_A.weight": torch.ones(1, width), f"{query}_B.weight": torch.ones(width, 1)}
    save_file(tensors, "lora.safetensors")
    sanakit("generate", "a tree", "-m", folder, "-o", "plain.png")
    sanakit("generate", "a tree", "-m", folder, "--lora", "lora.safetensors", "-o", "lora.png")
    assert pixels("lora.png") != pixels("plain.png")
    sanakit("again", "lora.png", "-o", "again.png")
    assert pixels("again.png") == pixels("lora.png")


def test_the_light_decoder_takes_the_place_of_the_other(folder: Path, tmp_path: Path) -> None:
    shape = replace(
        AUTOENCODERS["dc-ae-lite-f32c32-sana-1.1"],
        attention_head_dim=4,
        latent_channels=4,
        encoder_block_out_channels=(8,) * 6,
        decoder_block_out_channels=(8,) * 6,
    )
    torch.manual_seed(0)
    AutoencoderDC(shape).save_pretrained(tmp_path / "lite")
    light = AutoencoderDC.from_pretrained(tmp_path / "lite")
    assert light.config.decoder_conv_act_fn == "silu"
    pipe = SanaSprintPipeline.from_pretrained(folder, vae=light)
    drawn = pipe("a tree", generator=seeded()).images[0]
    pipe.save_pretrained(tmp_path / "whole")
    again = DiffusionPipeline.from_pretrained(tmp_path / "whole")("a tree", generator=seeded())
    assert again.images[0].tobytes() == drawn.tobytes()
    other = SanaSprintPipeline.from_pretrained(folder)("a tree", generator=seeded()).images[0]
    assert other.tobytes() != drawn.tobytes()


@pytest.mark.usefixtures("elsewhere")
def test_what_the_page_makes_of_the_embedded_model_draws() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sprint.md").read_text("utf-8")
    code = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[1]
    exec(compile(code, "docs/sprint.md", "exec"), {})
    # At its noisiest level the network says what the flow's own says: one step is one of Euler's.
    found = Pipeline.load("glyph-in-few-steps").generate(
        GenerateRequest(prompt="a red apple", num_steps=1)
    )
    flow = Pipeline.load("glyph").generate(
        GenerateRequest(prompt="a red apple", num_steps=1, guidance_scale=1.0, solver="flow-euler")
    )
    apart = np.abs(found.pictures[0].pixels.astype(int) - flow.pictures[0].pixels.astype(int))
    assert apart.mean() < 1.0
    assert found.pictures[0].pixels.std() > 30
