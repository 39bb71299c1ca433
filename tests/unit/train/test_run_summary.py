"""A run shown in words and curves: what its files say, and nothing that they do not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from numpy.testing import assert_allclose
from tensorboardX.event_file_writer import EventsWriter

from command_line import sanakit
from sanakit.errors import DataError
from sanakit.train.config import LoopConfig
from sanakit.train.loop import train
from sanakit.train.runs.curves import curves, figure_of, smoothed
from sanakit.train.runs.log import RunLog, read_log, spoken
from sanakit.train.runs.summary import RunSummary, SavedState, standing, summary_of_run
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
    file = {"format": 2, "what": "lm", "data": {}, "objective": {}, "loop": {"seed": 0}}
    file["loop"]["total_images"] = total
    (folder / "run.json").write_text(json.dumps(file), "utf-8")
    return folder


def test_a_finished_run_is_at_its_target_with_whole_checkpoints(run: Path) -> None:
    view = summary_of_run(run)
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
    changed = summary_of_run(run).changed
    assert changed["batch_size"] == 4
    assert changed["log_every"] == 1
    assert "betas" not in changed
    assert "seed" not in changed


def test_time_left_is_what_is_missing_at_the_rate_of_the_last_lines(tmp_path: Path) -> None:
    slow = [line(1, 1000.0)]
    quick = [line(10 + n, 1000.0 + 2 * n) for n in range(11)]
    view = summary_of_run(logged(tmp_path / "run", *slow, *quick))
    assert view.per_second == pytest.approx(0.5)
    assert view.seconds_left == pytest.approx(80 / 0.5)


def test_lines_that_a_resumed_run_wrote_anew_count_once() -> None:
    lines = [line(1, 1), line(2, 2, loss=9), line(3, 3), line(2, 2, loss=1), line(4, 4)]
    assert [one["images"] for one in standing(lines)] == [1, 2, 2, 4]
    superseded = [line(1, 1), line(3, 3), line(2, 2)]
    assert [one["images"] for one in standing(superseded)] == [1, 2]


def test_a_line_alone_says_its_rate_itself(tmp_path: Path) -> None:
    view = summary_of_run(logged(tmp_path / "run", line(10, 5.0)))
    assert view.per_second == 1.0
    assert view.seconds_left == 90
    stuck = summary_of_run(logged(tmp_path / "stuck", line(10, 5.0), line(10, 6.0)))
    assert stuck.per_second == 1.0
    beyond = summary_of_run(logged(tmp_path / "beyond", line(10, 5.0), line(120, 6.0)))
    assert beyond.seconds_left == 0
    begun = summary_of_run(logged(tmp_path / "begun"))
    assert (begun.images_seen, begun.seconds, begun.per_second) == (0, 0, None)


def test_losses_are_those_of_the_last_line_and_held_figures_of_their_own(tmp_path: Path) -> None:
    held = {"images": 3, "seconds": 3.0, "held_loss": 0.25}
    bins = {"mfu": 0.5, "loss_sigma_0.1": 9.0, "time_data": 0.1, "grad_norm": 7.0}
    lines = line(1, 1.0, loss=4.0), {**held, "images": 1, "held_loss": 1.0}
    run = logged(tmp_path / "run", *lines, line(3, 3.0, loss=None, l1=2.0, **bins), held)
    view = summary_of_run(run)
    assert view.losses == {"loss": None, "l1": 2.0}
    assert (view.held, view.held_at) == ({"held_loss": 0.25}, 3)


def test_a_view_is_told_in_lines(tmp_path: Path) -> None:
    view = RunSummary(
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
    assert summary_of_run(logged(tmp_path / "run")).lines()[-2] == "saved   nothing yet"


def test_settings_come_from_the_run_s_file_or_its_last_checkpoint(
    run: Path, tmp_path: Path
) -> None:
    mine = logged(tmp_path / "run", total=7)
    file = json.loads((mine / "run.json").read_text("utf-8"))
    file["objective"] = {"flow_shift": 2.0, "lora_rank": 0}
    (mine / "run.json").write_text(json.dumps(file), "utf-8")
    view = summary_of_run(mine)
    assert view.total_images == 7
    assert view.changed == {"flow_shift": 2.0, "total_images": 7}
    (mine / "run.json").write_text("{", "utf-8")
    with pytest.raises(DataError, match="damaged"):
        summary_of_run(mine)
    assert not (run / "run.json").exists()
    assert summary_of_run(run).total_images == 24
    alone = tmp_path / "log-only"
    alone.mkdir()
    (alone / "log.jsonl").write_text(json.dumps(line(3, 1.0)) + '\n{"images": 4, "sec', "utf-8")
    assert summary_of_run(alone).images_seen == 3  # a line that a kill cut short is none


def test_a_number_that_is_not_finite_is_logged_as_null(tmp_path: Path) -> None:
    log = RunLog(tmp_path, first=True, report=lambda text: None)
    log.line(4, 1.26, {"loss": math.nan, "norm": math.inf, "lr": 0.5})
    log.close()
    entry = {"images": 4, "seconds": 1.3, "loss": None, "norm": None, "lr": 0.5}
    assert read_log(tmp_path) == [entry]
    RunLog(tmp_path, first=False, report=print).line(8, 2.0, {"loss": 1.0})
    assert len(read_log(tmp_path)) == 1


def test_lines_that_no_log_has_are_left_out(tmp_path: Path) -> None:
    good = {"images": 4, "seconds": 1.0, "loss": 2.0, "lr": 0.1}
    odd = [{"images": None}, {"seconds": math.nan}, {"images": 10**400}, {"loss": "x"}, {"lr": []}]
    lines = [json.dumps(good | change) for change in odd]
    log = "\n".join([*lines, "[", "5", json.dumps(good)]).encode()
    (tmp_path / "log.jsonl").write_bytes(b"\xff\n" + log)
    assert read_log(tmp_path) == [good]


def test_after_a_full_disk_tensorboard_goes_on_in_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    log = RunLog(tmp_path, first=True, report=said.append)
    log.line(4, 1.0, {"first": 1.0})
    with monkeypatch.context() as patched:
        full = OSError("No space left on device")
        patched.setattr(EventsWriter, "write_event", Mock(side_effect=full))
        log.line(8, 2.0, {"second": 1.0})
    log.line(12, 3.0, {"third": 1.0})
    log.picture("grid", np.zeros((4, 4, 3), np.uint8), 12)
    log.close()
    assert [text for text in said if "could not log" in text] == [
        "could not log: No space left on device"
    ]
    found = [path.read_bytes() for path in sorted((tmp_path / "tensorboard").glob("*tfevents*"))]
    assert len(found) == 2
    assert b"first" in found[0]
    assert b"third" in found[1]
    assert b"grid" in found[1]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder of a run"):
        summary_of_run(tmp_path)
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
    again = sanakit("train", "plot", run, "--log-x")[0].strip()
    assert Path(again).read_text(encoding="utf-8") != text
    with pytest.raises(DataError, match="holds nothing to draw"):
        curves([], title="empty")


def axes_of(lines: list[dict[str, Any]], title: str, **more: bool) -> Axes:
    found = {axes.get_title(): axes for axes in figure_of(lines, title="<a> & $b$", **more).axes}
    return found[title]


def test_what_is_drawn_are_the_lines_that_count() -> None:
    again = [line(1, 1, loss=1.0), line(3, 3, loss=9.0), line(2, 2, loss=2.0)]
    drawn = axes_of(again, "loss").lines[0]
    assert drawn.get_xydata().tolist() == [[1, 1], [2, 2]]  # another process has been there since
    ElementTree.fromstring(curves(again, title="<a> & $b$"))


def test_a_value_that_was_not_finite_breaks_the_line_and_a_point_alone_is_a_dot() -> None:
    values = [2.0, 3.0, None, 5.0, None]
    lines = [line(n, n, loss=value) for n, value in enumerate(values)]
    whole, dots = axes_of(lines, "loss").lines
    assert np.isnan(whole.get_ydata()).tolist() == [value is None for value in values]
    assert dots.get_xydata().tolist() == [[3, 5]]


def test_values_over_many_powers_are_drawn_in_powers_unless_they_begin_at_zero() -> None:
    def scale(title: str, **values: float) -> str:
        lines = [line(n, n, **{key: v**n for key, v in values.items()}) for n in (1, 2, 3)]
        return axes_of(lines, title).get_yscale()

    assert scale("loss", loss=10.0) == "log"
    assert scale("loss", loss=2.0) == "linear"
    assert scale("MFU", mfu=10.0) == "linear"
    lines = [line(n, n, loss=1.0) for n in (0, 10, 20)]
    assert axes_of(lines, "learning rate").get_ylim()[0] == 0
    assert axes_of(lines, "loss", log_x=True).get_xscale() == "log"


def test_bins_of_sigma_come_in_their_order_with_a_color_each_and_a_legend() -> None:
    bins = {"loss_sigma_0.9": 1.0, "loss_sigma_0": 2.0, "loss_sigma_0.1": 3.0}
    axes = axes_of([line(1, 1, **bins), line(2, 2, **bins)], "loss by noise level")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["0", "0.1", "0.9"]
    assert len({drawn.get_color().tobytes() for drawn in axes.lines}) == 3


def test_many_points_are_pale_beside_their_mean_and_few_are_not() -> None:
    def opacities(count: int) -> list[float | None]:
        lines = [line(n, n, loss=float(n % 5)) for n in range(count)]
        return [one.get_alpha() for one in axes_of(lines, "loss").lines if len(one.get_xdata())]

    assert opacities(20) == [1.0]
    assert opacities(21) == [0.3, None]


def test_a_mean_is_of_both_sides_keeps_straight_lines_and_leaves_gaps() -> None:
    kink = np.array([[0, 0], [1, 0], [2, 3], [3, 3]], dtype=float)
    assert smoothed(kink).tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    straight = np.stack([np.arange(100.0)] * 2, axis=1)
    assert_allclose(smoothed(straight), straight)
    straight[50, 1] = np.nan
    assert np.flatnonzero(np.isnan(smoothed(straight)[:, 1])).tolist() == [50]
