"""The loader: what batches hold, what it refuses, and what it does when files are damaged."""

from __future__ import annotations

import json
import shutil
import zipfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sanakit.data.captions.choice import CaptionChoice
from sanakit.data.loader import batches
from sanakit.data.loader.batches import fit_into
from sanakit.data.loader.loader import Loader
from sanakit.data.resize_and_crop import fitted
from sanakit.errors import ConfigError, DataError
from tiny_shards import (
    Size,
    colour_of,
    damage,
    no_captions,
    plain_picture,
    text_states,
    write_latents,
    write_shards,
    write_text,
)

BUCKETS = {(32, 32): [5, 6], (32, 64): [3]}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", BUCKETS)


def ids_of(loader: Loader, count: int) -> list[list[str]]:
    return [batch.ids for batch in islice(loader, count)]


def test_a_batch_holds_pictures_captions_and_where_they_come_from(shards: Path) -> None:
    loader = Loader(shards, batch_size=3, captions=CaptionChoice(rule="first"))
    for batch in islice(loader, 2 * loader.batches_per_epoch):
        assert batch.pixels is not None
        assert batch.pixels.shape == (3, batch.height, batch.width, 3)
        assert batch.pixels.dtype == torch.uint8
        for id, pixels in zip(batch.ids, batch.pixels, strict=True):
            assert id.startswith(f"{batch.height}x{batch.width}/")
            assert (pixels == torch.tensor(colour_of(id), dtype=torch.uint8)).all()
        assert batch.captions == [f"{id} by original" for id in batch.ids]
        assert batch.captioners == ["original"] * 3
    assert batch.epoch == 1
    assert batch.number == 2 * loader.batches_per_epoch - 1


def test_a_sample_without_captions_trains_the_null_prompt(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, {(32, 32): [2]}, captions=no_captions)
    batch = next(iter(Loader(shards, batch_size=2)))
    assert batch.captions == batch.captioners == ["", ""]


def test_epochs_count_what_they_repeat_and_drop(shards: Path) -> None:
    loader = Loader(shards, batch_size=4)
    assert (loader.samples, loader.batches_per_epoch) == (14, 4)
    assert (loader.repeated, loader.dropped) == (2, 0)
    assert "4 batches of 4 an epoch, 2 samples repeated, 0 dropped" in loader.report
    assert (loader.samples, loader.batches_per_epoch) == (14, 4)
    loader = Loader(shards, batch_size=4, remainder="drop")
    assert (loader.batches_per_epoch, loader.repeated, loader.dropped) == (2, 0, 6)


def test_pictures_of_other_sizes_are_fitted_as_the_builder_fits_them(tmp_path: Path) -> None:
    def picture(id: str, size: Size) -> bytes:
        return plain_picture(id, (size[0] * 3, size[1] + 7))

    shards = write_shards(tmp_path, {(32, 64): [3]}, picture=picture)
    batch = next(iter(Loader(shards, batch_size=3)))
    assert batch.pixels is not None
    assert batch.pixels.shape == (3, 32, 64, 3)
    assert batch.pixels[0, 5, 5].tolist() == list(colour_of(batch.ids[0]))


