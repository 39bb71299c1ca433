"""Adapters that learn: where they are put, how they begin, what is saved of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from sanakit.errors import ConfigError
from sanakit.models.init import init_transformer
from sanakit.models.transformer import LinearDiT
from sanakit.train.recipes.lora import adapter_pairs, add_adapters, merge_pairs
from sanakit.weights.lora import lora_pairs, lora_tensors
from tiny import TRANSFORMER


def transformer() -> LinearDiT:
    model = LinearDiT(TRANSFORMER)
    init_transformer(model, generator=torch.Generator().manual_seed(0))
    return model


def answer(model: LinearDiT) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, 2, 3, generator=rng), torch.randn(2, 5, 8, generator=rng)
    return model.velocity(x, torch.tensor([10.0, 700.0]), text, torch.ones(2, 5, dtype=torch.bool))


def trained(model: LinearDiT) -> LinearDiT:
    """As if it had learned."""
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return model


def test_the_usual_targets_are_all_linear_layers_of_both_attentions() -> None:
    model = transformer()
    names = add_adapters(model, rank=2)
    assert len(names) == 2 * 2 * 4
    assert "transformer_blocks.1.attn2.to_k" in names
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {f"{name}.lora_{side}.lora.weight" for name in names for side in "AB"}
    assert model.state_dict().keys() == learning


def test_it_begins_as_its_base_and_each_layer_of_its_own() -> None:
    model = transformer()
    before = answer(model)
    names = add_adapters(model, rank=8, seed=5)
    assert torch.equal(answer(model), before)
    pairs = adapter_pairs(model.state_dict(), alpha=None)
    downs = torch.stack([pairs[name].down for name in names if "attn1" in name])
    assert float(downs.std()) == pytest.approx(1 / 8, rel=0.1)
    assert not torch.equal(downs[0], downs[1])
    again = transformer()
    add_adapters(again, rank=8, seed=5)
    assert_close(again.state_dict(), model.state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_merged_weights_answer_as_the_adapters_do(alpha: float | None) -> None:
    model = transformer()
    plain = answer(model)
    add_adapters(model, rank=2, alpha=alpha, targets=("to_q", "to_out.0", "proj_out"))
    trained(model)
    pairs = adapter_pairs(model.state_dict(), alpha=alpha)
    assert all(pair.scale == (3 if alpha else 1) for pair in pairs.values())
    assert lora_pairs(lora_tensors(pairs), source="test").keys() == pairs.keys()
    back = lora_pairs(lora_tensors(pairs), source="test")
    assert {name: pair.scale for name, pair in back.items()} == {
        n: p.scale for n, p in pairs.items()
    }
    merged = transformer()
    merge_pairs(merged, pairs)
    assert_close(answer(merged), answer(model), atol=1e-5, rtol=1e-5)
    assert float((answer(model) - plain).detach().abs().max()) > 0.1


def test_adapters_stay_fp32_on_weights_of_16_bits() -> None:
    model = transformer().to(torch.bfloat16)
    add_adapters(model, rank=2)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert model.proj_out.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        answer(model).float().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None for gradient in gradients)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 0}, "lora_rank=0 must be at least 1"),
        ({"rank": 17}, "lora_rank=17: transformer_blocks.0.attn1.to_k is 16 x 16"),
        ({"rank": 2, "targets": ("to_w",)}, "no linear layer is called 'to_w'"),
        ({"rank": 2, "targets": ("ff.conv_point",)}, "a convolution cannot be adapted"),
    ],
)
def test_what_cannot_be_adapted_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        add_adapters(transformer(), **settings)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_the_layers_of_the_hint_are_named_once() -> None:
    deep = LinearDiT(replace(TRANSFORMER, num_layers=12))
    with pytest.raises(ConfigError) as caught:
        add_adapters(deep, rank=2, targets=("to_w",))
    assert caught.value.hint is not None
    assert caught.value.hint.count("attn1.to_q") == 1
