"""Any number of threads on one pipeline: each call draws what it draws alone."""

from __future__ import annotations

import copy
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from sanakit import (
    FlowMatchEulerDiscreteScheduler,
    Pipeline,
    SanaPAGPipeline,
    SanaPipeline,
    UniPCMultistepScheduler,
)
from sanakit.errors import ConfigError
from sanakit.models.transformer import Block
from sanakit.pipeline.adapters import set_adapter
from sanakit.pipeline.placement import changing
from tiny import tiny_components

CALL = {"height": 64, "width": 64, "use_resolution_binning": False, "output_type": "latent"}


def with_lora(pipe: SanaPipeline) -> SanaPipeline:
    generator = torch.Generator().manual_seed(1)
    adapter = {}
    for name in ("attn1.to_q", "attn2.to_v"):
        width = pipe.transformer.get_submodule(f"transformer_blocks.0.{name}").weight.shape[0]
        for half, shape in (("lora_A", (2, width)), ("lora_B", (width, 2))):
            key = f"transformer.transformer_blocks.0.{name}.{half}.weight"
            adapter[key] = torch.randn(shape, generator=generator)
    pipe.load_lora_weights(adapter)
    return pipe


def some_call(index: int) -> dict[str, Any]:
    """Arguments of one call, all of them of its own."""
    chosen = random.Random(index)
    return {
        **CALL,
        "prompt": chosen.choice(["a red apple", "two cats", ["a tree", "a house"]]),
        "num_inference_steps": chosen.choice([1, 2, 4]),
        "guidance_scale": chosen.choice([1.0, 3.0, 7.5]),
        "height": chosen.choice([32, 64, 96]),
        "attention_kwargs": chosen.choice([None, {"scale": 0.3}, {"scale": 0.0}]),
        "output_type": chosen.choice(["latent", "pt", "np"]),
        "negative_prompt": chosen.choice(["", "blurry"]),
    }


