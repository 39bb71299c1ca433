"""A kept prompt is forgotten whenever the text encoder may compute otherwise than before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

from sanakit import SanaPipeline
from sanakit.models.stamp import checksum_of, settings_of
from sanakit.models.text_encoder import TextEncoder
from sanakit.pipeline.prompts import PromptCache, PromptEncoder
from sanakit.quant.method import method_of
from sanakit.quant.quantize import quantize
from tiny import tiny_components, write_tiny

INSTRUCTION = ["Draw what is said: "]


def made() -> PromptEncoder:
    prompts = tiny_components().prompts
    adapter = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, r=2)
    prompts.text_encoder.llm.add_adapter(adapter)
    return prompts


def embeddings(llm: Any) -> nn.Embedding:
    found: nn.Embedding = llm.get_input_embeddings()
    return found


def halved(module: nn.Module, given: object, output: Tensor) -> Tensor:
    return output / 2


def written_past_torch(llm: Any) -> None:
    llm.norm.weight.data.add_(1)


def an_embedding_through_data(llm: Any) -> None:
    embeddings(llm).weight.data[7] += 0.25


def rows_exchanged(llm: Any) -> None:
    weight = embeddings(llm).weight.data
    weight[[7, 8]] = weight[[8, 7]].clone()


def written_by_numpy(llm: Any) -> None:
    values = np.asarray(llm.norm.weight.detach().numpy())
    values += 1


def a_state_loaded(llm: Any) -> None:
    torch.manual_seed(5)
    llm.load_state_dict({k: v + torch.randn_like(v) for k, v in llm.state_dict().items()})


def a_layer_replaced(llm: Any) -> None:
    llm.layers[1].mlp.act_fn = nn.ReLU()


def a_buffer(llm: Any) -> None:
    llm.rotary_emb.inv_freq.data.mul_(3)


CHANGES: list[Callable[[Any], object]] = [
    written_past_torch,
    an_embedding_through_data,
    rows_exchanged,
    written_by_numpy,
    a_state_loaded,
    a_layer_replaced,
    a_buffer,
    lambda llm: llm.norm.weight.add_(1),
    lambda llm: llm.disable_adapters(),
    lambda llm: llm.delete_adapter("default"),
    lambda llm: llm.layers[0].self_attn.q_proj.set_scale("default", 0.1),
    lambda llm: llm.layers[0].self_attn.q_proj.lora_B["default"].weight.data.zero_(),
    lambda llm: llm.to(torch.bfloat16),
    lambda llm: llm.norm.register_forward_hook(halved),
    lambda llm: setattr(llm.norm, "forward", torch.tanh),
    lambda llm: setattr(llm.norm, "eps", 0.5),
    lambda llm: setattr(llm.layers[0].self_attn, "scaling", 9.0),
    lambda llm: setattr(llm.config, "sliding_window", 2),
    lambda llm: quantize(llm, method_of("bnb-int8"), dtype=torch.float32),
    lambda llm: quantize(llm, method_of("int8"), dtype=torch.float32),
]


@pytest.mark.parametrize("kept", [2**20, 0], ids=["prompts", "instructions"])
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_nothing_is_kept_over_a_change(change: Callable[[Any], object], kept: int) -> None:
    encoder = made()
    encoder.cache = PromptCache(prompt_bytes=kept)
    for instruction in (None, INSTRUCTION):
        encoder.encode(["a cat"], instruction=instruction)
    change(encoder.text_encoder.llm)
    plain = PromptEncoder(encoder.tokenizer, encoder.text_encoder, cache=PromptCache.off())
    for instruction in (None, INSTRUCTION):
        got = encoder.encode(["a cat"], instruction=instruction)
        expected = plain.encode(["a cat"], instruction=instruction)
        torch.testing.assert_close(got.text, expected.text, rtol=1e-4, atol=1e-5)


def test_an_encoder_in_the_place_of_another_begins_anew() -> None:
    encoder = tiny_components().prompts
    before = encoder.encode(["a cat"], instruction=None)
    other = copy.deepcopy(encoder.text_encoder.llm)
    other.norm.weight.data.add_(1)
    encoder.text_encoder = TextEncoder(other)
    after = encoder.encode(["a cat"], instruction=None)
    assert not torch.allclose(before.text, after.text)


def test_a_pipelines_own_parts_are_seen(tmp_path: Any) -> None:
    pipe = SanaPipeline.from_pretrained(write_tiny(tmp_path))
    first = pipe.encode_prompt("a cat")[0]
    pipe.text_encoder.norm.weight.data.add_(1)
    assert not torch.equal(pipe.encode_prompt("a cat")[0], first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (64, 33)])
def test_any_single_number_changes_the_sum(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    holder = nn.Module()
    storage = torch.ones(1 + int(np.prod(shape)), dtype=dtype)
    # Not at a multiple of eight bytes, as tensors of a mapped file may be.
    holder.register_buffer("held", storage[1:].view(shape))
    held = holder.get_buffer("held")
    before = checksum_of(holder)
    assert checksum_of(holder) == before
    for place in {0, held.numel() // 3, held.numel() // 2, held.numel() - 1}:
        for value in (2, -1):  # a sign is the highest bit of a word, which an even weight loses
            held.view(-1)[place] = value
            assert checksum_of(holder) != before
        held.view(-1)[place] = 1
    assert checksum_of(holder) == before


def test_using_a_network_changes_no_setting() -> None:
    encoder = made()
    before = settings_of(encoder.text_encoder.llm)
    encoder.encode(["a cat"], instruction=INSTRUCTION)
    assert settings_of(encoder.text_encoder.llm) == before


def test_each_dtype_of_autocast_is_a_setting() -> None:
    llm = made().text_encoder.llm
    found = {settings_of(llm)}
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            found.add(settings_of(llm))
    assert len(found) == 3
    assert settings_of(llm) in found
    assert settings_of(llm.to("meta")) not in found
