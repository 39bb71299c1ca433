"""LoRA files name the linear layers they adapt: ours have the published names and shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from diffusers import SanaTransformer2DModel
from torch import nn

from sanakit.models.config import TRANSFORMERS, config_to_dict
from sanakit.models.transformer import LinearDiT

TINY = TRANSFORMERS["tiny"]
QK: dict[str, str] = {"qk_norm": "rms_norm_across_heads"}
VARIANTS = {
    "1.0": TINY,
    "1.5": replace(TINY, **QK),
    "Sprint": replace(TINY, guidance_embeds=True, **QK),
}
# What the published trainers adapt when nobody says.
USUAL = ("to_q", "to_k", "to_v")


def linear_layers(model: nn.Module) -> dict[str, tuple[int, int, bool]]:
    return {
        name: (layer.in_features, layer.out_features, layer.bias is not None)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_every_layer_that_a_lora_file_may_name_is_here_in_the_same_shape(name: str) -> None:
    config = VARIANTS[name]
    theirs = linear_layers(SanaTransformer2DModel(**config_to_dict(config)))
    assert linear_layers(LinearDiT(config)) == theirs
    adapted = [layer for layer in theirs if layer.rpartition(".")[2] in USUAL]
    assert len(adapted) == config.num_layers * 2 * len(USUAL)
