"""The discriminator and its losses: closed forms, separate gradients, and that it learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from sanakit.errors import ConfigError
from sanakit.models.discriminator import PatchDiscriminator
from sanakit.train.recipes.adversarial import (
    balance,
    hinge_of_discriminator,
    hinge_of_judged,
    judged,
)


class Mean(nn.Module):
    """A discriminator in closed form: a weight times the picture's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: Tensor) -> Tensor:
        return self.weight * image.mean(dim=(1, 2, 3), keepdim=True)


def flat(*values: float) -> Tensor:
    """Pictures of one value each."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone().requires_grad_()


def test_the_hinge_is_its_closed_form() -> None:
    real, made = flat(0.25, 1.0, -1.0), flat(0.25, -1.0, 1.0)
    # Logits 0.5, 2, -2 of real ones and 0.5, -2, 2 of made ones.
    wanted = torch.tensor([(0.5 + 1.5) / 2, 0.0, (3.0 + 3.0) / 2])
    assert_close(hinge_of_discriminator(Mean(), real, made), wanted)
    assert_close(hinge_of_judged(judged(Mean(), made)), torch.tensor([-0.5, 2.0, -2.0]))


def test_each_loss_has_a_gradient_for_its_own_part_alone() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=4, layers=2)
    made = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    hinge_of_judged(judged(discriminator, made)).sum().backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0
    assert all(p.grad is None for p in discriminator.parameters())
    made.grad = None
    hinge_of_discriminator(discriminator, torch.rand(2, 3, 32, 32), made).sum().backward()
    assert made.grad is None
    # The last bias moves real and made logits alike: its two gradients cancel.
    *learning, last_bias = discriminator.parameters()
    assert last_bias.numel() == 1
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learning)


def test_the_balance_is_the_ratio_of_the_gradients_lengths() -> None:
    at = torch.tensor([3.0, 4.0], requires_grad=True)
    reconstruction, adversarial = 6 * at.square().sum() / 2, at.sum() * 2
    found = balance(reconstruction, adversarial, at)
    assert_close(found, torch.tensor(6 * 5 / (2 * 2**0.5)), rtol=1e-5, atol=0)
    assert not found.requires_grad
    assert balance(reconstruction, adversarial * 0, at) == 1e4


def test_a_logit_sees_70_px_and_no_more() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=4)
    image = torch.rand(1, 3, 160, 160, requires_grad=True)
    logits = discriminator(image)
    assert logits.shape == (1, 1, 18, 18)
    logits[0, 0, 9, 9].backward()
    assert image.grad is not None
    rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == 70


def test_pictures_of_a_batch_do_not_meet() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=4, layers=1)
    image = torch.rand(3, 3, 24, 24)
    apart = torch.cat([discriminator(one) for one in image.split(1)])
    assert_close(discriminator(image), apart)
    assert not list(discriminator.buffers())


@pytest.mark.parametrize("options", [{"width": 0}, {"layers": 0}])
def test_a_discriminator_of_nothing_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        PatchDiscriminator(**options)


def test_it_learns_to_tell_sharp_from_blurred() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=8, layers=2)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.9))

    def pair() -> tuple[Tensor, Tensor]:
        sharp = F.interpolate(torch.rand(4, 3, 8, 8) * 2 - 1, scale_factor=4, mode="nearest")
        return sharp, F.avg_pool2d(F.pad(sharp, (2, 2, 2, 2), mode="reflect"), 5, stride=1)

    for _ in range(40):
        optimizer.zero_grad()
        hinge_of_discriminator(discriminator, *pair()).mean().backward()
        optimizer.step()
    sharp, blurred = pair()
    with torch.no_grad():
        gap = discriminator(sharp).mean(dim=(1, 2, 3)) - discriminator(blurred).mean(dim=(1, 2, 3))
    assert (gap > 0.5).all()
