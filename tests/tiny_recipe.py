"""A recipe small enough to run a whole training in a test; its weights lie as the real ones do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sanakit.train.recipe import Batch, Recipe
from sanakit.train.shares import Share, generator_of, normal_of
from sanakit.train.timers import Timers


class TinyRecipe(Recipe[Tensor]):
    """Two convolutions laid out channels last and a norm learn to halve their input.

    ``watch`` is called before each batch is used with the number of batches used so far: it is
    where a test looks, stops or breaks things.
    """

    def __init__(self, watch: Callable[[int], None] = lambda count: None, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.module = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.SiLU(), nn.Conv2d(3, 2, 1), nn.GroupNorm(1, 2)
        )
        self.module.register_buffer("version", torch.tensor(7))
        for parameter in self.module.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.watch = watch
        self.count = 0
        self.evaluated: list[dict[str, Tensor]] = []

    def stream(self, share: Share) -> Iterator[Tensor]:
        for span in share.spans():
            yield normal_of([generator_of(share.seed, k) for k in span], 2, 2, 4, 4)

    def prepare(self, batch: Tensor, device: torch.device, timers: Timers) -> Tensor:
        self.watch(self.count)
        self.count += 1
        return batch.to(device)

    def loss(self, batch: Tensor) -> dict[str, Tensor]:
        clean, noise = batch.unbind(1)
        error = (self.module(clean + 0.1 * noise).float() - clean / 2).square().mean()
        return {"loss": error, "twice": 2 * error.detach()}

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        assert not module.training
        assert not torch.is_grad_enabled()
        self.evaluated.append(weights(module))
        return {"loss": 1.0}

    def blocks(self) -> Iterator[nn.Module]:
        yield self.module[0]


def drawn(recipe: Recipe[Batch], size: int, seed: int = 0) -> Batch:
    """The first batch of a recipe, as the loss wants it."""
    batch = next(iter(recipe.stream(Share(seed=seed, batch_size=size))))
    device = torch.device("cpu")
    return recipe.prepare(batch, device, Timers(device))


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of everything a module would save."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
