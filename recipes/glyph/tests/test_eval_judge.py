"""The judge: what it sees, what it reads, and that it ranks real > blurred > noise."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recipes.glyph.data.pictures import RECORDS, GlyphPictures
from recipes.glyph.evaluate.judge import (
    ORIGIN,
    SEEN,
    ImageTower,
    JudgeConfig,
    SavedJudge,
    TextTower,
    contrastive_loss,
    load_judge,
)
from recipes.glyph.evaluate.judge_run import JudgeRecipe, train_judge
from recipes.glyph.evaluate.judge_samples import GRID, data_revision, draw_shown, looks_of, sight_of
from recipes.glyph.evaluate.retrieval import agreement_of, held_pictures, hits, ranks_of
from torch import nn

from sanakit.errors import ConfigError, DataError, MissingModelError, WeightsError
from sanakit.evaluate.features import FeatureNetwork
from sanakit.evaluate.figures import Evaluation
from sanakit.train.sample_schedule import SampleSchedule
from tiny_judge import HELD, LOOP, tiny_shapes, tiny_sight, tiny_words

WAYS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge") / "data"
    tiny_shapes(folder)
    return folder


@pytest.fixture(scope="module")
def trained(
    data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Evaluation, SavedJudge]:
    out = tmp_path_factory.mktemp("judge") / "out"
    found = train_judge(
        data, out, tiny_sight(), words=tiny_words(), count=160, held=18, ways=WAYS, loop=LOOP,
        report=lambda line: None,
    )  # fmt: skip
    assert found is not None
    return out, found, load_judge(out)


@pytest.mark.parametrize("split", ["held-out styles", "held-out concepts"])
def test_a_judge_ranks_real_over_blurred_over_noise_and_right_over_shuffled(
    trained: tuple[Path, Evaluation, SavedJudge], split: str
) -> None:
    values = {figure.name: figure.value for figure in trained[1].figures}
    real, blurred, noise, swapped = (
        values[f"R-precision@1, {split}: {name}"]
        for name in ("real", "blurred", "noise", "shuffled captions")
    )
    assert real > blurred > noise
    assert real > 2 * swapped
    assert real >= 2 / 3


def test_held_out_pictures_are_never_seen_in_training(
    trained: tuple[Path, Evaluation, SavedJudge], data: Path
) -> None:
    saved, records = trained[2], GlyphPictures.open(data).records
    split = {record.id: record.split for record in records}
    assert {split[identity] for identity in saved.seen} == {"train"}
    assert not {one.split("/")[1] for one in saved.seen} & HELD


def test_pictures_of_training_are_refused(
    trained: tuple[Path, Evaluation, SavedJudge], data: Path
) -> None:
    saved, revision = trained[2], data_revision(data)
    known = min(saved.seen)
    saved.check(data=revision, sight=tiny_sight(), ids=["new"])
    with pytest.raises(DataError, match=known):
        saved.check(data=revision, sight=tiny_sight(), ids=["new", known])


def test_other_data_and_other_eyes_are_refused(
    trained: tuple[Path, Evaluation, SavedJudge], data: Path, tmp_path: Path
) -> None:
    saved = trained[2]
    changed = (data / RECORDS).read_text(encoding="utf-8").replace("a red", "a rosy")
    (tmp_path / RECORDS).write_text(changed, encoding="utf-8")
    with pytest.raises(DataError, match="was trained on data"):
        saved.check(data=data_revision(tmp_path), sight=tiny_sight(), ids=[])
    with pytest.raises(WeightsError, match="sees with"):
        saved.check(data=data_revision(data), sight=tiny_sight("others"), ids=[])


def test_a_judge_comes_back_as_it_was_saved(
    trained: tuple[Path, Evaluation, SavedJudge], data: Path
) -> None:
    pictures, saved = GlyphPictures.open(data), trained[2]
    shown, trials = held_pictures(pictures, split="held_style", count=18, seed=0, ways=WAYS)
    looks = looks_of(tiny_sight(), shown, pictures)
    found = hits(ranks_of(agreement_of(saved.judge, saved.tokenizer, looks, trials)), 1)
    (told,) = (
        figure.value
        for figure in trained[1].figures
        if figure.name == "R-precision@1, held-out styles: real"
    )
    # Weights are stored as fp16: at most one picture may change sides.
    assert found.mean() == pytest.approx(told, abs=1 / 18 + 1e-6)


@pytest.mark.parametrize("name", [ORIGIN, SEEN, "tokenizer/tokenizer.json", "judge.safetensors"])
def test_a_judge_that_lacks_a_file_is_none(
    trained: tuple[Path, Evaluation, SavedJudge], tmp_path: Path, name: str
) -> None:
    copied = tmp_path / "judge"
    shutil.copytree(trained[0], copied)
    load_judge(copied)
    (copied / name).unlink()
    with pytest.raises(MissingModelError, match=Path(name).name):
        load_judge(copied)


def test_colours_and_places_are_seen(data: Path) -> None:
    sight = tiny_sight()
    image = torch.ones(2, 3, 64, 64)
    image[0, :, :16, :16] = torch.tensor([1.0, -1, -1])[:, None, None]
    image[1] = image[0].flip(2)
    looks = sight(image)
    whole, cells = looks.split([sight.whole_width, GRID * GRID * sight.cell_width], dim=1)
    cells = cells.unflatten(1, (GRID, GRID, sight.cell_width))
    # The mean colour of a cell comes before its spread, at the end.
    mean = cells[..., -6:-3]
    torch.testing.assert_close(mean[0, 0, 0], torch.tensor([1.0, 0, 0]), atol=0.05, rtol=0)
    torch.testing.assert_close(mean[1], mean[0].flip(1), atol=1e-5, rtol=0)
    assert not torch.allclose(mean[1], mean[0])
    torch.testing.assert_close(whole[0, -3:], torch.ones(3))
    shares = cells[..., -33:-6]
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(2, GRID, GRID))


def test_what_is_seen_of_a_picture_depends_on_it_alone(rng: torch.Generator) -> None:
    image = torch.rand(3, 3, 96, 64, generator=rng) * 2 - 1
    together = tiny_sight()(image)
    alone = torch.cat([tiny_sight()(one[None]) for one in image])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(tiny_sight()(image[:, :, 16:80]), together)


class _Stages(nn.Module):
    """A classifier with blocks of the published names."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks = nn.ModuleList(nn.Conv2d(3, 3, 1, bias=False) for _ in range(16))
        for number, block in enumerate(self._blocks):
            nn.init.dirac_(block.weight)
            block.weight.data *= 2.0 if number in (5, 12) else 1.0

    def extract_features(self, image: torch.Tensor) -> torch.Tensor:
        for block in self._blocks:
            image = block(image)
        return F.avg_pool2d(image, 32)


