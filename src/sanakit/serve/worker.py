"""The process that owns the model: told on its input what to draw, it tells on its output.

It is started as ``python -m sanakit.serve.worker`` and ends with whoever started it.
"""

from __future__ import annotations

import base64
import os
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from sanakit.errors import Interrupted, OutOfMemory, SanakitError
from sanakit.flow.solvers import Stepped
from sanakit.models.flops import block_products
from sanakit.nn.processor import tune_process
from sanakit.pipeline.aspect_ratios import TABLES
from sanakit.pipeline.pipeline import OnSampled, Pipeline
from sanakit.pipeline.pixels import Pixels
from sanakit.pipeline.placement import accelerator, device_named
from sanakit.pipeline.png import encode_png
from sanakit.pipeline.published.base import PublishedPipeline
from sanakit.pipeline.request import GenerateRequest
from sanakit.pipeline.schedulers import NAMED
from sanakit.serve.messages import Message, packed, read
from sanakit.serve.preview import LinearPreview
from sanakit.serve.turns import Turns
from sanakit.weights.resolve import EMBEDDED

PREVIEW_EVERY = 0.25
"""Seconds between two previews at the least."""
WARM_STEPS = 2
WARM_PROMPTS = (
    "a red apple",
    "a blue bird",
    "a green leaf on a white background",
    "a yellow moon on a black background",
)
POSITIONS = 256
"""Of latents that a preview is fitted to at the least; a channel is one unknown."""


class Cancelled(Interrupted):
    """Nobody waits for the job any more."""


