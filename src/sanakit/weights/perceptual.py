"""The perceptual network's weights, from a package that its user installs or from a file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from sanakit.errors import MissingModelError
from sanakit.models.perceptual import PerceptualNetwork
from sanakit.weights.convert.original_format import read_file
from sanakit.weights.store import load_strict

PACKAGE = "stlpips_pytorch"
INSIDE = Path("weights", "vST0.0", "vgg_shift_tolerant.pth")
# What the file holds besides: the constants of scaling and blurring.
_CONSTANTS = ("scaling_layer.", ".filt")
# Where each stage's convolutions are numbered in the file.
_NUMBERS = ((0, 2), (6, 8), (12, 14, 16), (20, 22, 24), (28, 30, 32))


def load_perceptual(path: str | Path | None = None) -> PerceptualNetwork:
    """Give the published network, fp32 and frozen: ST-LPIPS on VGG16, 14.7 M parameters.

    ``path`` is a ``vgg_shift_tolerant.pth``, or its tensors as safetensors; without it, the one in
    the installed package `stlpips-pytorch` (0.0.2, BSD-2), whose code is not run. Nothing is
    downloaded, and no code inside the file can run.

    Raises:
        MissingModelError: neither file nor package is there.
        WeightsError: a file that is damaged or of another network.
    """
    file = _packaged() if path is None else Path(path)
    if not file.is_file():
        raise MissingModelError(
            f"{file}: no such file", hint="name the vgg_shift_tolerant.pth of stlpips-pytorch"
        )
    names = {
        f"net.slice{stage + 1}.{number}": f"stages.{stage}.{place}"
        for stage, numbers in enumerate(_NUMBERS)
        for place, number in enumerate(numbers)
    }
    state = {}
    for name, tensor in read_file(file).items():
        if name.startswith(_CONSTANTS[0]) or name.endswith(_CONSTANTS[1]):
            continue
        if name.startswith("lin") and name.endswith(".model.1.weight"):
            state[f"heads.{name[3]}"] = tensor.flatten()
        else:
            owner, _, kind = name.rpartition(".")
            state[f"{names.get(owner, owner)}.{kind}"] = tensor
    network = PerceptualNetwork()
    load_strict(network, state, source=str(file))
    return network.requires_grad_(False)


def _packaged() -> Path:
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise MissingModelError(
            "the perceptual loss needs a network that is not installed",
            hint="pip install stlpips-pytorch==0.0.2 (64 MB, BSD-2), or train without: "
            "--set perceptual=0",
        )
    return Path(found.origin).parent / INSIDE