def test_the_maps_of_both_stages_are_kept_beside_the_pooled_features() -> None:
    network = _Stages()
    sight = sight_of(FeatureNetwork(network, fingerprint="stages"))
    assert sight.whole_width == 3 + 125 + 3
    assert sight.cell_width == 3 + 3 + 27 + 3 + 3
    looks = sight(torch.full((1, 3, 128, 128), 0.5))
    # (0.5 * 127.5 + 0.5) / 128, doubled once before the first map and twice before the second.
    seen = (0.5 * 127.5 + 0.5) / 128
    cell = looks[0, sight.whole_width : sight.whole_width + 6]
    torch.testing.assert_close(cell, torch.tensor([2 * seen] * 3 + [4 * seen] * 3))
    torch.testing.assert_close(looks[0, :3], torch.full((3,), 4 * seen))
    assert not any(block._forward_hooks for block in network._blocks)


def test_padding_changes_no_caption_and_order_does(rng: torch.Generator) -> None:
    torch.manual_seed(0)
    tower = TextTower(JudgeConfig(whole_width=1, cell_width=1, vocab_size=50)).eval()
    ids = torch.randint(1, 50, (1, 6), generator=rng)
    mask = torch.ones(1, 6, dtype=torch.bool)
    alone = tower(ids, mask)
    padded = tower(F.pad(ids, (0, 5), value=7), F.pad(mask, (0, 5)))
    torch.testing.assert_close(padded, alone)
    assert not torch.allclose(tower(ids.flip(1), mask), alone, atol=1e-3)


