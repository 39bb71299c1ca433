"""Ray and this process write the same bytes; run by test_engines.py in a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import scanned_set
import tiny
import tiny_vision_models
from sanakit.data.build import BuildSettings, build_shards
from sanakit.data.captions.captioning import Captioning, Writing
from sanakit.data.captions.scoring import Scoring
from sanakit.data.captions.vision_models import fingerprint_of_folder
from sanakit.data.encode import (
    NULL,
    LatentEncoding,
    TextEncoding,
    autoencoder_hash,
    text_encoder_hash,
)
from sanakit.data.engines import engine_named, running_engine
from sanakit.data.scan import scan_source
from sanakit.data.sources.opening import open_source
from sanakit.data.training_set import TrainingSet
from sanakit.data.units import LocalEngine, Stage, read_mark, run_stage
from sanakit.errors import ConfigError, DataError
from tiny_stages import Doubling, Joined

UNITS = ["00001", "00002", "00003"]


@pytest.fixture(scope="module")
def ray_runs() -> Iterator[Any]:
    pytest.importorskip("ray", reason="Ray is not installed, or has no build for this Python")
    with pytest.MonkeyPatch.context() as patch:
        # Where workers find the stages of tests, as pytest's own setting lets this process.
        tests = str(Path(__file__).parents[1] / "fixtures")
        patch.setenv("PYTHONPATH", os.pathsep.join([os.environ.get("PYTHONPATH", ""), tests]))
        with running_engine("ray", 1) as engine:
            yield engine


def joined(root: Path, models: dict[str, Path]) -> tuple[Joined, list[str]]:
    """One stage of each kind on a set of its own, and the units of all."""
    training_set = scanned_set.scanned_set(root / "set")
    scanned_set.build(training_set.folder)
    sana = str(models["sana"])
    vision = {"training_set": training_set, "batch_size": 2}
    states = {"set_folder": training_set.folder, "model": sana, "batch_size": 2}
    stages: dict[str, Stage] = {
        "caption": Captioning(
            model=str(models["llava"]),
            model_hash=fingerprint_of_folder(models["llava"]),
            name="llava",
            writing=Writing(max_new_tokens=6, temperature=1.0),
            **vision,
        ),
        "score": Scoring(
            model=str(models["clip"]),
            model_hash=fingerprint_of_folder(models["clip"]),
            name="clip",
            **vision,
        ),
        "latents": LatentEncoding(encoder_hash=autoencoder_hash(sana), resolution=64, **states),
        "text": TextEncoding(encoder_hash=text_encoder_hash(sana), **states),
        "plain": Doubling(at=root / "doubled"),
    }
    units = {
        "caption": scanned_set.UNITS,
        "score": scanned_set.UNITS,
        "latents": scanned_set.SHARD_NAMES,
        "text": (NULL, *scanned_set.SHARD_NAMES),
        "plain": UNITS,
    }
    all_units = [f"{name}.{unit}" for name, some in units.items() for unit in some]
    return Joined(folder=root / "joined", stages=stages), all_units


def test_ray_and_this_process_write_the_same_bytes(ray_runs: Any, tmp_path: Path) -> None:
    models = {
        "llava": tiny_vision_models.write_llava(tmp_path / "llava"),
        "clip": tiny_vision_models.write_clip(tmp_path / "clip"),
        "sana": tiny.write_tiny(tmp_path / "sana"),
    }
    found = []
    for name, engine in (("here", LocalEngine()), ("ray", ray_runs)):
        stage, units = joined(tmp_path / name, models)
        marks = run_stage(stage, units, engine=engine, report=len)
        assert list(marks) == units
        assert all(mark.fresh for mark in marks.values())
        assert not list(stage.folder.glob(".*"))
        found.append(scanned_set.hashes(stage.folder))
    assert found[0] == found[1]
    assert len(found[0]) == 2 * (2 + 2 + 2 + 3 + 3)


def test_ray_scans_and_builds_the_same_files(ray_runs: Any, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(8):
        height = 40 + 24 * (number % 3)
        (pictures / f"a {number}.png").write_bytes(scanned_set.png(number, height=height, width=64))
    (pictures / "broken.png").write_bytes(scanned_set.png(9)[:99])
    found = []
    for name, engine in (("here", LocalEngine()), ("ray", ray_runs)):
        folder = tmp_path / name / "set"  # whose name is in a file of NVlabs
        scan_source(open_source(pictures, unit_size=3), folder, engine, given=pictures, report=len)
        settings = BuildSettings(resolution=64, shard_samples=2)
        summary = build_shards(TrainingSet.open(folder), settings, engine=engine, report=len)
        assert (summary.samples, summary.shards) == (8, 5)
        found.append(scanned_set.hashes(folder))
    assert found[0] == found[1]
    assert len(found[0]) > 20


def test_an_error_of_a_unit_comes_out_of_ray_as_it_was_and_finished_units_stay(
    ray_runs: Any, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="unit 00002 is broken") as raised:
        run_stage(Doubling(at=tmp_path / "set", broken="00002"), UNITS, engine=ray_runs, report=len)
    assert raised.value.hint == "mend it"
    assert read_mark(tmp_path / "set", "00001") is not None
    assert read_mark(tmp_path / "set", "00002") is None
    marks = run_stage(Doubling(at=tmp_path / "set"), UNITS, engine=LocalEngine(), report=len)
    assert marks["00002"].fresh
    assert not marks["00001"].fresh


def test_a_folder_that_workers_do_not_share_is_an_error(ray_runs: Any, tmp_path: Path) -> None:
    stage = Doubling(at=tmp_path / "set", elsewhere=tmp_path / "local")
    with pytest.raises(DataError, match="finished by a worker, and is not there") as raised:
        run_stage(stage, UNITS, engine=ray_runs, report=len)
    assert "storage that all machines share" in str(raised.value)


def test_a_stage_for_a_gpu_says_so_where_ray_has_none(ray_runs: Any, tmp_path: Path) -> None:
    import ray

    if ray.cluster_resources().get("GPU", 0):
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="Ray has none"):
        run_stage(Doubling(at=tmp_path / "set", device="cuda"), UNITS, engine=ray_runs, report=len)


def test_ray_that_is_not_installed_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="not installed") as raised:
        run_stage(Doubling(at=tmp_path), UNITS, engine=engine_named("ray", 2), report=len)
    assert 'pip install "sanakit[ray]"' in str(raised.value)


def test_engines_go_by_their_names() -> None:
    assert engine_named("local", 3) == LocalEngine(workers=3)
    with pytest.raises(ConfigError, match="no engine 'rays'") as raised:
        engine_named("rays")
    assert "did you mean 'ray'" in str(raised.value)
    with pytest.raises(ConfigError, match="at least 1"):
        engine_named("local", 0)
