"""Losses of what is trained against a discriminator, and of the discriminator, in one step.

One optimizer moves both: gradients of each loss are kept from the other one's weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sanakit.shapes import Image, PerSample

LOUDEST = 1e4


def judged(discriminator: nn.Module, *seen: Tensor) -> Tensor:
    """Logits whose gradient reaches what is seen and leaves the discriminator as it is."""
    constants = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    return functional_call(discriminator, constants, seen).float()


def hinge_of_judged(logits: Tensor) -> PerSample:
    """What the generator minimises, picture by picture: the mean of minus its logits."""
    return -logits.flatten(1).mean(dim=1)


def hinge(logits: Tensor, *, real: bool) -> PerSample:
    """What a discriminator minimises of samples of one kind: the mean of max(0, 1 -+ logit)."""
    return F.relu(1 - logits if real else 1 + logits).flatten(1).mean(dim=1)


def hinge_of_discriminator(discriminator: nn.Module, real: Image, made: Image) -> PerSample:
    """What the discriminator minimises: half of max(0, 1 - real) + max(0, 1 + made), on average.

    Source: Lim and Ye 2017, equation 15; the half as in VQGAN.
    """
    of_real, of_made = discriminator(torch.cat([real, made.detach()])).float().chunk(2)
    return (hinge(of_real, real=True) + hinge(of_made, real=False)) / 2


def balance(reconstruction: Tensor, adversarial: Tensor, at: Tensor) -> Tensor:
    """How loud the adversarial loss may be to move ``at`` as far as the reconstruction does.

    A constant from 0 to 10,000: the ratio of the lengths of both gradients at one weight. It is of
    the whole micro-batch, so that smaller parts give other numbers. Source: VQGAN (Esser et al.
    2021), equation 7.
    """
    lengths = [
        torch.autograd.grad(loss, at, retain_graph=True)[0].float().norm()
        for loss in (reconstruction, adversarial)
    ]
    return (lengths[0] / (lengths[1] + 1e-6)).clamp(0, LOUDEST).detach()
