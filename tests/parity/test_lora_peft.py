"""Adapters against diffusers over PEFT: what they compute, and what each call makes of the rest."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from torch.testing import assert_close

import sanakit
from sanakit.models.config import TRANSFORMERS, config_to_dict
from sanakit.nn.lora import lora_layers

# PEFT warns of biases, of groups, and of what it makes active.
pytestmark = pytest.mark.filterwarnings("ignore")
FILE = "pytorch_lora_weights.safetensors"
USUAL = ["to_q", "to_k", "to_v", "to_out.0"]
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 2},
    "rslora": {"r": 4, "use_rslora": True},
    "gaussian": {"r": 3, "init_lora_weights": "gaussian"},
    "patterns": {"r": 4, "rank_pattern": {"to_k": 2}, "alpha_pattern": {r"attn1\.to_.": 7}},
    "every linear layer": {"r": 2, "target_modules": r".*(time_embed|caption).*linear.*|proj_out"},
    "not all": {"r": 2, "exclude_modules": ["to_v", r"attn2.to_k"]},
    "bias": {"r": 4, "lora_bias": True, "target_modules": ["to_out.0"]},
    "convolutions": {"r": 4, "target_modules": ["conv_inverted", "conv_point", "patch_embed.proj"]},
    "depthwise": {"r": 80, "target_modules": ["conv_depth"]},
    "DoRA": {"r": 4, "lora_alpha": 6, "use_dora": True},
    "DoRA of convolutions": {"r": 4, "use_dora": True, "target_modules": ["conv_point"]},
}


def pair() -> tuple[Any, Any]:
    """Ours and theirs with the same random weights."""
    torch.manual_seed(0)
    theirs = diffusers.SanaTransformer2DModel(**config_to_dict(TRANSFORMERS["tiny"])).eval()
    ours = sanakit.SanaTransformer2DModel(TRANSFORMERS["tiny"]).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@torch.no_grad()
def answer(network: Any, scale: float | None = None) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    sample: Tensor = network(
        hidden_states=torch.randn(2, 4, 6, 8, generator=rng),
        encoder_hidden_states=torch.randn(2, 5, 8, generator=rng),
        timestep=torch.tensor([3, 700]),
        attention_kwargs=None if scale is None else {"scale": scale},
    ).sample
    return sample


def close(ours: Any, theirs: Any) -> None:
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def config(**settings: Any) -> LoraConfig:
    return LoraConfig(**{"target_modules": USUAL, **settings})


@torch.no_grad()
def trained(ours: Any, theirs: Any, seed: int = 5) -> None:
    """The same numbers, so large that they show, in the adapters of both."""
    rng = torch.Generator().manual_seed(seed)
    others = dict(theirs.named_parameters())
    for name, own in ours.named_parameters():
        if ".lora_" in name and own.requires_grad:
            own.add_(0.2 * torch.randn(own.shape, generator=rng))
            others[name].copy_(own)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_begins_learns_and_acts_as_there(name: str, tmp_path: Path) -> None:
    ours, theirs = pair()
    plain = answer(ours)
    for each in (ours, theirs):
        torch.manual_seed(7)
        each.add_adapter(config(**CONFIGS[name]))
    begun = get_peft_model_state_dict(theirs)
    close(get_peft_model_state_dict(ours), begun)
    learning = {key for key, each in ours.named_parameters() if each.requires_grad}
    assert learning == {key for key, each in theirs.named_parameters() if each.requires_grad}
    trained(ours, theirs)
    expected = answer(theirs)
    close(answer(ours), expected)
    close(answer(ours, 0.5), answer(theirs, 0.5))
    assert float((expected - plain).abs().max()) > 1e-2

    # The file of one is read by the other.
    theirs.save_lora_adapter(tmp_path / "theirs")
    ours.save_lora_adapter(tmp_path / "ours")
    read, also = pair()
    read.load_lora_adapter(tmp_path / "theirs", prefix=None)
    also.load_lora_adapter(str(tmp_path / "ours"), prefix=None, weight_name=FILE)
    close(answer(read), expected)
    close(answer(also), expected)

    if name != "depthwise":
        ours.fuse_lora(0.5)
        ours.unfuse_lora()
        close(answer(ours), expected)
        ours.fuse_lora(0.5)
        theirs.fuse_lora(0.5)
        close(answer(ours), answer(theirs))
        ours.unload_lora()
        theirs.unload_lora()
        close(answer(ours), answer(theirs))


def test_gradients_are_those_of_peft() -> None:
    ours, theirs = pair()
    for each in (ours, theirs):
        torch.manual_seed(7)
        each.add_adapter(config(r=4, use_dora=True))
    trained(ours, theirs)
    for each in (ours, theirs):
        rng = torch.Generator().manual_seed(1)
        sample = each(
            hidden_states=torch.randn(2, 4, 6, 8, generator=rng),
            encoder_hidden_states=torch.randn(2, 5, 8, generator=rng),
            timestep=torch.tensor([3, 700]),
        ).sample
        sample.square().mean().backward()
    expected = {name: each.grad for name, each in theirs.named_parameters() if each.requires_grad}
    found = {name: each.grad for name, each in ours.named_parameters() if each.requires_grad}
    close(found, expected)


def test_a_training_is_taken_up_again_by_functions_of_peft() -> None:
    ours, theirs = pair()
    for each in (ours, theirs):
        each.add_adapter(config(r=4))
    trained(ours, theirs)
    again, _ = pair()
    again.add_adapter(config(r=4))
    left = set_peft_model_state_dict(again, get_peft_model_state_dict(theirs), "default")
    assert not left.unexpected_keys
    close(answer(again), answer(theirs))


def other_names(tensors: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    """The tensors of PEFT as other trainers name them."""
    if form == "kohya":
        return {
            "lora_unet_"
            + name.replace(".lora_A.weight", "").replace(".lora_B.weight", "").replace(".", "_")
            + (".lora_down.weight" if "lora_A" in name else ".lora_up.weight"): tensor
            for name, tensor in tensors.items()
        }
    return {form + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "form",
    ["kohya", "diffusion_model.", "base_model.model.", "transformer.", "model.diffusion_model."],
)
def test_names_of_other_trainers_mean_the_same_layers(form: str) -> None:
    ours, theirs = pair()
    for each in (ours, theirs):
        each.add_adapter(config(r=4, target_modules=[*USUAL, "conv_point", "proj_out"]))
    trained(ours, theirs)
    tensors = get_peft_model_state_dict(theirs)
    read, _ = pair()
    read.load_lora_adapter(other_names(tensors, form))
    read.set_adapters("default_0", 2.0)  # PEFT's alpha is twice this rank, the tensors tell none
    close(answer(read), answer(theirs))


def adapters(seed: int) -> dict[str, Tensor]:
    """Tensors of one of three ranks, so strong that they show."""
    rng = torch.Generator().manual_seed(seed)
    rank, tensors = seed + 1, {}
    for block, layer in ((0, "attn1.to_q"), (1, "attn2.to_out.0")):
        name = f"transformer.transformer_blocks.{block}.{layer}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, 8, generator=rng)
        tensors[f"{name}.lora_B.weight"] = torch.randn(8, rank, generator=rng)
    return tensors


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_calls_leaves_the_same_network(seed: int) -> None:
    rng = random.Random(seed)
    both = pair()
    names: list[str] = []
    fused = disabled = False

    def do(method: str, *given: Any, **named: Any) -> None:
        for network in both:
            getattr(network, method)(*given, **named)

    for number in range(14):
        if fused:  # what PEFT does beside a merge is no promise
            do(rng.choice(["unfuse_lora", "unload_lora"]))
            if not hasattr(both[0], "peft_config"):
                names = []
            fused = False
        move = rng.choice(["load", "load", "weigh", "weigh", "fuse", "delete", "switch", "swap"])
        if not names or move == "load":
            name = f"a{number}"
            do("load_lora_adapter", adapters(number % 3), adapter_name=name)
            names.append(name)
        elif move == "weigh":
            chosen = rng.sample(names, rng.randint(1, len(names)))
            do("set_adapters", chosen, [rng.choice([None, 0.5, -1.0, 2]) for _ in chosen])
        elif move == "fuse" and not disabled:
            do("fuse_lora")
            fused = True
        elif move == "delete":
            name = rng.choice(names)
            do("delete_adapters", name)
            names.remove(name)
        elif move == "switch":
            disabled = not disabled
            do("disable_lora" if disabled else "enable_lora")
        elif move == "swap":
            name = rng.choice(names)
            rank = both[0].peft_config[name].r
            do("load_lora_adapter", adapters(rank - 1), adapter_name=name, hotswap=True)
        close(answer(both[0]), answer(both[1]))
        for layer in lora_layers(both[0]).values():  # nothing is left of what was deleted
            held = (layer.scales, layer.weights, layer.lora_dropout)
            assert all(values.keys() == set(layer.lora_A) for values in held)
        if names:
            assert list(both[0].peft_config) == names
            assert both[0].active_adapters() == list(both[1].active_adapters())
        else:
            disabled = False
            do("unload_lora")


def test_a_copy_and_a_pickle_have_adapters_of_their_own() -> None:
    network, _ = pair()
    plain = answer(network)
    network.load_lora_adapter(adapters(0))
    expected = answer(network)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        close(answer(other), expected)
        other.unload_lora()
        close(answer(other), plain)
    close(answer(network), expected)
