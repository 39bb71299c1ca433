"""What a run remembers of how it was started, and what may change when it goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sanakit.errors import ConfigError, DataError
from sanakit.train.config import LoopConfig, with_overrides
from sanakit.train.recipes.diffusion import SanaSettings, sana_settings, split_settings
from sanakit.train.runs.run_config import (
    RUN,
    RunFile,
    as_settings,
    is_run,
    newest_run,
    read_run,
    write_run,
)

FILE = RunFile(
    verb="diffusion",
    arguments={"data": "my-set", "start": "glyph", "lora": 16, "held": None},
    settings=["batch_size=8", "peak_lr=0.1"],
)


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert not is_run(tmp_path / "run")
    write_run(tmp_path / "run", FILE, resume=False)
    assert is_run(tmp_path / "run")
    assert read_run(tmp_path / "run") == FILE


def test_going_on_needs_nothing_and_may_change_how_but_not_what() -> None:
    assert FILE.resumed_with({"data": None, "lora": None}, []) == FILE
    assert FILE.resumed_with({"data": "my-set", "lora": 16}, ["batch_size=8"]) == FILE
    assert FILE.resumed_with({}, ["batch_size=8.0"]).arguments == FILE.arguments
    later = FILE.resumed_with({"workers": 2}, ["peak_lr=0.2", "total_images=99"])
    assert later.arguments == {**FILE.arguments, "workers": 2}
    assert later.settings == ["batch_size=8", "peak_lr=0.2", "total_images=99"]


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        ({"lora": 8}, [], "--lora was 16 when the run began, and is 8"),
        ({"start": "other"}, [], "--start was glyph"),
        ({}, ["batch_size=16"], "--set batch_size was 8 when the run began, and is 16"),
        ({}, ["seed=3"], "--set seed was its default when the run began, and is 3"),
        ({}, ["flow_shift=2"], "flow_shift was its default"),
    ],
)
def test_what_would_make_it_another_run_is_refused(
    arguments: dict[str, object], settings: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        FILE.resumed_with(arguments, settings)
    assert said in caught.value.message
    assert "total_images" in str(caught.value.hint)


def test_a_folder_with_a_checkpoint_is_not_begun_anew(tmp_path: Path) -> None:
    write_run(tmp_path, FILE, resume=False)
    write_run(tmp_path, FILE, resume=False)  # it was stopped before its first checkpoint
    (tmp_path / "checkpoint-0000000008").mkdir()
    (tmp_path / "checkpoint-0000000008" / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="already holds a run"):
        write_run(tmp_path, FILE, resume=False)
    write_run(tmp_path, FILE, resume=True)


@pytest.mark.parametrize("text", ["{", '{"format": 2}', '{"format": 1, "verb": "x"}', "[]"])
def test_a_damaged_file_is_an_error_of_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / RUN).write_text(text)
    with pytest.raises(DataError, match="damaged"):
        read_run(tmp_path)
    with pytest.raises(DataError, match="is no folder of a run"):
        read_run(tmp_path / "absent")


def test_the_newest_run_of_a_verb_is_found(tmp_path: Path) -> None:
    for number, (name, verb) in enumerate(
        [("old", "diffusion"), ("new", "diffusion"), ("other", "autoencoder")]
    ):
        write_run(tmp_path / name, RunFile(verb=verb, arguments={}), resume=False)
        os.utime(tmp_path / name / RUN, (1000 + number, 1000 + number))
    assert newest_run(tmp_path, "diffusion").name == "new"
    with pytest.raises(DataError, match="holds no run of `sanakit train lm`"):
        newest_run(tmp_path, "lm")


def test_settings_are_kept_with_all_defaults_and_read_back_as_they_were() -> None:
    config = LoopConfig(batch_size=4, total_images=8, peak_lr=0.1, average_halflife=None)
    settings = SanaSettings(lora_rank=2, lora_targets=("to_q",), interpolation_scale="keep")
    pairs = as_settings(settings, config)
    mine, loop = split_settings(pairs)
    assert sana_settings(mine) == settings
    other = LoopConfig(batch_size=1, total_images=1, peak_lr=1.0, average_halflife=9)
    assert with_overrides(other, loop) == config
