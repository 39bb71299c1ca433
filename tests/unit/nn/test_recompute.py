"""What training layers keep, and that keeping less changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

from sanakit.models import transformer as transformer_module
from sanakit.models.config import TRANSFORMERS
from sanakit.models.transformer import Block, LinearDiT
from sanakit.nn import cpu, linear_attention, mix_ffn
from sanakit.nn.cpu import PointConv
from sanakit.nn.linear_attention import (
    LinearAttention,
    relu_linear_attention,
    trained_linear_attention,
)
from sanakit.nn.mix_ffn import MixFFN
from sanakit.nn.recompute import product_dtype, recomputed

CONFIG = replace(TRANSFORMERS["tiny"], num_layers=2)


def directly(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return function(*inputs)


def keep_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (mix_ffn, transformer_module):
        monkeypatch.setattr(module, "recomputed", directly)


@pytest.fixture
def keep_all(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to have all layers keep what they compute, as a plain implementation does."""

    def switch() -> None:
        keep_wide(monkeypatch)
        plain = linear_attention.relu_linear_attention
        monkeypatch.setattr(linear_attention, "trained_linear_attention", plain)

    return switch


def kept(compute: Callable[[], Tensor], *free: Tensor) -> list[tuple[int, ...]]:
    """Shapes of all different tensors that a computation keeps for its gradients.

    ``free`` are those that are there anyway, such as weights.
    """
    found: dict[int, Tensor] = {}
    there = {tensor.untyped_storage().data_ptr() for tensor in free}

    def note(tensor: Tensor) -> Tensor:
        where = tensor.untyped_storage().data_ptr()
        if where not in there:
            found[where] = tensor
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        output = compute()
    del output
    return [tuple(tensor.shape) for tensor in found.values()]


def gradients(module: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad]))


def transformer(rng: torch.Generator) -> LinearDiT:
    model = LinearDiT(CONFIG)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng) / parameter[0].numel() ** 0.5
    return model


def velocity(model: LinearDiT, rng: torch.Generator) -> Tensor:
    x = torch.randn(2, 4, 3, 5, generator=rng)
    text = torch.randn(2, 6, CONFIG.caption_channels, generator=rng)
    mask = torch.arange(6) < torch.tensor([[4], [6]])
    return model.velocity(x, torch.tensor([10.0, 700.0]), text, mask)


@pytest.mark.parametrize("layout", ["tokens", "plain", "cut"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_over_channels_is_the_1x1_convolution(
    layout: str, bias: bool, rng: torch.Generator
) -> None:
    ours, theirs = PointConv(6, 10, bias=bias), nn.Conv2d(6, 10, 1, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    whole = torch.randn(2, 4, 5, 7, generator=rng)
    x = {
        "tokens": torch.randn(2, 4, 5, 6, generator=rng).movedim(-1, 1),
        "plain": torch.randn(2, 6, 4, 5, generator=rng),
        "cut": whole[..., 1:].movedim(-1, 1),
    }[layout].requires_grad_()
    results = []
    for module in (ours, theirs):
        y = module(x)
        weights = [x, *module.parameters()]
        results.append([y, *torch.autograd.grad(y.square().sum(), weights)])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)
    assert repr(ours) == repr(theirs).replace("Conv2d", "PointConv")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_computing_twice_gives_the_same_bits_as_keeping(
    dtype: torch.dtype, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = transformer(rng)
    results = []
    for switch in (lambda patch: None, keep_wide):
        switch(monkeypatch)
        again = torch.Generator().manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            predicted = velocity(model, again)
        results.append([predicted, *gradients(model, predicted.float().square().mean())])
    for twice, once in zip(*results, strict=True):
        assert torch.equal(twice, once)


def test_a_checkpointed_block_gives_the_same_bits_too(rng: torch.Generator) -> None:
    model = transformer(rng)
    results = []
    for model.gradient_checkpointing in (False, True):
        predicted = velocity(model, torch.Generator().manual_seed(3))
        results.append(gradients(model, predicted.square().mean()))
    assert all(torch.equal(once, twice) for once, twice in zip(*results, strict=True))


def test_the_mix_ffn_keeps_its_input_and_one_wide_map(rng: torch.Generator) -> None:
    ffn = MixFFN(4, 10)
    x = torch.randn(2, 3, 5, 4, generator=rng).movedim(-1, 1)
    assert sorted(kept(lambda: ffn(x), *ffn.parameters())) == [(2, 20, 3, 5), (30, 4)]


def test_linear_attention_keeps_query_key_value_and_result_once(rng: torch.Generator) -> None:
    attention = LinearAttention(3, 4, bias=False, qk_norm=False, dropout=0.0)
    x = torch.randn(2, 7, 12, generator=rng)
    assert len(kept(lambda: attention(x), *attention.parameters())) == 5  # and the input


def heads_of(rng: torch.Generator, *shape: int) -> list[Tensor]:
    """Queries, keys, values and a gradient; the first query and key see nothing."""
    q, k, v, g = torch.randn(4, *shape, generator=rng, dtype=torch.float64)
    q[0, 0, 0], k[0, 0, 0] = -1.0, -1.0
    return [q, k, v, g]


def test_the_gradients_of_trained_attention_are_those_of_finite_differences(
    rng: torch.Generator,
) -> None:
    q, k, v, _ = heads_of(rng, 2, 2, 5, 3)
    # A query that sees nothing divides by eps alone, too little for differences.
    inputs = [x.requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: trained_linear_attention(*x, eps=0.1), inputs)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 17, 4), (2, 3, 4, 8)])
