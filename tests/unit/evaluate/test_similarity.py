"""PSNR and SSIM: slower definitions, another implementation, and what they must rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from sanakit.errors import ConfigError
from sanakit.evaluate.restoration import psnr_of, squared_error, ssim
from sanakit.shapes import Image
from sanakit.train.recipes.autoencoder import psnr


def picture(rng: torch.Generator, count: int = 2, height: int = 24, width: int = 20) -> Image:
    coarse = torch.rand(count, 3, 6, 5, generator=rng) * 2 - 1
    return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(-1, 1)


def noisy(image: Image, rng: torch.Generator, level: float = 0.3) -> Image:
    return (image + level * torch.randn(image.shape, generator=rng)).clamp(-1, 1)


def test_psnr_is_the_one_that_training_reports(rng: torch.Generator) -> None:
    image = picture(rng)
    other = noisy(image, rng)
    assert_close(torch.tensor(psnr_of(squared_error(other, image))).float(), psnr(other, image))
    assert psnr_of(squared_error(image, image)) == pytest.approx([106.02] * 2, abs=0.01)


def test_psnr_of_a_whole_level_everywhere_is_48_db() -> None:
    """20 log10(255): a difference of one level in each colour of each pixel."""
    one = torch.zeros(1, 3, 16, 16)
    assert psnr_of(squared_error(one + 2 / 255, one)) == pytest.approx(48.1308, abs=1e-3)


def test_ssim_is_its_definition_window_by_window(rng: torch.Generator) -> None:
    image = picture(rng, 1, 13, 12).double()
    other = noisy(picture(rng, 1, 13, 12), rng).double()
    offsets = torch.arange(11, dtype=torch.float64) - 5
    taps = torch.exp(-offsets.square() / 4.5)
    weights = torch.outer(taps, taps)
    weights /= weights.sum()
    found = []
    for colour in range(3):
        for top in range(3):
            for left in range(2):
                x = image[0, colour, top : top + 11, left : left + 11]
                y = other[0, colour, top : top + 11, left : left + 11]
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                xy = (weights * (x - mx) * (y - my)).sum()
                # Peak 2: the constants are (0.01 * 2)^2 and (0.03 * 2)^2.
                one = (2 * mx * my + 4e-4) / (mx**2 + my**2 + 4e-4)
                found.append(one * (2 * xy + 36e-4) / (vx + vy + 36e-4))
    assert_close(ssim(image.float(), other.float())[0], torch.stack(found).mean().float())


def test_ssim_is_that_of_scikit_image(rng: torch.Generator) -> None:
    metrics: Any = pytest.importorskip("skimage.metrics")
    image = picture(rng)
    other = noisy(image, rng)
    wanted = [
        metrics.structural_similarity(
            x.permute(1, 2, 0).numpy(),
            y.permute(1, 2, 0).numpy(),
            channel_axis=2,
            data_range=2.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for x, y in zip(image, other, strict=True)
    ]
    assert_close(ssim(image, other).numpy(), np.array(wanted, dtype=np.float32), atol=1e-5, rtol=0)


def test_equal_pictures_are_alike_and_blur_and_noise_cost_more_and_more(
    rng: torch.Generator,
) -> None:
    image = picture(rng, 3)
    image[:, :, 8:14, 6:12] *= -1  # edges, for blur to cost something
    blurred = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    noise = torch.rand(image.shape, generator=rng) * 2 - 1
    assert_close(ssim(image, image), torch.ones(3))
    for measure in (ssim, lambda x, y: -squared_error(x, y)):
        scores = [measure(each, image) for each in (image, blurred, noise)]
        assert (scores[0] > scores[1]).all()
        assert (scores[1] > scores[2]).all()


def test_ssim_of_a_picture_smaller_than_its_window_is_refused() -> None:
    small = torch.zeros(1, 3, 10, 40)
    with pytest.raises(ConfigError, match="10 x 40 px: SSIM needs 11 px"):
        ssim(small, small)
