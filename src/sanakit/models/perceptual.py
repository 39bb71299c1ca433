"""How different two pictures look: shift-tolerant LPIPS on the convolutions of VGG16.

Source: Ghildyal and Liu, "Shift-tolerant Perceptual Similarity Metric" (ECCV 2022); LPIPS, Zhang et
al. 2018. `sanakit.weights.perceptual` reads the published weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanakit.errors import ConfigError
from sanakit.shapes import Image, Map, PerSample

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Widths of the convolutions, stage by stage; between stages the side halves."""
SMALLEST = 18
"""The least side whose coarsest map can still be padded by reflection."""
MEAN = (-0.030, -0.088, -0.188)
SPREAD = (0.458, 0.448, 0.450)
EPS = 1e-10


class PerceptualNetwork(nn.Module):
    """A frozen network whose features are compared; it has gradients for pictures alone.

    Where pictures are halved, maximum and blur come one after the other and edges are mirrored, so
    that a shift by a pixel changes little. Products follow autocast; features are normalised,
    compared and summed in fp32.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, widths: tuple[tuple[int, ...], ...] = VGG16) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        width = 3
        for stage in widths:
            inputs = (width, *stage[:-1])
            pairs = zip(inputs, stage, strict=True)
            self.stages.append(nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs))
            width = stage[-1]
        self.heads = nn.ParameterList(torch.ones(stage[-1]) for stage in widths)
        """How much each channel of a stage counts."""
        for name, values in (("mean", MEAN), ("spread", SPREAD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, image: Image, reference: Image) -> PerSample:
        """Distances of pictures in [-1, 1], 0 for equal ones; the reference gets no gradient."""
        if min(image.shape[-2:]) < SMALLEST:
            raise ConfigError(
                f"pictures of {image.shape[-2]} x {image.shape[-1]} px: "
                f"the perceptual network needs {SMALLEST} px"
            )
        with torch.no_grad():
            wanted = self.features(reference)
        distance = torch.zeros(len(image), device=image.device)
        for mine, other, head in zip(self.features(image), wanted, self.heads, strict=True):
            difference = (_unit(mine) - _unit(other)).square()
            distance = distance + (difference * head.view(-1, 1, 1)).sum(dim=1).mean(dim=(1, 2))
        return distance

    def features(self, image: Image) -> list[Map]:
        """What each stage sees, from fine to coarse."""
        x = ((image - self.mean) / self.spread).contiguous(memory_format=torch.channels_last)
        found: list[Map] = []
        for stage in self.stages:
            x = _halved(x) if found else x
            assert isinstance(stage, nn.ModuleList)
            for convolution in stage:
                x = F.relu(convolution(x))
            found.append(x)
        return found


def _halved(x: Map) -> Map:
    """Maximum over 2 x 2 at every place, then every second place of a binomial blur."""
    x = F.pad(F.max_pool2d(x, 2, stride=1), (2, 2, 2, 2), mode="reflect")
    return F.avg_pool2d(F.avg_pool2d(x, 2, stride=1), 2)  # (1 2 1) is (1 1) twice


def _unit(x: Map) -> Map:
    """Scale each position to length 1; where all is 0 it stays 0, with a finite gradient."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(dim=1, keepdim=True) + EPS**2)