@pytest.mark.parametrize("cached", [1, 2 * 2 * 17 * 4, 10**6])  # samples at a time: 1, 2, all
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)],  # its last digit
)
def test_trained_attention_is_attention_with_the_same_gradients(
    shape: tuple[int, ...],
    cached: int,
    dtype: torch.dtype,
    tolerance: float,
    rng: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "CACHED", cached)
    *inputs, gradient = (x.to(dtype) for x in heads_of(rng, *shape))
    results = []
    for attend in (trained_linear_attention, relu_linear_attention):
        # As a layer has them: heads cut from one width, their rows not one after another.
        leaves = [x.movedim(1, 2).contiguous().movedim(2, 1).requires_grad_() for x in inputs]
        y = attend(*leaves)
        results.append([y, *torch.autograd.grad(y, leaves, gradient)])
    for ours, plain in zip(*results, strict=True):
        assert ours.dtype == dtype
        scale = float(plain.detach().abs().max()) or 1.0
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance * scale)


def test_trained_attention_keeps_its_inputs_alone(rng: torch.Generator) -> None:
    q, k, v, _ = (x.clone().requires_grad_() for x in heads_of(rng, 2, 2, 5, 3))
    assert len(kept(lambda: trained_linear_attention(q, k, v))) == 3
    assert len(kept(lambda: relu_linear_attention(q, k, v))) > 6


def test_a_block_keeps_less_than_half_of_what_it_computes(
    rng: torch.Generator, keep_all: Callable[[], None]
) -> None:
    block = Block(CONFIG)
    x, text = torch.randn(2, 12, 8, generator=rng), torch.randn(2, 2, 8, generator=rng)
    time = torch.randn(2, 48, generator=rng)

    def size() -> int:
        shapes = kept(
            lambda: block(x, text, None, None, time, (3, 4), None), *block.parameters(), x, text
        )
        return sum(torch.Size(shape).numel() for shape in shapes)

    less = size()
    keep_all()
    assert less < 0.5 * size()


def test_a_product_at_the_end_runs_once(rng: torch.Generator) -> None:
    calls = []

    class Noted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            calls.append("end")
            return y

    linear = Noted(3, 3)
    x = torch.randn(2, 3, generator=rng, requires_grad=True)
    recomputed(lambda x: linear(x.sin()), x).sum().backward()
    assert calls == ["end"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
def test_without_gradients_forward_derivatives_go_through(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distillation takes them; a layer that keeps nothing must not wrap what it computes."""
    ffn = MixFFN(4, 10)
    x, tangent = torch.randn(2, 1, 4, 3, 3, generator=rng)
    monkeypatch.setattr("sanakit.nn.recompute.checkpoint", None)
    with torch.no_grad():
        with forward_ad.dual_level():
            along = forward_ad.unpack_dual(ffn(forward_ad.make_dual(x, tangent))).tangent
        step = 1e-2
        ahead, behind = (ffn(x + s * tangent) for s in (step, -step))
    torch.testing.assert_close(along, (ahead - behind) / (2 * step), rtol=0.01, atol=1e-3)


def test_within_autocast_products_share_one_cast() -> None:
    x = torch.ones(1, 2, 8)
    assert product_dtype(x) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert product_dtype(x) == torch.bfloat16
        assert product_dtype(x.double()) == torch.float64  # autocast leaves it alone
    block = Block(CONFIG)
    seen = []
    block.attn1.to_q.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    block.ff.conv_inverted.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        block(x, torch.ones(1, 1, 8), None, None, torch.ones(1, 48), (1, 2), None)
    assert [inputs.dtype for inputs in seen] == [torch.bfloat16, torch.bfloat16]


def test_sums_of_linear_attention_keep_fp32_digits_within_autocast(rng: torch.Generator) -> None:
    q, k, v = torch.randn(3, 1, 1, 4096, 8, generator=rng).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = relu_linear_attention(q, k, v)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, relu_linear_attention(q, k, v))


def test_tokens_lie_one_after_another_between_blocks(rng: torch.Generator) -> None:
    model = transformer(rng)
    seen = []
    for block in model.transformer_blocks:
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    velocity(model, rng)
    assert [x.is_contiguous() for x in seen] == [True, True]
