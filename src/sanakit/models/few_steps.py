"""How a network of few steps begins: a flow network becomes a teacher, and that its own student.

Source: SANA-Sprint (arXiv 2503.09641), sections 3.1 and 3.2.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanakit.models.config import TransformerConfig
from sanakit.models.init import EMBED_STD
from sanakit.models.transformer import LinearDiT
from sanakit.nn.embed import ScalarEmbed, sinusoid

DENSE = 0.001
"""A teacher's ``timestep_scale``: it is told levels in [0, 1], a flow network up to 1000."""
LEVELS = 1000
RIDGE = 1e-4
"""What the fit of a time embedding pays for large weights: they would be coarse in 16 bits."""
GUIDED = "time_embed."
EMBEDDER = "time_embed.emb."


def is_teacher(config: TransformerConfig) -> bool:
    """Whether a network has what a student is distilled from: dense time, and normed attention.

    Without either, the derivative by time has norms beyond 1000 (SANA-Sprint, figure 3).
    """
    return config.timestep_scale == DENSE and config.qk_norm is not None


@torch.no_grad()
def make_teacher(teacher: LinearDiT, trained: LinearDiT) -> None:
    """Give ``teacher`` the weights of a flow network that knows neither dense time nor norms.

    Norms begin with a gain of 1. The time embedding is fitted to the old one, which is ours: the
    published recipe begins with the old weights, and has to learn it anew.
    """
    own, theirs = teacher.state_dict(), trained.state_dict()
    for name, weight in own.items():
        weight.copy_(theirs.get(name, torch.ones(())))
    if trained.config.timestep_scale != teacher.config.timestep_scale:
        where = "time_embed.emb.timestep_embedder"
        new, old = (each.get_submodule(where) for each in (teacher, trained))
        assert isinstance(new, ScalarEmbed)
        assert isinstance(old, ScalarEmbed)
        ratio = trained.config.timestep_scale / teacher.config.timestep_scale
        fit_dense(new, old, ratio)


@torch.no_grad()
def make_student(student: LinearDiT, teacher: LinearDiT, *, generator: torch.Generator) -> None:
    """Give ``student`` its teacher's weights; its guidance says nothing before it has learnt.

    The last layer of the guidance embedding is zero, and the first is not: where both are, as in
    the example trainer of diffusers, neither ever learns.
    """
    own, theirs = student.state_dict(), teacher.state_dict()
    for name, weight in theirs.items():
        own[name.replace(EMBEDDER, GUIDED)].copy_(weight)
    for name, weight in student.get_submodule("time_embed.guidance_embedder").named_parameters():
        nn.init.zeros_(weight)
        if name == "linear_1.weight":
            nn.init.normal_(weight, std=EMBED_STD, generator=generator)


def student_config(config: TransformerConfig) -> TransformerConfig:
    """The shape of a teacher's student, which is told levels as they are."""
    return replace(config, timestep_scale=1.0, guidance_embeds=True)


def teacher_config(config: TransformerConfig) -> TransformerConfig:
    """The shape of the teacher that a flow network becomes."""
    return replace(config, timestep_scale=DENSE, qk_norm="rms_norm_across_heads")


@torch.no_grad()
def fit_dense(dense: ScalarEmbed, embed: ScalarEmbed, ratio: float) -> float:
    """Make ``dense(t)`` what ``embed(ratio * t)`` is for t in [0, 1], as nearly as it is smooth.

    Layer by layer by least squares: the hidden units of the old one, then what is made of them.
    Gives the part of the old one's variance over the path that is lost: what waved too fast in t.
    """
    t = torch.linspace(0, 1, LEVELS + 1)
    wanted = embed(ratio * t, embed.linear_1.weight.dtype).double()
    hidden = embed.linear_1(sinusoid(ratio * t)).double()
    found = _fit(dense.linear_1, sinusoid(t).double(), hidden)
    made = _fit(dense.linear_2, F.silu(found), wanted)
    return float((made - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


def _fit(layer: nn.Linear, seen: Tensor, wanted: Tensor) -> Tensor:
    """Fit a layer to give ``wanted`` of ``seen``, rows of samples; give what it gives."""
    inputs = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
    square = inputs.mT @ inputs
    square.diagonal().add_(RIDGE * len(inputs))
    fitted = torch.linalg.solve(square, inputs.mT @ wanted)
    layer.weight.copy_(fitted[:-1].mT)
    layer.bias.copy_(fitted[-1])
    return layer(seen.to(layer.weight.dtype)).double()
