"""A run shown in words and curves: what its files say, and nothing that they do not."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from command_line import sanakit
from sanakit.errors import DataError
from sanakit.train.curves import Axis, curves, panels, smoothed, thinned
from sanakit.train.loop import train
from sanakit.train.run_view import spoken, standing, view_run
from sanakit.train.settings import LoopConfig
from tiny_recipe import TinyRecipe

CONFIG = LoopConfig(
    batch_size=4, total_images=24, peak_lr=1e-2, log_every=1, evaluate_every=2, device="cpu"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(TinyRecipe(), CONFIG, folder, resume=False, report=lambda line: None)
    return folder


def line(images: int, seconds: float, **values: Any) -> dict[str, Any]:
    return {"images": images, "seconds": seconds, "lr": 0.1, "per_second": 1.0, **values}


def logged(folder: Path, *lines: dict[str, Any], total: int = 100) -> Path:
    folder.mkdir(exist_ok=True)
    texts = [json.dumps(one) for one in lines]
    (folder / "log.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (folder / "loop.json").write_text(json.dumps({"total_images": total, "seed": 0}), "utf-8")
    return folder


def test_a_finished_run_is_at_its_target_with_whole_checkpoints(run: Path) -> None:
    view = view_run(run)
    assert (view.images_seen, view.total_images, view.seconds_left) == (24, 24, 0)
    assert set(view.losses) == {"loss", "twice"}
    assert (view.held, view.held_at) == ({"held_loss": 1.0}, 24)
    assert [state.fault for state in view.saved] == [None]
    assert view.saved[0].bytes > 0


def test_a_damaged_checkpoint_is_called_damaged(run: Path, tmp_path: Path) -> None:
    shard = next(run.glob("checkpoint-*/*.safetensors"))
    before = shard.read_bytes()
    shard.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        assert "DAMAGED" in sanakit("train", "show", run)[0]
    finally:
        shard.write_bytes(before)
    assert "whole" in sanakit("train", "show", run)[0]


def test_only_settings_that_are_not_their_defaults_are_shown(run: Path) -> None:
    changed = view_run(run).changed
    assert changed["batch_size"] == 4
    assert changed["log_every"] == 1
    assert "betas" not in changed
    assert "seed" not in changed


def test_time_left_is_what_is_missing_at_the_rate_of_the_last_lines(tmp_path: Path) -> None:
    slow = [line(1, 1000.0)]
    quick = [line(10 + n, 1000.0 + 2 * n) for n in range(11)]
    view = view_run(logged(tmp_path / "run", *slow, *quick))
    assert view.per_second == pytest.approx(0.5)
    assert view.seconds_left == pytest.approx(80 / 0.5)


def test_lines_that_a_resumed_run_wrote_anew_count_once() -> None:
    lines = [line(1, 1), line(2, 2, loss=9), line(3, 3), line(2, 2, loss=1), line(4, 4)]
    assert [one["images"] for one in standing(lines)] == [1, 2, 2, 4]
    superseded = [line(1, 1), line(3, 3), line(2, 2)]
    assert [one["images"] for one in standing(superseded)] == [1, 2]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder of a run"):
        view_run(tmp_path)
    assert "holds no log" in sanakit("train", "plot", tmp_path, code=2)[1]


def test_durations_are_said_in_their_two_largest_units() -> None:
    assert [spoken(s) for s in (5, 65, 3_700, 90_000)] == [
        "5 s",
        "1 min 5 s",
        "1 h 1 min",
        "1 d 1 h",
    ]


def test_the_plot_is_one_well_formed_svg_with_a_panel_for_each_kind(run: Path) -> None:
    out = Path(sanakit("train", "plot", run)[0].strip())
    text = out.read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    for title in ("loss", "parts of the loss", "learning rate", "norm of the gradients"):
        assert f">{title}</text>" in text
    assert "loss by noise level" not in text


def test_every_point_lies_inside_its_panel_and_higher_values_lie_higher() -> None:
    lines = [line(n, n, loss=10.0**-n, grad_norm=float(n)) for n in range(1, 8)]
    text = curves(lines, title="<run> & more")
    ElementTree.fromstring(text)
    rising = False
    for found in re.findall(r'points="([^"]+)"', text):
        points = [tuple(map(float, pair.split(","))) for pair in found.split()]
        assert all(62 <= x <= 506 and 50 <= y <= 216 for x, y in points)
        assert [x for x, _ in points] == sorted(x for x, _ in points)
        rising |= points[-1][1] < points[0][1]
    assert rising
    # Powers of ten: a loss that falls by a factor a step falls by as much on the page each time.
    first = re.findall(r'points="([^"]+)"', text)[0].split()
    heights = [float(pair.split(",")[1]) for pair in first]
    steps = [b - a for a, b in itertools.pairwise(heights)]
    assert max(steps) - min(steps) < 0.3


def test_a_value_that_was_not_finite_breaks_the_line() -> None:
    lines = [line(n, n, loss=None if n == 3 else 1.0 + n) for n in range(1, 6)]
    loss = next(panel for panel in panels(lines) if panel.title == "loss")
    assert loss.series["loss"][2] == (3, None)
    alone = curves([{"images": x["images"], "lr": 1.0, "loss": x["loss"]} for x in lines], title="")
    lengths = [len(found.split()) for found in re.findall(r'points="([^"]+)"', alone)]
    assert sorted(lengths) == [2, 2, 5]


def test_bins_of_sigma_come_in_their_order() -> None:
    lines = [line(1, 1, **{"loss_sigma_0.9": 1.0, "loss_sigma_0": 2.0, "loss_sigma_0.1": 3.0})]
    bins = next(panel for panel in panels(lines) if panel.title == "loss by noise level")
    assert list(bins.series) == ["loss_sigma_0", "loss_sigma_0.1", "loss_sigma_0.9"]


def test_ticks_are_round_and_on_the_axis() -> None:
    assert Axis(low=0, high=10, powers=False).ticks() == [0, 2, 4, 6, 8, 10]
    assert Axis(low=0.5, high=300_000, powers=True).ticks() == [1, 10, 100, 1e3, 1e4, 1e5]


def test_thinning_keeps_means_and_smoothing_keeps_straight_lines() -> None:
    points = [(float(n), float(n)) for n in range(3_000)]
    few = thinned(points)
    assert len(few) == 600
    assert few[0] == (4.0, 2.0)
    assert smoothed(points[:100]) == points[:100]
