"""The loss with a reward and its gradients, against the paper's formulas on diffusers' network."""

from __future__ import annotations

import diffusers
import pytest
import torch
from parity.test_sana_loss import reference_text
from torch import Tensor, nn
from torch.testing import assert_close

from sanakit.flow.grids import NoiseLevel
from sanakit.models.config import config_to_dict
from sanakit.nn.lora import lora_layers
from sanakit.train.recipes.lora import NAME
from sanakit.train.recipes.reward import OLD, Asked, Learned, RewardRecipe, nft_loss
from tiny_reward import reward_run
from tiny_sana import TinySana, tiny_sana


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> TinySana:
    return tiny_sana(tmp_path_factory.mktemp("sana"))


def wandered(recipe: RewardRecipe) -> None:
    """Both LoRA as if they had learned, each something else."""
    rng = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for layer in lora_layers(recipe.transformer).values():
            for name in (NAME, OLD):
                for factor in (layer.lora_A[name], layer.lora_B[name]):
                    weight = factor.get_parameter("weight")
                    weight.add_(0.1 * torch.randn(weight.shape, generator=rng))


def learned_of(recipe: RewardRecipe) -> Learned:
    rng = torch.Generator().manual_seed(5)
    text, mask = reference_text(recipe)
    count = len(text)
    shape = (count, *recipe._latent_shape)
    u = torch.rand(count, generator=rng)
    return Learned(
        x0=torch.randn(shape, generator=rng),
        r=torch.rand(count, generator=rng),
        rows=torch.arange(count),
        level=NoiseLevel(u, (1000 * u).floor()),
        fresh=torch.randn(shape, generator=rng),
        text=text,
        mask=mask.bool(),
        facts={},
    )


class Reference:
    """The published network with one LoRA added to its weights by hand."""

    def __init__(self, recipe: RewardRecipe, adapter: str | None, dtype: torch.dtype) -> None:
        config = config_to_dict(recipe.transformer.config)
        self.net: nn.Module = diffusers.SanaTransformer2DModel(**config).to(dtype)
        plain = {
            name: weight.detach().to(dtype)
            for name, weight in recipe.transformer.named_parameters()
            if ".lora_" not in name
        }
        self.factors: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = dict(plain)
        for name, layer in lora_layers(recipe.transformer).items():
            if adapter is None:
                continue
            down, up = (
                factor[adapter].get_parameter("weight").detach().to(dtype).requires_grad_()
                for factor in (layer.lora_A, layer.lora_B)
            )
            self.factors |= {f"{name}.lora_A": down, f"{name}.lora_B": up}
            objective = recipe.objective
            scale = (objective.lora_alpha or objective.lora_rank) / objective.lora_rank
            self.weights[f"{name}.weight"] = plain[f"{name}.weight"] + scale * (up @ down)

    def __call__(self, x: Tensor, step: Learned) -> Tensor:
        given = (x, step.text.to(x.dtype), step.level.timestep)
        how = {"encoder_attention_mask": step.mask.to(x.dtype), "return_dict": False}
        return torch.func.functional_call(self.net, self.weights, given, how)[0]


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_loss_and_gradients_are_those_of_the_formulas(sana: TinySana, beta: float) -> None:
    recipe, _ = reward_run(sana, f"nft_beta={beta}", "reference_weight=0.05")
    wandered(recipe)
    step = learned_of(recipe)
    recipe._step = step
    new, old, start = (Reference(recipe, one, torch.float32) for one in (NAME, OLD, None))
    sigma = step.level.sigma[:, None, None, None]
    x = (1 - sigma) * step.x0 + sigma * step.fresh
    v = new(x, step)
    with torch.no_grad():
        v_old, v_start = old(x, step), start(x, step)
    sides = []
    for velocity in (beta * v + (1 - beta) * v_old, (1 + beta) * v_old - beta * v):
        apart = (x - sigma * velocity) - step.x0
        size = apart.detach().double().abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-5)
        sides.append((apart.double() ** 2 / size).mean(dim=(1, 2, 3)))
    r = step.r.double()
    expected = 5 * (r * sides[0] / beta + (1 - r) * sides[1] / beta).mean()
    expected = expected + 0.05 * ((v - v_start) ** 2).mean()
    expected.backward()
    nothing = torch.zeros(0)
    batch = Asked(step=0, part=0, parts=1, prompts=(), noise=nothing, places=nothing, fresh=nothing)
    recipe._drawn_and_scored = lambda _: step  # type: ignore[method-assign]
    loss = recipe.loss(batch)["loss"]
    loss.backward()
    assert_close(loss.double(), expected.double(), atol=1e-5, rtol=1e-5)
    found = {n: p.grad for n, p in recipe.module.named_parameters() if p.grad is not None}
    wanted = {f"{name}.{NAME}.weight": factor.grad for name, factor in new.factors.items()}
    assert found.keys() == wanted.keys()
    assert all(each is not None and each.abs().max() > 0 for each in wanted.values())
    assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_at_the_old_policy_the_gradient_follows_the_advantage() -> None:
    """Where old and new agree, half is no gradient, and 1 and 0 are opposite ones."""
    rng = torch.Generator().manual_seed(0)
    x, x0, v = (torch.randn(1, 2, 3, 3, generator=rng) for _ in range(3))
    sigma = torch.tensor([0.7])

    def gradient(r: float) -> Tensor:
        velocity = v.clone().requires_grad_()
        given = (velocity, v, x, x0, sigma, torch.tensor([r]))
        nft_loss(*given, beta=1.0, most=5.0).sum().backward()
        assert velocity.grad is not None
        return velocity.grad

    good, bad, neither = gradient(1.0), gradient(0.0), gradient(0.5)
    assert good.abs().max() > 0
    assert_close(bad, -good)
    assert_close(neither, torch.zeros_like(v))
    # A step against the gradient of a good drawing brings the clean end nearer to it.
    nearer = (x - sigma * (v - 0.01 * good) - x0).square().sum()
    assert nearer < (x - sigma * v - x0).square().sum()
