"""Where parts of a model are: placed by memory, moved, or brought in only while they run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sanakit import SanaPipeline
from sanakit.errors import ConfigError
from sanakit.pipeline.placement import balanced, place

SIZES = {"transformer": 30, "text_encoder": 50, "vae": 6}
CPU, FIRST, SECOND = (torch.device(name) for name in ("cpu", "cuda:0", "cuda:1"))


def draw(pipe: SanaPipeline) -> torch.Tensor:
    settings = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "pt"}
    return pipe("a tree", generator=torch.Generator().manual_seed(0), **settings).images.cpu()


def devices(pipe: SanaPipeline) -> dict[str, set[str]]:
    return {
        name: {tensor.device.type for tensor in module.parameters()}
        for name, module in pipe.core.components.networks.items()
    }


def test_the_largest_part_goes_where_most_room_is_and_what_fits_nowhere_stays() -> None:
    assert balanced(SIZES, {FIRST: 60, SECOND: 40}) == {
        "text_encoder": FIRST,
        "transformer": SECOND,
        "vae": FIRST,
    }
    assert balanced(SIZES, {FIRST: 40}) == {
        "text_encoder": CPU,
        "transformer": FIRST,
        "vae": FIRST,
    }
    assert set(balanced(SIZES, {}).values()) == {CPU}


def test_a_share_is_left_free_unless_the_caller_says_what_weights_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sanakit.pipeline.placement.accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(
        "accelerate.utils.get_max_memory", lambda named: named or {0: 100, "cpu": 900}
    )
    for size, limit, expected in [
        (79, None, FIRST),
        (81, None, CPU),
        (99, {0: 100}, FIRST),
        (101, {0: 100}, CPU),
        (79, {"cpu": 900}, CPU),
    ]:
        assert place({"vae": size}, "balanced", limit) == {"vae": expected}


def test_a_map_names_parts_and_a_default() -> None:
    named = place(SIZES, {"vae": "meta", "": "cpu"})
    assert named == {"transformer": CPU, "text_encoder": CPU, "vae": torch.device("meta")}
    assert set(place(SIZES, None).values()) == set(place(SIZES, "cpu").values()) == {CPU}
    with pytest.raises(ConfigError, match="device_map names 'unet'"):
        place(SIZES, {"unet": "cpu"})
    for wrong in ("gpu", "cuda:77"):
        with pytest.raises(ConfigError, match=f"device '{wrong}' cannot be used"):
            place(SIZES, wrong)


def test_a_part_brought_in_for_its_stage_draws_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = SanaPipeline.from_pretrained(folder, device_map="balanced")
    assert pipe.hf_device_map == dict.fromkeys(("text_encoder", "transformer", "vae"), "cpu")
    expected = draw(pipe)
    pipe.enable_model_cpu_offload("cpu")  # what counts is when parts come and go
    moved: list[tuple[str, str]] = []
    names = {id(module): name for name, module in pipe.core.components.networks.items()}
    start = torch.nn.Module.to

    def told(module: torch.nn.Module, *args: object, **keywords: object) -> torch.nn.Module:
        if id(module) in names:
            moved.append((names[id(module)], str(args[0])))
        return start(module, *args, **keywords)

    monkeypatch.setattr(torch.nn.Module, "to", told)
    pipe.core.components.prompts.cache.clear()  # or the text encoder need not come at all
    assert torch.equal(draw(pipe), expected)
    stages = [name for name, _ in moved]
    # The instruction, the prompt behind it and the negative prompt: there and back each.
    assert stages == ["text encoder"] * 6 + ["transformer"] * 2 + ["autoencoder"] * 2
    pipe.to("cpu")
    moved.clear()
    assert torch.equal(draw(pipe), expected)
    assert not moved


def test_layers_brought_in_one_by_one_draw_the_same(folder: Path) -> None:
    pipe = SanaPipeline.from_pretrained(folder)
    expected = draw(pipe)
    pipe.enable_sequential_cpu_offload("cpu")
    for name, module in pipe.core.components.networks.items():
        away = sum(p.numel() for p in module.parameters() if p.is_meta)
        # The tiny LLM is mostly embeddings, which are looked up where they are.
        share = away / sum(p.numel() for p in module.parameters())
        assert share > (0.05 if name == "text encoder" else 0.9)
    assert torch.equal(draw(pipe), expected)
    pipe.to("cpu")
    assert devices(pipe) == {name: {"cpu"} for name in devices(pipe)}
    assert torch.equal(draw(pipe), expected)


def test_parts_in_8_bits_stay_where_they_are(folder: Path) -> None:
    pipe = SanaPipeline.from_pretrained(folder, quantization_config={"transformer": "bnb-int8"})
    expected = draw(pipe)
    with pytest.raises(ConfigError, match="transformer is quantized to 8 bits on cpu"):
        pipe.to("meta")
    for offload in (pipe.enable_model_cpu_offload, pipe.enable_sequential_cpu_offload):
        with pytest.raises(ConfigError, match="the transformer is quantized in a way"):
            offload("cpu")
    assert torch.equal(draw(pipe.to("cpu")), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("way", ["balanced", "model", "sequential"])
def test_on_a_gpu_every_way_draws_nearly_what_the_cpu_does(folder: Path, way: str) -> None:
    expected = draw(SanaPipeline.from_pretrained(folder))
    pipe = SanaPipeline.from_pretrained(
        folder, device_map="balanced" if way == "balanced" else None
    )
    if way == "model":
        pipe.enable_model_cpu_offload()
    elif way == "sequential":
        pipe.enable_sequential_cpu_offload()
    torch.testing.assert_close(draw(pipe), expected, atol=1e-3, rtol=0)
    if way == "model":
        assert devices(pipe) == {name: {"cpu"} for name in devices(pipe)}
