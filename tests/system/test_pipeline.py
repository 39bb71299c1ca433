"""The whole pipeline on a tiny random model: the core, and its face `SanaPipeline`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from command_line import sanakit
from sanakit import GenerateRequest, Pipeline, SanaPipeline
from sanakit.errors import ConfigError, MissingModelError, NumericsError, WeightsError
from sanakit.flow.guidance import Guidance
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import (
    Components,
    GenerationDefaults,
    fingerprint,
    load_components,
    save_components,
)
from sanakit.pipeline.png import encode_png, read_settings
from sanakit.pipeline.published.image_processor import as_output
from sanakit.pipeline.schedulers import FlowMatchEulerDiscreteScheduler
from tiny import ROUNDING, assert_same_weights, tiny_components, write_tiny


@pytest.fixture(scope="module")
def pipe(folder: Path) -> SanaPipeline:
    return SanaPipeline.from_pretrained(folder)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def reference(folder: Path) -> diffusers.SanaPipeline:
    pipeline = diffusers.SanaPipeline.from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


CALLS = {
    "plain": {"prompt": "a red apple"},
    "no guidance": {"prompt": "a red apple", "guidance_scale": 1.0},
    "less than no guidance": {"prompt": "a red apple", "guidance_scale": 0.5},
    "strong guidance, negative": {
        "prompt": "Two cats, and a dog!",
        "negative_prompt": "blurry",
        "guidance_scale": 9.0,
    },
    "no instruction": {"prompt": "a tree", "complex_human_instruction": None},
    # Both at once is a fault of the reference, which repeats masks in another order than texts.
    "several prompts": {"prompt": ["a tree", "a long prompt about a small house by the sea"]},
    "several pictures": {"prompt": "a tree", "num_images_per_prompt": 2},
    "not square": {"prompt": "a tree", "height": 96, "width": 32},
    "one step": {"prompt": "a tree", "num_inference_steps": 1},
    "short text": {"prompt": "a very long prompt about many things", "max_sequence_length": 5},
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore::sanakit.pipeline.prompts.PromptCutWarning")
def test_latents_equal_those_of_the_published_pipeline(
    name: str, pipe: SanaPipeline, reference: diffusers.SanaPipeline
) -> None:
    arguments = {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 4.5}
    arguments |= {"output_type": "latent", "use_resolution_binning": False} | CALLS[name]
    expected = reference(**arguments, generator=generator(3)).images
    found = pipe(**arguments, generator=generator(3)).images
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_pictures_equal_those_of_the_published_pipeline(
    pipe: SanaPipeline, reference: diffusers.SanaPipeline
) -> None:
    arguments = {"prompt": "a tree", "height": 64, "width": 96, "num_inference_steps": 2}
    arguments |= {"guidance_scale": 4.5, "use_resolution_binning": False, "output_type": "np"}
    expected = reference(**arguments, generator=generator(3)).images
    found = pipe(**arguments, generator=generator(3)).images
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_word_and_a_seed_each_change_the_picture(pipe: SanaPipeline) -> None:
    def draw(prompt: str, seed: int) -> torch.Tensor:
        call = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "pt"}
        return pipe(prompt, generator=generator(seed), **call).images

    first = draw("a red apple", 1)
    assert not torch.equal(first, draw("a blue car", 1))
    assert not torch.equal(first, draw("a red apple", 2))
    assert torch.equal(first, draw("a red apple", 1))


def test_each_picture_of_a_batch_is_bit_equal_to_its_seed_alone() -> None:
    core = Pipeline(tiny_components())
    batch = core.generate(GenerateRequest(prompt="a tree", seed=5, count=3, num_steps=3))
    for index, picture in enumerate(batch.pictures):
        alone = core.generate(GenerateRequest(prompt="a tree", seed=5 + index, num_steps=3))
        np.testing.assert_array_equal(picture.pixels, alone.pictures[0].pixels)
        assert picture.settings == alone.pictures[0].settings


def test_each_prompt_of_a_list_is_bit_equal_to_it_alone(pipe: SanaPipeline) -> None:
    prompts = ["a tree", "a much longer prompt about a small house"]
    settings = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "latent"}
    together = pipe(prompts, generator=[generator(1), generator(2)], **settings).images
    for row, (prompt, seed) in enumerate(zip(prompts, (1, 2), strict=True)):
        alone = pipe(prompt, generator=generator(seed), **settings).images
        assert torch.equal(together[row], alone[0])


def test_settings_of_a_picture_draw_it_again() -> None:
    core = Pipeline(tiny_components())
    request = GenerateRequest(
        prompt="a tree", seed=7, num_steps=2, width=96, height=64, solver="flow-heun", pag_scale=1.5
    )
    picture = core.generate(request).pictures[0]
    known = request.to_json().keys()
    again = GenerateRequest.from_json({k: v for k, v in picture.settings.items() if k in known})
    np.testing.assert_array_equal(core.generate(again).pictures[0].pixels, picture.pixels)


def test_settings_say_what_the_model_decided() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2)
    core = Pipeline(tiny_components(GenerationDefaults(guidance_scale=2.5, scheduler=scheduler)))
    plain = core.generate(GenerateRequest(prompt="a tree", num_steps=1)).pictures[0].settings
    expected = {"guidance_scale": 2.5, "solver": "flow-euler", "flow_shift": 2}
    expected |= {"height": 64, "width": 64, "model": "tiny"}
    assert expected.items() <= plain.items()
    own = {"guidance_scale": 1.0, "solver": "flow-heun", "flow_shift": 1.5, "width": 96}
    asked = core.generate(GenerateRequest(prompt="a tree", num_steps=1, **own)).pictures[0]
    assert own.items() <= asked.settings.items()
    assert asked.pixels.shape == (64, 96, 3)


def test_progress_is_told_over_all_pictures() -> None:
    told: list[tuple[int, int]] = []
    request = GenerateRequest(prompt="a tree", num_steps=2, count=2)
    result = Pipeline(tiny_components()).generate(request, on_step=lambda *at: told.append(at))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert result.seconds.keys() == {"text", "denoise", "decode"}


def test_blocks_of_perturbed_attention_matter_only_with_it() -> None:
    core = Pipeline(tiny_components())
    settings = {"scheduler": GenerationDefaults().scheduler, "num_steps": 1, "pag_layers": (9,)}
    assert core.sampling(guidance=Guidance(), **settings).pag_layers == frozenset()
    with pytest.raises(ConfigError, match=r"block 9, the model has 2\n.*0 to 1"):
        core.sampling(guidance=Guidance(pag_scale=1.0), **settings)


def test_a_request_goes_to_json_and_back() -> None:
    request = GenerateRequest(
        prompt="a tree", seed=3, pag_layers=(0, 1), guidance_interval=(0.25, 0.5), pag_scale=2.0
    )
    assert GenerateRequest.from_json(json.loads(json.dumps(request.to_json()))) == request
    with pytest.raises(ConfigError, match="needs a prompt"):
        GenerateRequest.from_json({"seed": 3})
    former = {"prompt": "a tree", "sigma_interval": [0.25, 0.5]}
    assert GenerateRequest.from_json(former).guidance_interval == (0.25, 0.5)


def test_a_request_gives_its_guidance() -> None:
    asked = GenerateRequest(
        prompt="", guidance_scale=0.0, pag_scale=2.0, guidance_interval=(0.1, 0.9)
    )
    assert asked.guidance(4.5) == Guidance(
        guidance_scale=0.0, pag_scale=2.0, guidance_interval=(0.1, 0.9)
    )
    assert GenerateRequest(prompt="").guidance(4.5) == Guidance(guidance_scale=4.5)


def test_saving_and_loading_keeps_every_bit(tmp_path: Path, pipe: SanaPipeline) -> None:
    pipe.save_pretrained(tmp_path / "copy")
    copy = SanaPipeline.from_pretrained(tmp_path / "copy")
    assert_same_weights(copy, pipe)
    call = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"}
    first, second = (p("a tree", generator=generator(0), **call).images for p in (pipe, copy))
    np.testing.assert_allclose(first, second, rtol=0, atol=ROUNDING)


def test_compact_storage_draws_nearly_the_same(tmp_path: Path) -> None:
    components = tiny_components()
    save_components(components, tmp_path / "small", storage="int8-rows")
    request = GenerateRequest(prompt="a tree", num_steps=2)
    exact = Pipeline(components).generate(request).pictures[0].pixels
    small = Pipeline.load(tmp_path / "small").generate(request).pictures[0].pixels
    assert np.abs(exact.astype(int) - small.astype(int)).max() <= 3


def test_generation_defaults_survive_the_disk(tmp_path: Path) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.5)
    defaults = GenerationDefaults(instruction=None, guidance_scale=2.5, scheduler=scheduler)
    save_components(tiny_components(defaults), tmp_path / "m")
    assert load_components(tmp_path / "m").defaults == defaults


def test_an_empty_prompt_draws_the_null_prompt() -> None:
    core = Pipeline(tiny_components(GenerationDefaults(instruction=None)))
    guided = core.generate(GenerateRequest(prompt="", num_steps=2, guidance_scale=7.0))
    plain = core.generate(GenerateRequest(prompt="", num_steps=2, guidance_scale=1.0))
    # Guidance between a prompt and itself is nothing, up to rounding.
    difference = guided.pictures[0].pixels.astype(int) - plain.pictures[0].pixels.astype(int)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("broken", "said"),
    [("transformer", "transformer .* at step 1 of 2"), ("autoencoder", "autoencoder .* decoding")],
)
def test_a_weight_that_is_not_finite_is_named_and_never_a_black_picture(
    broken: str, said: str
) -> None:
    components = tiny_components()
    module = getattr(components, broken)
    last = list(module.parameters())[-1]
    last.data = torch.full_like(last, float("nan"))
    with pytest.raises(NumericsError, match=said):
        Pipeline(components).generate(GenerateRequest(prompt="a tree", num_steps=2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 100}, r"width=100 .*\n.*nearest that work: 96 and 128"),
        ({"height": 7}, r"height=7 .*\n.*nearest that work: 32"),
        ({"height": 100_000}, "height=100000"),
        ({"pag_scale": 1.0, "pag_layers": (9,)}, "block 9, the model has 2"),
    ],
)
def test_what_the_model_cannot_draw_is_refused(changes: dict[str, int], said: str) -> None:
    core = Pipeline(tiny_components())
    with pytest.raises(ConfigError, match=said):
        core.generate(GenerateRequest(prompt="a tree", **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_steps": 1001}, "num_steps=1001"),
        ({"num_steps": 2.0}, "num_steps=2.0 must be a whole number"),
        ({"count": True}, "count=True must be a whole number"),
        ({"seed": 2**63 - 1}, "seed=9223372036854775807"),
        ({"height": 0}, "height=0"),
        ({"pag_scale": -1.0}, "pag_scale=-1.0"),
        ({"guidance_interval": (0.9, 0.1)}, "guidance_interval"),
        ({"count": 0}, "count=0"),
        ({"seed": -1}, "seed=-1"),
        ({"solver": "flow-eular"}, "did you mean 'flow-euler'"),
        ({"flow_shift": -1.0}, "flow_shift=-1.0"),
        ({"step_cache": -0.1}, "step_cache=-0.1"),
        ({"step_cache": float("nan")}, "step_cache=nan"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
    ],
)
def test_a_request_refuses_values_that_mean_nothing(changes: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GenerateRequest(prompt="a tree", **changes)


def test_an_unknown_setting_names_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"guidance_scal.*\n.*did you mean 'guidance_scale'"):
        GenerateRequest.from_json({"prompt": "", "guidance_scal": 3})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"eta": 0.5}, "eta=0.5"),
        ({"attention_kwargs": {"scale": 0.5}}, "no LoRA is loaded"),
        ({"output_type": "jpeg"}, "output_type"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt=0"),
        ({"timesteps": [900], "sigmas": [0.9]}, "timesteps and sigmas"),
        ({"sigmas": [0.2, 0.9]}, "must fall"),
        ({"latents": torch.zeros(1, 4, 1, 1)}, "latents are"),
        ({"generator": [torch.Generator(), torch.Generator()]}, "2 generators for 1"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1"),
        ({"prompt_embeds": torch.zeros(1, 3, 8)}, "come together"),
        (
            {"prompt_embeds": torch.zeros(1, 3, 8), "prompt_attention_mask": torch.ones(1, 4)},
            r"their mask \(1, 4\)",
        ),
        (
            {"prompt_embeds": torch.zeros(1, 3, 8), "prompt_attention_mask": torch.ones(1, 3)},
            "either prompt or prompt_embeds",
        ),
        ({"callback_on_step_end_tensor_inputs": ("latents", "noise")}, "names noise"),
        ({"sigmas": [1.5, 0.5]}, "must fall"),
        ({"sigmas": []}, "must fall"),
    ],
)
def test_the_published_arguments_are_honoured_or_refused(
    pipe: SanaPipeline, arguments: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        pipe("a tree", height=64, width=64, num_inference_steps=1, **arguments)


def test_own_timesteps_equal_the_sigmas_that_the_shift_moves_there(pipe: SanaPipeline) -> None:
    settings = {"height": 64, "width": 64, "output_type": "latent"}
    by_time = pipe("a tree", timesteps=[750, 500, 250], generator=generator(0), **settings)
    by_sigma = pipe("a tree", sigmas=[0.5, 0.25, 0.1], generator=generator(0), **settings)
    assert torch.equal(by_time.images, by_sigma.images)
    closed = pipe("a tree", sigmas=[0.5, 0.25, 0.1, 0.0], generator=generator(0), **settings)
    assert torch.equal(closed.images, by_sigma.images)


def test_a_callback_sees_every_step_and_may_replace_the_state(pipe: SanaPipeline) -> None:
    seen: list[int] = []

    Tensors = dict[str, torch.Tensor]

    def reset(_: SanaPipeline, index: int, __: torch.Tensor, tensors: Tensors) -> Tensors:
        seen.append(index)
        return {"latents": torch.zeros_like(tensors["latents"])}

    call = {"height": 64, "width": 64, "num_inference_steps": 3, "output_type": "latent"}
    images = pipe("a tree", callback_on_step_end=reset, **call).images
    assert seen == [0, 1, 2]
    assert not images.any()


def test_a_callback_is_told_the_timestep_it_comes_from(pipe: SanaPipeline) -> None:
    told: list[float] = []
    pipe(
        "a tree",
        height=64,
        width=64,
        timesteps=[900, 500, 100],
        callback_on_step_end=lambda p, i, t, tensors: told.append(float(t)),
    )
    assert told == [900, 500, 100]


def test_pictures_come_in_the_form_asked_for(pipe: SanaPipeline) -> None:
    def draw(kind: str) -> object:
        call = {"height": 64, "width": 96, "num_inference_steps": 1, "return_dict": False}
        (images,) = pipe("a tree", generator=generator(0), output_type=kind, **call)
        return images

    tensor, array, pictures = draw("pt"), draw("np"), draw("pil")
    assert tensor.shape == (1, 3, 64, 96)
    assert tensor.min() >= 0
    assert tensor.max() <= 1
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert pictures[0].size == (96, 64)
    np.testing.assert_allclose(np.asarray(pictures[0]) / 255, array[0], atol=0.51 / 255)


def test_pixels_beyond_white_and_black_are_cut() -> None:
    image = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).expand(1, 3, 1, 5)
    assert as_output(image, "pt")[0, 0, 0].tolist() == [0, 0, 0.5, 1, 1]


def test_embeddings_made_by_hand_draw_what_their_prompt_draws(pipe: SanaPipeline) -> None:
    core = pipe.core.components
    text = core.prompts.encode(["a tree"], instruction=core.defaults.instruction)
    call = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "latent"}
    by_prompt = pipe("a tree", generator=generator(0), **call).images
    by_hand = pipe(
        prompt_embeds=text.text, prompt_attention_mask=text.mask, generator=generator(0), **call
    ).images
    assert torch.equal(by_prompt, by_hand)


def binned_components() -> Components:
    """The tiny model with the sample size of one that was published for 512 px."""
    components = tiny_components()
    components.transformer.config = replace(components.transformer.config, sample_size=16)
    return components


def test_a_published_size_is_drawn_at_its_bin_and_cut() -> None:
    pipe = SanaPipeline(Pipeline(binned_components()))
    seen = []
    image = pipe(
        "a tree",
        height=512,
        width=1024,
        num_inference_steps=1,
        output_type="pt",
        callback_on_step_end=lambda p, i, t, tensors: seen.append(tensors["latents"].shape[-2:]),
    ).images
    assert seen == [(704 // 64, 1408 // 64)]  # ratio 0.5 of the 512 table is 352 x 704
    assert image.shape[-2:] == (512, 1024)


@pytest.mark.parametrize(
    ("size", "drawn"),
    [({}, (512, 512)), ({"height": 512}, (352, 704)), ({"use_resolution_binning": False}, 1024)],
)
def test_a_published_model_draws_its_own_size_unless_told(
    size: dict[str, object], drawn: tuple[int, int] | int
) -> None:
    pipe = SanaPipeline(Pipeline(binned_components()))
    latents = pipe("a tree", num_inference_steps=1, output_type="latent", **size).images
    height, width = (drawn, drawn) if isinstance(drawn, int) else drawn
    assert latents.shape[-2:] == (height // 32, width // 32)
    with pytest.raises(ConfigError, match="height=100"):
        pipe("a tree", height=100, use_resolution_binning=False)


@pytest.mark.parametrize(
    "size",
    [(512, 1024), (512, 512), (96, 64), (101, 250)],
    ids=["cut wider", "drawn as asked", "cut smaller", "off the grid"],
)
def test_one_request_has_one_picture_by_the_core_and_by_the_published_pipeline(
    size: tuple[int, int],
) -> None:
    core = Pipeline(binned_components())
    height, width = size
    for binned in (True, False) if height % 32 == 0 else (True,):
        more = {"height": height, "width": width, "use_resolution_binning": binned}
        request = GenerateRequest(
            prompt="a tree", negative_prompt="red", seed=3, count=2, num_steps=2, **more
        )
        ours = core.generate(request).pictures
        images = SanaPipeline(core)(
            "a tree",
            negative_prompt="red",
            generator=[generator(3), generator(4)],
            num_images_per_prompt=2,
            num_inference_steps=2,
            **more,
        ).images
        for picture, image in zip(ours, images, strict=True):
            assert picture.pixels.shape == (height, width, 3)
            np.testing.assert_array_equal(picture.pixels, np.asarray(image))


def test_the_command_bins_as_the_published_pipeline_does(tmp_path: Path) -> None:
    save_components(binned_components(), tmp_path / "m")
    where = ("--model", tmp_path / "m", "-o", tmp_path / "x.png")
    drawn = ("--height", 64, "--width", 128, "--steps", 2, "--seed", 5, "--quiet")
    sanakit("generate", "a tree", *where, *drawn)
    image = SanaPipeline.from_pretrained(tmp_path / "m")(
        "a tree", height=64, width=128, num_inference_steps=2, generator=generator(5)
    ).images[0]
    with PIL.Image.open(tmp_path / "x.png") as written:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(image))
    settings = read_settings(tmp_path / "x.png")
    assert settings["use_resolution_binning"] is True


def test_a_picture_of_before_binning_was_a_setting_is_drawn_again_at_its_very_size(
    tmp_path: Path,
) -> None:
    save_components(binned_components(), tmp_path / "m")
    request = GenerateRequest(
        prompt="a tree", height=64, width=128, num_steps=2, use_resolution_binning=False
    )
    (picture,) = Pipeline.load(tmp_path / "m").generate(request).pictures
    settings = {k: v for k, v in picture.settings.items() if k != "use_resolution_binning"}
    (tmp_path / "old.png").write_bytes(encode_png(picture.pixels, settings))
    sanakit("again", tmp_path / "old.png", "-q")
    with PIL.Image.open(tmp_path / "old-again.png") as again:
        np.testing.assert_array_equal(np.asarray(again), picture.pixels)


def test_sixteen_bits_never_mean_float16_where_it_overflows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sanakit.weights.dtypes.SMALL", 0)
    for dtype in (torch.float16, torch.bfloat16):
        parts = load_components(folder, dtype=dtype)
        assert parts.transformer.proj_out.weight.dtype == dtype
        assert next(parts.autoencoder.parameters()).dtype == torch.bfloat16
        assert parts.prompts.text_encoder.llm.dtype == torch.bfloat16
    assert load_components(folder).prompts.text_encoder.llm.dtype == torch.float32
    named = load_components(folder, dtype={"text_encoder": torch.float16})
    assert named.prompts.text_encoder.llm.dtype == torch.float16


def test_a_small_model_is_as_it_is_asked_for(folder: Path) -> None:
    networks = load_components(folder, dtype=torch.float16).networks.values()
    assert {p.dtype for network in networks for p in network.parameters()} == {torch.float16}


def test_a_model_in_sixteen_bits_draws_nearly_the_same(folder: Path) -> None:
    request = GenerateRequest(prompt="a tree", num_steps=2)
    exact, rough = (
        Pipeline.load(folder, dtype=dtype).generate(request).pictures[0].pixels.astype(int)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert np.abs(exact - rough).max() <= 8
    assert exact.std() > 1


def edit(path: Path, **changes: object) -> None:
    """Change values of a JSON file; None takes a key out."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def test_a_published_folder_without_our_notes_has_the_published_defaults(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "m")
    edit(folder / "model_index.json", _sanakit=None)
    assert load_components(folder).defaults == GenerationDefaults()
    scheduler = folder / "scheduler" / "scheduler_config.json"
    edit(scheduler, _class_name="FlowMatchEulerDiscreteScheduler", flow_shift=None)
    assert load_components(folder).defaults == GenerationDefaults(
        scheduler=FlowMatchEulerDiscreteScheduler()
    )
    edit(scheduler, _class_name="DDIMScheduler")
    with pytest.raises(ConfigError, match="scheduler DDIMScheduler is not known"):
        load_components(folder)


