"""Run diffusers' own test files for SANA against the classes of sanakit, and print a table.

    python scripts/run_peer_tests.py FOLDER [--reference] [--binned] [--markdown] [FILE ...]

FOLDER is a checkout of diffusers at the version that is installed; its files are read, never
copied. Before they are collected, the names that they import from diffusers are pointed at ours:
pipelines and networks as they are. The hub's tiny tokenizer and text encoder are made on the
spot, and the one text encoder that has logits for text gives hidden states. ``--reference`` leaves
diffusers' own classes in place, which says whether a checkout and this harness fit each other.
Pictures are drawn at the 32 px that the tests ask for; ``--binned`` draws them at the 1024 px that
the default argument means, which takes long.

What sanakit refuses on purpose is listed in EXPECTED with the reason; any other failure, and any
expected one that passes, makes the exit status 1. docs/parity.md holds the outcome.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import wraps
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may wait for a network

import diffusers
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, processors

import sanakit

FILES = (
    "tests/pipelines/sana/test_sana.py",
    "tests/pipelines/sana/test_sana_sprint.py",
    "tests/pipelines/sana/test_sana_sprint_img2img.py",
    "tests/pipelines/sana/test_sana_controlnet.py",
    "tests/pipelines/pag/test_pag_sana.py",
    "tests/models/transformers/test_models_transformer_sana.py",
    "tests/models/autoencoders/test_models_autoencoder_dc.py",
    "tests/lora/test_lora_layers_sana.py",
)
PASSED, EXPECTED_FAILURE, SKIPPED = "pass", "cannot", "skip"
FAILED, SURPRISE = "FAIL", "FAIL: passes, though listed"

# Pattern of Class::test -> why sanakit does not do what the test asks. First match counts.
EXPECTED = {
    "*::test_loading_with_incorrect_variants_raises_error": "asserts the reference's own sentence",
    "*::test_pag_applied_layers": "reads exchanged attention processors; guidance is data here",
    "*::test_from_save_pretrained_variant": "a folder of one variant alone is loaded as it is",
    "*::test_low_cpu_mem_usage_with_loading": "asks for a pickle of a LoRA; safetensors is written",
    "*::test_simple_inference_with_text_denoiser_lora_save_load": "asks for a pickle of a LoRA",
    "*::test_logs_info_when_no_lora_keys_found": "nothing of the file is a LoRA: an error here",
    "*::test_multiple_wrong_adapter_name_raises_error": "reads the reference's log; ours warns too",
    "*::test_getattr_is_correct": "puts a field of no network into a config",
}


def _tiny_tokenizer() -> transformers.PreTrainedTokenizerBase:
    """Stand in for hf-internal-testing/dummy-gemma: eight tokens, all text is unknown."""
    words = ("<pad>", "<eos>", "<bos>", "<unk>", "a", "b", "c", "d")
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
    )


def _tiny_text_encoder() -> Any:
    """Stand in for hf-internal-testing/dummy-gemma-for-diffusers: eight channels."""
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
    )
    return transformers.Gemma2Model(config).eval()


def _text_encoder_of_captions(config: Any) -> Any:
    """Stand in for a causal model whose logits the PAG file takes for text.

    Ours reads hidden states, as the published checkpoints have them: the same model without its
    head, as wide as those logits.
    """
    config.hidden_size = config.vocab_size
    return transformers.Gemma2Model(config)


def substitutes() -> dict[str, Any]:
    """Give what takes the place of each name of diffusers."""
    return {
        "DiffusionPipeline": sanakit.DiffusionPipeline,
        "SanaPipeline": sanakit.SanaPipeline,
        "SanaControlNetPipeline": sanakit.SanaControlNetPipeline,
        "SanaControlNetModel": sanakit.SanaControlNetModel,
        "SanaPAGPipeline": sanakit.SanaPAGPipeline,
        "SanaSprintPipeline": sanakit.SanaSprintPipeline,
        "SanaSprintImg2ImgPipeline": sanakit.SanaSprintImg2ImgPipeline,
        "SCMScheduler": sanakit.SCMScheduler,
        "SanaTransformer2DModel": sanakit.SanaTransformer2DModel,
        "AutoencoderDC": sanakit.AutoencoderDC,
        "FlowMatchEulerDiscreteScheduler": sanakit.FlowMatchEulerDiscreteScheduler,
    }


def _follow_a_picture(pipeline: type[Any]) -> None:
    """Bring the noise that a test has for a picture into the range of pictures."""
    call = pipeline.__call__

    def clamped(image: Any) -> Any:
        if isinstance(image, list):
            return [clamped(one) for one in image]
        return image.clamp(-1, 1) if isinstance(image, torch.Tensor) else image

    @wraps(call)
    def in_range(self: Any, *given: Any, **named: Any) -> Any:
        for name in {"control_image", "image"} & named.keys():
            named[name] = clamped(named[name])
        return call(self, *given, **named)

    pipeline.__call__ = in_range


def _draw_at_the_size_asked(pipeline: type[Any]) -> None:
    call = pipeline.__call__

    @wraps(call)
    def unbinned(self: Any, *given: Any, **named: Any) -> Any:
        return call(self, *given, **{"use_resolution_binning": False, **named})

    pipeline.__call__ = unbinned


def substitute(*, reference: bool, binned: bool) -> None:
    """Point diffusers' names at ours, and the hub's tiny tokenizer at a local one."""
    _ = diffusers.SanaPipeline  # imports what replaces lazy modules
    if not reference:
        for name, value in substitutes().items():
            setattr(diffusers, name, value)
        # A test listens to the log of what is loaded.
        heard = logging.getLogger("diffusers.pipelines.pipeline_utils")
        logging.getLogger("sanakit.pipeline.components").parent = heard
        # Not `transformers.`: its lazy module is replaced while it is imported.
        sys.modules["transformers"].__dict__["Gemma2ForCausalLM"] = _text_encoder_of_captions
    if not binned:
        _draw_at_the_size_asked(diffusers.SanaPipeline)
        _draw_at_the_size_asked(diffusers.SanaPAGPipeline)
        _draw_at_the_size_asked(diffusers.SanaControlNetPipeline)
        _draw_at_the_size_asked(diffusers.SanaSprintPipeline)
        _draw_at_the_size_asked(diffusers.SanaSprintImg2ImgPipeline)
    _follow_a_picture(diffusers.SanaControlNetPipeline)
    _follow_a_picture(diffusers.SanaSprintImg2ImgPipeline)

    def from_pretrained(name: str, *given: Any, **named: Any) -> Any:
        if str(name) == "hf-internal-testing/dummy-gemma":
            return _tiny_tokenizer()
        return transformers.AutoTokenizer.from_pretrained(name, *given, **named)

    def llm_from_pretrained(name: str, *given: Any, **named: Any) -> Any:
        return (
            _tiny_text_encoder() if "dummy-gemma" in str(name) else load_llm(name, *given, **named)
        )

    transformers.GemmaTokenizer.from_pretrained = from_pretrained
    load_llm = transformers.Gemma2Model.from_pretrained
    transformers.Gemma2Model.from_pretrained = llm_from_pretrained


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one test."""

    file: str
    test: str
    status: str
    why: str


