"""Loading and saving as users of the ecosystem do it: their names, folders and mistakes."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import sanakit
from sanakit import AutoencoderDC, BitsAndBytesConfig, SanaPipeline, SanaTransformer2DModel
from sanakit.errors import ConfigError, MissingModelError, WeightsError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.published import say_once
from sanakit.models.transformer import LinearDiT
from sanakit.weights.store import read_quantization
from tiny import ROUNDING, TRANSFORMER, assert_same_weights, write_tiny

# The contract: the published example of quantized loading, with this package's name.
SEED = """
import torch
from sanakit import BitsAndBytesConfig as DiffusersBitsAndBytesConfig
from sanakit import SanaTransformer2DModel, SanaPipeline
from transformers import BitsAndBytesConfig as BitsAndBytesConfig, AutoModel
quant_config = BitsAndBytesConfig(load_in_8bit=True)
text_encoder_8bit = AutoModel.from_pretrained(
    MODEL,
    subfolder="text_encoder",
    quantization_config=quant_config,
    torch_dtype=torch.float16,
)
quant_config = DiffusersBitsAndBytesConfig(load_in_8bit=True)
transformer_8bit = SanaTransformer2DModel.from_pretrained(
    MODEL,
    subfolder="transformer",
    quantization_config=quant_config,
    torch_dtype=torch.float16,
)
pipeline = SanaPipeline.from_pretrained(
    MODEL,
    text_encoder=text_encoder_8bit,
    transformer=transformer_8bit,
    torch_dtype=torch.float16,
    device_map="balanced",
)
prompt = "a tiny astronaut hatching from an egg on the moon"
image = pipeline(prompt, **QUICK).images[0]
"""


@pytest.fixture(scope="module")
def pipe(folder: Path) -> SanaPipeline:
    return SanaPipeline.from_pretrained(folder)


def draw(pipe: Any, prompt: str = "a tree") -> np.ndarray:
    settings = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"}
    settings |= {"use_resolution_binning": False, "guidance_scale": 4.5}
    return pipe(prompt, generator=torch.Generator().manual_seed(0), **settings).images


def theirs(folder: Path, **arguments: Any) -> diffusers.SanaPipeline:
    pipe = diffusers.SanaPipeline.from_pretrained(str(folder), **arguments)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_published_example_runs_with_this_packages_name(
    folder: Path, pipe: SanaPipeline
) -> None:
    ran: dict[str, Any] = {"MODEL": str(folder), "QUICK": {"num_inference_steps": 4}}
    exec(SEED, ran)
    picture = np.asarray(ran["image"])
    assert picture.std() > 1
    quantized = ran["pipeline"]
    assert quantized.transformer is ran["transformer_8bit"]
    assert quantized.text_encoder is ran["text_encoder_8bit"]
    held = {p.dtype for p in quantized.text_encoder.parameters()}
    assert held == {torch.int8, torch.bfloat16}  # nothing of it is left in fp16, where it overflows
    assert quantized.transformer.proj_out.weight.dtype == torch.float16
    assert quantized.transformer.transformer_blocks[0].attn2.to_k.weight.dtype == torch.int8
    # Of 2 steps: two int8 products in a row are off by about 1 percent of a picture's range.
    assert np.abs(draw(quantized) - draw(pipe)).max() < 0.05


@pytest.mark.parametrize(("variant", "shards"), [(None, None), ("fp16", "20KB")])
def test_folders_go_both_ways_with_equal_weights_and_pixels(
    tmp_path: Path, pipe: SanaPipeline, variant: str | None, shards: str | None
) -> None:
    sizes = {} if shards is None else {"max_shard_size": shards}
    pipe.save_pretrained(tmp_path / "ours", variant=variant, **sizes)
    reference = theirs(tmp_path / "ours", variant=variant)
    reference.save_pretrained(tmp_path / "theirs", variant=variant, **sizes)
    again = SanaPipeline.from_pretrained(tmp_path / "theirs", variant=variant)
    for saved in ("ours", "theirs"):
        names = {p.name for p in (tmp_path / saved / "transformer").iterdir()}
        index = f"diffusion_pytorch_model.safetensors.index{f'.{variant}' if variant else ''}.json"
        assert (index in names) == (shards is not None)
        assert all(f".{variant}" in name for name in names - {"config.json"}) or variant is None
    assert_same_weights(again, pipe)
    assert_same_weights(theirs(tmp_path / "theirs", variant=variant), reference)
    for drawn in (again, reference):
        np.testing.assert_allclose(draw(drawn), draw(pipe), rtol=0, atol=ROUNDING)


def test_a_variant_that_only_some_parts_have_is_read_where_it_is(
    tmp_path: Path, pipe: SanaPipeline
) -> None:
    pipe.save_pretrained(tmp_path)
    pipe.transformer.save_pretrained(tmp_path / "transformer", variant="fp16")
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    for variant in (None, "fp16"):
        again = SanaPipeline.from_pretrained(tmp_path, variant=variant)
        assert_same_weights(again, pipe)
        np.testing.assert_allclose(draw(again), draw(pipe), rtol=0, atol=ROUNDING)
    with pytest.raises(MissingModelError, match="no part has weights of variant 'bf16'"):
        SanaPipeline.from_pretrained(tmp_path, variant="bf16")
    with pytest.raises(MissingModelError, match=r"no diffusion_pytorch_model\.bf16"):
        SanaTransformer2DModel.from_pretrained(tmp_path, subfolder="transformer", variant="bf16")


def test_each_component_has_the_dtype_it_was_asked_in(folder: Path) -> None:
    half, brain, full = torch.float16, torch.bfloat16, torch.float32
    pipe = SanaPipeline.from_pretrained(
        folder, torch_dtype={"transformer": half, "text_encoder": brain, "default": full}
    )
    assert [m.dtype for m in (pipe.text_encoder,)] == [brain]
    assert {p.dtype for p in pipe.transformer.parameters()} == {half}
    assert {p.dtype for p in pipe.vae.parameters()} == {full}


def test_fp16_for_one_part_by_name_is_honoured_with_one_word(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = torch.float16
    monkeypatch.setattr("sanakit.weights.dtypes.SMALL", 0)
    say_once.cache_clear()
    vae = AutoencoderDC.from_pretrained(folder, subfolder="vae", torch_dtype=half)
    llm = transformers.AutoModel.from_pretrained(folder / "text_encoder", dtype=half)
    pipes = [
        SanaPipeline.from_pretrained(folder, torch_dtype={"vae": half, "text_encoder": half}),
        SanaPipeline.from_pretrained(folder, vae=vae, text_encoder=llm),
        SanaPipeline.from_pretrained(folder),
    ]
    pipes[-1].vae.to(half)
    pipes[-1].text_encoder.to(half)
    for pipe in pipes:
        assert (pipe.transformer.dtype, pipe.vae.dtype) == (torch.float32, half)
        assert pipe.text_encoder.dtype == half
        assert np.isfinite(draw(pipe)).all()
    said = [message for message in caplog.messages if "overflows" in message]
    assert sorted(message.split()[0] for message in said) == ["text_encoder", "vae"]


def test_networks_load_build_and_save_alone_under_their_published_names(
    folder: Path, tmp_path: Path
) -> None:
    transformer = SanaTransformer2DModel.from_pretrained(folder / "transformer")
    assert isinstance(transformer, LinearDiT)
    assert transformer.config == TRANSFORMER
    vae = AutoencoderDC.from_pretrained(str(folder), subfolder="vae")
    assert isinstance(vae, Autoencoder)
    fresh = SanaTransformer2DModel.from_config(
        json.loads((folder / "transformer" / "config.json").read_text())
    )
    assert fresh.state_dict().keys() == transformer.state_dict().keys()
    fresh.save_pretrained(tmp_path / "fresh")
    read = diffusers.SanaTransformer2DModel.from_pretrained(tmp_path / "fresh")
    assert torch.equal(read.proj_out.weight, fresh.proj_out.weight)
    assert SanaTransformer2DModel(num_layers=1, patch_size=2).config.patch_size == 2
    with pytest.raises(ConfigError, match="unknown key num_layer "):
        SanaTransformer2DModel(num_layer=1)
    with pytest.raises(MissingModelError, match=r"holds no config.json\n.*subfolder"):
        SanaTransformer2DModel.from_pretrained(folder)
    with pytest.raises(ConfigError, match="leads out"):
        SanaTransformer2DModel.from_pretrained(folder, subfolder="../transformer")


def test_parts_that_are_passed_are_not_read_from_disk(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    given = SanaPipeline.from_pretrained(folder)
    for part in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(tmp_path / "m" / part)
    again = SanaPipeline.from_pretrained(
        tmp_path / "m",
        transformer=given.transformer,
        vae=given.vae,
        text_encoder=given.text_encoder,
        tokenizer=given.tokenizer,
        scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0},
    )
    assert again.transformer is given.transformer
    assert again.vae is given.vae
    assert again.text_encoder is given.text_encoder
    defaults = again.core.components.defaults
    assert (defaults.scheduler.solver_name, defaults.scheduler.flow_shift) == ("flow-euler", 2.0)
    assert again.core.components.fingerprint == ""


def test_a_scheduler_is_a_solvers_name_or_an_object_with_a_config(folder: Path) -> None:
    named = SanaPipeline.from_pretrained(folder, scheduler="flow-heun").core.components.defaults
    assert (named.scheduler.solver_name, named.scheduler.flow_shift) == ("flow-heun", 3.0)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    held = SanaPipeline.from_pretrained(folder, scheduler=scheduler).core.components.defaults
    assert (held.scheduler.solver_name, held.scheduler.flow_shift) == ("flow-euler", 5.0)
    with pytest.raises(ConfigError, match=r"'flow-hoin' is unknown\n.*did you mean 'flow-heun'"):
        SanaPipeline.from_pretrained(folder, scheduler="flow-hoin")


def test_a_text_encoder_that_would_skip_its_softcap_is_switched_to_eager(folder: Path) -> None:
    llm = transformers.AutoModel.from_pretrained(folder / "text_encoder")
    llm.config._attn_implementation = "sdpa"
    pipe = SanaPipeline.from_pretrained(folder, text_encoder=llm)
    assert llm.config._attn_implementation == "eager"
    assert pipe.text_encoder is llm


@pytest.mark.parametrize("name", ["w8a8", "bnb-int8", "bnb-nf4", "int8", "fp8"])
def test_a_whole_pipeline_is_quantized_while_it_loads(
    name: str, folder: Path, pipe: SanaPipeline
) -> None:
    quantized = SanaPipeline.from_pretrained(folder, quantization_config=name)
    first, second = draw(quantized), draw(pipe)
    assert np.isfinite(first).all()
    assert 0 < np.abs(first - second).max() < (0.35 if name == "bnb-nf4" else 0.05)
    kept = quantized.transformer.time_embed.linear.weight
    assert torch.equal(kept, pipe.transformer.time_embed.linear.weight)
    alone = SanaPipeline.from_pretrained(folder, quantization_config={"transformer": name})
    assert type(alone.text_encoder.layers[0].mlp.up_proj) is torch.nn.Linear
    assert type(alone.text_encoder.layers[0].mlp.up_proj.weight) is torch.nn.Parameter


@pytest.mark.parametrize("name", ["w8a8", "w8a16", "bnb-int8", "bnb-nf4"])
def test_quantized_weights_are_saved_and_read_as_they_are(
    name: str, folder: Path, tmp_path: Path
) -> None:
    quantized = SanaPipeline.from_pretrained(folder, quantization_config=name)
    quantized.save_pretrained(tmp_path / "q")
    stored = read_quantization(tmp_path / "q" / "transformer")
    assert stored is not None
    assert stored.get("load_in_8bit", False) == (name == "bnb-int8")
    again = SanaPipeline.from_pretrained(tmp_path / "q")
    np.testing.assert_array_equal(draw(again), draw(quantized))
    for part in ("transformer", "text_encoder"):
        with pytest.raises(ConfigError, match=f"{part}: is quantized already"):
            SanaPipeline.from_pretrained(tmp_path / "q", quantization_config={part: name})
    path = tmp_path / "q" / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    scale = next(k for k in state if k.endswith(("SCB", "absmax", "weight_scale")))
    owner = scale.removesuffix(".SCB").removesuffix(".weight.absmax").removesuffix(".weight_scale")
    save_file(
        {
            k: v
            for k, v in state.items()
            if not k.startswith(f"{owner}.bias") and k != f"{owner}.weight"
        },
        path,
    )
    with pytest.raises(WeightsError):
        SanaPipeline.from_pretrained(tmp_path / "q")


def test_a_text_encoder_that_transformers_quantized_is_saved_and_read(
    folder: Path, tmp_path: Path
) -> None:
    llm = transformers.AutoModel.from_pretrained(
        folder / "text_encoder", quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    given = SanaPipeline.from_pretrained(folder, text_encoder=llm)
    given.save_pretrained(tmp_path / "q")
    again = SanaPipeline.from_pretrained(tmp_path / "q")
    assert again.text_encoder.layers[0].mlp.up_proj.weight.dtype == torch.int8
    np.testing.assert_array_equal(draw(again), draw(given))


def test_weights_of_torchao_are_refused_before_anything_is_written(
    folder: Path, tmp_path: Path
) -> None:
    for parts in ("transformer", "text_encoder"):
        pipe = SanaPipeline.from_pretrained(folder, quantization_config={parts: "int8"})
        with pytest.raises(ConfigError, match=r"torchao.*no published layout"):
            pipe.save_pretrained(tmp_path / "q")
        assert not (tmp_path / "q").exists()


def test_an_unknown_keyword_names_its_neighbour(folder: Path, pipe: SanaPipeline) -> None:
    for load in (SanaPipeline.from_pretrained, SanaTransformer2DModel.from_pretrained):
        with pytest.raises(ConfigError, match=r"no argument 'varient'\n.*did you mean 'variant'\?"):
            load(folder, varient="fp16")
    with pytest.raises(ConfigError, match=r"did you mean 'max_shard_size'\?"):
        pipe.save_pretrained(folder / "new", max_shard_sise=3)
    with pytest.raises(ConfigError, match="would read pickles"):
        SanaPipeline.from_pretrained(folder, use_safetensors=False)
    with pytest.raises(ConfigError, match="size '5 apples' is none"):
        pipe.save_pretrained(folder / "new", max_shard_size="5 apples")
    assert not (folder / "new").exists()


def rewrite(folder: Path, part: str, change: Any) -> None:
    path = folder / part / "diffusion_pytorch_model.safetensors"
    save_file(change(load_file(path)), path)


def test_weights_of_another_generation_are_named(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "m")
    newer = SanaTransformer2DModel(replace(TRANSFORMER, qk_norm="rms_norm_across_heads"))
    config = (folder / "transformer" / "config.json").read_text()
    old = (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    newer.save_pretrained(folder / "transformer")
    new_config = (folder / "transformer" / "config.json").read_text()
    (folder / "transformer" / "config.json").write_text(config)
    with pytest.raises(WeightsError, match=r"unexpected(.|\n)*these are weights of SANA 1.5"):
        SanaPipeline.from_pretrained(folder)
    (folder / "transformer" / "config.json").write_text(new_config)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(old)
    with pytest.raises(WeightsError, match=r"missing(.|\n)*the config is of SANA 1.5"):
        SanaPipeline.from_pretrained(folder)


def test_what_fails_leaves_nothing_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny(tmp_path / "m")
    rewrite(folder, "vae", lambda state: {k: v[..., :1].contiguous() for k, v in state.items()})
    built: list[weakref.ref[torch.nn.Module]] = []
    start = torch.nn.Module.__init__

    def counted(self: torch.nn.Module, *args: Any, **keywords: Any) -> None:
        start(self, *args, **keywords)
        built.append(weakref.ref(self))

    monkeypatch.setattr(torch.nn.Module, "__init__", counted)
    with pytest.raises(WeightsError, match="shape"):
        SanaPipeline.from_pretrained(folder)
    assert built
    gc.collect()
    assert not [ref() for ref in built if ref() is not None]


def test_parts_of_other_libraries_and_models_are_refused(folder: Path) -> None:
    reference = diffusers.SanaTransformer2DModel.from_pretrained(folder / "transformer")
    with pytest.raises(ConfigError, match="of diffusers"):
        SanaPipeline.from_pretrained(folder, transformer=reference)
    with pytest.raises(ConfigError, match="text_encoder is a Linear"):
        SanaPipeline.from_pretrained(folder, text_encoder=torch.nn.Linear(1, 1))
    wide = SanaTransformer2DModel(replace(TRANSFORMER, caption_channels=12))
    with pytest.raises(ConfigError, match="gives 8 channels, the transformer takes 12"):
        SanaPipeline.from_pretrained(folder, transformer=wide)
    deep = SanaTransformer2DModel(replace(TRANSFORMER, in_channels=8, out_channels=8))
    with pytest.raises(ConfigError, match="autoencoder gives 4 channels, the transformer takes 8"):
        SanaPipeline.from_pretrained(folder, transformer=deep)


def test_the_published_names_are_public() -> None:
    for name in ("SanaTransformer2DModel", "AutoencoderDC", "BitsAndBytesConfig", "TorchAoConfig"):
        assert name in sanakit.__all__
        assert getattr(sanakit, name).__name__ == name


def test_a_dtype_is_refused_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: object, **__: object) -> Path:
        raise AssertionError("asked for the files")

    monkeypatch.setattr("sanakit.pipeline.components.resolve_model", fetched)
    with pytest.raises(ConfigError, match="overflows in float16"):
        SanaPipeline.from_pretrained("sana-1.6b-4k", torch_dtype=torch.float16)


def test_a_pipeline_is_cast_as_it_would_be_loaded(folder: Path) -> None:
    pipe = SanaPipeline.from_pretrained(folder)
    assert pipe.to(torch.float16) is pipe
    # Parts of these sizes do not overflow.
    for part in (pipe.transformer, pipe.text_encoder, pipe.vae):
        assert next(part.parameters()).dtype == torch.float16
    pipe.to("cpu", dtype=torch.float32)
    assert pipe.transformer.dtype == pipe.vae.dtype == torch.float32
    assert pipe.transformer.device == torch.device("cpu")
    quantized = SanaPipeline.from_pretrained(folder, quantization_config="int8")
    with pytest.raises(ConfigError, match="is quantized, its dtype cannot be changed"):
        quantized.to(torch.bfloat16)


def test_what_published_code_writes_is_taken(tmp_path: Path, folder: Path) -> None:
    pipe = SanaPipeline.from_pretrained(folder, low_cpu_mem_usage=True)
    pipe.save_pretrained(tmp_path / "m", safe_serialization=True)
    output = pipe("a tree", height=64, width=64, num_inference_steps=1, output_type="latent")
    assert output[0] is output["images"] is output.images
    assert pipe._callback_tensor_inputs == ["latents", "prompt_embeds", "negative_prompt_embeds"]
    assert not pipe.vae.use_tiling
    assert not pipe.vae.use_slicing
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    assert pipe.vae.use_tiling
    assert pipe.vae.use_slicing