def test_the_loss_is_the_cross_entropy_of_both_directions(rng: torch.Generator) -> None:
    agreement = torch.rand(5, 5, generator=rng).double()
    scale = torch.tensor(7.0).double()
    by_picture = (7 * agreement).exp() / (7 * agreement).exp().sum(dim=1, keepdim=True)
    by_caption = (7 * agreement).exp() / (7 * agreement).exp().sum(dim=0, keepdim=True)
    expected = -(by_picture.diag().log() + by_caption.diag().log()).mean() / 2
    torch.testing.assert_close(contrastive_loss(agreement, scale), expected)


def test_what_is_true_by_chance_is_no_mistake(rng: torch.Generator) -> None:
    agreement = torch.rand(4, 4, generator=rng)
    true = torch.eye(4, dtype=torch.bool)
    true[0, 2] = True
    worse = agreement.clone()
    worse[0, 2] += 1
    scale = torch.tensor(5.0)
    assert contrastive_loss(worse, scale) > contrastive_loss(agreement, scale)
    loss = contrastive_loss(agreement, scale, true)
    assert contrastive_loss(worse, scale, true) == loss
    assert loss.isfinite()


def test_a_batch_marks_the_captions_that_are_true_of_other_pictures(data: Path) -> None:
    pictures = GlyphPictures.open(data)
    shown = draw_shown(pictures, split="train", count=200, seed=0)
    recipe = JudgeRecipe(
        nn.Identity(), tiny_words().tokenizer, shown, np.zeros((len(shown), 4), np.float16), {}
    )
    single = [place for place, one in enumerate(shown) if one.sample.scene is None]
    white, other = (
        {shown[p].concept: p for p in single if (shown[p].sample.background == "white") == is_white}
        for is_white in (True, False)
    )
    # One thing in two styles, on two backgrounds.
    concept = next(name for name in white if name in other)
    rows = np.array([white[concept], other[concept]])
    assert recipe.known[rows[0]] & recipe.known[rows[1]] == {f"a {concept}"}
    # Choice 0 is the plain caption. What is behind is said of both, then only where it is not
    # white: without it, a caption is true of both.
    *_, told = recipe.batch(rows, np.zeros((2, 2)))
    assert told.tolist() == [[True, False], [False, True]]
    *_, silent = recipe.batch(rows, np.array([[0, 0.99], [0, 0.99]]))
    assert silent.tolist() == [[True, False], [True, True]]
    # Choice 1 says the style: of the other picture it is never true.
    *_, styled = recipe.batch(rows, np.full((2, 2), 0.99))
    assert styled.tolist() == [[True, False], [False, True]]


def test_a_batch_is_not_split(data: Path) -> None:
    recipe = JudgeRecipe(nn.Identity(), tiny_words().tokenizer, [], np.zeros((0, 4)), {})
    with pytest.raises(ConfigError, match="each other"):
        next(recipe.stream(SampleSchedule(seed=0, batch_size=4, parts=2)))


def test_no_picture_is_drawn_twice_and_more_samples_begin_with_fewer(data: Path) -> None:
    pictures = GlyphPictures.open(data)
    shown = draw_shown(pictures, split="held_concept", count=1000, seed=0)
    assert len(shown) == len({one.ids for one in shown}) == len(HELD) * 3
    many = draw_shown(pictures, split="train", count=1000, seed=0)
    single = [one.ids for one in many if one.sample.scene is None]
    assert len(single) == len(set(single)) == len(pictures.indices("train"))
    assert len(single) < len(many)
    assert draw_shown(pictures, split="train", count=20, seed=0) == many[:20]