class Worker:
    """A loaded model and the jobs that draw with it."""

    def __init__(self, out: BinaryIO, inputs: Path, at_once: int) -> None:
        self._out, self._inputs = out, inputs
        self._telling = threading.Lock()
        self._turns = Turns()
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="drawing")
        self._jobs: set[str] = set()
        self._cancelled: set[str] = set()
        self._loras: dict[str, float] = {}
        self._active: tuple[str, ...] = ()

    def tell(self, kind: str, data: bytes = b"", **values: Any) -> None:
        """Send a message to the server."""
        with self._telling:
            self._out.write(packed({"kind": kind, **values}, data))
            self._out.flush()

    def load(self, wanted: Message) -> None:
        """Load a model and draw once, so that the first request waits for nothing."""
        dtype, model, device = wanted["dtype"], wanted["model"], wanted["device"]
        if device is not None:
            device = device_named(device)
        else:
            device = device_named("cpu") if model in EMBEDDED else accelerator()
        self.pipeline = Pipeline.load(
            model,
            dtype=None if dtype is None else getattr(torch, dtype),
            device=device,
            offline=wanted["offline"],
            quantization=wanted["quantize"],
            controlnet=wanted["controlnet"],
        )
        if wanted["decoder"] is not None:
            decoder: Any = self.pipeline.components.autoencoder
            decoder.load_decoder(wanted["decoder"], local_files_only=wanted["offline"])
        self.published = PublishedPipeline(self.pipeline)
        for name, (file, strength) in wanted["loras"].items():
            self.published.load_lora_weights(file, name)
            self._loras[name] = strength
        self._wear(())
        if device.type == "cpu":
            tune_process(self._work())
        seconds = self._warm_up()
        share = wanted["max_pixels"] / self.pipeline.default_size**2
        self.tell("ready", **self._capabilities(), largest_seconds=seconds * max(share, 1.0))

    def _work(self) -> float:
        """Operations of a block of the transformer in a guided step of the usual size."""
        tokens = (self.pipeline.default_size // self.pipeline.spatial_factor) ** 2
        config = self.pipeline.components.transformer.config
        return 2 * 2 * block_products(config, tokens, 0)

    def _warm_up(self) -> float:
        """Draw pictures that have enough positions between them to fit a preview to.

        The seconds of the slowest are given.
        """
        slowest = 0.0
        latents: list[torch.Tensor] = []
        pixels: list[Pixels] = []
        for prompt in WARM_PROMPTS:
            last: list[Stepped] = []
            began = time.monotonic()
            request = GenerateRequest(prompt=prompt, num_steps=WARM_STEPS)
            drawn = self.pipeline.generate(
                request, begin=lambda *_, last=last: lambda _, stepped: last.append(stepped)
            )
            latents.append(last[-1].x)
            slowest = max(slowest, time.monotonic() - began)
            pixels.append(drawn.pictures[0].pixels)
            if sum(one[:, :1].numel() for one in latents) >= POSITIONS:
                break
        self._preview = LinearPreview.fit(torch.cat(latents), np.stack(pixels))
        return slowest

    def _capabilities(self) -> dict[str, Any]:
        parts, pipeline = self.pipeline.components, self.pipeline
        few = parts.transformer.config.guidance_embeds
        scheduler = pipeline.scheduler()
        kinds = [n for n, one in NAMED.items() if one.solver.adds_noise == few]
        return {
            "model": parts.name,
            "fingerprint": parts.fingerprint,
            "multiple": pipeline.spatial_factor,
            "any_size": parts.transformer.config.sample_size in TABLES,
            "default_size": pipeline.default_size,
            "default_steps": scheduler.usual_steps,
            "default_guidance": parts.defaults.guidance_scale,
            "default_solver": scheduler.solver_name,
            "solvers": kinds,
            "loras": sorted(self._loras),
            "supports": {"img2img": True, "inpaint": True, "control": bool(parts.controlnet)},
        }

    def _wear(self, names: tuple[str, ...]) -> None:
        if not self._loras or names == self._active:
            return
        if names:
            self.published.set_adapters(list(names), [self._loras[name] for name in names])
            self.published.enable_lora()
        else:
            self.published.disable_lora()
        self._active = names

    def take(self, message: Message) -> None:
        """Do what the server asks."""
        job = message["job"]
        if message["do"] == "draw":
            self._jobs.add(job)
            self._threads.submit(self._draw, message)
        elif message["do"] == "cancel" and job in self._jobs:
            self._cancelled.add(job)

    def _draw(self, message: Message) -> None:
        job = message["job"]
        try:
            with self._turns.taking():
                self._check(job)
                self._wear(tuple(message["lora"]))
                self.tell("started", job=job)
                for place, seed in enumerate(message["seeds"]):
                    self._draw_one(message, place, seed)
            self.tell("done", job=job)
        except Cancelled:
            self.tell("cancelled", job=job)
        except (MemoryError, torch.OutOfMemoryError, OutOfMemory) as error:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.tell("failed", job=job, code="out_of_memory", error=_memory_error(error))
        except SanakitError as error:
            self.tell("failed", job=job, code="invalid_request", error=str(error))
        except Exception as error:
            traceback.print_exc()
            said = f"drawing failed: {type(error).__name__}"
            self.tell("failed", job=job, code="internal_error", error=said)
        finally:
            self._jobs.discard(job)
            self._cancelled.discard(job)

    def _check(self, job: str) -> None:
        if job in self._cancelled:
            raise Cancelled("cancelled")

    def _draw_one(self, message: Message, place: int, seed: int) -> None:
        job = message["job"]
        request = GenerateRequest.from_json(self._with_files(message["request"]) | {"seed": seed})
        drawn = self.pipeline.generate(
            request, begin=lambda *about: self._after_each_step(message, place, about[-1])
        )
        picture = drawn.pictures[0]
        settings = self._without_files(picture.settings, message)
        height, width = picture.pixels.shape[:2]
        png = encode_png(picture.pixels, settings)
        self.tell("image", png, job=job, place=place, seed=seed, width=width, height=height)

    def _after_each_step(self, message: Message, place: int, total: int) -> OnSampled:
        """What follows a step: word of it, a preview now and then, the turn of the others."""
        job, partial = message["job"], message["partial_images"]
        shown, sent = time.monotonic(), 0

        def after(index: int, stepped: Stepped) -> None:
            nonlocal shown, sent
            self._check(job)
            done = index + 1
            self.tell("step", job=job, index=place, step=done, steps=total)
            due = sent < partial and done >= (sent + 1) * total / (partial + 1)
            if done < total and (due or time.monotonic() - shown >= PREVIEW_EVERY):
                shown = time.monotonic()
                more: dict[str, Any] = {"partial_image_index": sent} if due else {}
                sent += due
                jpeg = base64.b64encode(self._preview.jpeg(stepped.denoised)).decode()
                self.tell("preview", job=job, index=place, step=done, image=jpeg, **more)
            self._turns.hand_over()
            self._check(job)

        return after

    def _with_files(self, request: dict[str, Any]) -> dict[str, Any]:
        """Names of pictures that were handed in become files."""
        found = dict(request)
        for part in ("edit", "control"):
            if found[part] is not None:
                found[part] = {
                    key: str(self._inputs / value.removeprefix("sha256:"))
                    if key in ("image", "mask") and value is not None
                    else value
                    for key, value in found[part].items()
                }
        return found

    def _without_files(self, settings: dict[str, Any], message: Message) -> dict[str, Any]:
        """The settings of a picture tell nothing of this machine's folders."""
        own = {part: message["request"][part] for part in ("edit", "control")}
        return settings | own | ({"lora": message["lora"]} if message["lora"] else {})


def _memory_error(error: BaseException) -> str:
    said = error.message if isinstance(error, OutOfMemory) else "memory did not suffice"
    return f"{said}; a smaller picture needs less"


def main() -> None:
    """Load what the first message names, then draw until the input ends."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole terminal; the server says
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print does not get between messages
    stream = sys.stdin.buffer
    first = read(stream)
    if first is None:
        return
    wanted, _ = first
    worker = Worker(out, Path(wanted["inputs"]), wanted["at_once"])
    try:
        worker.load(wanted)
    except Exception as error:
        if not isinstance(error, SanakitError):
            traceback.print_exc()
        worker.tell("unloadable", error=str(error))
        return
    while (message := read(stream)) is not None:
        worker.take(message[0])
    os._exit(0)  # nobody is told of what threads still draw


if __name__ == "__main__":
    main()
