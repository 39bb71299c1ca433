"""Captions: chosen for an epoch, written by models, scored against their pictures."""

from __future__ import annotations

import io
import json
import math
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

import scanned_set
import tiny_vision_models
from sanakit.data.captions.captioning import (
    PROMPT,
    Captioner,
    Captioning,
    SeededChoice,
    Writing,
    captioner_names,
)
from sanakit.data.captions.choice import NVLABS, CaptionChoice
from sanakit.data.captions.scoring import DualEncoder, Scoring
from sanakit.data.captions.vision_models import (
    find_vision_model,
    fingerprint_of_folder,
    picture_of,
    safe_name,
)
from sanakit.data.samples import Caption
from sanakit.data.training_set import TrainingSet
from sanakit.data.units import LocalEngine, Mark, run_stage
from sanakit.errors import (
    ConfigError,
    DataError,
    MissingModelError,
    NumericsError,
    OutOfMemory,
    WeightsError,
)
from sanakit.images.decode import DEFAULT

# Quantiles of chi-square that one honest draw in ten thousand exceeds, by degrees of freedom.
RARE = {1: 15.137, 2: 18.421, 3: 21.108}


def captions(*scores: float | None, weights: tuple[float, ...] | None = None) -> list[Caption]:
    weights = weights or (1.0,) * len(scores)
    return [
        Caption(text=f"text {number}", captioner=f"c{number}", score=score, weight=weight)
        for number, (score, weight) in enumerate(zip(scores, weights, strict=True))
    ]


def chi_square(seen: Counter[str], expected: dict[str, float]) -> tuple[float, int]:
    total = sum(seen.values())
    assert set(seen) <= {name for name, chance in expected.items() if chance > 0}
    terms = [
        (seen[name] - total * chance) ** 2 / (total * chance)
        for name, chance in expected.items()
        if chance > 0
    ]
    return sum(terms), len(terms) - 1


@pytest.mark.parametrize(
    ("choice", "given"),
    [
        (CaptionChoice(), captions(27.0, 26.0, 25.0)),
        (CaptionChoice(temperature=3.0), captions(27.0, 22.0, 30.0, 28.5)),
        (CaptionChoice(temperature=2.0, null_chance=0.2), captions(27.0, 26.0, 25.0)),
        (NVLABS, captions(26.0, 31.0, 24.9, 28.0)),
        (CaptionChoice(rule="uniform", null_chance=0.5), captions(26.0, 31.0)),
        (CaptionChoice(), captions(26.0, 26.0, 27.0, weights=(1.0, 3.0, 0.5))),
        (CaptionChoice(rule="power"), captions(None, None, weights=(1.0, 4.0))),
    ],
)
@pytest.mark.parametrize("over", ["samples", "epochs"])
def test_realised_frequencies_are_those_of_the_rule(
    choice: CaptionChoice, given: list[Caption], over: str
) -> None:
    draws = 8000
    seen: Counter[str] = Counter()
    for number in range(draws):
        id, epoch = (f"cats/{number}", 3) if over == "samples" else ("cats/7", number)
        chosen = choice.choose(given, seed=1, epoch=epoch, id=id)
        seen["null" if chosen is None else chosen.captioner] += 1
    kept = 1 - choice.null_chance
    expected = {"null": choice.null_chance} | {
        caption.captioner: kept * chance
        for caption, chance in zip(given, choice.chances(given), strict=True)
    }
    statistic, freedom = chi_square(seen, expected)
    assert statistic < RARE[freedom]


def test_softmax_and_power_are_what_their_formulas_say() -> None:
    given = captions(25.0, 27.5, 26.0, weights=(1.0, 2.0, 0.5))
    for choice, share in (
        (CaptionChoice(temperature=1.7), lambda c: c.weight * math.exp(c.score / 1.7)),
        (CaptionChoice(rule="power", temperature=0.1), lambda c: c.weight * c.score**10),
        (CaptionChoice(rule="uniform"), lambda c: c.weight),
    ):
        shares = [share(caption) for caption in given]
        slow = [value / sum(shares) for value in shares]
        assert choice.chances(given) == pytest.approx(slow, rel=1e-10)


