"""`sanakit generate --best-of`: what is drawn, what is kept, and what it remembers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from command_line import sanakit
from sanakit import clip_scorer
from tiny_vision_models import write_clip

CALL = ("generate", "a tree", "--steps", "1", "--model")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_best_is_kept_and_drawn_again_by_its_own_seed(model: str) -> None:
    clip = write_clip(Path("judges/clip"))
    sanakit(*CALL, model, "-n", 5, "--seed", 3, "-o", "all.png")
    images = [Image.open(f"all-{seed}.png") for seed in range(3, 8)]
    scores = dict(zip(range(3, 8), clip_scorer(clip)(images, "a tree"), strict=True))
    order = sorted(scores, key=lambda seed: -scores[seed])
    out, _ = sanakit(*CALL, model, "--best-of", 5, "--scorer", clip, "--seed", 3, "-o", "best.png")
    assert out.startswith(f"best.png  seed {order[0]}  score ")
    with Image.open("best.png") as kept, Image.open(f"all-{order[0]}.png") as drawn:
        assert kept.tobytes() == drawn.tobytes()
    settings = json.loads(sanakit("info", "best.png", "--json")[0])
    assert (settings["best_of"], settings["scorer"], settings["count"]) == (5, "clip", 1)
    assert settings["score"] == pytest.approx(scores[order[0]], abs=1e-3)
    sanakit("again", "best.png", "-o", "again.png", "--quiet")
    with Image.open("best.png") as first, Image.open("again.png") as second:
        assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("processor_config.json", "[" * 100_000),
        ("processor_config.json", {"processor_class": 10**9}),
        ("processor_config.json", {"image_processor": [None]}),
        ("preprocessor_config.json", {"size": {"height": 32, "width": False}}),
        ("tokenizer.json", {"version": 1e308}),
        ("tokenizer_config.json", {"tokenizer_class": False}),
        ("config.json", {"text_config": "x"}),
    ],
)
def test_a_damaged_scorer_is_one_error_that_names_it(
    model: str, name: str, changes: str | dict[str, object]
) -> None:
    clip = write_clip(Path("clip"))
    file = clip / name
    if not isinstance(changes, str):
        given = json.loads(file.read_text()) if file.exists() else {}
        if name == "preprocessor_config.json":
            whole = json.loads((clip / "processor_config.json").read_text())
            file = clip / "processor_config.json"
            given, changes = whole, {"image_processor": {**whole["image_processor"], **changes}}
        changes = json.dumps({**given, **changes})
    file.write_text(changes)
    _, err = sanakit(*CALL, model, "--best-of", 2, "--scorer", clip, code=2)
    assert err.splitlines()[-2].startswith("error: clip: ")
    assert not Path("out.png").exists()


def test_a_scorer_whose_tokenizer_would_never_end_is_refused(model: str) -> None:
    clip = write_clip(Path("clip"))
    grows = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 50}
    file = clip / "tokenizer.json"
    endless = {"normalizer": {"type": "Sequence", "normalizers": [grows] * 9}}
    file.write_text(json.dumps(json.loads(file.read_text()) | endless))
    _, err = sanakit(*CALL, model, "--best-of", 2, "--scorer", clip, code=2)
    assert "clip: its tokenizer makes texts up to" in err


def test_several_are_named_by_their_own_seeds_best_first(model: str) -> None:
    clip = write_clip(Path("clip"))
    before = set(os.listdir())
    out, _ = sanakit(*CALL, model, "--best-of", 4, "--scorer", clip, "-n", 2, "--json")
    report = json.loads(out)
    assert len(report["files"]) == 2
    assert report["files"] == [f"out-{seed}.png" for seed in report["seeds"]]
    assert report["scores"] == sorted(report["scores"], reverse=True)
    assert set(os.listdir()) - before == set(report["files"])


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--best-of", 4), 2, "--best-of 4 without --scorer"),
        (("--scorer", "clip"), 2, "--scorer without --best-of"),
        (("--best-of", 2, "--scorer", "x", "-n", 3), 2, "--count 3 of --best-of 2"),
        (("--best-of", 2, "--scorer", "./none"), 3, "no such folder"),
        (("--best-of", 2, "--scorer", "owner/clip", "--offline"), 3, "owner/clip: nothing of its"),
        (("--best-of", 20_000, "--scorer", "x"), 2, "20000"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused_and_nothing_is_written(
    model: str, options: tuple[object, ...], code: int, said: str
) -> None:
    _, err = sanakit(*CALL, model, *options, code=code)
    assert said in err
    assert os.listdir() == []