@pytest.mark.parametrize("size", [(100, 70), (61, 200), (33, 64), (20, 30), (96, 192)])
@pytest.mark.parametrize("lanczos", [True, False])
def test_fitting_is_the_builders_to_within_half_a_pixel(
    size: Size, lanczos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lanczos and not batches._has_lanczos():
        assert "lanczos" not in (torch.nn.functional.interpolate.__doc__ or "")
        pytest.skip("this torch has no Lanczos")
    monkeypatch.setattr(batches, "_has_lanczos", lambda: lanczos)
    down, across = np.mgrid[0 : 1 : 1j * size[0], 0 : 1 : 1j * size[1]]
    waves = [np.sin(5 * down + 2 * across), np.cos(4 * across), np.sin(6 * down * across)]
    pixels = (127 + 120 * np.stack(waves, axis=2)).astype(np.uint8)
    slot = torch.zeros(32, 64, 3, dtype=torch.uint8)
    fit_into(slot, Image.fromarray(pixels))
    error = np.abs(slot.numpy().astype(int) - fitted(pixels, (32, 64)).astype(int))
    step = max(np.abs(np.diff(pixels.astype(int), axis=axis)).max() for axis in (0, 1))
    assert error.max() <= step * 0.75 + 3
    assert error.mean() < 3


def test_a_damaged_picture_is_replaced_by_the_next_of_its_bucket_whatever_the_ranks(
    shards: Path,
) -> None:
    whole = ids_of(Loader(shards, batch_size=4), 8)
    batch = next(batch for batch in whole if batch[0].startswith("32x32"))
    bad, stand_in = batch[1], batch[2]
    damage(shards, bad)
    loader = Loader(shards, batch_size=4)
    seen = ids_of(loader, 8)
    first = next(pair for pair in zip(whole, seen, strict=True) if bad in pair[0])
    assert first[1] == [stand_in if id == bad else id for id in first[0]]
    assert all(bad not in batch for batch in seen)
    assert list(loader.replaced) == [bad]
    assert loader.replaced[bad].startswith("32x32-0000")
    ranks = [ids_of(Loader(shards, batch_size=4, rank=rank, world=2), 8) for rank in range(2)]
    assert [left + right for left, right in zip(*ranks, strict=True)] == seen


def test_a_damaged_record_counts_as_a_damaged_sample(shards: Path) -> None:
    damage(shards, "32x32/0.1", part="meta", data=b"\xff{")
    loader = Loader(shards, batch_size=4)
    assert all("32x32/0.1" not in ids for ids in ids_of(loader, 4))
    assert "damaged record" in loader.replaced["32x32/0.1"]


def test_more_damaged_samples_than_allowed_are_an_error_that_names_the_last(shards: Path) -> None:
    for row in range(2):
        damage(shards, f"32x32/0.{row}")
    assert ids_of(Loader(shards, batch_size=4, max_bad=0.5), 4)
    with pytest.raises(DataError, match=r"2 damaged .* and 1 are allowed.*0\.[01]"):
        ids_of(Loader(shards, batch_size=4), 4)
    with pytest.raises(DataError, match=r"damaged samples in epoch 0, and 0 are allowed"):
        ids_of(Loader(shards, batch_size=4, max_bad=0), 4)


def test_a_bucket_of_damaged_samples_alone_is_an_error_and_no_endless_search(
    tmp_path: Path,
) -> None:
    shards = write_shards(tmp_path, {(32, 32): [3]})
    for row in range(3):
        damage(shards, f"32x32/0.{row}")
    with pytest.raises(DataError, match="samples in a row are damaged"):
        ids_of(Loader(shards, batch_size=3, max_bad=1.0), 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_vanished_is_an_error_that_names_it(shards: Path, workers: int) -> None:
    loader = Loader(shards, batch_size=4, workers=workers)
    (shards / "32x64-00000.tar").unlink()
    with pytest.raises(DataError, match=r"32x64-00000\.tar cannot be read"):
        ids_of(loader, 4)


def test_a_shard_of_another_size_is_refused(shards: Path) -> None:
    with (shards / "32x64-00000.tar").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DataError, match=r"32x64-00000\.tar has \d+ bytes instead of \d+"):
        ids_of(Loader(shards, batch_size=4), 4)


def test_keys_that_belong_to_another_shard_are_refused(shards: Path) -> None:
    path = shards / "32x64-00000.keys.json"
    keys = json.loads(path.read_text())
    path.write_text(json.dumps({**keys, "keys": keys["keys"][::-1]}))
    with pytest.raises(DataError, match="the list of keys is of another shard"):
        ids_of(Loader(shards, batch_size=4), 4)
    path.write_text(json.dumps({name: value[:2] for name, value in keys.items()}))
    with pytest.raises(DataError, match="has other than 3 samples"):
        ids_of(Loader(shards, batch_size=4), 4)


def test_folders_without_shards_are_refused_with_the_way_to_them(
    shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"holds no built shards(.|\n)*sanakit data build"):
        Loader(tmp_path / "nowhere", batch_size=4)
    with pytest.raises(DataError, match=f"give {shards}"):
        Loader(tmp_path, batch_size=4)
    index = json.loads((shards / "index.json").read_text())
    index["buckets"][0]["shards"][0]["file"] = "../../etc/passwd.tar"
    (shards / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="outside its folder"):
        Loader(shards, batch_size=4)
    (shards / "index.json").write_text(json.dumps({**index, "buckets": []}))
    with pytest.raises(DataError, match="lists no samples"):
        Loader(shards, batch_size=4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
        ({"batch_size": 6, "world": 4}, "no multiple of world=4(.|\n)*try 8"),
        ({"rank": 2, "world": 2}, "rank=2 must be below world=2"),
        ({"workers": -1}, "workers=-1 must be"),
        ({"prefetch": 0}, "prefetch=0 must be"),
        ({"shuffle_shards": True}, "shuffle_shards=True must be"),
        ({"remainder": "keep"}, "remainder='keep' must be one of"),
        ({"batch_size": 12, "remainder": "drop"}, "leaves nothing(.|\n)*batch_size=11"),
        ({"max_bad": 2}, "max_bad=2 must be a share"),
        ({"cache": Path("x")}, "cache=x has no use"),
        ({"cache_gb": 3}, "cache_gb=3 has no use"),
        ({"pin_memory": True}, "pin_memory=True needs a GPU"),
    ],
)
def test_options_that_cannot_be_are_refused(
    shards: Path, options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=said):
        Loader(shards, **{"batch_size": 4, **options})


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"batch_size": 8}, {"shuffle_shards": 1}, {"remainder": "drop"}]
)
def test_a_state_of_another_order_is_refused(shards: Path, options: dict[str, Any]) -> None:
    state = Loader(shards, **{"batch_size": 4, **options}).state()
    name, value = next(iter(options.items()))
    with pytest.raises(DataError, match=f"{name}=.* but the saved state has {value!r}"):
        Loader(shards, batch_size=4).restore(state)


