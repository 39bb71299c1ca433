"""What is cut off a prompt is told: which words, by every way that a prompt comes, and once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import sanakit
from sanakit import GenerateRequest, Pipeline, SanaPipeline
from sanakit.pipeline.prompts import (
    COMPLEX_HUMAN_INSTRUCTION,
    SHOWN,
    EncodedText,
    PromptCutWarning,
)
from tiny import tiny_components, write_tiny
from tiny_sana import TinySana, tiny_sana

FITS = "a red apple"
LONG = "an apple on a table, " * 45 + "and the end is blue"
CALL: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_inference_steps": 1,
    "output_type": "latent",
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> TinySana:
    return tiny_sana(tmp_path_factory.mktemp("sana"))


@pytest.fixture(scope="module")
def pipe(model: Path) -> SanaPipeline:
    return SanaPipeline.from_pretrained(model)


def told(function: Any, *arguments: Any, **named: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*arguments, **named)
    return [str(each.message) for each in caught if each.category is PromptCutWarning]


def test_what_is_lost_is_the_text_behind_the_last_token_that_is_read() -> None:
    prompts = tiny_components().prompts
    for instruction in (None, COMPLEX_HUMAN_INSTRUCTION):
        behind: dict[str, Any] = {"instruction": instruction}
        cut = prompts.encode([LONG, FITS], max_sequence_length=9, **behind).rows(slice(None))
        whole = prompts.encode([LONG], max_sequence_length=10_000, **behind)
        assert cut.lost[1] == ""
        assert LONG.endswith(cut.lost[0])
        kept = LONG[: -len(cut.lost[0])]
        again = prompts.encode([kept], **behind)
        assert again.mask.sum() == 9, "what is not told as lost is what was read"
        torch.testing.assert_close(cut.text[:1, :9], again.text)
        assert whole.lost == ("",)


@pytest.mark.parametrize("instruction", [None, COMPLEX_HUMAN_INSTRUCTION])
def test_a_call_tells_it(pipe: SanaPipeline, instruction: Any) -> None:
    (message,) = told(pipe, LONG, complex_human_instruction=instruction, **CALL)
    assert message.startswith("the model reads 300 tokens of a prompt, the last ")
    assert message.endswith("and the end is blue'")


def test_a_text_is_told_once_however_often_it_stands(pipe: SanaPipeline) -> None:
    assert len(told(pipe, [LONG, FITS, LONG], num_images_per_prompt=2, **CALL)) == 1
    assert not told(pipe, FITS, **CALL)
    assert len(told(pipe, [LONG, LONG + "!"], **CALL)) == 2


def test_a_negative_prompt_is_told_where_it_acts(pipe: SanaPipeline) -> None:
    (message,) = told(pipe, FITS, negative_prompt=LONG, **CALL)
    assert "of a negative prompt" in message
    assert not told(pipe, FITS, negative_prompt=LONG, guidance_scale=1.0, **CALL)
    (message,) = told(pipe, FITS, negative_prompt="a table with words", compat="nvlabs", **CALL)
    assert "words" in message, "NVlabs' stack reads as much of it as of the prompt"


def test_the_limit_is_the_callers(pipe: SanaPipeline) -> None:
    (message,) = told(pipe, "one two three four", max_sequence_length=3, **CALL)
    assert message.startswith("the model reads 3 tokens")
    assert len(told(pipe.encode_prompt, LONG)) == 1


def test_a_request_of_the_own_pipeline_tells_it(model: Path) -> None:
    request = GenerateRequest(prompt=LONG, count=2, height=64, width=64, num_steps=1)
    assert len(told(Pipeline.load(model).generate, request)) == 1


def test_the_command_says_it_in_a_line(model: Path, tmp_path: Path) -> None:
    small = ("--steps", "1", "--width", "64", "--height", "64", "-m", str(model))
    with pytest.warns(PromptCutWarning) as caught:
        sanakit("generate", LONG, *small, "-o", str(tmp_path / "out.png"))
    (warning,) = caught
    assert "\n" not in str(warning.message)


def test_an_endless_prompt_is_told_in_part(pipe: SanaPipeline) -> None:
    (message,) = told(pipe, LONG * 40, **CALL)
    assert len(message) < 1200
    assert message.endswith(" ...'")
    one = {"text": torch.zeros(1, 1, 8), "mask": torch.ones(1, 1, dtype=torch.bool)}
    for length, end in ((SHOWN, "xx'"), (SHOWN + 1, "xx ...'")):
        text = EncodedText(**one, dropped=(1,), lost=("x" * length,))
        (message,) = told(text.warn_of_lost, "prompt", 300)
        assert message.endswith(end)


@pytest.mark.parametrize("learning", [False, True])
def test_training_tells_the_first_caption_that_is_cut(sana: TinySana, learning: bool) -> None:
    recipe = sana.recipe("max_tokens=4", tune_text=learning)

    def read(*captions: str) -> None:
        if learning:
            assert recipe.llm is not None
            recipe.encoders.texts_with_gradient(recipe.llm, captions, CPU)
        else:
            recipe.encoders.texts(captions, CPU)

    assert not told(read, "red", "")
    (message,) = told(read, "red", "one two three and the end")
    assert "4 tokens of a caption are read" in message
    assert "the end'" in message
    assert not told(read, "another one that is too long")
