"""Networks trained in fp16 are computed as they were trained: self-attention ends at 65504.

The tiny network here is loud: what its self-attention gives goes far beyond that.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from command_line import sanakit
from original_files import original_transformer
from sanakit import SanaPAGPipeline, SanaPipeline, SanaTransformer2DModel
from sanakit.errors import ConfigError, NumericsError
from sanakit.models.config import FP16_END, TransformerConfig, config_from_dict, config_to_dict
from sanakit.nn.linear_attention import LinearAttention, clipped
from sanakit.pipeline.components import save_components
from sanakit.weights.catalog import CATALOG, checkpoint_behind
from sanakit.weights.dtypes import as_trained
from tiny import TRANSFORMER, tiny_components

FP16_ROW, BF16_ROW = "Sana_600M_512px", "SANA1.5_1.6B_1024px"
CALL: dict[str, Any] = {
    "prompt": "a red apple",
    "height": 64,
    "width": 64,
    "num_inference_steps": 2,
    "use_resolution_binning": False,
    "output_type": "latent",
}


def in_the_hubs_cache(folder: Path, name: str) -> Path:
    return folder / f"models--Efficient-Large-Model--{name}_diffusers" / "snapshots" / "0123"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loud model where the hub's client keeps one that was published in fp16."""
    folder = in_the_hubs_cache(tmp_path_factory.mktemp("cache"), FP16_ROW)
    made = tiny_components()
    for block in made.transformer.transformer_blocks:
        block.attn1.to_v.weight.data *= 3e3
        block.attn1.to_out[0].weight.data *= 3e3
        # Bounded or not, what is added stays of the size of the tokens.
        block.scale_shift_table.data[2] = 1e-5
    made.transformer.time_embed.linear.weight.data *= 1e-8
    made.transformer.time_embed.linear.bias.data *= 1e-8
    save_components(made, folder)
    return folder