def test_a_state_of_other_shards_or_without_sense_is_refused(shards: Path, tmp_path: Path) -> None:
    loader = Loader(shards, batch_size=4)
    other = write_shards(tmp_path / "other", {(32, 32): [5, 6], (32, 64): [2]})
    with pytest.raises(DataError, match="index="):
        loader.restore(Loader(other, batch_size=4).state())
    with pytest.raises(DataError, match="format=1, but the saved state has None"):
        loader.restore({})
    with pytest.raises(DataError, match="next=-1"):
        loader.restore({**loader.state(), "next": -1})


def test_a_state_counts_the_batches_that_were_given_and_not_those_ahead(shards: Path) -> None:
    with Loader(shards, batch_size=4, workers=1, prefetch=4) as loader:
        assert loader.state()["next"] == 0
        for number, _ in enumerate(islice(loader, 3), 1):
            assert loader.state()["next"] == number


def test_an_iteration_that_was_restored_away_says_so(shards: Path) -> None:
    loader = Loader(shards, batch_size=4)
    batches = iter(loader)
    first = next(batches)
    loader.restore(Loader(shards, batch_size=4).state())
    with pytest.raises(DataError, match="this iteration is over"):
        next(batches)
    assert next(iter(loader)).ids == first.ids


def test_iterating_draws_nothing_from_the_users_generator(shards: Path) -> None:
    before = torch.get_rng_state()
    with Loader(shards, batch_size=4, workers=1) as loader:
        ids_of(loader, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_latents_and_text_take_the_place_of_pixels(shards: Path, tmp_path: Path) -> None:
    loader = Loader(
        shards,
        batch_size=4,
        latents=write_latents(tmp_path / "latents", shards),
        text=write_text(tmp_path / "text", shards),
        captions=CaptionChoice(null_chance=0.3),
    )
    plain = Loader(shards, batch_size=4, captions=CaptionChoice(null_chance=0.3))
    for batch, same in islice(zip(loader, plain, strict=True), 8):
        assert (batch.ids, batch.captions) == (same.ids, same.captions)
        assert batch.pixels is None
        assert batch.latents is not None
        assert batch.latents.dtype == torch.bfloat16
        colours = [[*colour_of(id), 0] for id in batch.ids]
        assert batch.latents.reshape(4, 4).int().tolist() == colours
        assert batch.text is not None
        assert batch.text_mask is not None
        for caption, states, mask in zip(batch.captions, batch.text, batch.text_mask, strict=True):
            expected = torch.from_numpy(text_states(caption)).view(torch.bfloat16)
            assert torch.equal(states[mask], expected)
            assert not states[~mask].any()


def test_a_sample_without_a_latent_is_replaced(shards: Path, tmp_path: Path) -> None:
    latents = write_latents(tmp_path / "latents", shards)
    with np.load(latents / "32x64-00000.npz") as whole:
        kept = {name: whole[name] for name in whole.files if not name.endswith("2")}
    about = kept.pop("about.json")
    np.savez(latents / "32x64-00000.npz", **kept)
    loader = Loader(shards, batch_size=4, latents=latents)
    with pytest.raises(DataError, match="has no states of description"):
        ids_of(loader, 4)
    with zipfile.ZipFile(latents / "32x64-00000.npz", "a") as file:
        file.writestr("about.json", about)
    assert all("32x64/0.2" not in ids for ids in ids_of(loader, 4))
    assert "no states of sample" in loader.replaced["32x64/0.2"]


def test_latents_of_an_older_build_are_refused(shards: Path, tmp_path: Path) -> None:
    latents = write_latents(tmp_path / "latents", shards)
    shutil.rmtree(shards)
    write_shards(shards, BUCKETS, captions=no_captions)
    with pytest.raises(DataError, match="states of another"):
        ids_of(Loader(shards, batch_size=4, latents=latents), 1)
    with pytest.raises(DataError, match="is no folder"):
        Loader(shards, batch_size=4, latents=tmp_path / "nowhere")
