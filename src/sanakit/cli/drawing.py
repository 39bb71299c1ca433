"""A model as options name it, made ready to draw, and its pictures as files."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sanakit.cli.control import branch_folder, check_branch_of, remembered
from sanakit.cli.decoders import check_decoder, decode_with, decoder_noted
from sanakit.cli.known import check_few_steps, check_size_of
from sanakit.cli.loras import add_loras, lora_hash, model_behind, read_loras, strength_of
from sanakit.cli.machine import AUTO, Machine, check_memory
from sanakit.cli.options import SOLVERS
from sanakit.cli.terminal import processes, say, say_bytes, speaks
from sanakit.errors import ConfigError, check_unicode, did_you_mean

if TYPE_CHECKING:
    import torch

    from sanakit.pipeline.pipeline import Pipeline
    from sanakit.pipeline.request import GenerateRequest

EMBEDDED = "glyph"
own_process = False
"""Whether this process is the command's; then its times include Python's own start."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is to draw, as options name it; None of ``model`` is that of a run's LoRA, or glyph."""

    model: str | None
    machine: Machine = field(default_factory=Machine)
    loras: Sequence[str] = ()
    controlnet: str | None = None
    decoder: str | None = None
    offline: bool = False

    @property
    def name(self) -> str:
        """The model's name.

        Raises:
            ConfigError: as `model_behind`.
        """
        return (model_behind(self.loras) or EMBEDDED) if self.model is None else self.model

    def noted(self) -> dict[str, Any]:
        """What a picture says of this, beside its request and its model."""
        more: dict[str, Any] = self.machine.to_json()
        if self.loras:
            more |= {"lora": [*self.loras], "lora_hash": [lora_hash(one) for one in self.loras]}
        return more | remembered(self.controlnet) | decoder_noted(self.decoder)


def check_wanted(wanted: Mapping[str, Any], setup: Setup) -> None:
    """Refuse what can be refused of a request and what is to draw it, before torch is loaded.

    Raises:
        ConfigError: a value or a pair of them that draws nothing. MissingModelError: a model, a
            branch or a decoder that is not there.
    """
    from sanakit.pipeline.aspect_ratios import check_count

    check_unicode(wanted["prompt"], "the prompt")
    check_unicode(wanted["negative_prompt"], "--negative")
    solver = wanted["solver"]
    if solver is not None and solver not in SOLVERS:
        raise ConfigError(f"--solver {solver!r} is unknown", hint=did_you_mean(solver, SOLVERS))
    check_count(wanted["count"], wanted["seed"])
    for spec in setup.loras:
        strength_of(spec)
    model, offline = setup.model, setup.offline
    if model is None and not setup.loras:
        model = EMBEDDED
    if model is not None:
        check_size_of(model, wanted["height"], wanted["width"], offline=offline)
        check_few_steps(model, wanted, offline=offline)
    if wanted.get("control") is not None:
        check_branch_of(model, setup.controlnet, offline=offline)
    check_decoder(setup.decoder, offline=offline)


class Drawer:
    """What a setup names, found on the disk and given its device; weights come with `load`."""

    def __init__(self, setup: Setup, *, size: tuple[int | None, int | None], quiet: bool) -> None:
        """Find everything; ``size``, height and width, is the largest to be drawn.

        Raises:
            MissingModelError: a LoRA or a branch that is not there. OutOfMemory: what cannot fit.
        """
        self.setup = setup
        self._adapters = read_loras(setup.loras, offline=setup.offline)
        self.model = setup.name
        self.device = placed(setup.machine, self.model, quiet=quiet)
        named = setup.controlnet
        branch = None if named is None else branch_folder(named, offline=setup.offline)
        check_memory(self.model, setup.machine, self.device, branch=branch, size=size, quiet=quiet)

    def load(self) -> Pipeline:
        """Give the model with all that is put into it.

        Raises:
            SanakitError: as `Pipeline.load`, and for adapters or a decoder of another model.
        """
        from sanakit.pipeline.pipeline import Pipeline

        setup = self.setup
        pipeline = Pipeline.load(
            self.model,
            dtype=setup.machine.torch_dtype,
            device=self.device,
            offline=setup.offline,
            quantization=setup.machine.quantize,
            controlnet=setup.controlnet,
        )
        add_loras(pipeline, self._adapters)
        decode_with(setup.decoder, pipeline.components.autoencoder, offline=setup.offline)
        return pipeline

    def noted(self) -> dict[str, Any]:
        """What a picture says of its setup and of where it was drawn."""
        more = self.setup.noted()
        if self.device.type != "cpu":
            more["device"] = self.device.type
        if (several := processes()[1]) > 1:
            more["processes"] = several
        return more


def tune(device: torch.device, pipeline: Pipeline, *requests: GenerateRequest) -> None:
    """Have the command's own process compute as fast as a CPU allows, for the largest request."""
    from sanakit.nn.processor import tune_process

    if own_process and device.type == "cpu":
        tune_process(max(_work(pipeline, request) for request in requests))


def _work(pipeline: Pipeline, request: GenerateRequest) -> float:
    """Operations of a block of the transformer in a step that is guided."""
    from sanakit.models.flops import block_products

    config = pipeline.components.transformer.config
    sides = (request.height or pipeline.default_size, request.width or pipeline.default_size)
    tokens = sides[0] * sides[1] // pipeline.spatial_factor**2
    return 2 * 2 * block_products(config, tokens, 0)


def begun() -> float:
    """When the command began, on the clock of ``perf_counter``."""
    if not own_process:
        return time.perf_counter()
    import psutil

    return time.perf_counter() - (time.time() - psutil.Process().create_time())


def placed(machine: Machine, model: str, *, quiet: bool) -> torch.device:
    """The device, with a word where a faster one stays idle."""
    from sanakit.pipeline.placement import accelerator

    device = machine.place(model)
    idle = accelerator().type
    if machine.device == AUTO and device.type != idle and not quiet:
        say(f"{model} is small, and drawn on the CPU; --device {idle} moves it", err=True)
    return device


def write_picture(path: Path | None, pixels: Any, settings: Mapping[str, Any] | None) -> None:
    """Write a PNG, whole or not at all; None is standard output."""
    from sanakit.files import write_atomically
    from sanakit.pipeline.png import encode_png

    data = encode_png(pixels, settings)
    if path is None:
        say_bytes(data)
    elif speaks():
        write_atomically(path, data)


def numbered(path: Path, count: int, seed: int) -> list[Path]:
    """Name one file a picture; several have their seeds in their names."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{seed + i}.png") for i in range(count)]


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