def test_a_text_encoder_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "m")
    wide = tiny_components()
    config = replace(wide.transformer.config, caption_channels=12)
    save_components(replace(wide, transformer=LinearDiT(config)), folder)
    with pytest.raises(ConfigError, match="gives 8 channels, the transformer takes 12"):
        load_components(folder)


def test_a_language_model_with_its_head_is_a_text_encoder(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "m")
    path = folder / "text_encoder" / "model.safetensors"
    plain = load_file(path)
    named = {f"model.{name}": value for name, value in plain.items()}
    save_file({**named, "lm_head.weight": torch.zeros(3, 8)}, path, metadata={"format": "pt"})
    loaded = load_components(folder).prompts.text_encoder.llm.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in plain.items())


def test_a_fingerprint_is_of_both_ends_and_the_size_of_every_file(tmp_path: Path) -> None:
    path = tmp_path / "part" / "x.safetensors"
    path.parent.mkdir()
    seen = set()
    middle = bytes(3 << 20)
    for content in (b"a" + middle, b"b" + middle, middle + b"a", middle + b"b", middle + b"bb"):
        path.write_bytes(content)
        seen.add(fingerprint(tmp_path))
        assert fingerprint(tmp_path) in seen
    assert len(seen) == 5
    path.rename(path.with_name("y.safetensors"))
    assert fingerprint(tmp_path) not in seen


def test_a_damaged_model_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "m")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="vae"):
        SanaPipeline.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(MissingModelError, match="vae"):
        SanaPipeline.from_pretrained(folder)
