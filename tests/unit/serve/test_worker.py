from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sanakit.errors import ConfigError
from sanakit.flow.solvers import Stepped
from sanakit.pipeline.pipeline import GenerateResult, Picture
from sanakit.serve.messages import read
from sanakit.serve.preview import LinearPreview
from sanakit.serve.requests import DrawRequest
from sanakit.serve.turns import Turns
from sanakit.serve.worker import Worker

LATENT = torch.zeros(1, 4, 2, 3)


class Drawing:
    """Stands where a pipeline does: raises what it is told to."""

    raising: BaseException | None = None
    steps = 2

    def generate(self, request: Any, *, begin: Any) -> GenerateResult:
        after = begin(None, None, None, self.steps)
        for index in range(self.steps):
            after(index, Stepped(LATENT, LATENT, LATENT, None))  # type: ignore[arg-type]
            if self.raising is not None:
                raise self.raising
        pixels = np.zeros((8, 8, 3), np.uint8)
        return GenerateResult(pictures=(Picture(pixels=pixels, settings={}),), seconds={})


def worker(tmp_path: Path) -> tuple[Worker, io.BytesIO]:
    out = io.BytesIO()
    one = Worker(out, tmp_path, 2)
    one.pipeline = Drawing()  # type: ignore[assignment]
    return one, out


def draw(one: Worker, job: str, partial_images: int = 0) -> None:
    request = DrawRequest(prompt="", seed=1)
    message = {"do": "draw", "job": job, "request": request.drawing(), "seeds": [1]}
    one.take({**message, "lora": [], "partial_images": partial_images})


def heard(one: Worker, out: io.BytesIO) -> list[dict[str, Any]]:
    one._threads.shutdown()
    out.seek(0)
    return [message for message, _ in iter(lambda: read(out) or ({}, b""), ({}, b""))]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), "out_of_memory", "smaller picture"),
        (torch.OutOfMemoryError("CUDA"), "out_of_memory", "smaller picture"),
        (ConfigError("height=7 is odd", hint="8"), "invalid_request", "height=7"),
        (KeyError("secret"), "internal_error", "KeyError"),
    ],
)
def test_what_fails_a_drawing_fails_that_one_alone(
    tmp_path: Path, error: BaseException, code: str, said: str
) -> None:
    one, out = worker(tmp_path)
    Drawing.raising = error
    draw(one, "a")
    one._threads.submit(lambda: setattr(Drawing, "raising", None))
    one._threads.shutdown()
    failed = heard(one, out)[-1]
    assert (failed["kind"], failed["code"]) == ("failed", code)
    assert said in failed["error"]
    assert "secret" not in failed["error"]
    one, out = worker(tmp_path)
    Drawing.raising = None
    draw(one, "b")
    assert [m["kind"] for m in heard(one, out)] == ["started", "step", "step", "image", "done"]


def test_a_cancelled_job_stops_at_its_step_and_is_forgotten(tmp_path: Path) -> None:
    one, out = worker(tmp_path)
    with one._turns.taking():  # it waits for its turn meanwhile
        draw(one, "a")
        one.take({"do": "cancel", "job": "a"})
        one.take({"do": "cancel", "job": "of long ago"})
    assert [m["kind"] for m in heard(one, out)] == ["cancelled"]
    assert (one._jobs, one._cancelled) == (set(), set())


@pytest.mark.parametrize(
    ("steps", "asked", "shown"), [(20, 3, [5, 10, 15]), (20, 0, []), (2, 3, [1]), (1, 3, [])]
)
def test_partial_images_come_at_even_distances_and_never_after_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, asked: int, shown: list[int]
) -> None:
    monkeypatch.setattr("sanakit.serve.worker.PREVIEW_EVERY", 1e9)
    monkeypatch.setattr(Drawing, "steps", steps)
    one, out = worker(tmp_path)
    one._preview = LinearPreview(torch.zeros(5, 3))
    draw(one, "a", asked)
    previews = [m for m in heard(one, out) if m["kind"] == "preview"]
    assert [m["step"] for m in previews] == shown
    assert [m["partial_image_index"] for m in previews] == list(range(len(shown)))


def test_threads_take_turns_a_step_each() -> None:
    turns, order = Turns(), []
    ready = threading.Barrier(3)

    def steps(name: str, count: int) -> None:
        ready.wait()
        with turns.taking():
            for step in range(count):
                order.append(name)
                if step == 0:  # the others are in line
                    while len(turns._ring) < 3:
                        pass
                turns.hand_over()

    threads = [
        threading.Thread(target=steps, args=(name, n), daemon=True)
        for name, n in zip("abc", (4, 4, 2), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(order[:3]) == sorted(order[3:6]) == ["a", "b", "c"]
    assert sorted(order[6:]) == ["a", "a", "b", "b"]
    assert order[6] != order[7]


def test_the_linear_preview_finds_the_map_that_made_the_colors() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 5, 6, 8, generator=generator)
    weights = torch.randn(5, 3, generator=generator) * 0.1
    colors = latents.permute(0, 2, 3, 1) @ weights + 0.1
    pixels = ((colors + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    pixels = pixels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    fit = LinearPreview.fit(latents, pixels.numpy())
    assert torch.allclose(fit.weights[:-1], weights, atol=0.01)
    assert torch.allclose(fit.weights[-1], torch.full((3,), 0.1), atol=0.01)
    assert fit.jpeg(latents)[:2] == b"\xff\xd8"


def test_the_server_itself_loads_no_torch_and_unpickles_nothing() -> None:
    code = (
        "import sys, sanakit.serve.app, sanakit.serve.jobs, sanakit.serve.worker_process, "
        "sanakit.cli.serve, sanakit.serve.moderation\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    import sanakit.serve

    sources = [path.read_text() for path in Path(sanakit.serve.__path__[0]).glob("*.py")]
    banned = (
        "import pickle",
        "multiprocessing",
        "shelve",
        "marshal",
        "torch.load",
        "urllib",
        "requests.get",
    )
    assert not [word for word in banned for text in sources if word in text]


class Wearing:
    """Stands where the published pipeline does: knows one LoRA, and each name once."""

    def __init__(self) -> None:
        self.enabled = False

    def enable_lora(self) -> None:
        self.enabled = True

    def disable_lora(self) -> None:
        self.enabled = False

    def set_adapters(self, names: list[str], strengths: list[float]) -> None:
        if len(set(names)) < len(names):
            raise ConfigError("one twice")


def test_lora_that_could_not_be_put_on_are_not_worn_by_the_next_picture(tmp_path: Path) -> None:
    one, _ = worker(tmp_path)
    one._loras, one.published = {"red": 1.0}, Wearing()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="twice"):
        one._wear(("red", "red"))
    one._wear(())
    assert not one.published.enabled  # type: ignore[attr-defined]
