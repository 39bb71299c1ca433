"""Trainings over several processes: equal to one, resharded, and ended by one bad rank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import Tensor
from torch.testing import assert_close

from ranks import Ended, run_ranks
from sanakit.train.checkpoint import checkpoints, read_manifest, read_tensors
from sanakit.train.runs.log import read_log

SCRIPT = """
import json, math, os, signal, sys, time
from pathlib import Path
import torch
from sanakit.errors import SanakitError
from sanakit.train.loop import train
from sanakit.train.distributed.ranks import join_ranks, leave_ranks
from sanakit.train.config import LoopConfig
from tiny_recipe import TinyRecipe

torch.set_num_threads(1)
rank = int(os.environ.get("RANK", 0))
ranks = join_ranks("cpu", timeout_minutes=5)
for job in json.loads(sys.argv[1]):
    trouble = job.get("trouble") if rank == 1 else None
    def watch(count):
        if trouble == "error" and count == 3:
            raise ValueError("a bad shard")
        if trouble == "slow" and count == 3:
            time.sleep(600)
        if trouble == "killed" and count == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "stop" and count == 2:
            signal.raise_signal(signal.SIGTERM)
        if trouble == "nan":
            with torch.no_grad():
                recipe.module[0].weight.fill_(math.nan)
    recipe = TinyRecipe(watch, seed=job.get("start", 0))
    if trouble == "end":
        honest = recipe.stream
        recipe.stream = lambda share: (b for b, _ in zip(honest(share), range(3)))
    settings = dict(batch_size=8, total_images=64, peak_lr=0.02, warmup_images=8, decay_share=0.5,
                    average_halflife=20, compute_dtype="float32", log_every=1)
    config = LoopConfig(**{**settings, **job["set"]})
    try:
        ending = train(recipe, config, Path(job["run"]), resume=job.get("resume", False),
                       ranks=ranks, report=lambda line: print(line, flush=True))
        print("ending", ending.value)
    except SanakitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
leave_ranks()
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "rank.py"
    path.write_text(SCRIPT)
    return path


def tensors(run: Path) -> dict[str, Tensor]:
    newest = checkpoints(run)[-1]
    return {
        f"{part}.{name}": tensor
        for part in ("model", "optimizer", "average")
        for name, tensor in read_tensors(newest, part).items()
    }


def fine(ended: list[Ended]) -> None:
    assert [one.code for one in ended] == [0] * len(ended), ended


def test_ranks_take_the_steps_of_one_with_accumulation_and_reshard(
    tmp_path: Path, script: Path
) -> None:
    """Two ranks by ddp and by fsdp equal one in two parts; four save, two and one go on."""
    one = {"run": str(tmp_path / "one"), "set": {"accumulation": 2}}
    whole = {"run": str(tmp_path / "whole"), "set": {}}
    fine(run_ranks(script, 1, json.dumps([one, whole])))
    two = [
        {"run": str(tmp_path / name), "set": {"strategy": name}} for name in ("ddp", "fsdp", "hsdp")
    ]
    half = {"run": str(tmp_path / "four"), "set": {"strategy": "fsdp"}}
    # Half of the way: the schedule still knows the whole.
    stopped = {"trouble": "stop", **half}
    fine(run_ranks(script, 4, json.dumps([stopped])))
    assert read_manifest(checkpoints(tmp_path / "four")[-1])["ranks"] == 4
    assert len(list(checkpoints(tmp_path / "four")[-1].glob("*.safetensors"))) == 4
    more = {**half, "resume": True, "start": 5}
    fine(run_ranks(script, 2, json.dumps([*two, more])))
    wanted = tensors(tmp_path / "one")
    assert {name.split(".")[0] for name in wanted} == {"model", "optimizer", "average"}
    for name in ("whole", "ddp", "fsdp", "hsdp", "four"):
        assert_close(tensors(tmp_path / name), wanted, atol=1e-6, rtol=1e-6)
    logs = {name: read_log(tmp_path / name) for name in ("one", "ddp", "fsdp")}
    for line, *others in zip(*logs.values(), strict=True):
        for other in others:
            for key in ("loss", "grad_norm", "held_loss"):
                assert other.get(key) == pytest.approx(line.get(key), abs=2e-5)


def test_all_ranks_stop_after_the_same_step_when_one_is_told_to(
    tmp_path: Path, script: Path
) -> None:
    job = {"run": str(tmp_path), "set": {}, "trouble": "stop"}
    ended = run_ranks(script, 2, json.dumps([job]))
    fine(ended)
    assert [one.out.splitlines()[-1] for one in ended] == ["ending terminated"] * 2
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-0000000024"]


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        ("error", "ValueError: a bad shard"),
        ("end", "the data ended before the run did"),
        ("nan", "gradients were not finite"),
        ("slow", "the job hangs, no step for"),
        ("killed", ""),
    ],
)
def test_one_bad_rank_ends_all_with_the_cause_said_once(
    tmp_path: Path, script: Path, trouble: str, cause: str
) -> None:
    settings = {"hang_minutes": 0.1, "most_skipped": 2}
    job = {"run": str(tmp_path), "set": settings, "trouble": trouble}
    ended = run_ranks(script, 2, json.dumps([job]), timeout=90)
    assert all(one.code != 0 for one in ended)
    said = "".join(one.err for one in ended)
    if cause:
        assert said.count(cause) == 1, said
    if trouble == "slow":
        assert "rank 1 computing gradients" in said or "rank 1 encoding" in said
        for rank in (0, 1):
            assert "File" in (tmp_path / f"stacks-rank-{rank}.txt").read_text()
