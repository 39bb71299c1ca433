"""Parts of a pipeline: absent where None was given, exchanged where they are set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC as ReferenceAutoencoder
from torch import Tensor

from sanakit import Pipeline, SanaPAGPipeline, SanaPipeline
from sanakit.errors import ConfigError
from tiny import tiny_components

CALL: dict[str, Any] = {"num_inference_steps": 2, "height": 64, "width": 64}
NAMES = ("prompt_embeds", "prompt_attention_mask")
NEGATIVE = tuple(f"negative_{name}" for name in NAMES)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def draw(pipe: SanaPipeline, prompt: str | None = "a tree", **more: Any) -> Tensor:
    return pipe(prompt, generator=seeded(), **CALL, **({"output_type": "pt"} | more)).images


@pytest.fixture
def pipe() -> SanaPipeline:
    return SanaPipeline(Pipeline(tiny_components()))


def test_prompts_are_encoded_first_and_drawn_by_a_pipeline_without_their_encoder(
    folder: Path,
) -> None:
    writer = SanaPipeline.from_pretrained(folder, transformer=None, vae=None)
    assert writer.transformer is writer.vae is None
    encoded = dict(zip((*NAMES, *NEGATIVE), writer.encode_prompt("a tree"), strict=True))
    painter = SanaPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
    assert painter.text_encoder is painter.tokenizer is None
    assert list(painter.core.components.networks) == ["transformer", "autoencoder"]
    whole = SanaPipeline.from_pretrained(folder)
    expected = draw(whole, complex_human_instruction=None)
    torch.testing.assert_close(draw(painter, None, **encoded), expected, atol=1e-5, rtol=0)
    negative = {name: encoded[name] for name in NAMES}
    for arguments in ({"prompt": "a tree"}, {"prompt": None, **negative}):
        with pytest.raises(ConfigError, match=r"no (tokenizer|text_encoder): it was made") as found:
            draw(painter, **arguments)
        assert "negative_prompt_embeds" in str(found.value)
    assert draw(painter, None, guidance_scale=1.0, **negative).shape == (1, 3, 64, 64)


def test_what_is_missing_is_said_before_any_step(folder: Path) -> None:
    without = SanaPipeline.from_pretrained(folder, vae=None)
    assert draw(without, output_type="latent").shape == (1, 4, 2, 2)
    steps: list[int] = []
    with pytest.raises(ConfigError, match="no vae: it was made with vae=None"):
        draw(without, callback_on_step_end=lambda p, i, t, k: steps.append(i))
    assert not steps
    with pytest.raises(ConfigError, match="no transformer"):
        draw(SanaPipeline.from_pretrained(folder, transformer=None))


def test_a_saved_tokenizer_is_of_a_class_that_older_transformers_have(
    pipe: SanaPipeline, tmp_path: Path
) -> None:
    """Exporters to ONNX come with them."""
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text("utf-8"))
    settings = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text("utf-8"))
    assert index["tokenizer"] == ["transformers", "PreTrainedTokenizerFast"]
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = SanaPipeline.from_pretrained(tmp_path)
    assert again.tokenizer("a red apple")["input_ids"] == pipe.tokenizer("a red apple")["input_ids"]


def test_a_pipeline_without_parts_is_moved_offloaded_and_saved(
    folder: Path, tmp_path: Path
) -> None:
    pipe = SanaPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
    pipe.enable_model_cpu_offload(device="cpu")
    pipe.to("cpu", torch.float32)
    pipe.save_pretrained(tmp_path)
    again = SanaPipeline.from_pretrained(tmp_path)
    assert again.text_encoder is again.tokenizer is None
    assert again.components.keys() == pipe.components.keys()
    other = SanaPAGPipeline(**again.components)
    assert other.text_encoder is None
    assert other.transformer is again.transformer


def test_parts_that_are_set_draw_and_are_checked(pipe: SanaPipeline) -> None:
    whole = draw(pipe)
    shared = SanaPipeline.from_pipe(pipe)
    changed = tiny_components().transformer
    torch.nn.init.zeros_(changed.proj_out.weight)
    pipe.transformer = changed
    assert pipe.transformer is changed
    assert not torch.equal(draw(pipe), whole)
    assert torch.equal(draw(shared), whole)
    pipe.transformer = shared.transformer
    assert torch.equal(draw(pipe), whole)
    encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
    pipe.text_encoder = pipe.tokenizer = None
    with pytest.raises(ConfigError, match="no tokenizer"):
        draw(pipe)
    pipe.text_encoder, pipe.tokenizer = encoder, tokenizer
    assert torch.equal(draw(pipe), whole)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("vae", torch.nn.Linear(1, 1), "vae is of type Linear of torch"),
        ("transformer", "mine", "transformer is of type str"),
        ("vae", ReferenceAutoencoder, "vae is of type "),
        ("scheduler", object(), "is no scheduler"),
    ],
)
def test_what_is_no_such_part_cannot_be_set(
    pipe: SanaPipeline, part: str, value: Any, said: str
) -> None:
    before = getattr(pipe, part)
    with pytest.raises(ConfigError, match=said):
        setattr(pipe, part, value)
    assert getattr(pipe, part) == before


def test_a_name_that_is_no_part_is_refused(pipe: SanaPipeline) -> None:
    with pytest.raises(ConfigError, match="register_modules has no argument 'unet'"):
        pipe.register_modules(unet=None)


def test_a_part_that_is_set_is_offloaded_as_those_before(pipe: SanaPipeline) -> None:
    pipe.enable_model_cpu_offload(device="cpu")
    pipe.text_encoder = tiny_components().prompts.text_encoder.llm
    assert hasattr(pipe.text_encoder, "_hf_hook")
    pipe.to("cpu")
    pipe.text_encoder = tiny_components().prompts.text_encoder.llm
    assert not hasattr(pipe.text_encoder, "_hf_hook")
