"""A run shown in words and curves: what its files say, and nothing that they do not."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from command_line import sanakit
from sanakit.errors import DataError
from sanakit.train.config import LoopConfig
from sanakit.train.loop import train
from sanakit.train.runs.curves import (
    Axis,
    Panel,
    curves,
    draw_panel,
    panels,
    short,
    smoothed,
    thinned,
)
from sanakit.train.runs.log import RunLog, read_log
from sanakit.train.runs.summary import RunView, SavedState, spoken, standing, view_run
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


def test_a_line_alone_says_its_rate_itself(tmp_path: Path) -> None:
    view = view_run(logged(tmp_path / "run", line(10, 5.0)))
    assert view.per_second == 1.0
    assert view.seconds_left == 90
    stuck = view_run(logged(tmp_path / "stuck", line(10, 5.0), line(10, 6.0)))
    assert stuck.per_second == 1.0
    beyond = view_run(logged(tmp_path / "beyond", line(10, 5.0), line(120, 6.0)))
    assert beyond.seconds_left == 0


def test_losses_are_those_of_the_last_line_and_held_figures_of_their_own(tmp_path: Path) -> None:
    held = {"images": 3, "seconds": 3.0, "held_loss": 0.25}
    bins = {"mfu": 0.5, "loss_sigma_0.1": 9.0, "time_data": 0.1, "grad_norm": 7.0}
    lines = line(1, 1.0, loss=4.0), {**held, "images": 1, "held_loss": 1.0}
    run = logged(tmp_path / "run", *lines, line(3, 3.0, loss=None, l1=2.0, **bins), held)
    view = view_run(run)
    assert view.losses == {"loss": None, "l1": 2.0}
    assert (view.held, view.held_at) == ({"held_loss": 0.25}, 3)


def test_a_view_is_told_in_lines(tmp_path: Path) -> None:
    view = RunView(
        run=Path("runs/x"),
        images_seen=2_500,
        total_images=10_000,
        seconds=65.0,
        per_second=2.0,
        losses={"loss": 0.125, "l1": None},
        held={"held_loss": 0.5},
        held_at=2_000,
        saved=[
            SavedState(folder=Path("runs/x/a"), bytes=1_250_000, fault=None),
            SavedState(folder=Path("runs/x/b"), bytes=0, fault="too short"),
        ],
        changed={"betas": [0.9, 0.99]},
    )
    assert view.lines() == [
        "runs/x",
        "images  2,500 of 10,000 (25.0%)",
        "time    1 min 5 s, 2 images/s, 1 h 2 min left",
        "loss    loss 0.125  l1 not finite",
        "held    held_loss 0.5  (at 2,000 images)",
        "saved   a  1.2 MB  whole",
        "saved   b  0.0 MB  DAMAGED: too short",
        "set     betas=[0.9, 0.99]",
    ]
    assert view_run(logged(tmp_path / "run")).lines()[-2] == "saved   nothing yet"


def test_settings_come_from_both_files_and_damaged_ones_are_said_to_be(tmp_path: Path) -> None:
    run = logged(tmp_path / "run", total=7)
    file = {"settings": ["total_images=1", "flow_shift=2.0", "lora_rank=0"]}
    (run / "run.json").write_text(json.dumps(file), "utf-8")
    view = view_run(run)
    assert view.total_images == 7
    assert view.changed == {"total_images": 7, "flow_shift": 2.0}
    for text in ("{", "[]", '{"settings": ["lora_rank"]}'):
        (run / "run.json").write_text(text, "utf-8")
        with pytest.raises(DataError, match="settings are damaged"):
            view_run(run)
    alone = tmp_path / "log-only"
    alone.mkdir()
    (alone / "log.jsonl").write_text(json.dumps(line(3, 1.0)) + '\n{"images": 4, "sec', "utf-8")
    assert view_run(alone).images_seen == 3  # a line that a kill cut short is none


def test_a_number_that_is_not_finite_is_logged_as_null(tmp_path: Path) -> None:
    log = RunLog(tmp_path, first=True, report=lambda text: None)
    log.line(4, 1.26, {"loss": math.nan, "norm": math.inf, "lr": 0.5})
    log.close()
    entry = {"images": 4, "seconds": 1.3, "loss": None, "norm": None, "lr": 0.5}
    assert read_log(tmp_path) == [entry]
    RunLog(tmp_path, first=False, report=print).line(8, 2.0, {"loss": 1.0})
    assert len(read_log(tmp_path)) == 1


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder of a run"):
        view_run(tmp_path)
    assert "holds no log" in sanakit("train", "plot", tmp_path, code=2)[1]


def test_durations_are_said_in_their_two_largest_units() -> None:
    assert [spoken(s) for s in (5, 65, 3_700, 90_000, 180_000)] == [
        "5 s",
        "1 min 5 s",
        "1 h 1 min",
        "1 d 1 h",
        "2 d 2 h",
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


def test_an_axis_holds_its_values_in_steps_or_in_powers() -> None:
    plain = Axis.over([2.0, 8.0], powers=False, zero=False)
    assert (plain.low, plain.high, plain.share(5.0)) == (2, 8, 0.5)
    for values, ends in (([2.0, 8.0], (0, 8)), ([-3.0, -1.0], (-3, 0))):
        axis = Axis.over(values, powers=False, zero=True)
        assert (axis.low, axis.high) == ends
    assert Axis.over([3.0], powers=False, zero=False).share(3.0) == 0.5
    alone = Axis.over([3.0], powers=True, zero=False)
    assert (alone.low, alone.high) == (1.5, 6)
    assert Axis(low=1, high=100, powers=True).share(10) == pytest.approx(0.5)
    assert Axis(low=3, high=9, powers=False).ticks() == [4, 6, 8]
    assert Axis(low=3, high=30, powers=True).ticks() == [5, 10, 20]
    assert Axis(low=3, high=3000, powers=True).ticks() == [1e1, 1e2, 1e3]


def test_panels_lie_in_two_columns_below_the_title() -> None:
    text = curves([line(n, n, loss=1.0 + n, grad_norm=1.0) for n in range(3)], title="t")
    places = re.findall(r"translate\((\d+) (\d+)\)", text)
    assert places == [("0", "28"), ("520", "28"), ("0", "278"), ("520", "278")]
    assert 'viewBox="0 0 1040 528"' in text


def test_what_does_not_count_is_not_drawn_and_zero_has_no_place_among_powers() -> None:
    lines = [line(0, 0, loss=5.0), line(10, 1, loss=4.0), line(20, 2, loss=3.0)]
    panel = Panel(title="p", series={"loss": [(x["images"], x["loss"]) for x in lines]})
    assert [len(found.split()) for found in re.findall(r'points="([^"]+)"', drawn(panel))] == [3]
    powers = re.findall(r'points="([^"]+)"', drawn(panel, log_x=True))
    assert [pair.split(",")[0] for pair in powers[0].split()] == ["62.0", "506.0"]
    again = [line(1, 1, loss=1.0), line(3, 3, loss=9.0), line(2, 2, loss=2.0)]
    whole = curves(again, title="t")
    assert "9</text>" not in whole  # another process has been there since


def drawn(panel: Panel, *, log_x: bool = False) -> str:
    return draw_panel(panel, log_x=log_x)


def test_values_over_many_powers_are_drawn_in_powers_unless_they_begin_at_zero() -> None:
    def middle(*values: float, zero: bool = False) -> float:
        points = [(float(n), value) for n, value in enumerate(values)]
        text = drawn(Panel(title="p", series={"x": points}, zero=zero))
        return float(re.findall(r'points="([^"]+)"', text)[0].split()[1].split(",")[1])

    assert middle(1.0, 10.0, 100.0) == pytest.approx((50 + 216) / 2)
    assert middle(0.0, 50.0, 100.0) == pytest.approx((50 + 216) / 2)
    assert middle(1.0, 5.5, 10.0) == pytest.approx((50 + 216) / 2)
    assert middle(1.0, 50.0, 100.0, zero=True) == pytest.approx((50 + 216) / 2)


def test_many_points_are_pale_beside_their_mean_and_few_are_not() -> None:
    def opacities(count: int, **more: bool) -> list[str]:
        points = [(float(n), float(n % 5)) for n in range(count)]
        panel = Panel(title="p", series={"x": points}, smooth=True, **more)
        return re.findall(r'stroke-opacity="([^"]+)"', drawn(panel))

    assert opacities(20) == ["1"]
    assert opacities(21) == ["0.3", "1"]
    assert opacities(21, ordered=True) == ["0.1", "1"]


def test_a_point_alone_is_a_dot_and_ordered_lines_go_from_the_first_colour_to_the_last() -> None:
    series = {"a": [(1.0, 1.0), (2.0, None), (3.0, 2.0)], "b": [(1.0, 1.0), (3.0, 2.0)]}
    text = drawn(Panel(title="p", series=series, ordered=True))
    assert text.count("<circle") == 2
    assert text.count("<polyline") == 1
    colours = re.findall(r'<rect [^>]*fill="([^"]+)"', text)
    assert colours == ["#442c82", "#f09628"]


def test_numbers_of_an_axis_are_short() -> None:
    numbers = (1e9, 2.5e6, 1e6, 1e3, 999, 0.001, -2e3)
    assert [short(n) for n in numbers] == ["1G", "2.5M", "1M", "1k", "999", "0.001", "-2k"]


def test_a_gap_stays_a_gap_and_a_mean_is_of_both_sides() -> None:
    points: list[tuple[float, float | None]] = [(float(n), 1.0) for n in range(1_200)]
    points[7] = (7.0, None)
    few = thinned(points)
    assert [x for x, y in few if y is None] == [7.0]
    kink = [(0.0, 0.0), (1.0, 0.0), (2.0, 3.0), (3.0, 3.0)]
    assert smoothed(kink) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_thinning_keeps_means_and_smoothing_keeps_straight_lines() -> None:
    points = [(float(n), float(n)) for n in range(3_000)]
    few = thinned(points)
    assert len(few) == 600
    assert few[0] == (4.0, 2.0)
    assert smoothed(points[:100]) == points[:100]
