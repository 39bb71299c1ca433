"""A pipeline draws in other processes as in its own, and call after call takes no more memory."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator
from multiprocessing.queues import Queue
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sanakit import SanaPipeline
from tiny import ROUNDING, write_tiny

CALL: dict[str, Any] = {
    "prompt": "a red apple",
    "height": 64,
    "width": 64,
    "num_inference_steps": 2,
    "output_type": "np",
}
LARGE = 1_000_000
"""Values that several threads share the work on."""


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> SanaPipeline:
    return SanaPipeline.from_pretrained(write_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def draw(pipe: SanaPipeline, **more: Any) -> Any:
    return pipe(**{**CALL, **more}, generator=torch.Generator().manual_seed(3)).images


def draw_there(pipe: SanaPipeline, drawn: Queue[Any]) -> None:
    torch.ones(LARGE).exp()
    drawn.put(draw(pipe))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("how", ["fork", "spawn"])
@pytest.mark.usefixtures("two_threads")
def test_another_process_draws_the_same(pipe: SanaPipeline, how: str) -> None:
    if how not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system does not {how}")
    torch.ones(LARGE).exp()  # the threads of this process are there, a fork has them not
    here = draw(pipe)
    context: Any = multiprocessing.get_context(how)
    drawn = context.Queue()
    process = context.Process(target=draw_there, args=(pipe, drawn), daemon=True)
    process.start()
    there = drawn.get(timeout=120)
    process.join()
    np.testing.assert_allclose(there, here, rtol=0, atol=ROUNDING)


def test_fifty_calls_hold_what_one_holds(pipe: SanaPipeline) -> None:
    def held() -> int:
        gc.collect()
        return sum(each.nbytes for each in gc.get_objects() if type(each) is Tensor)

    pipe.set_progress_bar_config(disable=True)
    draw(pipe)
    before = held()
    for _ in range(50):
        draw(pipe, num_inference_steps=1)
    assert held() <= before  # what tests before this one left may go meanwhile
