"""One side of a comparison, in a process of its own: loads a network, runs it once for each line.

`python side.py CASE`, with a case in JSON. It is run by path, for a peer may have an environment of
its own, without this package. Peers are named here and nowhere else; nothing imports them.
"""

from __future__ import annotations

import gc
import importlib
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

Case = Mapping[str, Any]
Run = Callable[[], Tensor]
TEXT_TOKENS = 300
MODULES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "transformer": ("SanaTransformer2DModel", "transformer"),
        "step": ("SanaTransformer2DModel", "transformer"),
        "decode": ("AutoencoderDC", "vae"),
        "encode": ("AutoencoderDC", "vae"),
        "drawing": ("SanaPipeline", ""),
    }
)
"""The class of each stage, by the name that all sides have for it, and its folder."""
PROMPT = "a red apple"


def inputs(case: Case, config: Any) -> tuple[Tensor, ...]:
    """Make the same inputs on every side.

    Guidance by a second pass makes a step of two rows.
    """
    source = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case["dtype"])
    side = case["size"] // case["factor"]

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source).to(dtype)

    if case["stage"] == "encode":
        return (noise(1, 3, case["size"], case["size"]).clamp(-1, 1),)
    if case["stage"] == "decode":
        return (noise(1, config.latent_channels, side, side),)
    rows = case["rows"]
    latent = noise(1, config.in_channels, side, side).expand(rows, -1, -1, -1).contiguous()
    text = noise(rows, TEXT_TOKENS, config.caption_channels)
    timestep = torch.full((rows,), 500.0, dtype=dtype)
    embedded = (torch.full((rows,), 4.5, dtype=dtype),) if config.guidance_embeds else ()
    return (latent, text, timestep, *embedded)


class Called(nn.Module):
    """A network called by its published names, with tensors alone."""

    def __init__(self, network: Any, stage: str) -> None:
        super().__init__()
        self.network, self.stage = network, stage

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """Give the prediction, the picture or the latent."""
        if self.stage in ("decode", "encode"):
            found: Tensor = getattr(self.network, self.stage)(x, return_dict=False)[0]
            return found
        names = ("encoder_hidden_states", "timestep", "guidance")
        found = self.network(x, **dict(zip(names, more, strict=False)), return_dict=False)[0]
        return found


def loaded(library: str, case: Case) -> Any:
    """Give a stage's network, as a library loads it; ours in a process set as our commands'."""
    if library == "sanakit":
        importlib.import_module("sanakit.nn.processor").tune_process()
    name, folder = MODULES[case["stage"]]
    kind = getattr(importlib.import_module(library), name)
    dtype = getattr(torch, case["dtype"])
    return kind.from_pretrained(Path(case["folder"]) / folder, torch_dtype=dtype).eval()


def called(library: str, case: Case) -> Run:
    """Call a network of `sanakit` or `diffusers` by its published names."""
    network = loaded(library, case)
    given = inputs(case, network.config)
    call = Called(network, case["stage"])
    return lambda: call(*given)


def step(case: Case) -> Run:
    """A solver step's pass as our pipelines take it: what the text decides is computed before."""
    network = loaded("sanakit", case)
    latent, text, timestep, *embedded = inputs(case, network.config)
    prepared = network.prepare_text(text)
    more = {"guidance": embedded[0]} if embedded else {}
    return lambda: network.velocity(latent, timestep, prepared, None, **more)


def drawing(library: str, case: Case) -> Run:
    """Draw a whole picture as the published pipeline is called; the first run loads it.

    No instruction is put before the prompt, so that all sides read the same words.
    """
    name, _ = MODULES[case["stage"]]
    kind = getattr(importlib.import_module(library), name)
    held: list[Any] = []

    def run() -> Tensor:
        if not held:
            dtype = getattr(torch, case["dtype"])
            held.append(kind.from_pretrained(case["folder"], torch_dtype=dtype))
            held[0].set_progress_bar_config(disable=True)
            return torch.zeros(1)
        found: Tensor = held[0](
            PROMPT,
            height=case["size"],
            width=case["size"],
            num_inference_steps=case["steps"],
            generator=torch.Generator().manual_seed(1),
            complex_human_instruction=None,
            use_resolution_binning=False,
            output_type="pt",
        ).images
        return found

    return run


def ours(case: Case) -> Run:
    """Run a stage of this package."""
    return step(case) if case["stage"] == "step" else theirs("sanakit", case)


def theirs(library: str, case: Case) -> Run:
    """Run a stage as the published classes are called."""
    return (drawing if case["stage"] == "drawing" else called)(library, case)


def openvino(case: Case) -> Run:
    """Run diffusers' network as OpenVINO compiles it, for this very shape, in fp32."""
    ov = importlib.import_module("openvino")
    network = loaded("diffusers", case)
    given = inputs(case, network.config)
    converted = ov.convert_model(
        Called(network, case["stage"]).eval(),
        example_input=given,
        input=[tuple(each.shape) for each in given],
    )
    compiled = ov.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    del network, converted
    gc.collect()
    arrays = [each.numpy() for each in given]
    return lambda: torch.from_numpy(compiled(arrays)[0])


SIDES: Mapping[str, Callable[[Case], Run]] = MappingProxyType(
    {
        "sanakit": ours,
        "diffusers": lambda case: theirs("diffusers", case),
        "openvino": openvino,
    }
)


def memory_mb(key: str) -> float:
    """``VmRSS`` of this process, or ``VmHWM``, the most it was; 0 where the system has no such."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    found = re.search(rf"{key}:\s+(\d+)", status.read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else 0.0


def main() -> None:
    """Answer each line with the seconds and the memory of a run, and with some of its values."""
    case = json.loads(sys.argv[1])
    torch.set_grad_enabled(False)
    run = SIDES[case["side"]](case)
    gc.collect()
    library = importlib.import_module(case["side"])
    told = {"threads": torch.get_num_threads(), "version": str(library.__version__)}
    answer({"before": memory_mb("VmRSS"), **told})
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        found = run()
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        values = found.float().flatten()
        sample = values[:: max(1, len(values) // 64)][:64].tolist()
        answer({**seconds, "peak": memory_mb("VmHWM"), "sample": sample})


def answer(found: Mapping[str, Any]) -> None:
    """Give one line of JSON."""
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
