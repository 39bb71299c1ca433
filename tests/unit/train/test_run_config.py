"""What a run remembers of how it was started, and what may change when it goes on."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sanakit.errors import ConfigError, DataError
from sanakit.train.config import LoopConfig
from sanakit.train.recipes.diffusion import DiffusionObjective
from sanakit.train.runs.run_config import (
    RUN,
    RunConfig,
    is_run,
    lasting,
    load_run,
    newest_run,
    read_run,
    save_run,
)

CONFIG = RunConfig(
    what="diffusion",
    data={"data": "my-set", "start": "glyph", "lora": 16, "held": None},
    objective=DiffusionObjective(lora_rank=16, lora_targets=("to_q",), interpolation_scale="keep"),
    loop=LoopConfig(batch_size=8, total_images=80, peak_lr=0.1, average_halflife=None),
)


def load(folder: Path) -> RunConfig:
    return load_run(folder, "diffusion", DiffusionObjective)


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert not is_run(tmp_path / "run")
    save_run(CONFIG, tmp_path / "run", resume=False)
    assert is_run(tmp_path / "run")
    assert load(tmp_path / "run") == CONFIG
    with pytest.raises(ConfigError, match="is a run of `sanakit train diffusion`"):
        load_run(tmp_path / "run", "autoencoder", None)


def test_a_run_of_the_first_format_is_read(tmp_path: Path) -> None:
    settings = [f"{key}={json.dumps(value)}" for key, value in CONFIG.settings().items()]
    file = {"format": 1, "verb": "diffusion", "arguments": CONFIG.data, "settings": settings}
    (tmp_path / RUN).write_text(json.dumps(file))
    assert load(tmp_path) == CONFIG


def test_a_setting_is_found_in_the_objective_or_in_the_loop() -> None:
    changed = CONFIG.with_settings(["flow_shift=2", "batch_size=4", "betas=[0.1,0.2]"])
    assert changed.objective == replace(CONFIG.objective, flow_shift=2)
    assert changed.loop == replace(CONFIG.loop, batch_size=4, betas=(0.1, 0.2))
    with pytest.raises(ConfigError) as caught:
        CONFIG.with_settings(["batch_sise=4"])
    assert caught.value.message == "--set batch_sise=4: no setting 'batch_sise'"
    assert caught.value.hint == "did you mean 'batch_size'?"
    with pytest.raises(ConfigError) as caught:
        CONFIG.with_settings(["xyzzy=4"])
    assert "flow_shift" in str(caught.value.hint)
    assert "batch_size" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("typed", "here"),
    [
        ("lr", "peak_lr"),
        ("learning_rate", "peak_lr"),
        ("learning-rate", "peak_lr"),
        ("max_train_steps", "steps"),
        ("train_batch_size", "batch_size"),
        ("gradient_accumulation_steps", "accumulation"),
    ],
)
def test_a_setting_by_another_trainers_name_is_answered_with_its_own(typed: str, here: str) -> None:
    with pytest.raises(ConfigError, match="no setting") as caught:
        CONFIG.with_settings([f"{typed}=1"])
    assert caught.value.hint == f"it is {here} here"


def test_steps_are_images_in_batches() -> None:
    assert CONFIG.with_settings(["steps=7", "batch_size=4"]).loop.total_images == 28
    assert CONFIG.with_settings(["total_images=28", "steps=7", "batch_size=4"]).loop.batch_size == 4
    with pytest.raises(ConfigError, match="28 images, and total_images=29"):
        CONFIG.with_settings(["total_images=29", "steps=7", "batch_size=4"])
    for wrong in ("0", "-1", "1.5", "many", ""):
        with pytest.raises(ConfigError, match="whole number"):
            CONFIG.with_settings([f"steps={wrong}"])
    longer = CONFIG.resumed_with({}, ["steps=9"])
    assert longer.loop.total_images == 9 * CONFIG.loop.batch_size
    plain = replace(CONFIG, objective=None)
    assert plain.with_settings(["batch_size=4"]).objective is None
    with pytest.raises(ConfigError, match="no setting 'flow_shift'"):
        plain.with_settings(["flow_shift=2"])


def test_going_on_needs_nothing_and_may_change_how_but_not_what() -> None:
    assert CONFIG.resumed_with({"data": None, "lora": None, "prompts": []}, []) == CONFIG
    assert CONFIG.resumed_with({"data": "my-set", "lora": 16}, ["batch_size=8", "seed=0"]) == CONFIG
    later = CONFIG.resumed_with({"workers": 2}, ["peak_lr=0.2", "total_images=99"])
    assert later.data == {**CONFIG.data, "workers": 2}
    assert later.loop == replace(CONFIG.loop, peak_lr=0.2, total_images=99)


@pytest.mark.parametrize(
    ("data", "settings", "said"),
    [
        ({"lora": 8}, [], "--lora was 16 when the run began, and is 8"),
        ({"start": "other"}, [], "--start was glyph"),
        ({}, ["batch_size=16"], "--set batch_size was 8 when the run began, and is 16"),
        ({}, ["seed=3"], "--set seed was 0 when the run began, and is 3"),
        ({}, ["flow_shift=2"], "flow_shift was null"),
    ],
)
def test_what_would_make_it_another_run_is_refused(
    data: dict[str, Any], settings: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        CONFIG.resumed_with(data, settings)
    assert said in caught.value.message
    assert "total_images" in str(caught.value.hint)


def test_paths_that_are_there_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "glyph"):
        Path(name).mkdir()
    typed = {"data": "mine", "start": "glyph", "held": "s3://mine", "lm": "absent", "phase": "mine"}
    found = lasting({**typed, "lora": None, "prompts": []})
    assert found == {**typed, "data": str(tmp_path / "mine")}


def test_a_folder_with_a_checkpoint_is_not_begun_anew(tmp_path: Path) -> None:
    save_run(CONFIG, tmp_path, resume=False)
    save_run(CONFIG, tmp_path, resume=False)  # it was stopped before its first checkpoint
    (tmp_path / "checkpoint-0000000008").mkdir()
    (tmp_path / "checkpoint-0000000008" / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="already holds a run"):
        save_run(CONFIG, tmp_path, resume=False)
    save_run(CONFIG, tmp_path, resume=True)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"format": 3}', '{"format": 1, "verb": "x"}', '{"format": 2, "what": "x"}'],
)
def test_a_damaged_file_is_an_error_of_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / RUN).write_text(text)
    with pytest.raises(DataError, match="damaged"):
        read_run(tmp_path)
    with pytest.raises(DataError, match="is no folder of a run"):
        read_run(tmp_path / "absent")


def test_a_setting_that_is_none_is_damage(tmp_path: Path) -> None:
    save_run(CONFIG, tmp_path, resume=False)
    path = tmp_path / RUN
    path.write_text(path.read_text().replace('"batch_size"', '"batch_sise"'))
    with pytest.raises(DataError, match=r"damaged .*batch_sise"):
        load(tmp_path)


def test_the_newest_run_of_a_kind_is_found(tmp_path: Path) -> None:
    for number, (name, what) in enumerate(
        [("old", "diffusion"), ("new", "diffusion"), ("other", "autoencoder")]
    ):
        save_run(replace(CONFIG, what=what), tmp_path / name, resume=False)
        os.utime(tmp_path / name / RUN, (1000 + number, 1000 + number))
    assert newest_run(tmp_path, "diffusion").name == "new"
    with pytest.raises(DataError, match="holds no run of `sanakit train lm`"):
        newest_run(tmp_path, "lm")
