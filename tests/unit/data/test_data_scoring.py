from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

import scanned_set
import tiny_vision_models
from sanakit.data.captions.captioning import Captioning, Writing
from sanakit.data.captions.scoring import Scorer, Scoring
from sanakit.data.captions.vision_models import fingerprint_of_folder
from sanakit.data.samples import Caption
from sanakit.data.training_set import TrainingSet
from sanakit.data.units import LocalEngine, Mark, run_stage
from sanakit.errors import ConfigError, NumericsError

LONG = "a very long caption about a dog " * 8


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "llava": tiny_vision_models.write_llava(root / "llava"),
        "clip": tiny_vision_models.write_clip(root / "clip"),
        "siglip": tiny_vision_models.write_siglip(root / "siglip"),
    }


def stage(training_set: TrainingSet, folder: Path, **more: Any) -> Scoring:
    return Scoring(
        training_set=training_set,
        model=str(folder),
        model_hash=fingerprint_of_folder(folder),
        **{"name": folder.name, "batch_size": 2, **more},
    )


def run(one: Any) -> dict[str, Mark]:
    return run_stage(one, one.training_set.units, engine=LocalEngine(), report=len)


def scores(training_set: TrainingSet) -> dict[str, dict[str, float | None]]:
    return {
        sample.id: {caption.captioner: caption.score for caption in sample.captions}
        for sample in training_set.all_samples()
    }


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_scores_are_the_cosines_that_the_model_itself_compares(
    models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """The oracle: the whole model on one picture and one text, divided by its own scale."""
    training_set = scanned_set.scanned_set(tmp_path / "set")
    run(stage(training_set, models[name]))
    found = scores(training_set)
    processor = AutoProcessor.from_pretrained(models[name])
    model = AutoModel.from_pretrained(models[name]).eval()
    padding = "max_length" if name == "siglip" else False
    different = set()
    for number, sample in enumerate(scanned_set.samples()):
        path = Path(training_set.source) / f"{number}.png"
        picture = Image.open(path).convert("RGB")
        for caption in sample.captions:
            inputs = processor(
                images=picture,
                text=caption.text,
                padding=padding,
                max_length=16,
                truncation=True,
                return_tensors="pt",
            )
            if name == "siglip":  # trained without a mask
                inputs.pop("attention_mask")
            with torch.inference_mode():
                out = model(**inputs)
            expected = 100 * float((out.text_embeds * out.image_embeds).sum())
            assert found[sample.id][caption.captioner] == pytest.approx(expected, abs=2e-4)
            different.add(round(expected, 3))
    assert len(different) > 5


def test_captions_of_models_are_scored_too_and_again_when_there_are_more(
    models: dict[str, Path], tmp_path: Path
) -> None:
    training_set = scanned_set.scanned_set(tmp_path / "set")
    one = stage(training_set, models["clip"])
    assert all(mark.fresh for mark in run(one).values())
    assert not any(mark.fresh for mark in run(one).values())
    run(
        Captioning(
            training_set=training_set,
            model=str(models["llava"]),
            model_hash=fingerprint_of_folder(models["llava"]),
            name="llava",
            writing=Writing(max_new_tokens=4),
        )
    )
    assert all(mark.fresh for mark in run(one).values())
    found = scores(training_set)
    assert all(isinstance(of["llava"], float) for of in found.values())
    assert found["last"].keys() == {"llava"}
    samples = scanned_set.samples()
    caption = Caption(text="a cat", captioner="original")
    scanned_set.scan(training_set.folder, [replace(samples[0], captions=(caption,)), *samples[1:]])
    assert [unit for unit, mark in run(one).items() if mark.fresh] == ["00000"]


def test_two_scorers_stand_side_by_side(models: dict[str, Path], tmp_path: Path) -> None:
    training_set = scanned_set.scanned_set(tmp_path / "set")
    run(stage(training_set, models["clip"]))
    alone = scores(training_set)["a.b"]["original"]
    run(stage(training_set, models["siglip"]))
    assert training_set.makers("scores") == ["clip", "siglip"]
    assert scores(training_set)["a.b"]["original"] != alone


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_caption_longer_than_the_model_reads_is_cut_and_counted(
    models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    training_set = scanned_set.scanned_set(tmp_path / "set")
    samples = scanned_set.samples()
    caption = Caption(text=LONG, captioner="long")
    scanned_set.scan(training_set.folder, [replace(samples[0], captions=(caption,)), *samples[1:]])
    marks = run(stage(training_set, models[name]))
    assert [mark.stats["cut"] for mark in marks.values()] == [1, 0]
    assert scores(training_set)["cats/tom"]["long"] is not None
    scorer = Scorer(models[name], dtype="float32", device="cpu")
    with torch.inference_mode():
        read, more = scorer.texts([LONG, LONG + " and more"])
    torch.testing.assert_close(read, more)
    assert scorer.limit == 16


def test_how_many_are_compared_at_once_changes_no_score(
    models: dict[str, Path], tmp_path: Path
) -> None:
    found = []
    for size in (1, 3, 50):
        training_set = scanned_set.scanned_set(tmp_path / f"set{size}")
        run(stage(training_set, models["clip"], batch_size=size))
        found.append(scores(training_set))
    for other in found[1:]:
        for identity, of in other.items():
            assert of == pytest.approx(found[0][identity], abs=2e-4)


def test_a_set_without_captions_has_no_scores(models: dict[str, Path], tmp_path: Path) -> None:
    training_set = scanned_set.scanned_set(tmp_path / "set")
    bare = [replace(sample, captions=()) for sample in scanned_set.samples()]
    scanned_set.scan(training_set.folder, bare)
    marks = run(stage(training_set, models["clip"]))
    assert [mark.stats["scores"] for mark in marks.values()] == [0, 0]


def test_a_model_that_compares_nothing_is_refused(models: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="does not compare pictures and texts"):
        Scorer(models["llava"], dtype="float32", device="cpu")


def test_features_that_are_not_finite_are_no_scores(models: dict[str, Path]) -> None:
    scorer = Scorer(models["clip"], dtype="float32", device="cpu")
    with pytest.raises(NumericsError, match="not finite"):
        scorer._directions(torch.tensor([[float("inf"), 1.0]]))
