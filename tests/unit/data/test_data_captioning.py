from __future__ import annotations

import io
import json
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

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
from sanakit.data.captions.vision_models import (
    find_vision_model,
    fingerprint_of_folder,
    picture_of,
    safe_name,
)
from sanakit.data.images.decode import DEFAULT
from sanakit.data.samples import Caption
from sanakit.data.training_set import TrainingSet
from sanakit.data.units import LocalEngine, Mark, run_stage
from sanakit.errors import ConfigError, DataError, MissingModelError, OutOfMemory, WeightsError

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


def run(one: Captioning, workers: int = 1) -> dict[str, Mark]:
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
