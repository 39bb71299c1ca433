"""`sanakit doctor`: what this machine computes fast, what is chosen for it, whether it is right."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sanakit.cli.machine import AUTO, Device, Machine
from sanakit.cli.options import Json
from sanakit.cli.terminal import say
from sanakit.errors import NumericsError

if TYPE_CHECKING:
    import torch

    from sanakit import SanaPipeline

PRODUCTS = ("float32", "bfloat16", "int8")
PROMPT = "a red apple"
STEPS = 4
LATENT, PICTURE = "latent.safetensors", "picture.png"
ALLOWED = {"latent": 0.02, "picture": 0.01}
"""Root mean square of what differs over that of what is known. Processors differ by 1e-5, the
shorter products of a GPU's convolutions by 1e-3; one wrong layer by a tenth and more."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that a device computed beside what it is known to be."""

    device: str
    what: str
    difference: float

    @property
    def right(self) -> bool:
        """Whether it is near enough; what is no number is not."""
        return self.difference <= ALLOWED[self.what]


def doctor(device: Device = AUTO, json_: Json = False) -> None:
    """Tell what this machine computes fast and what is chosen, and check a known picture on it."""
    machine = Machine(device=device)
    from sanakit.pipeline.placement import accelerator

    asked = {str(accelerator()), "cpu"} if device == AUTO else {str(machine.place("glyph"))}
    found = facts()
    checks = [check for each in sorted(asked) for check in checked(each)]
    if json_:
        told = [{**asdict(check), "right": check.right} for check in checks]
        say(json.dumps({**found, "checks": told}))
    else:
        say(*(f"{name:<12}{value}" for name, value in described(found)))
        for check in checks:
            verdict = "right" if check.right else "WRONG"
            say(
                f"{check.device:<12}known {check.what} {verdict}: differs by {check.difference:.0e}"
                f", {ALLOWED[check.what]:g} is allowed"
            )
    if wrong := [check for check in checks if not check.right]:
        raise NumericsError(
            f"the {wrong[0].what} that is known is not what {wrong[0].device} computes",
            hint="pictures from it cannot be trusted: try another version of torch or its driver",
        )


def facts() -> dict[str, Any]:
    """What the processor is and may do, how fast, and what follows from that."""
    import psutil
    import torch

    from sanakit.bench.record import product_rate, versions
    from sanakit.nn.processor import has_units, this_processor
    from sanakit.pipeline.placement import accelerator

    limits = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
    rates = {kind: product_rate(kind) for kind in PRODUCTS}
    return {
        "versions": versions(("sanakit", "torch", "transformers")),
        **asdict(this_processor()),
        "limited_by": {name: os.environ[name] for name in limits if name in os.environ},
        "free_bytes": psutil.virtual_memory().available,
        "accelerator": str(accelerator()),
        "gflops": {kind: rate and round(rate / 1e9, 1) for kind, rate in rates.items()},
        "threads": torch.get_num_threads(),
        "waiting_threads_sleep": os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive",
        "bfloat16_weights_compute_in": "bfloat16" if has_units(torch.bfloat16) else "float32",
    }


def described(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The facts as a person reads them: a name and a text."""
    usable = f"{found['hardware_threads']} hardware threads on {found['cores']} cores"
    if found["quota"] is not None:
        usable += f", of which its group grants the time of {found['quota']:g}"
    limited = ", ".join(f"{name}={value}" for name, value in found["limited_by"].items())
    rates = ", ".join(
        f"{kind} {'unknown' if rate is None else format(rate, '.0f')}"
        for kind, rate in found["gflops"].items()
    )
    widened = "" if found["bfloat16_weights_compute_in"] == "bfloat16" else ", a layer at a time"
    waiting = "sleep" if found["waiting_threads_sleep"] else "spin (OMP_WAIT_POLICY=PASSIVE: sleep)"
    return [
        ("versions", ", ".join(f"{name} {one}" for name, one in found["versions"].items())),
        ("processor", f"{found['name']}, {found['architecture']}"),
        ("units", ", ".join(found["units"]) + (f", limited by {limited}" if limited else "")),
        ("may use", usable),
        ("memory", f"{found['free_bytes'] / 1e9:.1f} GB free"),
        ("accelerator", "none" if found["accelerator"] == "cpu" else found["accelerator"]),
        ("GFLOP/s", f"{rates} (square products)"),
        ("threads", f"{found['threads']}; those that wait {waiting}"),
        ("weights", f"of bfloat16 compute in {found['bfloat16_weights_compute_in']}{widened}"),
    ]


def checked(device: str) -> list[Check]:
    """Compute the known latent, and the known picture from it, on a device."""
    from safetensors.torch import load_file

    from sanakit import SanaPipeline

    with known_folder() as folder:
        latent = load_file(folder / LATENT)["latent"]
        picture = read_picture(folder / PICTURE)
    pipe = SanaPipeline.from_pretrained("glyph", device_map=device)
    pairs = {"latent": (drawn(pipe), latent), "picture": (decoded(pipe, latent), picture)}
    return [
        Check(device=device, what=what, difference=_difference(*pair))
        for what, pair in pairs.items()
    ]


def known_folder() -> Any:
    """The folder of what is known, as a context."""
    from importlib.resources import as_file

    return as_file(files("sanakit") / "assets" / "known")


def drawn(pipe: SanaPipeline) -> torch.Tensor:
    """The latent of the known picture."""
    import torch

    pipe.set_progress_bar_config(disable=True)
    source = torch.Generator().manual_seed(0)
    called: Any = pipe
    latent: torch.Tensor = called(
        PROMPT, num_inference_steps=STEPS, generator=source, output_type="latent"
    ).images
    return latent.float().cpu()


def decoded(pipe: SanaPipeline, latent: torch.Tensor) -> torch.Tensor:
    """The picture of a latent, ``3 H W`` in [-1, 1]."""
    import torch

    weight = next(pipe.vae.parameters())
    with torch.no_grad():
        raw = latent.to(weight) / pipe.vae.config.scaling_factor
        return pipe.vae.decode(raw).sample[0].float().cpu().clamp(-1, 1)


def read_picture(path: Path) -> torch.Tensor:
    """The known picture, as `decoded` gives it."""
    import numpy as np
    from PIL import Image

    from sanakit.pipeline.pixels import from_pixels

    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    found: torch.Tensor = from_pixels(pixels[None])[0]
    return found


def _difference(found: torch.Tensor, known: torch.Tensor) -> float:
    return float((found - known).norm() / known.norm())