@pytest.fixture(scope="module")
def elsewhere(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files in a folder that tells nothing."""
    return Path(shutil.copytree(published, tmp_path_factory.mktemp("plain") / "model"))


def attentions(pipe: Any) -> list[LinearAttention]:
    return [block.attn1 for block in pipe.transformer.transformer_blocks]


@contextmanager
def cut_by_hand(pipe: Any) -> Iterator[list[float]]:
    """Clip in plain torch what each self-attention projects; gives the largest value there was."""
    loudest: list[float] = []

    def cut(module: nn.Module, given: object, y: Tensor) -> Tensor:
        loudest.append(float(y.abs().max()))
        return torch.minimum(torch.maximum(y.float(), -bound), bound).to(y.dtype)

    bound = torch.tensor(65504.0)
    hooks = [attention.to_out[1].register_forward_hook(cut) for attention in attentions(pipe)]
    yield loudest
    for hook in hooks:
        hook.remove()


def draw(pipe: Any, **more: Any) -> Tensor:
    latent: Tensor = pipe(**CALL, generator=torch.Generator().manual_seed(1), **more).images
    return latent


def ruined(pipe: Any, expected: Tensor) -> bool:
    """Whether another picture comes out, or none: products of LLM.int8() end where fp16 does."""
    try:
        return bool((draw(pipe) - expected).abs().max() > 0.05)
    except NumericsError:
        return True


HOW: dict[str, dict[str, Any]] = {
    "fp32": {"torch_dtype": torch.float32},
    "bf16": {"torch_dtype": torch.bfloat16},
    "bnb-int8": {"torch_dtype": torch.float32, "quantization_config": "bnb-int8"},
    "torchao-int8": {"torch_dtype": torch.bfloat16, "quantization_config": "int8"},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("pag", [False, True])
def test_every_dtype_draws_what_clipped_arithmetic_draws(
    published: Path, elsewhere: Path, how: str, pag: bool
) -> None:
    kind: Any = SanaPAGPipeline if pag else SanaPipeline
    more = {"pag_applied_layers": ["transformer_blocks.0"]} if pag else {}
    plain = kind.from_pretrained(str(elsewhere), **HOW[how], **more)
    with cut_by_hand(plain) as loudest:
        expected = draw(plain)
    assert max(loudest) > 2 * FP16_END
    ours = draw(kind.from_pretrained(str(published), **HOW[how], **more))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert ruined(plain, expected)


def test_bf16_and_int8_draw_the_fp32_picture_within_their_rounding(published: Path) -> None:
    exact, bf16, int8 = (
        draw(SanaPipeline.from_pretrained(published, **HOW[how]))
        for how in ("fp32", "bf16", "bnb-int8")
    )
    scale = exact.std()
    assert (bf16 - exact).std() < 0.03 * scale
    assert (int8 - exact).std() < 0.06 * scale


def test_adapters_and_offload_keep_the_bound(published: Path, tmp_path: Path) -> None:
    pipe = SanaPipeline.from_pretrained(published)
    torch.manual_seed(0)
    lora = {
        f"transformer.transformer_blocks.0.attn1.to_out.0.lora_{side}.weight": torch.randn(shape)
        for side, shape in (("A", (2, 16)), ("B", (16, 2)))
    }
    pipe.load_lora_weights(lora)
    with_adapter = draw(pipe)
    with cut_by_hand(pipe) as loudest:
        torch.testing.assert_close(draw(pipe), with_adapter, rtol=0, atol=0)
    assert max(loudest) > 2 * FP16_END
    attention = attentions(pipe)[0]
    y = torch.randn(1, 4, 16) * 10
    assert float(attention(y).abs().max()) == FP16_END
    pipe.enable_sequential_cpu_offload("cpu")
    torch.testing.assert_close(draw(pipe), with_adapter, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixed", [True, False])
def test_a_layer_is_its_definition_cut_at_the_end(
    dtype: torch.dtype, mixed: bool, rng: torch.Generator
) -> None:
    layer = LinearAttention(2, 8, bias=True, qk_norm=False, dropout=0.0, clip=2.0)
    layer = layer.double().requires_grad_(False)
    x = torch.randn(3, 6, 16, generator=rng, dtype=torch.float64) * 20
    q, k, v = (
        rearrange(each(x), "b n (heads dh) -> b heads n dh", heads=2)
        for each in (layer.to_q, layer.to_k, layer.to_v)
    )
    scores = q.relu() @ k.relu().mT
    y = scores / scores.sum(-1, keepdim=True).clamp_min(1e-15) @ v if mixed else v
    whole = layer.to_out[0](rearrange(y, "b heads n dh -> b n (heads dh)"))
    assert float(whole.abs().max()) > 2.0
    mix = None if mixed else torch.zeros(3, dtype=torch.bool)
    got = layer.to(dtype)(x.to(dtype), mix=mix)
    exact = 1e-9 if dtype == torch.float64 else 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), whole.clamp(-2.0, 2.0), rtol=exact, atol=exact)


def test_fp16_ends_at_its_largest_value_and_other_dtypes_at_the_networks_alone() -> None:
    loud = torch.tensor([[[1e9, -1e9, 1.0]]])
    for clip, end in ((None, FP16_END), (1e6, FP16_END), (2.0, 2.0)):
        assert clipped(loud.half(), clip).flatten().tolist() == [end, -end, 1.0]
    assert torch.equal(clipped(loud, None), loud)
    assert clipped(loud, 1e6).flatten().tolist() == [1e6, -1e6, 1.0]


def test_the_bound_stops_the_gradient_where_it_acts() -> None:
    layer = LinearAttention(1, 4, bias=True, qk_norm=False, dropout=0.0, clip=1.0)
    layer.to_out[0].weight.data.zero_()
    layer.to_out[0].bias.data = torch.tensor([0.5, 3.0, -0.5, -3.0])
    layer(torch.randn(1, 3, 4)).sum().backward()
    torch.testing.assert_close(layer.to_out[0].bias.grad, torch.tensor([3.0, 0.0, 3.0, 0.0]))


def test_rows_of_fp16_have_the_bound_and_no_others() -> None:
    for checkpoint in CATALOG:
        clip = as_trained(TRANSFORMER, checkpoint).attention_clip
        assert (clip == FP16_END) == (checkpoint.dtype == "float16"), checkpoint.alias
    assert as_trained(TRANSFORMER, None).attention_clip is None


def test_a_path_in_the_hubs_cache_is_its_repository(tmp_path: Path) -> None:
    row = checkpoint_behind(in_the_hubs_cache(tmp_path, BF16_ROW))
    assert row is not None
    assert row.alias == "sana1.5-1.6b"
    assert checkpoint_behind("sana-0.6b@main") is checkpoint_behind("sana-0.6b")
    assert checkpoint_behind(tmp_path / "models--nobody--of-that-name") is None


def test_a_saved_folder_keeps_it_and_diffusers_reads_that(
    published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = SanaPipeline.from_pretrained(published)
    pipe.save_pretrained(tmp_path / "saved")
    folder = tmp_path / "saved/transformer"
    assert json.loads((folder / "config.json").read_text())["_attention_clip"] == FP16_END
    again = SanaPipeline.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(draw(again), draw(pipe), rtol=1e-5, atol=1e-5)
    alone = SanaTransformer2DModel.from_pretrained(folder)
    assert alone.config.attention_clip == FP16_END

    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    theirs = diffusers.SanaTransformer2DModel.from_pretrained(folder)
    logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if "not expected" in record.getMessage()]
    theirs.save_pretrained(tmp_path / "theirs")
    back = SanaTransformer2DModel.from_pretrained(tmp_path / "theirs")
    assert back.config.attention_clip == FP16_END, "a turn through diffusers keeps the key"


def test_a_config_without_the_key_is_written_as_it_was_published() -> None:
    assert not [key for key in config_to_dict(TRANSFORMER) if "clip" in key]
    assert config_from_dict(TransformerConfig, {"_other": 1}, source="here").attention_clip is None


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "65504", True, [1]])
def test_a_bound_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="attention_clip"):
        config_from_dict(TransformerConfig, {"_attention_clip": value}, source="here")


# Original files do not say how they were trained: their names do, or their owner.


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (FP16_ROW, (), FP16_END),
        (BF16_ROW, (), None),
        ("mine", (), None),
        ("mine", ("--attention-clip", "65504"), FP16_END),
    ],
)
def test_convert_writes_the_bound(
    name: str, options: tuple[str, ...], expected: float | None, tmp_path: Path
) -> None:
    source, folder = tmp_path / f"{name}.pth", tmp_path / "out"
    torch.save({"state_dict": original_transformer(TRANSFORMER)}, source)
    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(TRANSFORMER)))
    config = ("--config", str(tmp_path / "config.json"))
    out, _ = sanakit("convert", str(source), str(folder), *config, *options)
    read = SanaTransformer2DModel.from_pretrained(folder)
    assert read.config.attention_clip == expected
    assert ("bounded by 65504" in out) == (expected is not None)
    assert ("add --attention-clip 65504" in out) == (name == "mine" and expected is None)


def test_a_folder_of_a_model_says_itself_what_it_is(elsewhere: Path, tmp_path: Path) -> None:
    _, err = sanakit(
        "convert", str(elsewhere), str(tmp_path / "out"), "--attention-clip", "65504", code=2
    )
    assert "--attention-clip is for original files" in err
