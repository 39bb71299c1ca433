"""Where a processor would emulate 16-bit products they are fp32; the weights stay as they are."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from sanakit import SanaPipeline
from sanakit.models.tiling import Tiling
from sanakit.nn import processor
from sanakit.nn.processor import HALF, has_units
from sanakit.nn.wide_products import WideProducts, wide_products
from sanakit.pipeline.components import Components
from sanakit.train.loop import train
from tiny import tiny_components, write_tiny
from tiny_sana import tiny_sana

BF16 = torch.bfloat16


@pytest.fixture
def small_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without units for 16 bits."""

    def none(dtype: torch.dtype) -> bool:
        return dtype not in HALF

    monkeypatch.setattr(processor, "has_units", none)
    monkeypatch.setattr("sanakit.train.distributed.network.has_units", none)


class Recorder(TorchFunctionMode):
    """Notes the dtypes of the products that reach torch."""

    def __init__(self) -> None:
        self.dtypes: set[torch.dtype] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.__name__ in WideProducts.products:
            self.dtypes |= {a.dtype for a in args if isinstance(a, Tensor)} - {torch.bool}
        return func(*args, **(kwargs or {}))


@contextmanager
def products() -> Iterator[set[torch.dtype]]:
    with Recorder() as recorder:
        yield recorder.dtypes


def in_bf16() -> Components:
    made = tiny_components()
    for network in made.networks.values():
        network.to(BF16)
    return made


OPERANDS = {
    "conv2d": (F.conv2d, (2, 3, 6, 6), (4, 3, 3, 3)),
    "linear": (F.linear, (5, 8), (4, 8)),
    "matmul": (torch.matmul, (2, 5, 8), (8, 3)),
    "at": (torch.Tensor.__matmul__, (5, 8), (8, 3)),
    "bmm": (torch.bmm, (2, 5, 8), (2, 8, 3)),
}


@pytest.mark.parametrize("name", OPERANDS)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.usefixtures("small_processor")
def test_a_product_is_the_fp32_one_rounded_once(name: str, dtype: torch.dtype) -> None:
    function, *shapes = OPERANDS[name]
    x, w = (torch.randn(shape).to(dtype) for shape in shapes)
    with wide_products(w):
        got = function(x, w)
        mixed = function(x.float(), w)
    exact = function(x.float(), w.float())
    torch.testing.assert_close(got, exact.to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(mixed, exact, rtol=0, atol=0)


@pytest.mark.usefixtures("small_processor")
def test_masked_attention_is_widened_too() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 8).to(BF16)
    keep = torch.tensor([[True, True, True, False, False]])
    with wide_products(q):
        got = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=keep)
    torch.testing.assert_close(got, exact.to(BF16), rtol=0, atol=0)


@pytest.mark.usefixtures("small_processor")
def test_no_16_bit_product_is_left_in_drawing(tmp_path: Path) -> None:
    pipe = SanaPipeline.from_pretrained(write_tiny(tmp_path), torch_dtype=BF16)
    with products() as seen:
        pipe("a red apple", height=64, width=64, num_inference_steps=2, output_type="pt")
    assert seen == {torch.float32}
    assert {p.dtype for p in pipe.transformer.parameters()} == {BF16}


@pytest.mark.usefixtures("small_processor")
def test_no_16_bit_product_is_left_in_a_part_alone() -> None:
    parts = in_bf16()
    vae, latent = parts.autoencoder, torch.randn(1, 4, 4, 4).to(BF16)
    tiling = Tiling(64, 64, 48, 48, exact=True)
    with products() as seen:
        image = vae.decode(latent).sample
        vae.encode(image)
        tiles = []
        for tile in vae.decode_tiles(latent, tiling):
            tiles.append(tile.values)
            assert seen == {torch.float32}
            torch.ones(2, 2, dtype=BF16) @ torch.ones(2, 2, dtype=BF16)
            assert BF16 in seen, "what the caller computes between is the caller's"
            seen.remove(BF16)
        vae.decode_blended(latent, tiling)
        parts.prompts.encode(["a cat"], instruction=None)
        parts.prompts.encode(["a cat"], instruction=["Say: "])
    assert len(tiles) > 1
    assert seen == {torch.float32}


