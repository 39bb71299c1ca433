"""The losses of few-step distillation and their gradients, against formulas on diffusers' networks.

The reference below is in the units of the paper, whose data have a deviation of 0.5.
"""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from parity.test_sana_loss import fixed, reference_text
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from sanakit.flow.grids import NoiseLevel
from sanakit.flow.scm import arc_velocity, on_arc
from sanakit.models.config import config_to_dict
from sanakit.models.transformer import LinearDiT
from sanakit.train.recipe import Timers
from sanakit.train.recipes import sprint, sprint_teacher
from sanakit.train.recipes.sprint import PLACES, SprintBatch, SprintRecipe
from tiny_sana import FAST, TinySana, tiny_sana

UNIT = 0.5
TIMES = torch.tensor([0.05, 0.6, 1.2, 1.5])


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> TinySana:
    return tiny_sana(tmp_path_factory.mktemp("sana"))


def recipe_of(sana: TinySana, *settings: str) -> SprintRecipe:
    """Of a teacher and a student that are not the same, with heads of one large singular value."""
    given = {"data": str(sana.data), "start": str(sana.model)}
    teacher, _ = sprint_teacher.build(sprint_teacher.new_run(given, FAST), report=str)
    run = sprint.new_run(given, [*FAST, *settings])
    config = sprint.student_config(teacher.transformer.config)
    recipe = SprintRecipe(
        teacher.transformer,
        sprint.SanaTransformer2DModel(config),
        teacher.encoders,
        teacher.defaults,
        teacher.pictures,
        run.objective,
    )
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for network in (recipe.teacher, recipe.module):
            for name, weight in network.named_parameters():
                size = 0.2 if weight.ndim > 1 else 0.1
                noise = size * torch.randn(weight.shape, generator=rng)
                weight.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
        for weight in () if recipe.discriminator is None else recipe.discriminator.parameters():
            if weight.ndim == 3:
                left = torch.randn(weight.shape[0], 1, 1, generator=rng)
                weight.add_(left * torch.randn(weight.shape[1:], generator=rng))
    return recipe


def batch_of(recipe: SprintRecipe) -> SprintBatch:
    drawn, _ = fixed(1.0)
    text, mask = reference_text(recipe)
    rng = torch.Generator().manual_seed(9)
    assert drawn.x0 is not None
    noises = torch.randn(len(TIMES), PLACES, *drawn.x0.shape[1:], generator=rng)
    times = torch.stack([TIMES.roll(k) for k in range(PLACES)], dim=1)
    times[0, sprint.MADE] = sprint.MAX_TIME
    batch = SprintBatch(
        x0=drawn.x0,
        noise=noises[:, 0],
        level=NoiseLevel(TIMES, TIMES),
        text=text,
        mask=mask.bool(),
        noises=noises,
        times=times,
        guidance=torch.tensor([4.0, 5.0, 4.5, 4.0]),
        warm=torch.tensor([0.0, 0.25, 0.7, 1.0]),
    )
    ready = recipe.prepare(batch, torch.device("cpu"), Timers(torch.device("cpu")))
    assert isinstance(ready, SprintBatch)
    return ready


def published(network: LinearDiT) -> Any:
    theirs = diffusers.SanaTransformer2DModel(**config_to_dict(network.config))
    theirs.load_state_dict(network.state_dict())
    return theirs


def prediction(network: Any, x: Tensor, t: Tensor, *text: Tensor, **more: Any) -> Tensor:
    """F(x / sigma_d, t), of a network of the straight path."""
    s = t.sin() / (t.cos() + t.sin())
    z = x / UNIT * (s**2 + (1 - s) ** 2).sqrt()
    states, mask = text
    v = network(z, states, s.flatten(), encoder_attention_mask=mask, return_dict=False, **more)[0]
    return ((1 - 2 * s) * z + (1 - 2 * s + 2 * s**2) * v) / (s**2 + (1 - s) ** 2).sqrt()


