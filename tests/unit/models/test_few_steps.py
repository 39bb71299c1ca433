"""What a flow network becomes on its way to few steps: a teacher, a student, a discriminator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sanakit.errors import ConfigError
from sanakit.flow.scm import arc_velocity, on_arc
from sanakit.models.config import TransformerConfig
from sanakit.models.discriminator import (
    FeatureDiscriminator,
    LocalBatchNorm,
    spectral_norm,
    usual_blocks,
)
from sanakit.models.few_steps import (
    fit_dense,
    is_teacher,
    make_student,
    make_teacher,
    student_config,
    teacher_config,
)
from sanakit.models.init import init_transformer
from sanakit.models.transformer import LinearDiT
from sanakit.nn.embed import ScalarEmbed
from tiny import TRANSFORMER


def network(config: TransformerConfig) -> LinearDiT:
    made = LinearDiT(config)
    init_transformer(made, generator=torch.Generator().manual_seed(3))
    return made


def inputs() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, 4, 4, generator=rng), torch.randn(3, 5, 8, generator=rng)


def test_a_velocity_of_the_straight_path_is_that_of_the_arc_seen_from_there() -> None:
    rng = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 2, 3, 3, generator=rng, dtype=torch.float64)
    time = torch.tensor([0.01, 0.5, 1.2, 1.57], dtype=torch.float64).view(-1, 1, 1, 1)
    shown: list[Tensor] = []

    def straight(x: Tensor, sigma: Tensor) -> Tensor:
        shown.extend((x, sigma))
        return noise - x0

    found = arc_velocity(straight, on_arc(x0, noise, time), time)
    # The arc's own derivative: cos(t) noise - sin(t) x0.
    assert_close(found, time.cos() * noise - time.sin() * x0)
    x, sigma = shown
    assert_close(x, (1 - sigma) * x0 + sigma * noise)
    assert_close(sigma.flatten(), (time.sin() / (time.sin() + time.cos())).flatten())


def test_a_smooth_time_embedding_is_kept_as_it_was() -> None:
    torch.manual_seed(0)
    old, new = ScalarEmbed(16), ScalarEmbed(16)
    with torch.no_grad():  # slow waves alone: what a trained network says of time
        old.linear_1.weight[:, :70] = 0
        old.linear_1.weight[:, 128 : 128 + 70] = 0
    assert fit_dense(new, old, 1000.0) < 0.03
    t = torch.tensor([0.0, 0.31, 0.77, 1.0])
    with torch.no_grad():
        wanted, found = old(1000 * t, torch.float32), new(t, torch.float32)
    assert_close(found, wanted, atol=0.2 * float(wanted.std()), rtol=0)


def test_a_teacher_has_all_the_weights_of_its_model() -> None:
    trained = network(TRANSFORMER)
    config = teacher_config(trained.config)
    assert is_teacher(config)
    assert not is_teacher(trained.config)
    teacher = LinearDiT(config)
    make_teacher(teacher, trained)
    own, theirs = teacher.state_dict(), trained.state_dict()
    for name, weight in own.items():
        if "norm_q" in name or "norm_k" in name:
            assert torch.equal(weight, torch.ones_like(weight))
        elif not name.startswith("time_embed.emb."):
            assert torch.equal(weight, theirs[name]), name
    dense = network(replace(TRANSFORMER, timestep_scale=0.001))
    make_teacher(teacher, dense)
    kept = dense.state_dict()["time_embed.emb.timestep_embedder.linear_1.weight"]
    assert torch.equal(
        teacher.state_dict()["time_embed.emb.timestep_embedder.linear_1.weight"], kept
    )


def test_a_student_begins_as_its_teacher_at_any_guidance_and_can_learn_it() -> None:
    teacher = network(teacher_config(TRANSFORMER))
    student = LinearDiT(student_config(teacher.config))
    make_student(student, teacher, generator=torch.Generator().manual_seed(0))
    x, text = inputs()
    level = torch.tensor([0.1, 0.5, 0.9])
    wanted = teacher.velocity(x, level, text, None)
    found = student.velocity(x, level, text, None, guidance=torch.tensor([0.4, 0.5, 0.45]))
    assert torch.equal(found, wanted)
    found.square().mean().backward()
    last = student.get_submodule("time_embed.guidance_embedder.linear_2")
    assert last.weight.grad is not None
    assert last.weight.grad.abs().max() > 0


def test_a_spectral_norm_is_the_largest_singular_value_and_has_its_gradient() -> None:
    rng = torch.Generator().manual_seed(0)
    left, right = torch.randn(6, 1, generator=rng), torch.randn(1, 15, generator=rng)
    weight = (left @ right + 0.1 * torch.randn(6, 15, generator=rng)).view(6, 5, 3)
    weight.requires_grad_()
    found = spectral_norm(weight)
    (gradient,) = torch.autograd.grad(found, weight)
    exact = torch.linalg.matrix_norm(weight.flatten(1), ord=2)
    assert_close(found, exact)
    assert_close(gradient, torch.autograd.grad(exact, weight)[0], atol=1e-5, rtol=1e-4)


def test_samples_share_their_statistics_by_eight_at_most() -> None:
    x = torch.randn(12, 3, 5, generator=torch.Generator().manual_seed(0))
    norm = LocalBatchNorm(3)
    found = norm(x)
    for part in (found[:6], found[6:]):
        assert_close(part.mean(dim=(0, 2)), torch.zeros(3), atol=1e-6, rtol=0)
    assert torch.equal(norm(torch.cat([x[:6], x[:6] + 9]))[:6], found[:6])


def test_heads_are_on_the_published_blocks_or_as_spread() -> None:
    assert usual_blocks(20) == usual_blocks(28) == (2, 8, 14, 19)
    assert usual_blocks(12) == (1, 5, 8, 11)
    assert usual_blocks(1) == (0,)
    with pytest.raises(ConfigError, match="the transformer has 4 blocks"):
        FeatureDiscriminator(8, [4], of=4)
