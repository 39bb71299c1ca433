from __future__ import annotations

import io
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import scanned_set
import tiny
from sanakit.data.captions.vision_models import computing
from sanakit.data.encode import (
    NULL,
    CachedStates,
    LatentEncoding,
    TextEncoding,
    autoencoder_hash,
    built,
    stored,
    text_encoder_hash,
    text_key,
    write_states,
)
from sanakit.data.samples import Caption
from sanakit.data.shards import key_of, read_keys
from sanakit.data.units import LocalEngine, Mark, run_stage
from sanakit.errors import ConfigError, DataError, NumericsError, WeightsError
from sanakit.files import sha256_of
from sanakit.pipeline.components import (
    Components,
    GenerationDefaults,
    load_components,
    save_components,
)
from sanakit.pipeline.pixels import from_pixels

SHARDS = list(scanned_set.SHARD_NAMES)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny(tmp_path_factory.mktemp("models") / "sana")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scanned_set.scanned_set(tmp_path / "set")
    scanned_set.build(tmp_path / "set")
    return tmp_path / "set"


def latents(folder: Path, model: Path, **more: Any) -> LatentEncoding:
    settings = {"resolution": built(folder).resolution, "batch_size": 2, **more}
    return LatentEncoding(
        set_folder=folder, model=str(model), encoder_hash=autoencoder_hash(str(model)), **settings
    )


def text(folder: Path, model: Path, **more: Any) -> TextEncoding:
    return TextEncoding(
        set_folder=folder,
        model=str(model),
        encoder_hash=text_encoder_hash(str(model)),
        **{"batch_size": 2, **more},
    )


def run(one: LatentEncoding | TextEncoding) -> dict[str, Mark]:
    units = SHARDS if isinstance(one, LatentEncoding) else [NULL, *SHARDS]
    return run_stage(one, units, engine=LocalEngine(), report=len)


def components(model: Path) -> Components:
    return load_components(model)