class Recorder:
    """A pytest plugin that keeps the outcome of each test."""

    def __init__(self, *, reference: bool) -> None:
        self.expected = {} if reference else EXPECTED
        self.outcomes: list[Outcome] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep a file that could not be imported as one line."""
        if report.failed:
            self._keep(report.nodeid, "", "failed", _last_line(report.longreprtext))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a test that ran, or was skipped before it did."""
        if report.when == "call" or (report.when == "setup" and not report.passed):
            file, _, test = report.nodeid.partition("::")
            why = "" if report.passed else _reason(report)
            self._keep(file, test, report.outcome, why)

    def _keep(self, file: str, test: str, outcome: str, why: str) -> None:
        said = next((v for k, v in self.expected.items() if fnmatch(test or file, k)), None)
        status = {"passed": PASSED, "skipped": SKIPPED, "failed": FAILED}[outcome]
        if said is not None and status == FAILED:
            status, why = EXPECTED_FAILURE, f"{said} [{why}]"
        elif said is not None and status == PASSED:
            status = SURPRISE
        self.outcomes.append(Outcome(file=file, test=test, status=status, why=why))
        print(f"{len(self.outcomes):4} {status:8}{test or file}", file=sys.stderr, flush=True)


def _reason(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return _last_line(crash.message if crash else report.longreprtext)


def _last_line(text: str) -> str:
    """The first line of an error's own text, which in a traceback comes last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("E").strip() for line in lines if line.startswith("E ")]
    return (errors or lines or [""])[0][:160]


def table(outcomes: list[Outcome], *, markdown: bool) -> Iterator[str]:
    """Give the lines of the table, file by file, with a count for each."""
    for file in dict.fromkeys(outcome.file for outcome in outcomes):
        rows = [outcome for outcome in outcomes if outcome.file == file]
        counts = Counter(row.status for row in rows)
        summary = ", ".join(f"{count} {status}" for status, count in counts.items())
        yield f"\n### `{file}`: {summary}\n" if markdown else f"\n{file}: {summary}"
        if markdown:
            yield "| test | outcome | why |\n|---|---|---|"
        for row in rows:
            cells = (row.test, row.status, row.why.replace("|", "\\|"))
            yield (
                f"| {' | '.join(cells)} |" if markdown else f"  {row.status:8}{row.test}  {row.why}"
            )


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 0 where nothing surprises."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a checkout of diffusers")
    parser.add_argument("files", nargs="*", help=f"in it; default: {' '.join(FILES)}")
    parser.add_argument("--reference", action="store_true", help="run diffusers' own classes")
    parser.add_argument("--binned", action="store_true", help="draw at the trained sizes")
    parser.add_argument("--markdown", action="store_true", help="print tables for docs/parity.md")
    asked = parser.parse_args(arguments)
    files = [asked.folder / name for name in asked.files or FILES]
    for file in files:
        if not file.is_file():
            print(f"{file}: is not there, left out", file=sys.stderr)
    files = [file for file in files if file.is_file()]
    if not files:
        parser.error(f"{asked.folder} holds none of the files: is it a checkout of diffusers?")
    substitute(reference=asked.reference, binned=asked.binned)
    gc.freeze()  # the mixins collect around every test; what is imported need not be searched
    recorder = Recorder(reference=asked.reference)
    options = ["--capture=sys", "-p", "no:cacheprovider"]
    options += ["-p", "no:terminal", f"--rootdir={asked.folder}", f"--config-file={os.devnull}"]
    pytest.main([*options, *map(str, files)], plugins=[recorder])
    print("\n".join(table(recorder.outcomes, markdown=asked.markdown)))
    return int(any(o.status in (FAILED, SURPRISE) for o in recorder.outcomes))


if __name__ == "__main__":
    sys.exit(main())