def test_no_score_and_no_temperature_overflows() -> None:
    for rule in ("softmax", "power"):
        sharp = CaptionChoice(rule=rule, temperature=1e-9)  # type: ignore[arg-type]
        assert sharp.chances(captions(1e6, 2e6, 1e300)) == [0.0, 0.0, 1.0]
        flat = CaptionChoice(rule=rule, temperature=1e9)  # type: ignore[arg-type]
        assert flat.chances(captions(20.0, 30.0)) == pytest.approx([0.5, 0.5], abs=1e-6)


def test_captions_below_the_threshold_are_set_aside_and_the_best_is_taken_if_all_are() -> None:
    choice = CaptionChoice(threshold=25.0)
    assert choice.chances(captions(24.9, 25.0, 25.0)) == [0.0, 0.5, 0.5]
    assert choice.chances(captions(20.0, 24.9, 23.0)) == [0.0, 1.0, 0.0]
    assert CaptionChoice(rule="power").chances(captions(-3.0, -1.0)) == [0.0, 1.0]
    assert CaptionChoice(rule="power").chances(captions(-3.0, 1.0)) == [0.0, 1.0]


def test_a_caption_without_a_score_counts_as_the_mean_of_the_others() -> None:
    choice = CaptionChoice()
    assert choice.chances(captions(24.0, None, 28.0)) == choice.chances(captions(24.0, 26.0, 28.0))
    assert choice.chances(captions(24.0, math.nan)) == [0.5, 0.5]
    alone = choice.chances(captions(None, None, weights=(1.0, 3.0)))
    assert alone == pytest.approx([0.25, 0.75])


def test_a_weight_of_0_is_never_chosen_and_none_at_all_is_the_null_prompt() -> None:
    first = CaptionChoice(rule="first")
    assert first.chances(captions(None, None, None, weights=(0.0, 1.0, 9.0))) == [0.0, 1.0, 0.0]
    silent = captions(26.0, 27.0, weights=(0.0, 0.0))
    assert CaptionChoice().choose(silent, seed=0, epoch=0, id="a") is None
    assert CaptionChoice().choose([], seed=0, epoch=0, id="a") is None


