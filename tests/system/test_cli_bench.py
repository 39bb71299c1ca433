"""`sanakit bench`: what it measures, what it refuses; it writes all of a record or none of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import diffusers
import pytest

from command_line import sanakit
from sanakit.bench import record, side, turns, versus
from sanakit.bench.turns import Served, compared
from sanakit.errors import ConfigError, OutOfMemory
from sanakit.models.config import TRANSFORMERS
from sanakit.models.flops import transformer_flops

ECHO = """
import json, sys
print(json.dumps({"before": 1}), flush=True)
for number, _ in enumerate(sys.stdin):
    if number == int(sys.argv[1]):
        sys.exit("it broke")
    print(json.dumps({"wall": float(sys.argv[2]), "cpu": 1.0, "peak": 7.0}), flush=True)
"""


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "SIDE", 64)


def test_networks_are_measured_in_turn_beside_diffusers(tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    call = ["bench", "tiny", "--size", "64", "--rounds", "1", "--versus", "diffusers", "--out", out]
    said, _ = sanakit(*call, "--stage", "transformer", "--stage", "decode")
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [one["stage"] for one in found["measured"]] == ["transformer", "decode"]
    for one in found["measured"]:
        sides = one["sides"]
        assert list(sides) == ["sanakit float32", "diffusers float32"]
        assert sides["sanakit float32"]["faster"] == 1
        assert sides["diffusers float32"]["difference"] < 1e-5
        assert one["floor_seconds"] == pytest.approx(one["gflop"] / one["fp32_gflops"])
    assert sides["diffusers float32"]["version"] == diffusers.__version__
    assert {"commit", "processor", "units", "threads"} <= found.keys()
    assert "sanakit float32" in said
    sanakit(*call, "--stage", "encode", "--json")
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2


def test_pictures_are_drawn_beside_diffusers_from_the_same_weights() -> None:
    call = ["bench", "--stage", "drawing", "--versus", "diffusers", "--size", "64", "--steps", "2"]
    (one,) = json.loads(sanakit(*call, "--rounds", "1", "--json")[0])["measured"]
    ours, theirs = one["sides"]["sanakit float32"], one["sides"]["diffusers float32"]
    assert (one["stage"], one["size"], one["steps"]) == ("drawing", 64, 2)
    # The packed weights of the embedded model would be read as noise.
    assert theirs["difference"] < 2e-3
    assert ours["whole"] == pytest.approx(ours["import"] + ours["load"] + ours["first"])
    assert theirs["faster_whole"] == pytest.approx(ours["whole"] / theirs["whole"])
    assert theirs["faster_next"] == pytest.approx(ours["next"] / theirs["next"])


def test_a_step_leaves_out_what_the_text_decides() -> None:
    config = TRANSFORMERS["sana-0.6b"]
    whole = transformer_flops(config, (16, 16), side.TEXT_TOKENS)
    no_text = transformer_flops(config, (16, 16), 0)
    # Queries still read all keys and values.
    reads = 2 * config.num_layers * 2 * 256 * side.TEXT_TOKENS * config.width
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(versus, "shapes", lambda folder: (config, None))
        assert versus.operations("transformer", 512, Path(), 2) == 2 * whole
        assert versus.operations("step", 512, Path(), 2) == 2 * (no_text + reads)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (["--stage", "decod"], "did you mean 'decode'?"),
        (["--versus", "difusers"], "did you mean 'diffusers'?"),
        (["--dtype", "float8"], "did you mean"),
        (["--versus", "diffusers"], "name one: --stage transformer"),
        (["--stage", "decode", "--size", "100"], "a multiple of 64"),
        (["sana-0.7b", "--stage", "decode"], "did you mean 'sana-0.6b'?"),
        (["sana-0.6b", "--stage", "drawing"], "such as glyph"),
        (["--stage", "drawing", "--versus", "openvino"], "--versus diffusers"),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest(
    given: list[str], hint: str, tmp_path: Path
) -> None:
    out = tmp_path / "runs.jsonl"
    _, said = sanakit("bench", *given, "--out", out, code=2)
    assert hint in " ".join(said.split())
    assert not out.exists()


def test_a_folder_that_is_absent_is_said_before_anything_runs(tmp_path: Path) -> None:
    _, said = sanakit("bench", "--out", tmp_path / "nowhere" / "runs.jsonl", code=2)
    assert "nowhere" in said


def test_what_does_not_fit_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versus, "free_bytes", lambda device: int(5e9))
    with (
        pytest.raises(OutOfMemory, match=r"sana1.5-4.8b.*GB") as caught,
        versus.weights_of("sana1.5-4.8b", layers=None, stages=["transformer"]),
    ):
        pass
    assert "--layers" in (caught.value.hint or "")


def served(stops: int, wall: float = 1.0) -> Served:
    return Served([sys.executable, "-c", ECHO, str(stops), str(wall)])


def test_speeds_are_held_against_the_first_round_by_round() -> None:
    found = compared(turns.steps_in_turn({"a": served(9, 3.0), "b": served(9, 2.0)}, 3))
    assert found["a"]["faster"] == 1
    assert found["b"]["faster"] == 1.5
    assert found["b"]["seconds"] == 2
    assert found["b"]["peak_mb"] == 7


def test_a_process_that_ends_is_told_with_its_last_words() -> None:
    servers = {"a": served(9), "b": served(2)}
    with pytest.raises(ConfigError, match="ended with 1: it broke"):
        turns.steps_in_turn(servers, 5)
    assert all(server.process.poll() is not None for server in servers.values())


@pytest.mark.slow
def test_the_embedded_model_is_drawn_cold_and_warm() -> None:
    told = json.loads(sanakit("bench", "--rounds", "1", "--steps", "1", "--json")[0])
    (picture,) = told["measured"]
    assert picture["cold"]["process"]["min"] > picture["cold"]["total"]["min"] / 2
    assert set(picture["warm"]) == {"text", "denoise", "decode", "total"}
