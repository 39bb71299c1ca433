"""A training of some minutes on one core: no checkpoints, several averages of its weights at once.

What it does in a step is what the package's loop does; what it leaves out is what a run of minutes
does not need.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from sanakit.bench.record import commit
from sanakit.files import write_atomically
from sanakit.models import transformer
from sanakit.nn import mix_ffn
from sanakit.nn.processor import keep_freed_memory
from sanakit.train.config import LoopConfig, learning_rate
from sanakit.train.ema import EMA
from sanakit.train.optim.build import build_optimizer, set_rate
from sanakit.train.recipe import Batch, Recipe, Timers
from sanakit.train.sample_schedule import SampleSchedule

RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")


class PlainAverage(EMA):
    """As long as it says: not cut to a tenth of the run, since its length is what is asked."""

    def weight(self, images_seen: int, batch_size: int) -> float:
        return 1 - 0.5 ** (batch_size / self.halflife)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run leaves: averages by their half-life (0: the last weights), and its cost."""

    averages: Mapping[int, dict[str, Tensor]]
    loss: Sequence[float]
    """Mean training loss of each tenth of the run."""
    cpu_seconds: float

    @contextmanager
    def shown(self, module: nn.Module, halflife: int) -> Iterator[None]:
        """Within the block the module holds an average and does not learn; then its last weights.

        The weights it has when the block begins are lost: those of the run are kept here.
        """
        learning = module.training
        module.eval()
        module.load_state_dict(self.averages[halflife], strict=False)
        try:
            with torch.no_grad(), economy():
                yield
        finally:
            module.load_state_dict(self.averages[0], strict=False)
            module.train(learning)


@contextmanager
def economy() -> Iterator[None]:
    """bf16 products, and nothing recomputed for the backward pass: memory is no concern here."""
    direct = {"recomputed": lambda function, *inputs: function(*inputs)}
    with (
        torch.autocast("cpu", torch.bfloat16),
        patch.multiple(transformer, **direct),
        patch.multiple(mix_ffn, **direct),
    ):
        yield


def short_run(
    recipe: Recipe[Batch],
    config: LoopConfig,
    *,
    halflives: Sequence[int] = (),
    moments: Mapping[int, Callable[[Trained], object]] | None = None,
    report: Callable[[str], object] = print,
) -> Trained:
    """Train until ``config.total_images``; ``moments`` are called at those numbers of images."""
    keep_freed_memory()
    module, moments = recipe.module, dict(moments or {})
    module.train()
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(
        config.optimizer,
        parameters.items(),
        lr=config.peak_lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    trained = partial(trained_tensors, module)
    averages = {each: PlainAverage(trained(), halflife=each) for each in halflives}
    stream = recipe.stream(SampleSchedule(seed=config.seed, batch_size=config.batch_size))
    timers, seen, losses = Timers(CPU), 0, list[float]()
    wall, cpu, spent = time.monotonic(), time.process_time(), 0.0

    def so_far() -> Trained:
        kept = {each: average.tensors for each, average in averages.items()}
        kept[0] = {name: value.clone() for name, value in trained().items()}
        return Trained(
            averages=kept,
            loss=tenths(losses),
            cpu_seconds=spent + time.process_time() - cpu,
        )

    while seen < config.total_images:
        set_rate(optimizer, learning_rate(config, seen))
        batch = recipe.prepare(next(stream), CPU, timers)
        with economy():
            loss = recipe.loss(batch)["loss"]
            loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += config.batch_size
        losses.append(float(loss.detach()))
        for average in averages.values():
            average.update(trained(), images_seen=seen, batch_size=config.batch_size)
        if seen % (config.batch_size * 50) == 0:
            last = sum(losses[-50:]) / len(losses[-50:])
            report(f"{seen:6} loss {last:.4f}  {seen / (time.monotonic() - wall):.1f} a second")
        if seen in moments:
            spent += time.process_time() - cpu
            moments[seen](so_far())
            cpu = time.process_time()
    return so_far()


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What may change in training, by name: all but frozen parameters."""
    frozen = {name for name, each in module.named_parameters() if not each.requires_grad}
    return {name: each for name, each in module.state_dict().items() if name not in frozen}


def tenths(values: Sequence[float]) -> list[float]:
    """Means of ten parts, in order; fewer of fewer values."""
    parts = min(10, len(values))
    edges = [round(number * len(values) / parts) for number in range(parts + 1)]
    return [round(sum(values[a:b]) / (b - a), 5) for a, b in pairwise(edges)]


def path_of(name: str, results: Path = RESULTS) -> Path:
    """Where the result of a run is."""
    return results / f"{name}.json"


def is_done(name: str, results: Path = RESULTS) -> bool:
    """Whether a run is finished, and so skipped."""
    return path_of(name, results).is_file()


def keep(name: str, found: Mapping[str, Any], results: Path = RESULTS) -> None:
    """Write the result of a run, whole or not at all."""
    results.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"run": name, "commit": commit(), **found}) + "\n"
    write_atomically(path_of(name, results), text.encode())


def read(name: str, results: Path = RESULTS) -> dict[str, Any]:
    """The result of a finished run."""
    found: dict[str, Any] = json.loads(path_of(name, results).read_text(encoding="utf-8"))
    return found