def test_the_choice_depends_on_seed_epoch_and_id_and_on_nothing_else() -> None:
    given, choice = captions(26.0, 26.0), CaptionChoice(null_chance=0.3)

    def drawn(seed: int, epoch: int, prefix: str) -> list[Caption | None]:
        ids = [f"{prefix}/{number}" for number in range(40)]
        return [choice.choose(given, seed=seed, epoch=epoch, id=id) for id in ids]

    assert drawn(0, 0, "a") == drawn(0, 0, "a")
    others = [drawn(1, 0, "a"), drawn(0, 1, "a"), drawn(0, 0, "b")]
    assert all(other != drawn(0, 0, "a") for other in others)
    assert choice.choose(given, seed=0, epoch=0, id="\udcff") in (None, *given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "argmax"}, "no caption rule 'argmax'"),
        ({"temperature": 0.0}, "temperature=0.0 must be a number above 0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"rule": "uniform", "temperature": 0.5}, "has no meaning for rule='uniform'"),
        ({"threshold": math.inf}, "threshold=inf"),
        ({"null_chance": 1.5}, "null_chance=1.5 must be in"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CaptionChoice(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_that_cannot_be_is_refused(weight: float) -> None:
    with pytest.raises(DataError, match=r"weight .* must be"):
        CaptionChoice().chances(captions(26.0, weights=(weight,)))


SHORT = Writing(max_new_tokens=8)
DRAWN = Writing(max_new_tokens=8, temperature=1.0, top_p=0.9, seed=3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "llava": tiny_vision_models.write_llava(root / "llava"),
        "plain": tiny_vision_models.write_llava(root / "plain", chat=False),
        "idefics": tiny_vision_models.write_idefics(root / "idefics"),
        "blip": tiny_vision_models.write_blip(root / "blip"),
        "clip": tiny_vision_models.write_clip(root / "clip"),
        "siglip": tiny_vision_models.write_siglip(root / "siglip"),
    }


def pictures(count: int = 4) -> list[Image.Image]:
    """Of several shapes, so that some models give them several lengths."""
    return [
        Image.open(io.BytesIO(scanned_set.png(n, width=width))).convert("RGB")
        for n, width in enumerate((40, 49, 150, 24)[:count])
    ]


def opened(folder: Path, writing: Writing = SHORT) -> Captioner:
    return Captioner(folder, writing, dtype="float32", device="cpu")


def written(folder: Path, writing: Writing = SHORT, *, at_once: int = 4) -> list[str]:
    captioner, all_pictures = opened(folder, writing), pictures()
    ids = [str(number) for number in range(len(all_pictures))]
    texts = []
    with torch.inference_mode():
        for start in range(0, len(ids), at_once):
            some = slice(start, start + at_once)
            texts += [text for text, _ in captioner.write(all_pictures[some], ids[some])]
    return texts


def stage(training_set: TrainingSet, folder: Path, **more: Any) -> Captioning:
    settings = {"name": "model", "writing": SHORT, "batch_size": 2, **more}
    return Captioning(
        training_set=training_set,
        model=str(folder),
        model_hash=fingerprint_of_folder(folder),
        **settings,
    )


def run(one: Captioning | Scoring, workers: int = 1) -> dict[str, Mark]:
    engine = LocalEngine(workers=workers)
    return run_stage(one, one.training_set.units, engine=engine, report=len)


@pytest.mark.parametrize("name", ["llava", "plain", "idefics", "blip"])
def test_a_model_of_each_kind_describes_pictures_each_in_its_own_words(
    models: dict[str, Path], name: str
) -> None:
    texts = written(models[name])
    assert all(texts)
    assert len(set(texts)) > 1
    assert all(text == " ".join(text.split()) and text.isprintable() for text in texts)


@pytest.mark.parametrize("name", ["llava", "idefics"])
def test_texts_are_those_of_the_plain_generation_loop(models: dict[str, Path], name: str) -> None:
    """The oracle: one picture at a time, the likeliest token appended until eight are there."""
    processor = AutoProcessor.from_pretrained(models[name])
    model = AutoModelForImageTextToText.from_pretrained(models[name]).eval()
    content = [{"type": "image"}, {"type": "text", "text": "Say"}]
    asked = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    expected = []
    for picture in pictures():
        inputs = processor(images=[[picture]], text=[asked], return_tensors="pt")
        ids, new = inputs.pop("input_ids"), []
        inputs.pop("attention_mask")
        with torch.inference_mode():
            for _ in range(8):
                logits = model(input_ids=ids, **inputs, use_cache=False).logits[0, -1]
                new.append(int(logits.argmax()))
                ids = torch.cat([ids, torch.tensor([[new[-1]]])], dim=1)
        text = processor.tokenizer.decode(new, skip_special_tokens=True)
        expected.append(" ".join("".join(c if c.isprintable() else " " for c in text).split()))
    assert written(models[name], replace(SHORT, prompt="Say")) == expected


@pytest.mark.parametrize("writing", [SHORT, DRAWN])
@pytest.mark.parametrize("name", ["llava", "idefics", "blip"])
def test_texts_do_not_depend_on_how_many_pictures_run_at_once(
    models: dict[str, Path], name: str, writing: Writing
) -> None:
    together = written(models[name], writing, at_once=4)
    assert written(models[name], writing, at_once=1) == together
    assert written(models[name], writing, at_once=3) == together


def test_a_drawn_text_is_decided_by_seed_and_id(models: dict[str, Path]) -> None:
    drawn = written(models["llava"], DRAWN)
    assert written(models["llava"], DRAWN) == drawn
    assert written(models["llava"], replace(DRAWN, seed=4)) != drawn
    captioner, picture = opened(models["llava"], DRAWN), pictures(1)[0]
    with torch.inference_mode():
        first, second = captioner.write([picture, picture], ["a", "b"])
    assert first != second


def test_tokens_are_drawn_with_the_probabilities_of_their_softmax() -> None:
    rows = 4000
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    choice = SeededChoice([str(n) for n in range(rows)], Writing(temperature=2.0))
    noisy = choice(torch.zeros(rows, 1, dtype=torch.long), logits.expand(rows, -1))
    counts = Counter(noisy.argmax(dim=1).tolist())
    expected = (logits / 2).softmax(0) * rows
    squares = sum((counts[n] - float(e)) ** 2 / float(e) for n, e in enumerate(expected))
    assert squares < 16.3  # chi-square of 3 degrees of freedom: P = 0.001


def test_the_prompt_decides_what_is_written_and_has_a_usual_one(models: dict[str, Path]) -> None:
    usual = written(models["llava"])
    assert written(models["llava"], replace(SHORT, prompt=PROMPT)) == usual
    assert written(models["llava"], replace(SHORT, prompt="Which colours?")) != usual


def test_the_prompt_of_a_model_that_does_not_chat_begins_its_caption(
    models: dict[str, Path],
) -> None:
    texts = written(models["blip"], replace(SHORT, prompt="a picture of"))
    assert all(text.startswith("a picture") for text in texts)
    assert not any(text.startswith("a picture") for text in written(models["blip"]))


def test_special_tokens_and_marks_alone_are_no_caption(models: dict[str, Path]) -> None:
    captioner = opened(models["llava"])
    ids = captioner._tokenizer(" ?! ", add_special_tokens=False)["input_ids"]
    assert captioner._text([2, 0, *ids, 1]) == ("", False)
    ids = captioner._tokenizer("a cat\n\n on it", add_special_tokens=False)["input_ids"]
    assert captioner._text([*ids, 1])[0] == "a cat on it"
    assert captioner._text([5] * 8)[1]
    assert not captioner._text([5] * 7 + [1])[1]


def test_captions_of_a_set_are_read_back_with_its_samples(
    models: dict[str, Path], tmp_path: Path
) -> None:
    training_set = scanned_set.scanned_set(tmp_path / "set")
    marks = run(stage(training_set, models["llava"]))
    added = {
        sample.id: [c.text for c in sample.captions if c.captioner == "model"]
        for sample in training_set.all_samples()
    }
    assert all(len(texts) == 1 for texts in added.values())
    assert sum(mark.stats["captions"] for mark in marks.values()) == len(added) == 6
    root = Path(training_set.source)
    for sample in training_set.scanned("00000"):
        picture = picture_of(root, sample, side=1024, limits=DEFAULT)
        with torch.inference_mode():
            [(text, _)] = opened(models["llava"]).write([picture], [sample.id])
        assert added[sample.id] == [text]


def test_every_run_and_number_of_processes_writes_the_same_bytes(
    models: dict[str, Path], tmp_path: Path
) -> None:
    found = []
    for workers in (1, 2):
        training_set = scanned_set.scanned_set(tmp_path / f"set{workers}")
        torch.set_num_threads(workers)  # what the process has must not matter
        one = stage(training_set, models["llava"], writing=DRAWN)
        run(one, workers)
        assert torch.get_num_threads() == workers
        found.append(scanned_set.hashes(one.folder))
    torch.set_num_threads(1)
    assert found[0] == found[1]


def test_only_what_changed_is_described_again(models: dict[str, Path], tmp_path: Path) -> None:
    training_set = scanned_set.scanned_set(tmp_path / "set")
    run(stage(training_set, models["llava"]))

    def fresh(**more: Any) -> list[str]:
        marks = run(stage(training_set, models["llava"], **more))
        return [unit for unit, mark in marks.items() if mark.fresh]

    assert fresh() == []
    assert fresh(batch_size=1, threads=2) == []
    samples = scanned_set.samples()
    scanned_set.scan(training_set.folder, [*samples[:-1], replace(samples[-1], licence="CC0-1.0")])
    assert fresh() == ["00001"]
    assert fresh(writing=replace(SHORT, prompt="Which colours?")) == list(scanned_set.UNITS)
    assert fresh(dtype="bfloat16") == list(scanned_set.UNITS)


def test_no_model_is_loaded_where_nothing_is_to_do(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_set = scanned_set.scanned_set(tmp_path / "set")
    run(stage(training_set, models["llava"]))
    monkeypatch.setattr(Captioning, "open", lambda self: pytest.fail("loaded"))
    run(stage(training_set, models["llava"]))


def test_a_picture_that_cannot_be_read_gets_no_caption_and_stops_nothing(
    models: dict[str, Path], tmp_path: Path
) -> None:
    training_set = scanned_set.scanned_set(tmp_path / "set")
    (Path(training_set.source) / "1.png").write_bytes(b"no picture")
    (Path(training_set.source) / "2.png").unlink()
    marks = run(stage(training_set, models["llava"]))
    assert marks["00000"].stats["unreadable"] == 2
    lines = (training_set.folder / "captions/model/00000.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["cats/tom"]


def test_pictures_that_are_all_gone_end_the_run(models: dict[str, Path], tmp_path: Path) -> None:
    training_set = scanned_set.scanned_set(tmp_path / "set")
    for path in Path(training_set.source).iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no picture can be read") as raised:
        run(stage(training_set, models["llava"]))
    assert "still where they were" in str(raised.value)


def test_a_name_that_the_source_uses_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    training_set = scanned_set.scanned_set(tmp_path / "set")
    with pytest.raises(DataError, match="named 'original' already"):
        run(stage(training_set, models["llava"], name="original"))


def test_a_stage_that_was_opened_is_pickled_without_its_model(
    models: dict[str, Path], tmp_path: Path
) -> None:
    one = stage(scanned_set.scanned_set(tmp_path / "set"), models["llava"])
    one.open()
    assert len(pickle.dumps(one)) < 2000


def test_a_model_that_changed_under_the_run_is_refused(tmp_path: Path) -> None:
    folder = tiny_vision_models.write_llava(tmp_path / "model")
    one = stage(scanned_set.scanned_set(tmp_path / "set"), folder)
    tiny_vision_models.write_llava(folder, seed=1)
    with pytest.raises(WeightsError, match="another model"):
        one.open()


def test_weights_that_are_missing_are_not_made_up(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tiny_vision_models.write_llava(tmp_path / "model")
    path = folder / "model.safetensors"
    state = load_file(path)
    state.pop(next(name for name in state if "self_attn.q_proj" in name))
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"weights are missing, .*q_proj"):
        opened(folder)


def test_models_that_cannot_be_used_are_named_with_what_to_do(
    models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(MissingModelError, match="no such folder"):
        find_vision_model("nowhere")
    with pytest.raises(MissingModelError, match=r"no config\.json"):
        find_vision_model(str(tmp_path))
    with pytest.raises(WeightsError, match="no weights in safetensors") as raised:
        fingerprint_of_folder(tmp_path)
    assert "never read" in str(raised.value)
    with pytest.raises(ConfigError, match="AutoModelForImageTextToText"):
        opened(models["clip"])


def test_memory_that_does_not_suffice_names_a_smaller_batch(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(Captioner, "write", write)
    with pytest.raises(OutOfMemory, match="2 at a time") as raised:
        run(stage(scanned_set.scanned_set(tmp_path / "set"), models["llava"]))
    assert "--batch-size 1" in str(raised.value)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Salesforce/blip-image-captioning-base", "blip-image-captioning-base"),
        ("Org/Model-2.1@main", "model-2.1"),
        ("./some folder/My Model/", "my-model"),
        ("..\\evil\\..hidden", "hidden"),
    ],
)
def test_names_of_models_are_safe_folders(typed: str, name: str) -> None:
    assert safe_name(typed) == name
    assert safe_name(name) == name


def test_every_model_with_every_prompt_is_a_captioner_of_its_own() -> None:
    assert captioner_names(["a/x", "b/y"], ["one", "two"], []) == [
        ("a/x", "one", "x"),
        ("a/x", "two", "x-2"),
        ("b/y", "one", "y"),
        ("b/y", "two", "y-2"),
    ]
    assert captioner_names(["a/x"], [None], ["mine"]) == [("a/x", None, "mine")]
    with pytest.raises(ConfigError, match="two captioners would be named 'x'"):
        captioner_names(["a/x", "b/x"], [None], [])
    with pytest.raises(ConfigError, match="1 names for 1 x 2"):
        captioner_names(["a/x"], ["one", "two"], ["mine"])
    with pytest.raises(ConfigError, match="no safe folder"):
        captioner_names(["a/x"], [None], ["../mine"])
    with pytest.raises(ConfigError, match="no model"):
        captioner_names([], [None], [])


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"side": 0}]
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Writing(**wrong)


def test_a_caption_of_the_source_stays_beside_those_of_models(
    models: dict[str, Path], tmp_path: Path
) -> None:
    training_set = scanned_set.scanned_set(tmp_path / "set")
    run(stage(training_set, models["llava"]))
    first = training_set.samples("00000")[0]
    assert first.captions[0] == Caption(text="a picture of number 0", captioner="original")
    assert [each.captioner for each in first.captions] == ["original", "file name", "model"]


LONG = "a very long caption about a dog " * 8


def scoring(training_set: TrainingSet, folder: Path, **more: Any) -> Scoring:
    return Scoring(
        training_set=training_set,
        model=str(folder),
        model_hash=fingerprint_of_folder(folder),
        **{"name": folder.name, "batch_size": 2, **more},
    )


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
    run(scoring(training_set, models[name]))
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
    one = scoring(training_set, models["clip"])
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
    run(scoring(training_set, models["clip"]))
    alone = scores(training_set)["a.b"]["original"]
    run(scoring(training_set, models["siglip"]))
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
    marks = run(scoring(training_set, models[name]))
    assert [mark.stats["cut"] for mark in marks.values()] == [1, 0]
    assert scores(training_set)["cats/tom"]["long"] is not None
    scorer = DualEncoder(models[name], dtype="float32", device="cpu")
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
        run(scoring(training_set, models["clip"], batch_size=size))
        found.append(scores(training_set))
    for other in found[1:]:
        for identity, of in other.items():
            assert of == pytest.approx(found[0][identity], abs=2e-4)


def test_a_set_without_captions_has_no_scores(models: dict[str, Path], tmp_path: Path) -> None:
    training_set = scanned_set.scanned_set(tmp_path / "set")
    bare = [replace(sample, captions=()) for sample in scanned_set.samples()]
    scanned_set.scan(training_set.folder, bare)
    marks = run(scoring(training_set, models["clip"]))
    assert [mark.stats["scores"] for mark in marks.values()] == [0, 0]


def test_a_model_that_compares_nothing_is_refused(models: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="does not compare pictures and texts"):
        DualEncoder(models["llava"], dtype="float32", device="cpu")


def test_features_that_are_not_finite_are_no_scores(models: dict[str, Path]) -> None:
    scorer = DualEncoder(models["clip"], dtype="float32", device="cpu")
    with pytest.raises(NumericsError, match="not finite"):
        scorer._directions(torch.tensor([[float("inf"), 1.0]]))