def test_pictures_come_by_their_weight(data: Path) -> None:
    pictures = GlyphPictures.open(data)
    heavy = [
        replace(one, weight=1000.0 if one.style == "tiny" else 1e-3 if one.style == "flat" else 0.0)
        for one in pictures.records
    ]
    weighted = replace(pictures, records=heavy)
    shown = draw_shown(weighted, split="held_concept", count=1000, seed=0)
    assert [one.style for one in shown] == ["tiny"] * len(HELD) + ["flat"] * len(HELD)


def test_looks_are_read_again_and_an_interrupted_call_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.glyph.evaluate.judge_samples.CHUNK", 8)
    pictures = GlyphPictures.open(data)
    shown = draw_shown(pictures, split="train", count=20, seed=0)
    lines: list[str] = []
    first = looks_of(tiny_sight(), shown, pictures, cache=tmp_path, report=lines.append)
    assert len(lines) == 3
    next(tmp_path.glob("*.npy")).unlink()
    again = looks_of(tiny_sight(), shown, pictures, cache=tmp_path, report=lines.append)
    assert len(lines) == 4
    np.testing.assert_array_equal(first, again)
    whole = looks_of(tiny_sight(), shown, pictures)
    np.testing.assert_array_equal(first, whole)
    # Other pictures never take the place of these.
    looks_of(tiny_sight(), shown[::-1], pictures, cache=tmp_path, report=lines.append)
    assert len(lines) == 7
    looks_of(tiny_sight(), shown, pictures, cache=tmp_path, revision="2", report=lines.append)
    assert len(lines) == 10


def test_what_a_caption_says_of_the_background_comes_apart_from_the_rest(data: Path) -> None:
    pictures = GlyphPictures.open(data)
    for one in draw_shown(pictures, split="train", count=60, seed=1):
        assert one.text + one.clause == one.sample.caption
        assert one.text in one.texts
        if one.sample.background != "white":
            assert one.clause.endswith(f"{one.sample.background} background")


def test_captions_are_drawn_by_their_numbers(data: Path) -> None:
    (one,) = draw_shown(GlyphPictures.open(data), split="held_style", count=1, seed=0)
    white = replace(one, sample=replace(one.sample, background="white"))
    assert white.draw_caption(0, 0.5) == (one.texts[0], "")
    assert white.draw_caption(0.99, 0) == (one.texts[-1], ", on a white background")
    mint = replace(one, sample=replace(one.sample, background="mint"))
    assert mint.draw_caption(0, 0.99)[1] == ", on a mint background"


def test_what_is_seen_is_standardised_by_channel_and_not_by_place(rng: torch.Generator) -> None:
    tower = ImageTower(JudgeConfig(whole_width=2, cell_width=3, vocab_size=5))
    looks = torch.randn(500, 2 + GRID * GRID * 3, generator=rng)
    looks[:, :2] = looks[:, :2] * 4 + 7
    looks[:, 2::3] += 5
    looks[:, 2] += 3
    tower.standardise(looks)
    found = (looks - tower.mean) * tower.scale
    whole, cells = found[:, :2], found[:, 2:].unflatten(1, (-1, 3))
    torch.testing.assert_close(whole.mean(dim=0), torch.zeros(2), atol=1e-4, rtol=0)
    # A little less than one, so that what hardly varies is not blown up.
    assert ((whole.std(dim=0) > 0.9) & (whole.std(dim=0) < 1)).all()
    torch.testing.assert_close(cells.mean(dim=(0, 1)), torch.zeros(3), atol=1e-4, rtol=0)
    # One place is brighter than the others, and stays so.
    assert cells[:, 0, 0].mean() > 1