def draw(pipes: list[SanaPipeline], index: int, problems: list[str]) -> torch.Tensor:
    """Draw one mixed call; its callback stops some calls and turns guidance off in others."""
    call = some_call(index)
    pipe = pipes[index % len(pipes)]
    if isinstance(pipe, SanaPAGPipeline):
        call["pag_scale"] = [0.0, 3.0][index // len(pipes) % 2]

    def between(running: Any, step: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        if step == 0:
            asked = (call["guidance_scale"], call["num_inference_steps"], call["attention_kwargs"])
            told = (running.guidance_scale, running.num_timesteps, running.attention_kwargs)
            if asked != told:
                problems.append(f"call {index} asked {asked} and is told {told}")
        if index % 3 == 1 and step == 1:
            running._guidance_scale = 0.0
        if index % 5 == 2 and step == 1:
            running._interrupt = True
        return {}

    generator = torch.Generator().manual_seed(index)
    images = pipe(**call, generator=generator, callback_on_step_end=between).images
    return torch.as_tensor(images)


def all_pipelines() -> list[SanaPipeline]:
    plain = with_lora(SanaPipeline(Pipeline(tiny_components())))
    euler, unipc = FlowMatchEulerDiscreteScheduler(shift=3.0), UniPCMultistepScheduler()
    return [
        plain,
        plain,  # more threads on one
        SanaPipeline.from_pipe(plain, scheduler=euler),
        SanaPAGPipeline.from_pipe(plain, scheduler=unipc),
    ]


def compare(count: int, threads: int) -> list[str]:
    """Draw calls alone and among others; give what differs."""
    pipes, problems = all_pipelines(), []
    alone = [draw(pipes, index, problems) for index in range(count)]
    with ThreadPoolExecutor(threads) as pool:
        among = list(pool.map(lambda index: draw(pipes, index, problems), range(count)))
    for index, (one, other) in enumerate(zip(alone, among, strict=True)):
        if not torch.equal(one, other):
            problems.append(f"call {index} differs")
    return problems


def test_mixed_calls_in_twelve_threads_equal_the_same_calls_alone() -> None:
    assert compare(count=48, threads=12) == []


@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloaded_networks_serve_one_thread_at_a_time(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[Block] = []
    at_once: list[int] = []
    run = Block.forward

    def watched(block: Block, *given: Any, **named: Any) -> torch.Tensor:
        inside.append(block)
        at_once.append(len(inside))
        time.sleep(0.001)  # others would come meanwhile
        try:
            return run(block, *given, **named)
        finally:
            inside.remove(block)

    monkeypatch.setattr(Block, "forward", watched)
    pipe = SanaPipeline(Pipeline(tiny_components()))
    getattr(pipe, way)("cpu")

    def one(index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        return pipe("a tree", num_inference_steps=2, generator=generator, **CALL).images

    alone = [one(index) for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        among = list(pool.map(one, range(8)))
    assert set(at_once) == {1}
    assert all(torch.equal(a, b) for a, b in zip(alone, among, strict=True))


def test_a_thread_that_draws_nothing_stops_all_calls_at_work() -> None:
    pipe = SanaPipeline(Pipeline(tiny_components()))
    under_way, stopped, steps = threading.Barrier(3), threading.Event(), []

    def between(running: Any, step: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        if step == 0:
            under_way.wait(10)
            stopped.wait(10)
        steps.append(step)
        return {}

    threads = [
        threading.Thread(
            target=lambda: pipe("a", num_inference_steps=3, callback_on_step_end=between, **CALL)
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    under_way.wait(10)
    pipe.interrupt = True
    stopped.set()
    for thread in threads:
        thread.join()
    assert steps == [0, 0]
    pipe("a", num_inference_steps=3, callback_on_step_end=lambda *a: steps.append(9) or {}, **CALL)
    assert steps == [0, 0, 9, 9, 9]


def test_a_call_within_a_callback_leaves_the_outer_one_its_answers() -> None:
    pipe = SanaPipeline(Pipeline(tiny_components()))
    told = []

    def between(running: Any, step: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        pipe("a preview", num_inference_steps=1, guidance_scale=2.0, **CALL)
        told.append((running.guidance_scale, running.num_timesteps))
        return {}

    pipe("a", num_inference_steps=2, guidance_scale=5.0, callback_on_step_end=between, **CALL)
    assert told == [(5.0, 2)] * 2
    assert pipe.guidance_scale == 5.0


def test_each_thread_is_told_of_its_own_last_call() -> None:
    pipe = SanaPipeline(Pipeline(tiny_components()))

    def drawn(scale: float) -> float:
        pipe("a", num_inference_steps=1, guidance_scale=scale, **CALL)
        both.wait(10)
        return pipe.guidance_scale

    both = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(drawn, [2.0, 3.0])) == [2.0, 3.0]


def test_a_copy_of_a_pipeline_draws_the_same() -> None:
    pipe = SanaPipeline(Pipeline(tiny_components()))
    pictures = [
        each("a", num_inference_steps=1, generator=torch.Generator().manual_seed(0), **CALL).images
        for each in (pipe, copy.deepcopy(pipe))
    ]
    assert torch.equal(*pictures)


CHANGES: dict[str, Callable[[SanaPipeline], object]] = {
    "set_adapters": lambda pipe: pipe.set_adapters("default_0", 0.5),
    "set_adapter": lambda pipe: set_adapter(pipe.transformer, "default_0"),
    "disable_lora": lambda pipe: pipe.disable_lora(),
    "enable_lora": lambda pipe: pipe.enable_lora(),
    "delete_adapters": lambda pipe: pipe.delete_adapters("default_0"),
    "unload_lora": lambda pipe: pipe.unload_lora_weights(),
    "fuse_lora": lambda pipe: pipe.fuse_lora(),
    "unfuse_lora": lambda pipe: pipe.unfuse_lora(),
    "load_lora_adapter": with_lora,
    "another dtype": lambda pipe: pipe.to(torch.bfloat16),
    "moving to meta": lambda pipe: pipe.to("meta"),
    "moving to cpu": lambda pipe: pipe.enable_model_cpu_offload(device="meta"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_parts_that_another_thread_draws_with_are_changed_by_nobody(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = with_lora(SanaPipeline(Pipeline(tiny_components())))
    other = SanaPAGPipeline.from_pipe(pipe)  # of the same parts
    if what == "moving to cpu":  # where the parts are not
        monkeypatch.setattr("sanakit.pipeline.placement._is_at", lambda *_: False)
    refused: list[str] = []

    def between(*_: Any) -> dict[str, Any]:
        with ThreadPoolExecutor(1) as thread, pytest.raises(ConfigError) as caught:
            thread.submit(CHANGES[what], other).result()
        refused.append(str(caught.value))
        return {}

    alone = pipe(**CALL, prompt="a", generator=torch.Generator().manual_seed(0)).images
    seen = pipe(
        **CALL,
        prompt="a",
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=20,
        callback_on_step_end=between,
    ).images
    assert torch.equal(seen, alone)
    assert len(refused) == 20
    assert refused[0].startswith(f"{what} would change the ")
    assert "another thread draws with" in refused[0]


def test_what_changes_nothing_is_no_change_and_a_callback_may() -> None:
    pipe = with_lora(SanaPipeline(Pipeline(tiny_components())))

    def between(running: Any, step: int, *_: Any) -> dict[str, Any]:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: pipe.to("cpu").to(torch.float32)).result()
        running.set_adapters("default_0", 0.5)
        return {}

    pipe(**CALL, prompt="a", num_inference_steps=2, callback_on_step_end=between)
    pipe.set_adapters("default_0")
    with pytest.raises(ZeroDivisionError):
        pipe(**CALL, prompt="a", callback_on_step_end=lambda *_: 1 // 0)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(pipe.fuse_lora).result()
    assert pipe.num_fused_loras == 1


def test_a_call_waits_for_a_change_that_is_at_work() -> None:
    pipe = with_lora(SanaPipeline(Pipeline(tiny_components())))
    order: list[str] = []
    with ThreadPoolExecutor(1) as thread:
        with changing([pipe.transformer], "a change"):
            drawn = thread.submit(lambda: (pipe(**CALL, prompt="a"), order.append("drawn")))
            time.sleep(0.3)
            order.append("changed")
        drawn.result(timeout=60)
    assert order == ["changed", "drawn"]
