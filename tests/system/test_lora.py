"""LoRA through the whole pipeline, against weights changed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from sanakit import Pipeline, SanaPAGPipeline, SanaPipeline
from sanakit.errors import ConfigError, MissingModelError, UnknownArgumentError, WeightsError
from sanakit.nn.lora import lora_layers
from sanakit.quant.method import method_of
from sanakit.quant.quantize import quantize
from stand_in_hub import serving
from tiny import tiny_components

LAYERS = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn2.to_out.0")


def adapter(seed: int = 0, rank: int = 2, form: str = "{}.lora_{}.weight") -> dict[str, Tensor]:
    """Tensors as a trainer leaves them; so strong that they show."""
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in LAYERS:
        tensors[form.format(layer, "A")] = 3 * torch.randn(rank, 16, generator=rng)
        tensors[form.format(layer, "B")] = 3 * torch.randn(16, rank, generator=rng)
    return tensors


def pipeline(*changes: tuple[dict[str, Tensor], float]) -> SanaPipeline:
    """The tiny model, its weights changed by hand."""
    made = tiny_components()
    for tensors, scale in changes:
        for layer in LAYERS:
            down, up = (tensors[f"{layer}.lora_{kind}.weight"] for kind in "AB")
            made.transformer.get_submodule(layer).weight.add_(scale * up @ down)
    return SanaPipeline(Pipeline(made))


def draw(pipe: SanaPipeline, **more: Any) -> Tensor:
    call = {"height": 64, "width": 64, "num_inference_steps": 3, "output_type": "latent"}
    return pipe("a tree", generator=torch.Generator().manual_seed(0), **call, **more).images


def close(got: Tensor, expected: Tensor) -> None:
    assert_close(got, expected, atol=2e-5, rtol=0)


def test_a_saved_adapter_draws_as_weights_changed_by_hand(tmp_path: Path) -> None:
    pipe = pipeline()
    plain = draw(pipe)
    SanaPipeline.save_lora_weights(tmp_path / "lora", adapter())
    names = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors").keys()
    assert f"transformer.{LAYERS[0]}.lora_A.weight" in names
    pipe.load_lora_weights(tmp_path / "lora", adapter_name="ink")
    close(draw(pipe), draw(pipeline((adapter(), 1.0))))
    assert (draw(pipe) - plain).abs().max() > 1e-2
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe), plain)
    assert not lora_layers(pipe.transformer)


def test_the_scale_of_a_call_lasts_for_the_call() -> None:
    pipe = pipeline()
    plain = draw(pipe)
    pipe.load_lora_weights(adapter())
    close(draw(pipe, attention_kwargs={"scale": 0.25}), draw(pipeline((adapter(), 0.25))))
    assert torch.equal(draw(pipe, attention_kwargs={"scale": 0.0}), plain)
    whole = draw(pipe)
    close(whole, draw(pipeline((adapter(), 1.0))))
    with pytest.raises(ZeroDivisionError):
        draw(
            pipe,
            attention_kwargs={"scale": 0.5},
            callback_on_step_end=lambda p, i, t, tensors: 1 // 0,
        )
    assert torch.equal(draw(pipe), whole)


def test_the_newest_adapter_acts_alone_until_several_are_chosen_and_weighed() -> None:
    pipe = pipeline()
    pipe.load_lora_weights(adapter(0), adapter_name="ink")
    pipe.load_lora_weights(adapter(1, rank=4), adapter_name="gold")
    assert pipe.get_list_adapters() == {"transformer": ["ink", "gold"]}
    close(draw(pipe), draw(pipeline((adapter(1, rank=4), 1.0))))
    pipe.set_adapters(["ink", "gold"], [0.5, -0.25])
    both = draw(pipeline((adapter(0), 0.5), (adapter(1, rank=4), -0.25)))
    close(draw(pipe), both)
    pipe.fuse_lora()
    close(draw(pipe), both)
    pipe.unfuse_lora()
    pipe.set_adapters("gold")
    close(draw(pipe), draw(pipeline((adapter(1, rank=4), 1.0))))


def test_a_merge_is_cast_moved_kept_and_taken_back() -> None:
    pipe = pipeline()
    layer = pipe.transformer.get_submodule(LAYERS[0])
    before = layer.weight.detach().clone()
    pipe.load_lora_weights(adapter(), "ink")
    pipe.fuse_lora(adapter_names=["ink"])
    merged = layer.weight.detach().clone()
    assert pipe.fused_loras == {"ink"}
    pipe.to(torch.bfloat16)
    assert torch.equal(layer.weight, merged.to(torch.bfloat16))
    pipe.unfuse_lora()
    assert pipe.num_fused_loras == 0
    assert torch.equal(layer.weight, before.to(torch.bfloat16))
    pipe.fuse_lora()
    merged = layer.weight.detach().clone()
    pipe.unload_lora_weights()
    assert torch.equal(pipe.transformer.get_submodule(LAYERS[0]).weight, merged)
    assert not lora_layers(pipe.transformer)
    assert pipe.get_list_adapters() == {}


def test_a_merge_that_is_not_finite_changes_no_layer() -> None:
    pipe = pipeline()
    pipe.load_lora_weights(adapter() | {f"{LAYERS[1]}.alpha": torch.tensor(1e38)})
    before = draw(pipe, attention_kwargs={"scale": 0.0})
    with pytest.raises(ConfigError, match="not finite"):
        pipe.fuse_lora(lora_scale=100)
    assert pipe.num_fused_loras == 0
    pipe.disable_lora()
    assert torch.equal(draw(pipe), before)


def test_weights_are_by_component_and_by_layer(caplog: pytest.LogCaptureFixture) -> None:
    def changed(first: float, second: float) -> Tensor:
        scaled = adapter()
        for layer, factor in zip(LAYERS, (first, second), strict=True):
            scaled[f"{layer}.lora_A.weight"] *= factor
        return draw(pipeline((scaled, 1.0)))

    pipe = pipeline()
    pipe.load_lora_weights(adapter(), "ink")
    pipe.set_adapters("ink", {"transformer": 0.5, "text_encoder": 2.0})
    close(draw(pipe), changed(0.5, 0.5))
    assert "text_encoder do nothing" in caplog.text
    pipe.set_adapters(["ink"], [{"transformer": {"attn1": 0.25, "transformer_blocks.1": -1}}])
    close(draw(pipe), changed(0.25, -1.0))
    pipe.set_adapters(["ink"], np.float32(0.5))  # type: ignore[arg-type]
    close(draw(pipe), changed(0.5, 0.5))
    pipe.set_adapters(["ink"], [None])
    close(draw(pipe), changed(1.0, 1.0))
    nan = float("nan")
    for wrong in (nan, [nan], ["much"], [{"transformer": nan}], {"transformer": {"attn": 1.0}}):
        with pytest.raises(ConfigError):
            pipe.set_adapters("ink", wrong)
    with pytest.raises(ConfigError, match="twice"):
        pipe.set_adapters(["ink", "ink"])
    close(draw(pipe), changed(1.0, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_is_undone_to_the_bit(dtype: torch.dtype) -> None:
    pipe = pipeline()
    pipe.transformer.to(dtype)
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    pipe.load_lora_weights(adapter())
    beside = draw(pipe, attention_kwargs={"scale": 0.5})
    pipe.fuse_lora(lora_scale=0.5)
    if dtype == torch.float32:
        close(draw(pipe), beside)
    assert not torch.equal(
        pipe.transformer.get_submodule(LAYERS[0]).weight, before[LAYERS[0] + ".weight"]
    )
    pipe.unfuse_lora()
    after = pipe.transformer.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_an_adapter_is_a_copy_and_carries_none_itself() -> None:
    pipe = pipeline()
    given = adapter()
    pipe.load_lora_weights(given, "ink")
    before = draw(pipe)
    given[f"{LAYERS[0]}.lora_A.weight"].zero_()
    assert torch.equal(draw(pipe), before)
    inside = f"{LAYERS[0]}.lora_A.ink"
    with pytest.raises(WeightsError, match="is missing"):
        pipe.load_lora_weights(
            {
                f"{inside}.lora_A.weight": torch.ones(1, 16),
                f"{inside}.lora_B.weight": torch.ones(2, 1),
            }
        )


def test_pipelines_that_share_a_transformer_share_its_adapters() -> None:
    pipe = pipeline()
    strong = SanaPAGPipeline.from_pipe(pipe)
    pipe.load_lora_weights(adapter())
    expected = SanaPAGPipeline.from_pipe(pipeline((adapter(), 1.0)))
    close(draw(strong), draw(expected))


def test_alpha_is_read_from_every_place_that_trainers_leave_it(tmp_path: Path) -> None:
    expected = draw(pipeline((adapter(), 0.5)))
    in_file = tmp_path / "metadata.safetensors"
    config = {"transformer.r": 2, "transformer.lora_alpha": 1}
    prefixed = {f"transformer.{name}": value for name, value in adapter().items()}
    save_file(prefixed, in_file, {"lora_adapter_metadata": json.dumps(config)})
    alphas = {f"{layer}.alpha": torch.tensor(1.0) for layer in LAYERS}
    raw = adapter(form="base_model.model.{}.lora_{}.default.weight")
    old = {
        name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): value
        for name, value in adapter().items()
    }
    for source in (in_file, adapter() | alphas, raw | alphas, old | alphas):
        pipe = pipeline()
        pipe.load_lora_weights(source)
        close(draw(pipe), expected)
    SanaPipeline.save_lora_weights(tmp_path, adapter() | alphas)
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", framework="pt") as file:
        written = json.loads(file.metadata()["lora_adapter_metadata"])
    assert written["transformer.lora_alpha"] == 1.0
    pipe = pipeline()
    pipe.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    close(draw(pipe), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {f"{LAYERS[0]}.lora_A.weight": torch.zeros(2, 17)},
            r"times \(2, 17\), the model has .*\(2, 16\)",
        ),
        ({f"{LAYERS[0]}.lora_B.weight": torch.zeros(16, 3)}, r"lora_B \(16, 3\)"),
        ({"transformer_blocks.7.attn1.to_q.lora_A.weight": torch.zeros(2, 16)}, "has only down"),
        ({f"{LAYERS[0]}.lora_magnitude_vector": torch.zeros(15)}, r"magnitude \(15,\)"),
        ({"text_encoder.q.lora_A.weight": torch.zeros(2, 16)}, "no part of a LoRA"),
        ({"whatever": torch.zeros(2)}, "no part of a LoRA"),
        (
            {
                "transformer_blocks.0.ff.conv_point.lora_A.weight": torch.zeros(2, 41),
                "transformer_blocks.0.ff.conv_point.lora_B.weight": torch.zeros(16, 2),
            },
            "conv_point is made for",
        ),
        ({f"{LAYERS[0]}.alpha": torch.zeros(3)}, r"alpha of transformer.* is \(3,\)"),
        ({f"{LAYERS[0]}.alpha": torch.tensor(torch.nan)}, "not finite"),
        ({f"{LAYERS[0]}.hada_w1_a": torch.zeros(2)}, "hada is another method"),
    ],
)
def test_an_adapter_that_does_not_fit_changes_nothing(change: dict[str, Tensor], said: str) -> None:
    pipe = pipeline()
    with pytest.raises(WeightsError, match=said):
        pipe.load_lora_weights(adapter() | change)
    assert pipe.get_list_adapters() == {}


def test_what_makes_no_sense_without_or_with_an_adapter_is_refused(tmp_path: Path) -> None:
    pipe = pipeline()
    draw(pipe, attention_kwargs={"scale": 1.0})
    with pytest.raises(ConfigError, match="no LoRA is loaded"):
        draw(pipe, attention_kwargs={"scale": 0.5})
    with pytest.raises(ConfigError, match="scale='much'"):
        draw(pipe, attention_kwargs={"scale": "much"})
    with pytest.raises(ConfigError, match="no LoRA is loaded"):
        pipe.fuse_lora()
    with pytest.raises(MissingModelError, match="no such file"):
        pipe.load_lora_weights(tmp_path / "nothing")
    with pytest.raises(MissingModelError, match="has no pytorch_lora_weights"):
        pipe.load_lora_weights(tmp_path)
    pipe.load_lora_weights(adapter(), adapter_name="ink")
    for scale in (float("nan"), float("inf"), "much"):
        with pytest.raises(ConfigError, match="scale="):
            draw(pipe, attention_kwargs={"scale": scale})
    with pytest.raises(ConfigError, match="'ink' is taken"):
        pipe.load_lora_weights(adapter(), adapter_name="ink")
    with pytest.raises(ConfigError, match="did you mean 'ink'"):
        pipe.set_adapters("inc")
    with pytest.raises(ConfigError, match="2 adapter_weights for 1"):
        pipe.set_adapters("ink", [1.0, 2.0])
    pipe.fuse_lora()
    with pytest.raises(ConfigError, match="merged into the weights"):
        draw(pipe, attention_kwargs={"scale": 0.5})
    with pytest.raises(ConfigError, match="ink is merged"):
        pipe.set_adapters("ink", 0.5)


def written(adapter: dict[str, Tensor], folder: Path) -> bytes:
    file = folder / "adapter.safetensors"
    save_file(adapter, file)
    return file.read_bytes()


def test_a_repository_of_the_hub_is_asked_for_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ink, gold = (written(adapter(seed), tmp_path) for seed in range(2))
    peft = written(adapter(2, form="base_model.model.{}.lora_{}.weight"), tmp_path)
    files = {"ink.safetensors": ink, "gold.safetensors": gold, "README.md": b"a card"}
    files |= {
        "deep/adapter_model.safetensors": peft,
        "deep/adapter_config.json": b'{"lora_alpha": 1, "use_rslora": true}',
    }
    with serving(tmp_path / "cache", monkeypatch) as hub:
        hub.publish("someone/inks", files)
        pipe = pipeline()
        with pytest.raises(MissingModelError, match="it holds gold"):
            pipe.load_lora_weights("someone/inks")
        pipe.load_lora_weights("someone/inks", weight_name="ink.safetensors")
        close(draw(pipe), draw(pipeline((adapter(), 1.0))))
        assert len(hub.downloaded()) == 1
        pipe.load_lora_weights("someone/inks", "deep", subfolder="deep", token=None)
        close(draw(pipe), draw(pipeline((adapter(2), 2**-0.5))))
        with pytest.raises(MissingModelError, match="no repository"):
            pipe.load_lora_weights("someone/else")
    pipe = pipeline()
    pipe.load_lora_weights("someone/inks", weight_name="ink.safetensors", local_files_only=True)
    with pytest.raises(MissingModelError, match="holds ink"):
        pipe.load_lora_weights(
            "someone/inks", "gold", weight_name="gold.safetensors", local_files_only=True
        )
    with pytest.raises(UnknownArgumentError, match="did you mean 'weight_name'"):
        pipe.load_lora_weights(adapter(), "gold", weights_name="gold.safetensors")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_adapters_act_on_a_pipeline_that_is_offloaded(when: str, offload: str) -> None:
    magnitude = {f"{LAYERS[0]}.lora_magnitude_vector": torch.linspace(0.5, 2, 16)}
    pipe = pipeline()
    pipe.load_lora_weights(adapter() | magnitude)
    expected = draw(pipe)
    pipe = pipeline()
    if when == "before":
        pipe.load_lora_weights(adapter() | magnitude)
    getattr(pipe, f"enable_{offload}_cpu_offload")("cpu")
    if when == "after" and offload == "sequential":
        with pytest.raises(WeightsError, match="needs its real weights"):
            pipe.load_lora_weights(adapter() | magnitude)
        pipe.load_lora_weights(adapter())
        close(draw(pipe), draw(pipeline((adapter(), 1.0))))
        with pytest.raises(ConfigError, match="offloaded"):
            pipe.fuse_lora()
        pipe.unload_lora_weights()
        close(draw(pipe), draw(pipeline()))
        return
    if when == "after":
        pipe.load_lora_weights(adapter() | magnitude)
    close(draw(pipe), expected)
    pipe.to("cpu")
    close(draw(pipe), expected)


@pytest.mark.parametrize("kind", ["bnb-int8", "bnb-nf4", "int8"])
def test_adapters_act_beside_quantized_weights(kind: str) -> None:
    made = tiny_components()
    quantize(made.transformer, method_of(kind), always_keep=("proj_out",), dtype=torch.float32)
    layer = made.transformer.get_submodule(LAYERS[0])
    pipe = SanaPipeline(Pipeline(made))
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    before = layer(x)
    pipe.load_lora_weights(adapter(), "ink")
    down, up = (adapter()[f"{LAYERS[0]}.lora_{side}.weight"] for side in "AB")
    assert_close(layer(x), before + x @ down.T @ up.T, atol=1e-4, rtol=1e-5)
    draw(pipe)
    with pytest.raises(ConfigError, match="quantized"):
        pipe.fuse_lora()
    with pytest.raises(WeightsError, match="real weights"):
        pipe.load_lora_weights(
            adapter() | {f"{LAYERS[0]}.lora_magnitude_vector": torch.ones(16)}, "gold"
        )
    pipe.unload_lora_weights()
    assert torch.equal(layer(x), before)


def test_a_compiled_or_an_absent_transformer_is_known(caplog: pytest.LogCaptureFixture) -> None:
    pipe = pipeline()
    network = pipe.transformer
    pipe.transformer = torch.compile(network, backend="eager")
    pipe.load_lora_weights(adapter(), "ink")
    assert pipe.get_list_adapters() == {"transformer": ["ink"]}
    assert lora_layers(network).keys() == set(LAYERS)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe = pipeline()
    pipe.transformer = None
    assert (pipe.get_list_adapters(), pipe.get_active_adapters()) == ({}, [])
    pipe.unload_lora_weights()
    with pytest.raises(ConfigError, match="has no transformer"):
        pipe.load_lora_weights(adapter())


def test_a_model_is_written_without_adapters_and_with_what_is_merged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = SanaPipeline.from_pretrained("glyph")
    name = "transformer_blocks.0.attn1.to_q"
    before = pipe.transformer.get_submodule(name).weight.clone()
    tensors = {f"{name}.lora_{side}.weight": torch.eye(384)[:4] for side in "A"}
    tensors[f"{name}.lora_B.weight"] = torch.eye(384)[:, :4]
    pipe.load_lora_weights(tensors)
    pipe.transformer.save_pretrained(tmp_path / "beside")
    assert "are not written" in caplog.text
    caplog.clear()
    pipe.fuse_lora()
    pipe.transformer.save_pretrained(tmp_path / "merged")
    assert not caplog.text
    file = "diffusion_pytorch_model.safetensors"
    beside, merged = (load_file(tmp_path / each / file) for each in ("beside", "merged"))
    assert beside.keys() == merged.keys()
    assert torch.equal(beside[f"{name}.weight"], before)
    change = torch.diag((torch.arange(384) < 4).float())
    assert_close(merged[f"{name}.weight"], before + change, atol=1e-6, rtol=0)
