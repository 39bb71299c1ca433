"""Every line that a user of published pipelines has written: the same words, two libraries.

Each function in `usage/` is a few lines of a user's program that take the library as an argument,
which is what "change the import" means. They run with diffusers and with sanakit on the same tiny
folder, and what they return is to be equal.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import diffusers.utils
import jaxtyping
import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

import sanakit
from places import Places
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import save_components
from tiny import TRANSFORMER, tiny_components

pytestmark = pytest.mark.filterwarnings("ignore")  # what they say is tested elsewhere

HERE = Path(__file__).parent / "usage"
TOLERANCE = 1e-5

# Snippet -> words that the refusal says, which are what to write instead.
REFUSED = {
    "schedulers.dpm_stochastic": "solvers here add no noise",
}
# Snippet -> why the reference's answer is not ours; it runs here all the same.
PADDING = "rows of padding, which no mask lets through, are zeros here"
SIGNATURE = "an argument more, and the instruction's default says that it is the model's own"
OTHERWISE = {
    "schedulers.flow_euler_from_config": "the reference falls back to shift 1, ours keeps it",
    "adapters.under_pag": "the reference's PAG pipeline loads no LoRA",
    "schedulers.keys_of_others_carried_along": "the shift is carried over under both names; the "
    "reference falls back to 1",
    "callbacks.guidance_turned_off_half_way": "the reference keeps its mask of two rows and fails",
    "callbacks.guidance_changed": "the reference's loop reads a local variable",
    "calls.defaults_of_the_call": SIGNATURE,
    "calls.defaults_of_the_pag_call": SIGNATURE,
    "calls.default_instruction_is_the_published_one": SIGNATURE,
    "calls.order_of_the_call": SIGNATURE,
    "calls.encoded_by_keywords": PADDING,
    "calls.encoded_for_several": PADDING,
    "calls.encoded_texts": PADDING,
    "calls.encoded_without_guidance": PADDING,
    "calls.several_of_two": "the reference repeats masks in another order than texts",
    "memory.sequential_offload_on_cpu": "the reference needs an accelerator",
    "memory.vae_slicing": "the reference has the switch on the autoencoder alone",
    "memory.vae_slicing_off": "the reference has the switch on the autoencoder alone",
    "memory.vae_tiling": "the reference has the switch on the autoencoder alone",
}


class Reference:
    """diffusers, with the few helpers that it keeps elsewhere beside its classes."""

    def __getattr__(self, name: str) -> Any:
        return getattr(diffusers, name, None) or getattr(diffusers.utils, name)


def snippets() -> Iterator[Any]:
    for path in sorted(HERE.glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"usage_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, value in vars(module).items():
            own = inspect.isfunction(value) and value.__module__ == module.__name__
            if own and not name.startswith("_"):
                yield pytest.param(value, f"{path.stem}.{name}", id=f"{path.stem}-{name}")


def write_lora(model: Path, folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    network = diffusers.SanaTransformer2DModel.from_pretrained(str(model), subfolder="transformer")
    network.add_adapter(
        LoraConfig(
            r=2, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]
        )
    )
    layers = get_peft_model_state_dict(network)
    diffusers.SanaPipeline.save_lora_weights(str(folder), transformer_lora_layers=layers)
    return str(folder)


@pytest.fixture(autouse=True)
def no_types_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checker of array types cannot be compiled."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    model = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    transformer = (
        LinearDiT(replace(TRANSFORMER, num_layers=3, sample_size=32)).eval().requires_grad_(False)
    )
    torch.nn.init.ones_(transformer.caption_norm.weight)
    save_components(replace(tiny_components(), transformer=transformer), model)
    first, second = (write_lora(model, tmp_path_factory.mktemp("lora"), seed) for seed in (1, 2))
    return Places(str(model), first, second, Path(), None)


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    if isinstance(theirs, torch.Tensor | np.ndarray | Image.Image):
        left, right = (
            np.asarray(one.detach() if isinstance(one, torch.Tensor) else one)
            for one in (ours, theirs)
        )
        assert left.shape == right.shape, where
        # A value between two levels may fall on either.
        off = 1 if right.dtype == np.uint8 else TOLERANCE
        np.testing.assert_allclose(
            left.astype(np.float64), right.astype(np.float64), atol=off, rtol=1e-5, err_msg=where
        )
    elif isinstance(theirs, Mapping):
        assert list(ours) == list(theirs), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), where
        for i, (left, right) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(left, right, f"{where}[{i}]")
    else:
        assert ours == theirs, where


@pytest.mark.parametrize(("snippet", "name"), list(snippets()))
def test_the_same_words_give_the_same(
    snippet: Any, name: str, places: Places, tmp_path: Path
) -> None:
    libraries = {"ours": sanakit, "theirs": Reference()}
    for library in libraries:
        (tmp_path / library).mkdir()
    torch.manual_seed(0)
    at = replace(places, folder=tmp_path / "ours", other_library=libraries["theirs"])
    if name in REFUSED:
        with pytest.raises(Exception, match=REFUSED[name]):
            snippet(sanakit, at)
        return
    ours = snippet(sanakit, at)
    torch.manual_seed(0)
    at = replace(places, folder=tmp_path / "theirs", other_library=sanakit)
    if name in OTHERWISE:  # a reason that no longer holds is to be taken away
        with pytest.raises(Exception):  # noqa: B017, PT011 - that of the reference, or a difference
            assert_same(ours, snippet(libraries["theirs"], at))
    else:
        assert_same(ours, snippet(libraries["theirs"], at))
