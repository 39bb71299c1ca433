"""A recipe small enough to run a whole training in a test; its weights lie as the real ones do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


class TinyRecipe:
    """Two convolutions laid out channels last and a norm learn to halve their input.

    Both draws and loss consume randomness. ``watch`` is called before each batch with the number
    of batches drawn so far: it is where a test looks, stops or breaks things.
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

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        self.watch(self.count)
        self.count += 1
        return torch.randn(size, 2, 4, 4, generator=generator)

    def loss(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        noise = 0.1 * torch.randn(batch.shape, generator=generator)
        error = (self.module(batch + noise).float() - batch / 2).square().mean()
        return {"loss": error, "twice": 2 * error.detach()}

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        assert not module.training
        assert not torch.is_grad_enabled()
        self.evaluated.append(weights(module))
        return {"loss": 1.0}

    def blocks(self) -> Iterator[nn.Module]:
        return iter(())


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of everything a module would save."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