@pytest.mark.parametrize(("storage", "tolerance"), [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_latents_are_those_of_the_autoencoder_times_its_scaling_factor(
    folder: Path, model: Path, storage: Any, tolerance: float
) -> None:
    one = latents(folder, model, storage=storage)
    run(one)
    autoencoder = components(model).autoencoder
    for first, shard in zip((0, 3), SHARDS, strict=True):
        height, width = map(int, shard.split("-")[0].split("x"))
        cached = CachedStates(one.folder, shard)
        for number, identity in enumerate(read_keys(folder / "shards", shard).keys, first):
            data = scanned_set.png(number, height=height, width=width)
            pixels = np.array(Image.open(io.BytesIO(data)))
            with torch.no_grad():
                raw = autoencoder.encode(from_pixels(pixels[None])).latent[0]
            found = cached.latent(identity)
            assert found.dtype == getattr(torch, storage)
            assert found.shape == (4, height // 32, width // 32)
            torch.testing.assert_close(found.float(), raw * 0.5, rtol=tolerance, atol=1e-5)


def test_text_states_are_those_that_training_would_compute(folder: Path, model: Path) -> None:
    one = text(folder, model)
    run(one)
    prompts = components(model).prompts
    assert prompts.instruction
    cached = CachedStates(one.folder, SHARDS[0])
    for caption in ("a picture of number 1", "a dog"):
        encoded = prompts.encode([caption], instruction=prompts.instruction)
        expected = encoded.text[0][encoded.mask[0]]
        torch.testing.assert_close(cached.text(caption).float(), expected, rtol=1e-3, atol=1e-5)
    null = prompts.encode([""], instruction=None)
    torch.testing.assert_close(cached.text("").float(), null.text[0], rtol=1e-3, atol=1e-5)


def test_equal_captions_of_a_shard_are_kept_once_and_samples_may_have_none(
    folder: Path, model: Path
) -> None:
    one = text(folder, model)
    marks = run(one)
    assert [mark.stats["captions"] for mark in marks.values()] == [0, 4, 3]
    with zipfile.ZipFile(one.folder / f"{SHARDS[0]}.npz") as file:
        names = file.namelist()
    assert len(names) == len(set(names)) == 4 + 1
    assert f"{text_key('a dog')}.npy" in names


def test_numpy_alone_reads_the_files(folder: Path, model: Path) -> None:
    one, wide = latents(folder, model), latents(folder, model, storage="bfloat16")
    run(one)
    run(wide)
    with np.load(one.folder / f"{SHARDS[0]}.npz") as arrays:
        assert key_of("cats/tom") in arrays.files
        narrow = arrays[key_of("cats/tom")]
    assert narrow.dtype == np.float16
    with np.load(wide.folder / f"{SHARDS[0]}.npz") as arrays:
        bits = arrays[key_of("cats/tom")]
    assert bits.dtype == np.uint16
    as_floats = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(as_floats, narrow.astype(np.float32), rtol=8e-3, atol=1e-5)


def test_a_file_says_which_shard_and_encoder_it_is_of(folder: Path, model: Path) -> None:
    one = latents(folder, model)
    run(one)
    about = CachedStates(one.folder, SHARDS[1]).about
    assert about["shard_sha256"] == sha256_of(folder / "shards" / f"{SHARDS[1]}.tar")
    assert about["encoder"] == autoencoder_hash(str(model))
    assert about["resolution"] == 64


@pytest.mark.parametrize("kind", [latents, text])
def test_the_threads_that_a_process_has_do_not_change_a_byte(
    folder: Path, model: Path, kind: Any
) -> None:
    with computing(3, batch_size=1):  # states this small do not tell
        assert torch.get_num_threads() == 3
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        one = kind(folder, model)
        run(one)
        assert torch.get_num_threads() == threads
        found.append(scanned_set.hashes(one.folder))
        for path in one.folder.iterdir():
            path.unlink()
    torch.set_num_threads(1)
    assert found[0] == found[1]


def test_another_shard_is_encoded_again_and_the_others_stay(folder: Path, model: Path) -> None:
    one, other = latents(folder, model), text(folder, model)
    run(one)
    run(other)
    samples = scanned_set.samples()
    caption = Caption(text="a cat", captioner="original")
    samples[5] = replace(samples[5], captions=(caption,))
    scanned_set.build(folder, samples)
    assert [unit for unit, mark in run(one).items() if mark.fresh] == [SHARDS[1]]
    assert [unit for unit, mark in run(other).items() if mark.fresh] == [SHARDS[1]]
    assert CachedStates(other.folder, SHARDS[1]).text("a cat").shape[1] == 8


def test_settings_and_encoders_have_folders_of_their_own(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    torch.manual_seed(1)
    changed = tiny.tiny_components(GenerationDefaults(instruction=None))
    torch.nn.init.normal_(changed.autoencoder.encoder.conv_in.conv.weight)
    save_components(changed, other)
    one = latents(folder, model)
    assert one.key == latents(folder, model, batch_size=7, threads=3).key
    keys = [
        one.key,
        latents(folder, model, dtype="bfloat16").key,
        latents(folder, model, storage="bfloat16").key,
        latents(folder, model, resolution=128).key,
        latents(folder, other).key,
        text(folder, model).key,
        text(folder, model, max_tokens=20).key,
        text(folder, other).key,
    ]
    assert len(set(keys)) == len(keys)


def test_a_moved_model_keeps_its_folder(folder: Path, model: Path, tmp_path: Path) -> None:
    moved = tiny.write_tiny(tmp_path / "elsewhere")
    assert latents(folder, model).key == latents(folder, moved).key
    assert text(folder, model).key == text(folder, moved).key


def test_a_long_caption_is_cut_at_the_most_tokens_and_counted(folder: Path, model: Path) -> None:
    one = text(folder, model, max_tokens=4)
    marks = run(one)
    assert sum(mark.stats["cut"] for mark in marks.values()) == 5
    assert CachedStates(one.folder, SHARDS[0]).text("a picture of number 1").shape == (4, 8)


def test_a_picture_that_cannot_be_read_is_left_out_and_counted(folder: Path, model: Path) -> None:
    path = folder / "shards" / f"{SHARDS[0]}.tar"
    start, length = read_keys(folder / "shards", SHARDS[0]).images[1]
    data = bytearray(path.read_bytes())
    data[start : start + length] = bytes(length)
    path.write_bytes(data)
    one = latents(folder, model)
    marks = run(one)
    assert marks[SHARDS[0]].stats["unreadable"] == 1
    assert marks[SHARDS[0]].stats["samples"] == 2
    cached = CachedStates(one.folder, SHARDS[0])
    cached.latent("cats/tom")
    with pytest.raises(DataError, match=r"no states of sample 'a\.b'"):
        cached.latent("a.b")


def test_what_cannot_be_read_back_is_named(folder: Path, model: Path) -> None:
    with pytest.raises(DataError, match="missing or damaged"):
        CachedStates(folder, "nothing").latent("a")
    one = text(folder, model)
    run(one)
    with pytest.raises(DataError, match="no states of caption 'of nobody'"):
        CachedStates(one.folder, SHARDS[0]).text("of nobody")
    path = one.folder / f"{SHARDS[0]}.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="missing or damaged"):
        CachedStates(one.folder, SHARDS[0]).text("a dog")


def test_a_reader_travels_to_other_processes(folder: Path, model: Path) -> None:
    one = latents(folder, model)
    run(one)
    cached = CachedStates(one.folder, SHARDS[0])
    here = cached.latent("cats/tom")
    torch.testing.assert_close(pickle.loads(pickle.dumps(cached)).latent("cats/tom"), here)
    child = os.fork()
    if child == 0:  # a file that both read at once would be moved under the other's hands
        cached.latent("two words")
        os._exit(0 if cached._files[SHARDS[0]][0] == os.getpid() else 1)
    assert os.waitpid(child, 0)[1] == 0
    torch.testing.assert_close(cached.latent("cats/tom"), here)
    cached.close()
    torch.testing.assert_close(cached.latent("cats/tom"), here)


def test_a_set_that_was_not_built_says_what_to_do(tmp_path: Path, model: Path) -> None:
    scanned_set.scanned_set(tmp_path / "set")
    with pytest.raises(DataError, match="no built shards") as raised:
        built(tmp_path / "set")
    assert "sanakit data build" in str(raised.value)
    with pytest.raises(DataError, match="is not finished"):
        text(tmp_path / "set", model).made_from(SHARDS[0])


def test_an_encoder_that_changed_under_the_run_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tiny.write_tiny(tmp_path / "other")
    stages = [latents(folder, other), text(folder, other)]
    changed = tiny.tiny_components(GenerationDefaults(instruction=None))
    torch.nn.init.normal_(changed.autoencoder.encoder.conv_in.conv.weight)
    save_components(changed, other)
    for one in stages:
        with pytest.raises(WeightsError, match="another model"):
            one.open()


def test_half_precision_that_overflows_is_refused_before_anything_runs(
    folder: Path, model: Path
) -> None:
    for one in (latents(folder, model, dtype="float16"), text(folder, model, dtype="float16")):
        with pytest.raises(ConfigError, match="overflows"):
            run(one)


def test_states_too_large_for_half_precision_are_never_kept_as_infinity() -> None:
    large = torch.tensor([70000.0, 1.0])
    with pytest.raises(NumericsError, match="up to 70000 cannot be kept as float16") as raised:
        stored(large, "float16")
    assert "--store bfloat16" in str(raised.value)
    assert stored(large, "bfloat16").dtype == np.uint16
    with pytest.raises(NumericsError):
        stored(torch.tensor([float("nan")]), "bfloat16")


def test_a_file_has_no_time_and_no_machine_in_it(tmp_path: Path) -> None:
    array = np.arange(4, dtype=np.float16)
    for name in ("a", "b"):
        write_states(tmp_path / f"{name}.npz", iter([("x", array)]), {"b": 1, "a": 2})
    assert sha256_of(tmp_path / "a.npz") == sha256_of(tmp_path / "b.npz")
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        assert {(member.date_time, member.create_system) for member in file.infolist()} == {
            ((1980, 1, 1, 0, 0, 0), 3)
        }