def head(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """One head of the discriminator; x is b n d."""

    def convolved(x: Tensor, name: str) -> Tensor:
        weight = weights[f"{name}.weight"]
        weight = weight / torch.linalg.matrix_norm(weight.flatten(1), ord=2)
        around = weight.shape[2] // 2
        if around:
            x = torch.cat([x[..., -around:], x, x[..., :around]], dim=2)
        return F.conv1d(x, weight, weights.get(f"{name}.bias"))

    def normed(x: Tensor, name: str) -> Tensor:
        groups = x.view(math.ceil(len(x) / 8), -1, *x.shape[1:])
        mean, variance = (
            f(groups, dim=(1, 3), keepdim=True)
            for f in (torch.mean, lambda x, **k: x.var(correction=0, **k))
        )
        groups = (groups - mean) / (variance + 1e-5).sqrt()
        return (
            groups.view_as(x) * weights[f"{name}.weight"][:, None]
            + weights[f"{name}.bias"][:, None]
        )

    def layer(x: Tensor, name: str) -> Tensor:
        return F.leaky_relu(normed(convolved(x, f"{name}.0"), f"{name}.1"), 0.2)

    x = layer(x.transpose(1, 2), "points")
    x = (layer(x, "rows") + x) / math.sqrt(2)
    return convolved(x, "last").squeeze(1)


class Reference:
    """The losses from the formulas of the paper, as the released code has them."""

    def __init__(self, recipe: SprintRecipe, *, heads: bool = True) -> None:
        self.teacher = published(recipe.teacher).requires_grad_(False)
        self.student = published(recipe.transformer)
        own = recipe.module["discriminator"] if heads else None
        if own is None:
            return
        self.heads = [
            {name: p.detach().clone().requires_grad_() for name, p in one.named_parameters()}
            for one in own.heads
        ]
        self.blocks = own.blocks
        self.log_variance = nn.Linear(recipe.transformer.config.width, 1)
        self.log_variance.load_state_dict(recipe.log_variance.state_dict())

    def logits(self, x0: Tensor, place: int, batch: SprintBatch, heads: Any) -> Tensor:
        noise, t = batch.place(place)
        seen: list[Tensor] = []
        hooks = [
            self.teacher.transformer_blocks[i].register_forward_hook(
                lambda module, given, made: seen.append(made)
            )
            for i in self.blocks
        ]
        x = t.cos() * x0 + t.sin() * UNIT * noise
        assert batch.text is not None
        assert batch.mask is not None
        prediction(self.teacher, x, t, batch.text, batch.mask.float())
        for hook in hooks:
            hook.remove()
        return (
            seen
            if heads is None
            else torch.cat(
                [head(one, tokens) for one, tokens in zip(heads, seen, strict=True)], dim=1
            )
        )

    def guided(
        self, x: Tensor, t: Tensor, batch: SprintBatch, null: tuple[Tensor, Tensor]
    ) -> Tensor:
        assert batch.text is not None
        assert batch.mask is not None
        told = prediction(self.teacher, x, t, batch.text, batch.mask.float())
        empty = [each.expand(len(x), *each.shape[1:]) for each in null]
        plain = prediction(self.teacher, x, t, empty[0], empty[1].float())
        return plain + batch.guidance.view(-1, 1, 1, 1) * (told - plain)

    def predicted(self, x: Tensor, t: Tensor, batch: SprintBatch) -> Tensor:
        assert batch.text is not None
        assert batch.mask is not None
        text, mask, guidance = batch.text, batch.mask.float(), 0.1 * batch.guidance
        return prediction(self.student, x, t, text, mask, guidance=guidance)

    def loss_of_hops(self, batch: SprintBatch, null: tuple[Tensor, Tensor], hop: float) -> Tensor:
        """Of paths by the midpoint rule, where data have size one."""
        assert batch.x0 is not None
        noise, t = batch.place(sprint.STUDENT)
        x = t.cos() * batch.x0 + t.sin() * noise
        picture = t.cos() * x - t.sin() * self.predicted(UNIT * x, t, batch)
        s = (t - hop).clamp_min(0)
        middle = (t + s) / 2
        with torch.no_grad():
            half = x + (middle - t) * self.guided(UNIT * x, t, batch, null)
            y = x + (s - t) * self.guided(UNIT * half, middle, batch, null)
            wanted = s.cos() * y - s.sin() * self.predicted(UNIT * y, s, batch)
        squares = ((picture - wanted) ** 2).mean(dim=(1, 2, 3))
        return ((squares + 0.03**2).sqrt() - 0.03).mean()

    def loss(self, batch: SprintBatch, null: tuple[Tensor, Tensor], weight: float) -> Tensor:
        assert batch.x0 is not None
        assert batch.text is not None
        assert batch.mask is not None
        x0 = UNIT * batch.x0
        noise, t = batch.place(sprint.STUDENT)
        x = t.cos() * x0 + t.sin() * UNIT * noise
        slope = UNIT * self.guided(x, t, batch, null)

        def student(x: Tensor, t: Tensor) -> Tensor:
            return self.predicted(x, t, batch)

        turn = t.cos() * t.sin()
        with torch.no_grad():
            # x / sigma_d goes by turn * slope / sigma_d.
            change = torch.func.jvp(student, (x, t), (turn * slope, turn))[1]
        found = student(x, t)
        still = found.detach()
        r = batch.warm.view(-1, 1, 1, 1)
        g = -(t.cos() ** 2) * (UNIT * still - slope) - r * (turn * x + UNIT * change)
        g = g / (g.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 0.1)
        s = (t.sin() / (t.cos() + t.sin())).flatten()
        embedded = {"guidance": 0.1 * batch.guidance}
        w = self.log_variance(self.student.time_embed(s, hidden_dtype=x.dtype, **embedded)[1]).view(
            -1, 1, 1, 1
        )
        total = ((found - still - g) ** 2 / (UNIT * t.tan()) / w.exp() + w).mean()
        noise, t = batch.place(sprint.MADE)
        x = t.cos() * x0 + t.sin() * UNIT * noise
        made = t.cos() * x - t.sin() * UNIT * student(x, t)
        fixed_heads = [{k: v.detach() for k, v in one.items()} for one in self.heads]
        total = total - weight * self.logits(made, sprint.SEEN, batch, fixed_heads).mean()
        real = self.logits(x0, sprint.REAL, batch, self.heads)
        false = self.logits(made.detach(), sprint.JUDGED, batch, None)
        other = self.logits(x0.roll(1, 0), sprint.MISALIGNED, batch, None)
        of_false = torch.cat(
            [
                head(one, torch.cat(pair))
                for one, *pair in zip(self.heads, false, other, strict=True)
            ],
            dim=1,
        )
        return total + 0.5 * (F.relu(1 - real).mean() + F.relu(1 + of_false).mean())


def check(
    recipe: SprintRecipe, batch: SprintBatch, expected: Tensor, wanted: dict[str, Tensor | None]
) -> None:
    """The recipe's loss and gradients are those, and none of them is nothing."""
    found = recipe.loss(batch)["loss"]
    found.backward()
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name, each in wanted.items():
        assert each is not None
        # A hinge that is open for all does not see a bias of all.
        assert each.abs().max() > 1e-6 or name.endswith("last.bias")
    gradients = {name: p.grad for name, p in recipe.module.named_parameters()}
    assert_close(gradients, wanted, atol=1e-5, rtol=1e-5)


def test_losses_and_gradients_are_those_of_the_formulas(sana: TinySana) -> None:
    recipe = recipe_of(sana, "hop=0", "head_blocks=[0,1]", "adversarial=0.7")
    batch = batch_of(recipe)
    assert recipe._null is not None
    theirs = Reference(recipe)
    with sdpa_kernel(SDPBackend.MATH):  # derivatives go through no other
        expected = theirs.loss(batch, recipe._null, 0.7)
        expected.backward()
    wanted = {f"transformer.{name}": p.grad for name, p in theirs.student.named_parameters()}
    wanted |= {f"log_variance.{n}": p.grad for n, p in theirs.log_variance.named_parameters()}
    for number, one in enumerate(theirs.heads):
        wanted |= {f"discriminator.heads.{number}.{n}": p.grad for n, p in one.items()}
    check(recipe, batch, expected, wanted)
    assert all(p.grad is None for p in recipe.teacher.parameters())


def test_hops_and_their_gradients_are_those_of_the_formula(sana: TinySana) -> None:
    recipe = recipe_of(sana, "hop=0.3", "adversarial=0")
    batch = batch_of(recipe)
    assert TIMES[0] < 0.3 < TIMES[1]  # one of them hops to the end of its path
    assert recipe._null is not None
    theirs = Reference(recipe, heads=False)
    expected = theirs.loss_of_hops(batch, recipe._null, 0.3)
    expected.backward()
    wanted = {f"transformer.{name}": p.grad for name, p in theirs.student.named_parameters()}
    check(recipe, batch, expected, wanted)


def test_pictures_of_half_a_hop_are_half_as_far_apart(sana: TinySana) -> None:
    losses = []
    for hop in (0.02, 0.01):
        recipe = recipe_of(sana, f"hop={hop}", "adversarial=0")
        losses.append(float(recipe.loss(batch_of(recipe))["apart"]))
    assert losses[1] == pytest.approx(losses[0] / 2, rel=0.1)


def test_the_path_of_a_teacher_that_knows_the_picture_ends_at_it(
    sana: TinySana, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(sana)
    batch = batch_of(recipe)
    assert batch.x0 is not None

    def knowing(x: Tensor, t: Tensor, batch: SprintBatch) -> Tensor:
        return (t.cos() * x - batch.x0) / t.sin()

    monkeypatch.setattr(recipe, "_guided", knowing)
    ends = recipe._end(batch)
    assert (ends - batch.x0).norm() < 0.01 * batch.x0.norm()


def test_the_derivative_is_that_of_finite_differences(sana: TinySana) -> None:
    recipe = recipe_of(sana)
    recipe.module.double()
    batch = batch_of(recipe)
    assert batch.x0 is not None
    assert batch.text is not None
    x0, text = batch.x0.double(), batch.text.double()
    noise, t = (each.double() for each in batch.place(sprint.STUDENT))
    along, turn = (
        torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
        0.3,
    )
    guidance = batch.guidance.double() / 10

    def student(x: Tensor, time: Tensor) -> Tensor:
        def network(x: Tensor, sigma: Tensor) -> Tensor:
            return recipe._told(x, text, sigma.flatten(), guidance, batch.mask)

        return arc_velocity(network, x, time)

    x = on_arc(x0, noise, t)
    with torch.no_grad():
        found = torch.func.jvp(student, (x, t), (along, torch.full_like(t, turn)))[1]

        h = 1e-4  # a larger one meets kinks of the attention, a smaller one the fp32 of times
        ahead, behind = (student(x + step * along, t + step * turn) for step in (h, -h))
        wanted = (ahead - behind) / (2 * h)
    assert found.abs().max() > 0.1
    assert_close(found, wanted, atol=1e-3, rtol=1e-3)
