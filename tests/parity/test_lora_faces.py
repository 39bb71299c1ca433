"""Adapters on every published pipeline, against diffusers over PEFT where it has the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

import sanakit
from sanakit import SanaControlNetModel
from sanakit.errors import ConfigError
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import save_components
from tiny import TRANSFORMER, tiny_components, write_sprint

# PEFT warns of what it makes active.
pytestmark = pytest.mark.filterwarnings("ignore")
FILE = "pytorch_lora_weights.safetensors"
SIZE = {"height": 64, "width": 64, "output_type": "latent", "use_resolution_binning": False}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
MASK = Image.new("L", (64, 64), 255)
BASE = {**SIZE, "num_inference_steps": 3, "guidance_scale": 4.5}
FEW = {**SIZE, "num_inference_steps": 2}


@dataclass(frozen=True)
class Face:
    """A published pipeline, the arguments that it needs, and which tiny model it draws with."""

    name: str
    call: Mapping[str, Any]
    sprint: bool = False

    def ours(self, folders: Path) -> Any:
        pipe = getattr(sanakit, self.name).from_pretrained(self.folder(folders))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def theirs(self, folders: Path) -> Any:
        pipe = getattr(diffusers, self.name).from_pretrained(str(self.folder(folders)))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def folder(self, folders: Path) -> Path:
        return folders / ("sprint" if self.sprint else "steered")

    def draw(self, pipe: Any, **more: Any) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        drawn: Tensor = pipe("a red apple", generator=generator, **self.call, **more).images
        return drawn


PUBLISHED = {
    face.name: face
    for face in (
        Face("SanaPipeline", BASE),
        Face("SanaControlNetPipeline", {**BASE, "control_image": PICTURE}),
        Face("SanaSprintPipeline", FEW, sprint=True),
        Face("SanaSprintImg2ImgPipeline", {**FEW, "image": PICTURE, "strength": 0.5}, sprint=True),
    )
}
OWN = {
    face.name: face
    for face in (
        Face("SanaPAGPipeline", BASE),  # where the reference takes no adapters
        Face("SanaImg2ImgPipeline", {**BASE, "image": PICTURE, "strength": 0.7}),
        Face("SanaInpaintPipeline", {**BASE, "image": PICTURE, "mask_image": MASK}),
    )
}
FACES = PUBLISHED | OWN


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    transformer = LinearDiT(replace(TRANSFORMER, num_layers=3)).eval().requires_grad_(False)
    nn.init.ones_(transformer.caption_norm.weight)
    branch = SanaControlNetModel.from_transformer(transformer, 2).eval().requires_grad_(False)
    for linear in (branch.input_block, *branch.controlnet_blocks):
        nn.init.normal_(linear.weight, std=0.3)
    made = replace(tiny_components(), transformer=transformer, controlnet=branch)
    save_components(replace(made, pipeline_class="SanaControlNetPipeline"), where / "steered")
    write_sprint(where / "sprint", num_layers=3)
    return where


@pytest.fixture(scope="module")
def files(folders: Path) -> Mapping[str, Path]:
    """Adapters as diffusers writes them, by what is special; each model has its own."""
    found = {}
    settings: dict[str, dict[str, Any]] = {
        "plain": {"r": 4, "lora_alpha": 2},
        "other": {"r": 4, "lora_alpha": 2},
        "dora": {"r": 3, "lora_alpha": 6, "use_dora": True},
    }
    for model in ("steered", "sprint"):
        for seed, (name, own) in enumerate(settings.items()):
            network = diffusers.SanaTransformer2DModel.from_pretrained(
                str(folders / model), subfolder="transformer"
            )
            targets = ["to_q", "to_k", "to_v", "to_out.0", "conv_point"]
            network.add_adapter(LoraConfig(target_modules=targets, **own))
            strengthen(network, seed)
            found[f"{model}/{name}"] = folders / f"{model}-{name}"
            diffusers.SanaPipeline.save_lora_weights(
                str(found[f"{model}/{name}"]),
                transformer_lora_layers=get_peft_model_state_dict(network),
                transformer_lora_adapter_metadata=network.peft_config["default"].to_dict(),
            )
    return found


@torch.no_grad()
def strengthen(network: nn.Module, seed: int) -> None:
    """Numbers so large that they show."""
    rng = torch.Generator().manual_seed(seed)
    for name, each in network.named_parameters():
        if ".lora_" in name:
            each.add_(0.3 * torch.randn(each.shape, generator=rng))


def file_of(files: Mapping[str, Path], face: Face, name: str) -> str:
    return str(files[f"{'sprint' if face.sprint else 'steered'}/{name}"] / FILE)


def moves(files: Mapping[str, Path], face: Face) -> dict[str, Callable[[Any], object]]:
    """What a user does one after the other; the picture changes with each."""
    plain, other, dora = (file_of(files, face, name) for name in ("plain", "other", "dora"))
    new = {"adapter_name": "style", "hotswap": True}
    return {
        "load": lambda pipe: pipe.load_lora_weights(plain, adapter_name="style"),
        "weigh": lambda pipe: pipe.set_adapters("style", 0.5),
        "load DoRA": lambda pipe: pipe.load_lora_weights(dora, adapter_name="dora"),
        "choose both": lambda pipe: pipe.set_adapters(["dora", "style"], [1.5, 0.5]),
        "swap": lambda pipe: pipe.load_lora_weights(other, **new),
        "drop": lambda pipe: pipe.delete_adapters("dora"),
        "merge": lambda pipe: pipe.fuse_lora(lora_scale=0.7),
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_adapters_do_what_they_do_in_the_reference(
    name: str, folders: Path, files: Mapping[str, Path]
) -> None:
    face = PUBLISHED[name]
    ours, theirs = face.ours(folders), face.theirs(folders)
    before = plain = face.draw(ours)
    assert_close(plain, face.draw(theirs), atol=1e-4, rtol=0)
    for what, move in moves(files, face).items():
        for pipe in (ours, theirs):
            move(pipe)
        found = face.draw(ours)
        apart = float((found - face.draw(theirs)).abs().max())
        assert apart < 1e-4, f"{what}: {apart}"
        assert float((found - before).abs().max()) > 1e-3, what
        before = found
        if what == "choose both":
            assert ours.get_active_adapters() == theirs.get_active_adapters() == ["dora", "style"]
            weak = {"attention_kwargs": {"scale": 0.5}}
            weaker = face.draw(ours, **weak)
            assert_close(weaker, face.draw(theirs, **weak), atol=1e-4, rtol=0)
            assert float((weaker - found).abs().max()) > 1e-3
    ours.unfuse_lora()
    ours.unload_lora_weights()
    assert torch.equal(face.draw(ours), plain)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("chosen", [{"plain": 0.5, "other": 1.5}, {"dora": 1.0}])
def test_adapters_are_the_weights_that_they_merge_to(
    chosen: dict[str, float], name: str, folders: Path, files: Mapping[str, Path]
) -> None:
    face = OWN[name]
    ours = face.ours(folders)
    plain = face.draw(ours)
    theirs = PUBLISHED["SanaPipeline"].theirs(folders)
    for each in (ours, theirs):
        for one in chosen:
            each.load_lora_weights(file_of(files, face, one), adapter_name=one)
        each.set_adapters(list(chosen), list(chosen.values()))
    found = face.draw(ours)
    weaker = face.draw(ours, attention_kwargs={"scale": 0.5})
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    merged = face.ours(folders)
    merged.transformer.load_state_dict(theirs.transformer.state_dict())
    assert_close(found, face.draw(merged), atol=1e-4, rtol=0)
    for other in (plain, weaker):
        assert float((other - found).abs().max()) > 1e-3
    first = next(iter(chosen))
    ours.set_adapters(first)
    ours.load_lora_weights(file_of(files, face, "other"), adapter_name=first, hotswap=True)
    assert float((face.draw(ours) - found).abs().max()) > 1e-3
    ours.fuse_lora()
    ours.unfuse_lora()
    ours.unload_lora_weights()
    assert torch.equal(face.draw(ours), plain)


def test_dora_beside_others_is_a_sum_where_the_reference_goes_by_the_order(
    folders: Path, files: Mapping[str, Path]
) -> None:
    face = PUBLISHED["SanaPipeline"]
    ours, theirs = face.ours(folders), face.theirs(folders)
    drawn: dict[str, list[Tensor]] = {"ours": [], "theirs": []}
    for whose, pipe in (("ours", ours), ("theirs", theirs)):
        for one in ("plain", "dora"):
            pipe.load_lora_weights(file_of(files, face, one), adapter_name=one)
        for order in (["dora", "plain"], ["plain", "dora"]):
            pipe.set_adapters(order)
            drawn[whose].append(face.draw(pipe))
    assert_close(drawn["ours"][0], drawn["theirs"][0], atol=1e-4, rtol=0)
    assert_close(drawn["ours"][0], drawn["ours"][1], atol=1e-5, rtol=0)
    assert float((drawn["theirs"][0] - drawn["theirs"][1]).abs().max()) > 1e-2
    ours.fuse_lora()
    assert_close(face.draw(ours), drawn["ours"][0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FACES)
def test_a_file_of_kohya_is_the_same_adapter(
    name: str, folders: Path, files: Mapping[str, Path]
) -> None:
    face = FACES[name]
    pipe = face.ours(folders)
    plain = face.draw(pipe)
    tensors = pipe.lora_state_dict(file_of(files, face, "plain"))
    kohya: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        layer, _, matrix = key.removeprefix("transformer.").removesuffix(".weight").rpartition(".")
        stem = "lora_unet_" + layer.replace(".", "_")
        kohya[f"{stem}.lora_{'down' if matrix == 'lora_A' else 'up'}.weight"] = tensor
        kohya[f"{stem}.alpha"] = torch.tensor(2.0)
    pipe.load_lora_weights(file_of(files, face, "plain"))
    found = face.draw(pipe)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(kohya)
    assert_close(face.draw(pipe), found, atol=1e-6, rtol=0)
    assert float((found - plain).abs().max()) > 1e-3


def branches() -> tuple[Any, Any]:
    """A control branch of ours, and theirs with the same weights."""
    torch.manual_seed(1)
    branch = SanaControlNetModel.from_transformer(LinearDiT(TRANSFORMER), 2).eval()
    for linear in (branch.input_block, *branch.controlnet_blocks):
        nn.init.normal_(linear.weight, std=0.3)
    theirs = diffusers.SanaControlNetModel(
        **{key: value for key, value in branch.config.items() if not key.startswith("_")}
    ).eval()
    theirs.load_state_dict(branch.state_dict())
    return branch, theirs


@torch.no_grad()
def residuals(branch: Any, scale: float | None = None) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    found = branch(
        hidden_states=torch.randn(2, 4, 2, 3, generator=rng),
        encoder_hidden_states=torch.randn(2, 5, 8, generator=rng),
        timestep=torch.tensor([3, 700]),
        controlnet_cond=torch.randn(2, 4, 2, 3, generator=rng),
        attention_kwargs=None if scale is None else {"scale": scale},
    ).controlnet_block_samples
    return torch.stack(found)


@pytest.mark.parametrize("dora", [False, True])
def test_a_control_branch_takes_adapters_as_there(dora: bool, tmp_path: Path) -> None:
    ours, theirs = branches()
    plain = residuals(ours)
    assert_close(plain, residuals(theirs), atol=1e-5, rtol=1e-5)
    for each in (ours, theirs):
        torch.manual_seed(7)
        each.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k"], use_dora=dora))
        strengthen(each, 2)
    expected = residuals(theirs)
    assert_close(residuals(ours), expected, atol=1e-5, rtol=1e-5)
    assert_close(residuals(ours, 0.5), residuals(theirs, 0.5), atol=1e-5, rtol=1e-5)
    assert float((expected - plain).abs().max()) > 1e-2
    theirs.save_lora_adapter(str(tmp_path / "theirs"))
    read, _ = branches()
    read.load_lora_adapter(tmp_path / "theirs", prefix=None)
    assert_close(residuals(read), expected, atol=1e-5, rtol=1e-5)
    read.disable_lora()
    assert torch.equal(residuals(read), plain)
    read.enable_lora()
    read.fuse_lora()
    assert_close(residuals(read), expected, atol=1e-5, rtol=1e-5)
    read.unload_lora()


def test_scale_weighs_the_adapters_of_the_branch_too(folders: Path) -> None:
    face = PUBLISHED["SanaControlNetPipeline"]
    ours, theirs = face.ours(folders), face.theirs(folders)
    plain = face.draw(ours)
    with pytest.raises(ConfigError, match="no LoRA is loaded"):
        face.draw(ours, attention_kwargs={"scale": 0.5})
    for pipe in (ours, theirs):
        torch.manual_seed(7)
        pipe.controlnet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"]))
        strengthen(pipe.controlnet, 2)
    drawn = [plain]
    for more in ({}, {"attention_kwargs": {"scale": 0.4}}):
        drawn.append(face.draw(ours, **more))
        assert_close(drawn[-1], face.draw(theirs, **more), atol=1e-4, rtol=0)
        assert float((drawn[-1] - drawn[-2]).abs().max()) > 1e-3


def test_a_callback_may_switch_the_adapters_of_the_branch(folders: Path) -> None:
    face = PUBLISHED["SanaControlNetPipeline"]
    ours, theirs = face.ours(folders), face.theirs(folders)

    def off(pipe: Any, index: int, timestep: object, tensors: dict[str, Tensor]) -> dict[str, Any]:
        if index == 0:
            pipe.controlnet.disable_adapters()
        return {}

    drawn = []
    for pipe in (ours, theirs):
        torch.manual_seed(7)
        # Of the keys and values of the text, which are made once for all steps.
        targets = [f"attn2.{name}" for name in ("to_k", "to_v")]
        pipe.controlnet.add_adapter(LoraConfig(r=4, target_modules=targets))
        strengthen(pipe.controlnet, 2)
        drawn.append(face.draw(pipe, callback_on_step_end=off))
    assert_close(drawn[0], drawn[1], atol=1e-4, rtol=0)
