"""`SanaControlNetPipeline` against that of diffusers, and what holds of every control image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

import sanakit
from original_files import original_transformer
from sanakit import SanaControlNetModel, SanaControlNetPipeline, SanaPAGPipeline, SanaPipeline
from sanakit.errors import ConfigError, UnknownArgumentError
from sanakit.models.config import TransformerConfig
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline import offloading
from sanakit.pipeline.components import Components, save_components
from sanakit.pipeline.prompts import COMPLEX_HUMAN_INSTRUCTION
from tiny import TRANSFORMER, assert_same_weights, tiny_components

CALL = {
    "prompt": "a red apple",
    "num_inference_steps": 8,
    "guidance_scale": 4.5,
    "output_type": "latent",
    "use_resolution_binning": False,
    "height": 64,
    "width": 64,
}
FEW = CALL | {"num_inference_steps": 3}
QK = "rms_norm_across_heads"
DEEPER = replace(TRANSFORMER, num_layers=4)


def picture(height: int = 64, width: int = 64, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def as_published_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def parts(config: TransformerConfig = DEEPER) -> Components:
    components = tiny_components()
    torch.manual_seed(1)
    transformer = LinearDiT(config).eval().requires_grad_(False)
    nn.init.ones_(transformer.caption_norm.weight)
    return replace(components, transformer=transformer)


def steering_branch(transformer: LinearDiT, **more: Any) -> SanaControlNetModel:
    """One that has learnt something: nothing of it is zero."""
    branch = SanaControlNetModel.from_transformer(transformer, 2, **more).eval()
    torch.manual_seed(2)
    for linear in (branch.input_block, *branch.controlnet_blocks):
        nn.init.normal_(linear.weight, std=0.3)
        nn.init.normal_(linear.bias, std=0.1)
    return branch.requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    components = parts()
    branch = steering_branch(components.transformer)
    made = replace(components, controlnet=branch, pipeline_class="SanaControlNetPipeline")
    where = tmp_path_factory.mktemp("steered")
    save_components(made, where)
    return where


@pytest.fixture(scope="module")
def pipe(folder: Path) -> SanaControlNetPipeline:
    return SanaControlNetPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def published(folder: Path) -> diffusers.SanaControlNetPipeline:
    loaded = diffusers.SanaControlNetPipeline.from_pretrained(str(folder))
    loaded.set_progress_bar_config(disable=True)
    return loaded


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


COMBINATIONS: dict[str, dict[str, Any]] = {
    "plain": {"control_image": picture()},
    "a tensor": {"control_image": as_published_tensor(picture())},
    "an array": {"control_image": np.asarray(picture())[None].astype(np.float32) / 255},
    "no guidance": {"control_image": picture(), "guidance_scale": 1.0},
    "weak": {"control_image": picture(), "controlnet_conditioning_scale": 0.3},
    "none": {"control_image": picture(), "controlnet_conditioning_scale": 0.0},
    "tall": {"control_image": picture(128, 32), "height": 128, "width": 32},
    "three pictures": {"control_image": picture(), "num_images_per_prompt": 3},
    "one control for two prompts": {"control_image": picture(), "prompt": ["a tree", "a red cat"]},
    "one control for each prompt": {
        "control_image": [picture(), picture(seed=1)],
        "prompt": ["a tree", "a red cat"],
        "negative_prompt": ["blurry", "ugly car"],
    },
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_latents_are_the_published_ones(
    name: str, pipe: SanaControlNetPipeline, published: diffusers.SanaControlNetPipeline
) -> None:
    call = CALL | COMBINATIONS[name]
    ours = pipe(**call, generator=seeded()).images
    theirs = published(**call, generator=seeded()).images
    assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_several_pictures_of_several_prompts_have_their_own_control(
    pipe: SanaControlNetPipeline,
) -> None:
    """The reference gives them the masks of other prompts; each is what it is alone."""
    call = FEW | {"generator": [seeded(seed) for seed in range(4)], "num_images_per_prompt": 2}
    images, prompts = [picture(), picture(seed=1)], ["a tree", "a red cat"]
    drawn = pipe(**call | {"prompt": prompts, "control_image": images}).images
    for index in range(4):
        one = {"prompt": prompts[index // 2], "control_image": images[index // 2]}
        alone = pipe(**FEW | one, generator=seeded(index)).images
        assert_close(drawn[index : index + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("wiring", ["diffusers", "original"])
def test_a_new_branch_draws_the_same_picture_bit_for_bit(wiring: Any) -> None:
    plain = SanaPipeline.from_pretrained("glyph")
    branch = SanaControlNetModel.from_transformer(plain.transformer, wiring=wiring)
    steered = sanakit.AutoPipelineForText2Image.from_pipe(plain, controlnet=branch)
    assert type(steered) is SanaControlNetPipeline
    call = {"prompt": "a red apple", "num_inference_steps": 2, "output_type": "pt"}
    control = picture(256, 256)
    drawn = steered(**call, control_image=control, generator=seeded()).images
    assert torch.equal(drawn, plain(**call, generator=seeded()).images)


def test_the_original_wiring_draws_another_picture_and_is_kept(
    pipe: SanaControlNetPipeline, tmp_path: Path
) -> None:
    call = FEW | {"control_image": picture()}
    other = SanaControlNetPipeline.from_pipe(
        pipe, controlnet=SanaControlNetModel.from_config(pipe.controlnet.config, wiring="original")
    )
    other.controlnet.load_state_dict(pipe.controlnet.state_dict())
    drawn = other(**call, generator=seeded()).images
    assert (drawn - pipe(**call, generator=seeded()).images).abs().max() > 0.01
    other.save_pretrained(tmp_path / "other")
    again = sanakit.DiffusionPipeline.from_pretrained(tmp_path / "other")
    assert type(again) is SanaControlNetPipeline
    assert again.controlnet.config.wiring == "original"
    assert torch.equal(again(**call, generator=seeded()).images, drawn)
    # The published names of a config are what diffusers reads, which passes over ours.
    loaded = diffusers.SanaControlNetModel.from_pretrained(tmp_path / "other" / "controlnet")
    assert loaded.config.num_layers == 2


def test_the_picture_has_the_size_of_its_control(pipe: SanaControlNetPipeline) -> None:
    call = {k: v for k, v in FEW.items() if k not in ("height", "width")}
    call |= {"output_type": "pil"}
    assert pipe(**call, control_image=picture(64, 96)).images[0].size == (96, 64)
    # Scaled to cover the size that was asked for, and its centre cut out.
    asked = {"height": 64, "width": 64, "control_image": picture(64, 96)}
    assert pipe(**call | asked).images[0].size == (64, 64)
    cut = picture(64, 96).crop((16, 0, 80, 64))
    ours, theirs = (
        pipe(**call | asked | {"control_image": one, "output_type": "latent"}, generator=seeded())
        for one in (picture(64, 96), cut)
    )
    assert_close(ours.images, theirs.images, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match=r"height=65.*multiple of 32"):
        pipe(**call, control_image=picture(65, 96))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control_image": None}, "control_image is None"),
        ({"control_image": torch.full((1, 3, 64, 64), 255.0)}, "control_image has values from 255"),
        ({"control_image": np.full((64, 64, 3), 7.0)}, "control_image has values from 7"),
        ({"control_image": torch.zeros(1, 4, 64, 64)}, "control_image has the shape"),
        ({"control_image": []}, "control_image is empty"),
        ({"control_image": [picture(), picture(32, 32)]}, "control_image holds pictures of"),
        ({"control_image": [picture(), picture()]}, "2 of control_image for 1 pictures"),
        ({"controlnet_conditioning_scale": -1.0}, "controlnet_conditioning_scale=-1.0 must be"),
        ({"controlnet_conditioning_scale": float("nan")}, "controlnet_conditioning_scale=nan"),
        ({"controlnet_conditioning_scale": 10**400}, "controlnet_conditioning_scale=a whole"),
        ({"controlnet_conditioning_scale": [1.0]}, "controlnet_conditioning_scale=.*number"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    change: dict[str, Any], message: str, pipe: SanaControlNetPipeline
) -> None:
    with pytest.raises(ConfigError, match=message):
        pipe(**FEW | {"control_image": picture()} | change)


def test_a_grey_map_is_followed_as_a_picture_of_it(pipe: SanaControlNetPipeline) -> None:
    grey = picture().convert("L")
    array = np.asarray(grey)
    tensor = torch.from_numpy(array.copy()) / 255
    kinds = [grey, array, array[..., None], array[None, ..., None], tensor, tensor[None, None]]
    drawn = [pipe(**FEW | {"control_image": one}, generator=seeded()).images for one in kinds]
    for other in drawn[1:]:
        assert_close(other, drawn[0], atol=1e-5, rtol=0)
    weak = {"control_image": grey, "controlnet_conditioning_scale": np.float32(0.5)}
    assert pipe(**FEW | weak).images.dtype == torch.float32


def test_parts_of_other_models_are_refused(pipe: SanaControlNetPipeline) -> None:
    for change in ({"qk_norm": QK}, {"caption_channels": 9}):
        other = LinearDiT(replace(DEEPER, **change))
        with pytest.raises(ConfigError, match=next(iter(change))):
            pipe.transformer = other
    with pytest.raises(ConfigError, match="qk_norm"):
        SanaControlNetModel.from_transformer(LinearDiT(replace(DEEPER, qk_norm=QK)))
    without = SanaControlNetPipeline.from_pipe(pipe, controlnet=None)
    with pytest.raises(ConfigError, match=r"(?s)needs a control branch.*--controlnet"):
        without(**FEW, control_image=picture())
    with pytest.raises(ConfigError, match=r"(?s)needs a control branch.*from_transformer"):
        SanaControlNetPipeline.from_pipe(SanaPipeline.from_pretrained("glyph"))
    with pytest.raises(ConfigError, match="controlnet is of type Linear"):
        SanaControlNetPipeline.from_pipe(pipe, controlnet=nn.Linear(1, 1))
    with pytest.raises(UnknownArgumentError, match="controlnet"):
        SanaPipeline.from_pretrained("glyph", controlnet=pipe.controlnet)


def test_faces_share_parts_and_only_one_of_them_follows(
    pipe: SanaControlNetPipeline, folder: Path, tmp_path: Path
) -> None:
    plain = SanaPipeline.from_pipe(pipe)
    assert plain.transformer is pipe.transformer
    assert list(pipe.components)[3:] == ["transformer", "controlnet", "scheduler"]
    assert pipe.config["controlnet"] == ("diffusers", "SanaControlNetModel")
    plain.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / "controlnet").exists()
    alone = SanaControlNetModel.from_pretrained(folder, subfolder="controlnet")
    named = [alone, folder, folder / "controlnet", str(folder / "controlnet")]
    call = FEW | {"control_image": picture()}
    expected = pipe(**call, generator=seeded()).images
    for controlnet in named:
        made = SanaControlNetPipeline.from_pretrained(tmp_path / "plain", controlnet=controlnet)
        assert_same_weights(made, pipe)
        assert_close(made(**call, generator=seeded()).images, expected, atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="needs a control branch"):
        SanaControlNetPipeline.from_pretrained(tmp_path / "plain")
    assert type(sanakit.AutoModel.from_pretrained(folder, subfolder="controlnet")) is type(alone)


@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_an_offloaded_branch_steers_alike(
    way: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = SanaControlNetPipeline.from_pretrained(folder)
    call = FEW | {"control_image": picture()}
    expected = pipe(**call, generator=seeded()).images
    getattr(pipe, way)("cpu")
    brought: list[nn.Module] = []
    monkeypatch.setattr(offloading, "bring", lambda network, _: brought.append(network))
    assert torch.equal(pipe(**call, generator=seeded()).images, expected)
    away = brought if way == "enable_model_cpu_offload" else offloaded_by_layer(pipe)
    assert {pipe.controlnet, pipe.transformer} <= {*away}


def offloaded_by_layer(pipe: SanaControlNetPipeline) -> list[nn.Module]:
    networks = (pipe.controlnet, pipe.transformer)
    return [each for each in networks if each.transformer_blocks[0].attn1.to_q.weight.is_meta]


def test_dtypes_of_the_parts(folder: Path) -> None:
    wanted = {"default": torch.bfloat16, "controlnet": torch.float16}
    pipe = SanaControlNetPipeline.from_pretrained(folder, torch_dtype=wanted)
    assert pipe.transformer.dtype == torch.bfloat16
    assert pipe.controlnet.dtype == torch.float16
    drawn = pipe(**FEW | {"control_image": picture()}, generator=seeded()).images
    assert drawn.isfinite().all()
    pipe.to(torch.float32)
    assert pipe.controlnet.dtype == torch.float32
    for torch_dtype in ({"transformer": torch.float16}, torch.float16):
        half = SanaControlNetPipeline.from_pretrained(folder, torch_dtype=torch_dtype)
        assert half.controlnet.dtype == torch.float16


def test_a_wrapped_branch_or_transformer_acts(pipe: SanaControlNetPipeline) -> None:
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.config, self.calls = inner, inner.config, 0

        def forward(self, *given: Any, **named: Any) -> Any:
            self.calls += 1
            return self.inner(*given, **named)

    call = FEW | {"control_image": picture()}
    expected = pipe(**call, generator=seeded()).images
    for part in ("controlnet", "transformer"):
        around = Wrapped(getattr(pipe, part))
        made = SanaControlNetPipeline.from_pipe(pipe, **{part: around})
        assert_close(made(**call, generator=seeded()).images, expected, atol=1e-5, rtol=0)
        assert around.calls == 3


def test_a_wrapped_branch_of_the_original_wiring_is_refused_with_what_does(
    pipe: SanaControlNetPipeline,
) -> None:
    branch = steering_branch(pipe.transformer, wiring="original")
    made = SanaControlNetPipeline.from_pipe(pipe, controlnet=branch)
    call = FEW | {"control_image": picture()}
    expected = made(**call, generator=seeded()).images
    hook = branch.register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match=r"(?s)wired as the original.*transformer_blocks"):
        made(**call)
    hook.remove()
    seen: list[int] = []
    branch.transformer_blocks[0].register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(made(**call, generator=seeded()).images, expected)
    assert len(seen) == 3


def test_a_loop_of_ones_own_draws_the_same(pipe: SanaControlNetPipeline) -> None:
    """As published loops are written, in the wiring of diffusers."""
    text, mask, null, null_mask = pipe.encode_prompt(
        "a red apple", complex_human_instruction=list(COMPLEX_HUMAN_INSTRUCTION)
    )
    text, mask = torch.cat([null, text]), torch.cat([null_mask, mask])
    image = pipe.prepare_image(picture(), 64, 64, 1, 1, "cpu", torch.float32, True)
    assert image.shape == (2, 3, 64, 64)
    control = pipe.vae.encode(image).latent * pipe.vae.config.scaling_factor
    pipe.scheduler.set_timesteps(3)
    latents = pipe.prepare_latents(1, 4, 64, 64, torch.float32, "cpu", seeded())
    for t in pipe.scheduler.timesteps:
        given = {"encoder_hidden_states": text, "encoder_attention_mask": mask}
        given |= {"timestep": t.expand(2), "return_dict": False}
        x = torch.cat([latents] * 2)
        (samples,) = pipe.controlnet(x, controlnet_cond=control, conditioning_scale=0.5, **given)
        (velocity,) = pipe.transformer(x, controlnet_block_samples=tuple(samples), **given)
        uncond, cond = velocity.chunk(2)
        velocity = uncond + 4.5 * (cond - uncond)
        latents = pipe.scheduler.step(velocity, t, latents, return_dict=False)[0]
    call = FEW | {"control_image": picture(), "controlnet_conditioning_scale": 0.5}
    assert_close(latents, pipe(**call, generator=seeded()).images, atol=1e-5, rtol=0)


def test_adapters_act_on_both_networks(pipe: SanaControlNetPipeline, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    call = FEW | {"control_image": picture()}
    before = pipe(**call, generator=seeded()).images
    found = []
    for network in (pipe.transformer, pipe.controlnet):
        torch.manual_seed(0)
        network.add_adapter(config)
        drawn = pipe(**call, generator=seeded()).images
        assert (drawn - before).abs().max() > 1e-4
        half = call | {"attention_kwargs": {"scale": 0.5}}
        if network is pipe.transformer:
            weaker = pipe(**half, generator=seeded()).images
            assert (weaker - before).abs().max() < (drawn - before).abs().max()
            pipe.transformer.save_lora_adapter(tmp_path / "lora")
        found.append(drawn)
        network.delete_adapters("default")
        assert torch.equal(pipe(**call, generator=seeded()).images, before)
    assert (found[0] - found[1]).abs().max() > 1e-4
    pipe.load_lora_weights(str(tmp_path / "lora"))
    assert_close(pipe(**call, generator=seeded()).images, found[0], atol=1e-5, rtol=0)
    pipe.unload_lora_weights()


def test_a_quantized_branch_steers(folder: Path) -> None:
    quantized = {"controlnet": "int8"}
    pipe = SanaControlNetPipeline.from_pretrained(folder, quantization_config=quantized)
    assert pipe.controlnet.quantized_with is not None
    call = FEW | {"control_image": picture()}
    expected = SanaControlNetPipeline.from_pretrained(folder)(**call, generator=seeded()).images
    assert_close(pipe(**call, generator=seeded()).images, expected, atol=0.05, rtol=0)
    with pytest.raises(ConfigError, match="quantized"):
        SanaControlNetModel.from_transformer(
            SanaPipeline.from_pretrained(folder, quantization_config="int8").transformer
        )


def test_an_original_file_gives_a_branch_of_the_original_wiring(tmp_path: Path) -> None:
    transformer = sanakit.SanaTransformer2DModel(replace(TRANSFORMER, num_layers=3))
    transformer.save_config(tmp_path)
    state = original_transformer(transformer.config, branch=2)
    config = tmp_path / "config.json"
    branch = SanaControlNetModel.from_single_file(state, config=config)
    assert (branch.config.wiring, branch.config.num_layers) == ("original", 2)
    assert torch.equal(branch.input_block.weight, state["controlnet.0.before_proj.weight"])


@pytest.mark.parametrize("wiring", ["diffusers", "original"])
def test_a_branch_that_overflows_goes_on_in_fp32(wiring: Any, folder: Path) -> None:
    pipe = SanaControlNetPipeline.from_pretrained(folder)
    pipe.controlnet = steering_branch(pipe.transformer, wiring=wiring)
    pipe.controlnet.controlnet_blocks[0].weight.fill_(5e4)
    call = FEW | {"control_image": picture(), "controlnet_conditioning_scale": 1e-5}
    expected = pipe(**call, generator=seeded()).images
    pipe.controlnet.half()
    with pytest.warns(UserWarning, match="controlnet gave values that are not finite"):
        drawn = pipe(**call, generator=seeded()).images
    assert_close(drawn, expected, atol=0.02, rtol=0)
    assert pipe.controlnet.dtype == torch.float16


def test_a_callback_acts_between_steered_steps(pipe: SanaControlNetPipeline) -> None:
    seen = []

    def callback(p: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict:
        seen.append((index, p is pipe))
        if index == 0:
            p.transformer.proj_out.bias.add_(0.1)  # its text is prepared anew, the branch's too
        return tensors

    call = FEW | {"control_image": picture(), "callback_on_step_end": callback}
    try:
        assert pipe(**call, generator=seeded()).images.isfinite().all()
    finally:
        pipe.transformer.proj_out.bias.sub_(0.1)
    assert seen == [(0, True), (1, True), (2, True)]


def test_perturbed_attention_keeps_its_own_pipeline(pipe: SanaControlNetPipeline) -> None:
    perturbed = SanaPAGPipeline.from_pipe(pipe)
    assert "controlnet" not in perturbed.components
    drawn, plain = (
        each(**FEW, generator=seeded()).images for each in (perturbed, SanaPipeline.from_pipe(pipe))
    )
    assert (drawn - plain).abs().max() > 1e-3