@pytest.mark.usefixtures("small_processor")
@torch.no_grad()
def test_a_velocity_is_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    model = in_bf16().transformer
    x = torch.randn(2, 4, 6, 6, generator=generator).to(BF16)
    text = model.prepare_text(torch.randn(2, 3, 8, generator=generator).to(BF16))
    time = torch.tensor([500.0, 200.0]).to(BF16)
    fp32 = copy.deepcopy(model).float()
    wide_text = tree_map_only(Tensor, Tensor.float, text)
    expected = fp32.velocity(x.float(), time.float(), wide_text, None)
    assert text.states.dtype == BF16
    for stripe in (4, 1000):
        monkeypatch.setattr("sanakit.nn.inference.STRIPE", stripe)
        found = model.velocity(x, time, text, None)
        assert found.dtype == BF16
        torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-5)
    # Of 32-bit inputs it is the same, with no rounding at all.
    found = model.velocity(x.float(), time.float(), wide_text, None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_processor")
@pytest.mark.parametrize("learns", [True, False])
def test_what_gradients_keep_stays_in_16_bits(learns: bool) -> None:
    model, seen = in_bf16().transformer, []
    model.transformer_blocks[0].register_forward_hook(lambda _, given, y: seen.append(y.dtype))
    x, text = torch.randn(1, 4, 2, 2).to(BF16), torch.randn(1, 3, 8).to(BF16)
    with torch.set_grad_enabled(learns):
        assert model(x, text, torch.tensor([500.0])).sample.dtype == BF16
    assert seen == [BF16 if learns else torch.float32]


@pytest.mark.usefixtures("small_processor")
def test_recomputed_gradients_are_those_of_the_first_run() -> None:
    def gradients(*, again: bool) -> list[Tensor]:
        model = in_bf16().transformer.requires_grad_(True)
        model.gradient_checkpointing = again
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 4, 2, 2, generator=generator).to(BF16)
        text = torch.randn(1, 3, 8, generator=generator).to(BF16)
        model(x, text, torch.tensor([500.0]).to(BF16)).sample.float().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    with products() as seen:
        kept, recomputed = gradients(again=False), gradients(again=True)
    torch.testing.assert_close(recomputed, kept, rtol=0, atol=0)
    assert seen == {torch.float32}


@pytest.mark.usefixtures("small_processor")
@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_training_chooses_alike(
    base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:

    recipe, loop, _ = tiny_sana(tmp_path).run(
        "compute_dtype=bfloat16", "total_images=8", f"base_dtype={base}", lora=2
    )
    with products() as seen:
        train(recipe, loop, tmp_path / "run", resume=False, report=lambda line: None)
    assert seen <= {torch.float32, torch.float64}
    assert "would emulate bfloat16: products are fp32" in caplog.text


def test_units_are_asked_for_where_the_library_may_use_them() -> None:
    code = (
        "import torch; from sanakit.nn.processor import has_units; print(has_units(torch.bfloat16))"
    )
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    told = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **limits}, capture_output=True, text=True
    )
    assert told.stdout.strip() == "False", told.stderr


def test_what_has_units_is_computed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_units(torch.float32)
    monkeypatch.setattr(processor, "has_units", lambda dtype: True)
    with products() as seen:
        in_bf16().autoencoder.decode(torch.randn(1, 4, 1, 1).to(BF16))
    assert BF16 in seen


COMPILED = """
import torch
from dataclasses import replace
from sanakit.models.config import TRANSFORMERS
from sanakit.models.transformer import LinearDiT

config = replace(TRANSFORMERS["tiny"], attention_clip=0.01)
for dtype, apart in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
    model = LinearDiT(config).requires_grad_(False).to(dtype)
    given = torch.randn(1, 4, 2, 2), torch.randn(1, 3, 8), torch.tensor([500.0])
    given = [each.to(dtype) for each in given]
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected, found = model(*given).sample, compiled(*given).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=apart)
"""


@pytest.mark.slow
def test_a_network_is_still_compiled_as_one_graph() -> None:
    # In a process of its own: the checks of types that tests run under are no part of a graph.
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.usefixtures("small_processor")
def test_weights_follow_each_other_in_one_buffer() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, 6, 6, generator=generator).to(BF16)
    weights = [
        torch.randn(*shape, generator=generator).to(BF16)
        for shape in [(4, 8, 3, 3), (8, 8, 1, 1), (16, 8, 3, 3)]
    ]
    weights.append(weights[0].to(memory_format=torch.channels_last))
    weights.append(weights[2].transpose(2, 3))
    weights.append(weights[0].repeat(4, 4, 1, 1)[:, ::4])  # with gaps
    exact = [F.conv2d(x.float(), w.float()).to(BF16) for w in weights]
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet(), WideProducts() as mode:
            found = [F.conv2d(x, weight=w) for w in weights] + [F.conv2d(x, w) for w in weights]
            assert mode.buffer.numel() == weights[2].numel()
        for one, known in zip(found, exact * 2, strict=True):
            torch.testing.assert_close(one, known, rtol=0, atol=0)


@pytest.mark.usefixtures("small_processor")
def test_weights_that_gradients_need_are_kept() -> None:
    first, second = (torch.randn(4, 4).to(BF16).requires_grad_() for _ in range(2))
    x = torch.randn(3, 4).to(BF16).requires_grad_()
    with WideProducts():
        F.linear(F.linear(x, first), second).sum().backward()
    wide = [each.detach().float().requires_grad_() for each in (x, first, second)]
    F.linear(F.linear(wide[0], wide[1]), wide[2]).sum().backward()
    torch.testing.assert_close(x.grad.float(), wide[0].grad, rtol=0.02, atol=0.1)
