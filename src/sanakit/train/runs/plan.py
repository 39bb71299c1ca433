"""What a run will cost, before it begins: memory by part and strategy, operations, steps, time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from sanakit.data.loader.folders import contents_of, open_folder
from sanakit.train.config import LoopConfig, Strategy
from sanakit.train.distributed.network import DTYPES, Network
from sanakit.train.distributed.ranks import Ranks
from sanakit.train.loop import Trainer
from sanakit.train.mfu import model_share, training_factor
from sanakit.train.optim.build import OptimizerName
from sanakit.train.recipe import Batch, Recipe, Timers
from sanakit.train.runs.log import spoken
from sanakit.train.sample_schedule import SampleSchedule

STATE_BYTES: Mapping[OptimizerName, float] = {
    "adamw": 8.0,
    "came": 4.03,
    "came8bit": 1.05,
    "adamw8bit": 2.06,
}
"""Bytes of optimizer states for each parameter that learns, in matrices of usual sizes."""
RANKS = (1, 8, 64)
MEASURED_STEPS = 3
MEASURED_SECONDS = 20.0
"""No further step is measured once they are spent."""
SHOWN_BUCKETS = 6
_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that training takes; ``activations`` are of one sample, without recomputing.

    ``block_inputs`` are what recomputing keeps of one sample, ``blocks`` how many blocks there are,
    ``gathered`` the largest block in the compute dtype: FSDP holds one of them whole, and the next.
    """

    weights: float
    gradients: float
    states: float
    average: float
    copies: float
    """Weights in the compute dtype, beside those in fp32."""
    frozen: float
    activations: float
    block_inputs: float
    blocks: int
    gathered: float

    def of_sample(self, *, recomputed: bool) -> float:
        """Activations of one sample; with recomputing, those of one block and all inputs."""
        if not recomputed or not self.blocks:
            return self.activations
        return self.block_inputs + self.activations / self.blocks

    def per_rank(
        self, strategy: Strategy, *, ranks: int, samples: int, recomputed: bool, local: int = 8
    ) -> float:
        """Bytes of one of ``ranks``, ``local`` in a machine, with ``samples`` in a micro-batch."""
        kept = self.weights + self.gradients + self.states + self.average + self.copies
        shards = {"ddp": 1, "fsdp": ranks, "hsdp": min(ranks, local)}[strategy]
        gathered = 2 * self.gathered if shards > 1 else 0.0
        active = samples * self.of_sample(recomputed=recomputed)
        return kept / shards + gathered + self.frozen + active


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run's costs; ``flops`` are of one sample's training, 0 where they are not counted."""

    config: LoopConfig
    trained: int
    fixed: int
    flops: float
    memory: Memory
    buckets: Sequence[tuple[int, int, int]]
    """Height and width, px, and samples; the largest first. Empty: not a loader's shards."""
    batches_per_epoch: int | None
    per_second: float | None
    mfu: float | None

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return -(-self.config.total_images // self.config.batch_size)

    def lines(self) -> list[str]:
        """The plan as text, a line each."""
        config = self.config
        found = [f"parameters  {self.trained:,} learn, {self.fixed:,} are frozen"]
        if self.flops:
            again = ", blocks recomputed" if config.gradient_checkpointing else ""
            found.append(f"operations  {self.flops:.3g} FLOPs to train on one image{again}")
        found += self._memory()
        for height, width, samples in self.buckets[:SHOWN_BUCKETS]:
            found.append(f"bucket      {height} x {width} px: {samples:,} samples")
        if rest := self.buckets[SHOWN_BUCKETS:]:
            found.append(f"bucket      {len(rest)} more: {sum(b[2] for b in rest):,} samples")
        epochs = ""
        if self.batches_per_epoch is not None:
            found.append(f"epoch       {self.batches_per_epoch:,} steps")
            epochs = f", {self.steps / self.batches_per_epoch:.3g} epochs"
        found.append(
            f"run         {self.steps:,} steps of {config.batch_size}, "
            f"{config.total_images:,} images{epochs}"
        )
        if self.per_second is None:
            return [*found, "time        not measured"]
        used = "" if self.mfu is None else f", MFU {self.mfu:.1%}"
        whole = spoken(config.total_images / self.per_second)
        return [*found, f"time        {whole} at {self.per_second:.3g} images/s on one rank{used}"]

    def _memory(self) -> Iterator[str]:
        memory, config = self.memory, self.config
        recomputed = config.gradient_checkpointing
        size = SampleSchedule(seed=0, batch_size=config.batch_size, parts=config.accumulation).size
        parts = {
            "weights": memory.weights,
            "gradients": memory.gradients,
            config.optimizer: memory.states,
            "average": memory.average,
            f"copies in {config.compute_dtype}": memory.copies,
            "frozen parts": memory.frozen,
            "activations an image": memory.of_sample(recomputed=recomputed),
        }
        named = ", ".join(f"{name} {size_of(value)}" for name, value in parts.items() if value)
        yield f"memory      {named}"
        for ranks in RANKS:
            if size % ranks:
                continue
            samples = size // ranks
            strategies: tuple[Strategy, ...] = ("ddp", "fsdp", "hsdp") if ranks > 1 else ("ddp",)
            words = [
                f"{strategy} "
                + size_of(
                    memory.per_rank(strategy, ranks=ranks, samples=samples, recomputed=recomputed)
                )
                for strategy in strategies
            ]
            yield f"  a rank of {ranks:<3}{samples} images at a time: {', '.join(words)}"


def plan_of(
    recipe: Recipe[Batch],
    config: LoopConfig,
    *,
    device: torch.device,
    frozen: Sequence[nn.Module] = (),
    shards: str | None = None,
    measure: bool = True,
) -> Plan:
    """Count, and time a few steps in memory; nothing is written, but ``recipe`` has then learned.

    ``frozen`` are modules beside the recipe's own that are on the device too; ``shards`` are what
    its pictures come from. Activations are those of one sample's forward pass, measured, without
    what ``compile_blocks`` saves of them.

    Raises:
        ConfigError: a batch that does not split into its parts. DataError: damaged shards.
    """
    SampleSchedule(seed=0, batch_size=config.batch_size, parts=config.accumulation)
    ranks, plain = Ranks(device=device), replace(config, compile_blocks=False)
    network = Network(recipe.module, list(recipe.blocks()), plain, ranks)
    recipe.module.train()
    # First of all, because it also shows a sample's shapes to what counts operations.
    activations, copies, inputs = _activations(recipe, network, device)
    flops = recipe.flops()
    sizes = [(p.numel(), p.nbytes, p.requires_grad) for p in recipe.module.parameters()]
    trained, whole = sum(n for n, _, learns in sizes if learns), sum(n for n, _, _ in sizes)
    beside = [tensor for module in frozen for tensor in module.parameters()]
    factor = training_factor(trained, whole, recomputed=config.gradient_checkpointing)
    blocks = list(recipe.blocks())
    largest = max((sum(p.numel() for p in block.parameters()) for block in blocks), default=0)
    memory = Memory(
        weights=sum(size for _, size, _ in sizes),
        gradients=sum(size for _, size, learns in sizes if learns),
        states=STATE_BYTES[config.optimizer] * trained,
        average=0.0 if config.average_halflife is None else 4.0 * whole,
        copies=copies,
        frozen=sum(tensor.nbytes for tensor in beside),
        activations=activations,
        block_inputs=inputs,
        blocks=len(blocks),
        gathered=largest * DTYPES[config.compute_dtype].itemsize,
    )
    rate = _rate(recipe, config, ranks) if measure else None
    share = rate and model_share(recipe, rate, device, config.compute_dtype)
    found, batches = ([], None) if shards is None else _epoch(shards, config.batch_size)
    return Plan(
        config=config,
        trained=trained,
        fixed=whole - trained + sum(tensor.numel() for tensor in beside),
        flops=flops * factor,
        memory=memory,
        buckets=found,
        batches_per_epoch=batches,
        per_second=rate,
        mfu=share,
    )


def size_of(count: float) -> str:
    """Bytes as people say them."""
    return f"{count / _GB:,.2f} GB" if count >= 0.1 * _GB else f"{count / 1e6:,.2f} MB"


def _activations(
    recipe: Recipe[Batch], network: Network, device: torch.device
) -> tuple[float, float, float]:
    """Bytes that one sample's forward pass keeps, of weights cast, and of all blocks' inputs."""
    weights = {p.untyped_storage().data_ptr() for p in recipe.module.parameters()}
    kept: dict[int, Tensor] = {}
    inputs: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        # Views share memory, and what is alive here has an address of its own.
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor
        return tensor

    def enter(module: nn.Module, given: tuple[Any, ...]) -> None:
        inputs.append(sum(one.nbytes for one in given[:1] if isinstance(one, Tensor)))

    hooks = [block.register_forward_pre_hook(enter) for block in recipe.blocks()]
    try:
        batch = next(iter(recipe.stream(SampleSchedule(seed=0, batch_size=1))))
        batch = recipe.prepare(batch, device, Timers(device))
        loss = network.losses(recipe.loss, batch, last=True)
        with saved_tensors_hooks(keep, lambda tensor: tensor), loss:
            pass
        found = {address: t.untyped_storage().nbytes() for address, t in kept.items()}
        frozen = {_sides(p) for p in recipe.module.parameters() if not p.requires_grad}
        cast = sum(found[address] for address, t in kept.items() if _of_a_weight(t, frozen))
        return float(sum(found.values()) - cast), float(cast), float(sum(inputs))
    finally:
        for hook in hooks:
            hook.remove()


def _of_a_weight(tensor: Tensor, frozen: Set[tuple[int, ...]]) -> bool:
    """Whether it is what autocast made of a weight, cast, turned or flat: no batch makes it grow.

    ``frozen`` are the shapes of weights that do not learn, all that can be known of their casts.
    """
    node = tensor.grad_fn
    if node is None:
        return tensor.dtype != torch.float32 and _sides(tensor) in frozen
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return hasattr(node, "variable")  # where gradients are gathered: a parameter


def _sides(tensor: Tensor) -> tuple[int, ...]:
    return tuple(sorted(side for side in tensor.shape if side > 1))


def _rate(recipe: Recipe[Batch], config: LoopConfig, ranks: Ranks) -> float:
    """Samples a second over a few whole steps, the first one left out unless it is slow."""
    gentle = replace(config, peak_lr=config.peak_lr * 1e-3)
    trainer = Trainer(recipe, gentle, Path(), ranks, report=lambda line: None)
    stream, times = iter(recipe.stream(trainer.schedule)), [_now(ranks.device)]
    while len(times) <= MEASURED_STEPS + 1 and times[-1] - times[0] < MEASURED_SECONDS:
        trainer.step(stream)
        times.append(_now(ranks.device))
    counted = times[1:] if len(times) > 2 else times
    return (len(counted) - 1) * config.batch_size / (counted[-1] - counted[0])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _epoch(shards: str, batch_size: int) -> tuple[list[tuple[int, int, int]], int]:
    """The buckets, largest first, and steps of an epoch: each bucket fills its own batches."""
    folder = open_folder(shards)
    contents = contents_of(folder.index(), source=folder.name)
    found = sorted(((b.samples, b.height, b.width) for b in contents.buckets), reverse=True)
    batches = sum(-(-samples // batch_size) for samples, _, _ in found)
    return [(height, width, samples) for samples, height, width in found], batches
