"""Decoding within the memory there is: what is chosen, how it steps down, what is never lost."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sanakit.errors import DataError, NumericsError, OutOfMemory, WeightsError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AUTOENCODERS
from sanakit.models.tiling import Tiling
from sanakit.pipeline import decoder
from sanakit.pipeline.decoder import (
    Origin,
    Way,
    decode_image,
    decode_pixels,
    first_to_try,
    free_bytes,
    is_out_of_memory,
    read_latents,
    ways_to_decode,
    write_latents,
)
from sanakit.pipeline.pixels import to_pixels
from tiny import AUTOENCODER


@pytest.fixture(scope="module")
def tiny() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AUTOENCODER).eval().requires_grad_(False)


@pytest.fixture
def latent(rng: torch.Generator) -> Tensor:
    """Of a picture of 384 x 320 px."""
    return torch.randn(1, 4, 12, 10, generator=rng)


class Allocations(TorchDispatchMode):
    """Bytes of all storages that are alive, and the most there ever were; refuses above a limit."""

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__()
        self.limit, self.live, self.peak, self.refused = limit, 0, 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        if self.live + size > self.limit:
            self.refused += 1
            raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory: {size} bytes")
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def test_the_first_way_that_fits_is_tried_first_and_the_most_frugal_if_none_does() -> None:
    peaks = [size << 30 for size in (100, 50, 40, 20)]
    assert first_to_try(peaks, free=1000 << 30) == 0
    assert first_to_try(peaks, free=90 << 30) == 1
    assert first_to_try(peaks, free=10 << 30) == 3
    assert first_to_try(peaks, free=110 << 30) == 1, "all of it is not safe"
    assert first_to_try([100, 50, 20], free=300) == 1, "small maps come with as much in pieces"


def test_ways_fall_from_the_fastest_to_the_most_frugal() -> None:
    with torch.device("meta"):
        published = Autoencoder(AUTOENCODERS["dc-ae-f32c32-sana-1.0"])
    latent = torch.empty(2, 32, 128, 128, device="meta")
    ways = ways_to_decode(published, latent)
    assert [str(way) for way, _ in ways] == [
        "2 pictures whole",
        "whole",
        "stripes of 512 px",
        "stripes of 256 px",
        "stripes of 128 px",
        "stripes of 64 px",
        "tiles of 64 x 256 px",
        "blended tiles of 384 px",
    ]
    peaks = [peak for _, peak in ways]
    assert peaks == sorted(set(peaks), reverse=True)
    small = ways_to_decode(published, latent[:1, :, :2, :2])
    assert [str(way) for way, _ in small] == ["whole"]


def test_what_the_user_enabled_is_kept_to(tiny: Autoencoder) -> None:
    latent = torch.empty(2, 4, 24, 24)
    tiny.enable_slicing()
    tiny.enable_tiling(256, 256, 192, 192)
    try:
        ways = ways_to_decode(tiny, latent)
        assert str(ways[0][0]) == "tiles of 192 x 192 px"
        assert [str(way) for way, _ in ways[1:]] == ["tiles of 64 x 256 px"]
        tiny.disable_tiling()
        assert str(ways_to_decode(tiny, latent)[0][0]) == "whole"
    finally:
        tiny.disable_tiling()
        tiny.disable_slicing()


@pytest.mark.parametrize("tiling", [None, Tiling.rows(64), Tiling.squares(64, 96)])
def test_every_exact_way_gives_the_same_pixels(
    tiny: Autoencoder, latent: Tensor, tiling: Tiling | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tiny.decode(latent / AUTOENCODER.scaling_factor).sample
    monkeypatch.setattr(decoder, "ways_to_decode", lambda *_: [(Way(tiling=tiling), 0)])
    torch.testing.assert_close(decode_image(tiny, latent), expected, atol=1e-5, rtol=0)
    difference = decode_pixels(tiny, latent).astype(int) - to_pixels(expected)
    assert abs(difference).max() <= 1
    assert (difference != 0).mean() < 1e-3


def test_a_batch_is_decoded_like_its_pictures(tiny: Autoencoder, rng: torch.Generator) -> None:
    batch = torch.randn(3, 4, 4, 4, generator=rng)
    alone = np.concatenate([decode_pixels(tiny, one) for one in batch.split(1)])
    assert abs(decode_pixels(tiny, batch).astype(int) - alone).max() <= 1


@pytest.mark.parametrize("tiling", [None, Tiling.rows(128), Tiling.squares(128, 512)])
def test_estimates_are_near_what_torch_allocates(tiling: Tiling | None) -> None:
    # Above it lie the copies that a convolution makes inside, which torch does not see.
    with torch.device("meta"):
        published = Autoencoder(AUTOENCODERS["dc-ae-f32c32-sana-1.0"]).eval()
        raw = torch.randn(1, 32, 16, 32)
    way = Way(tiling=tiling)
    steps = published.decoder
    with torch.inference_mode(), Allocations() as counted:
        if tiling is None:
            steps(raw)
        else:
            for tile in published.decode_tiles(raw, tiling):
                del tile
    assert 1.0 <= way.peak_bytes(published, raw) / counted.peak <= 2.0


PEAK = """
import torch
from benchmarks.decoding import forget_peak, resident
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AUTOENCODERS
from sanakit.nn.processor import keep_freed_memory
from sanakit.pipeline.decoder import Way
keep_freed_memory()
published = Autoencoder(AUTOENCODERS["dc-ae-f32c32-sana-1.0"]).eval()
raw, steps = torch.randn(1, 32, 8, 8), published.decoder
stages = list(steps.up_blocks)
with torch.inference_mode():
    wide = torch.randn(1, 256, 192, 192).contiguous(memory_format=torch.channels_last)
    stages[0](wide[..., :16, :16])
    before = resident("VmRSS")
    forget_peak()
    last = stages[0](wide)
peak = resident("VmHWM") - before
whole = Way().peak_bytes(published, torch.empty(1, 32, 12, 12))
print(whole / peak)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_on_a_cpu_the_estimate_is_near_what_a_process_takes() -> None:
    # The last stage, which is the widest, of a picture of 384 x 384: its input is there before.
    done = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert 0.7 < float(done.stdout) < 1.3


def test_what_is_hooked_is_estimated_by_its_plain_way() -> None:
    with torch.device("meta"):
        published = Autoencoder(AUTOENCODERS["dc-ae-f32c32-sana-1.0"]).eval()
    raw = torch.empty(1, 32, 16, 16)
    frugal = Way().peak_bytes(published, raw)
    assert Way().peak_bytes(published, raw.to("meta")) > 1.5 * frugal
    published.decoder.conv_out.register_forward_hook(lambda *_: None)
    assert Way().peak_bytes(published, raw) > 1.5 * frugal


@pytest.mark.parametrize("pixels", [True, False])
def test_running_out_of_memory_steps_down_until_it_fits(
    tiny: Autoencoder, latent: Tensor, pixels: bool
) -> None:
    expected = tiny.decode(latent / AUTOENCODER.scaling_factor).sample
    with Allocations() as counted:
        decode_image(tiny, latent)
    gc.collect()
    with Allocations(limit=0.6 * counted.peak) as capped:
        given = decode_pixels(tiny, latent) if pixels else decode_image(tiny, latent)
    given = given if isinstance(given, np.ndarray) else to_pixels(given)
    assert capped.refused >= 1
    assert abs(given.astype(int) - to_pixels(expected)).max() <= 1


def test_nothing_of_a_failed_attempt_is_held_by_the_next(
    tiny: Autoencoder, latent: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[torch.UntypedStorage]] = []
    held: list[int] = []

    def failing(raw: Tensor) -> Tensor:
        working = torch.zeros(1000)
        alive.append(weakref.ref(working.untyped_storage()))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def tiles(raw: Tensor, tiling: Tiling) -> object:
        held.append(sum(reference() is not None for reference in alive))
        return iter(())

    monkeypatch.setattr(tiny.decoder.conv_in, "forward", failing)
    monkeypatch.setattr(tiny, "decode_tiles", tiles)
    decode_image(tiny, latent)
    assert held == [0]


def test_as_the_last_resort_the_latents_are_saved_with_all_it_takes_to_go_on(
    tiny: Autoencoder, latent: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"prompt": "a tree", "seed": 3}
    origin = Origin(model="glyph", model_hash="abc", settings=(settings,))
    with Allocations(limit=300_000), pytest.raises(OutOfMemory) as caught:
        decode_image(tiny, latent, origin)
    (path,) = tmp_path.iterdir()
    assert caught.value.latents == path
    assert f"sanakit decode {path} -o out.png" in str(caught.value)
    assert "384 x 320 px" in str(caught.value)
    assert caught.value.exit_code == 4
    saved, where_from = read_latents(path)
    assert torch.equal(saved, latent)
    assert where_from == origin


def test_where_no_folder_takes_them_the_error_says_so(
    tiny: Autoencoder, latent: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "absent"))
    monkeypatch.setattr(Path, "cwd", lambda: tmp_path / "absent")
    with Allocations(limit=300_000), pytest.raises(OutOfMemory, match="could not be saved"):
        decode_image(tiny, latent, Origin())
    with Allocations(limit=300_000), pytest.raises(OutOfMemory, match="free memory and try again"):
        decode_image(tiny, latent)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    tiny: Autoencoder, latent: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    )
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))

    def broken(raw: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(tiny.decoder, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        decode_image(tiny, latent, Origin())


def test_a_value_that_is_not_finite_stops_the_stream(tiny: Autoencoder, latent: Tensor) -> None:
    with pytest.raises(NumericsError, match="autoencoder while decoding"):
        decode_pixels(tiny, latent * float("nan"))


def test_blended_tiles_are_said_to_be_what_they_are(
    tiny: Autoencoder, latent: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    blended = Way(tiling=Tiling(128, 128, 96, 96, exact=False))
    monkeypatch.setattr(decoder, "ways_to_decode", lambda *_: [(blended, 0)])
    with pytest.warns(UserWarning, match="tones may differ"):
        decode_image(tiny, latent)


def test_foreign_latents_can_be_read_and_other_files_are_refused(
    tmp_path: Path, latent: Tensor
) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file({"sample": latent.to(torch.bfloat16)}, path)
    read, origin = read_latents(path)
    assert torch.equal(read, latent.to(torch.bfloat16).float())
    assert origin == Origin()
    with pytest.raises(DataError, match="no such file"):
        read_latents(tmp_path / "absent")
    for tensors in (
        {"a": latent[0]},
        {"a": latent, "b": latent.clone()},
        {"a": latent * float("inf")},
    ):
        save_file(tensors, path)
        with pytest.raises(DataError):
            read_latents(path)
    write_latents(path, latent, Origin(model="glyph"))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(WeightsError, match="damaged"):
        read_latents(path)


def test_settings_that_json_cannot_carry_do_not_lose_the_latents(
    tmp_path: Path, latent: Tensor
) -> None:
    path = tmp_path / "x.safetensors"
    write_latents(path, latent, Origin(model="glyph", settings=({"seed": Path("odd")},)))
    assert read_latents(path)[1].settings == ({"seed": "odd"},)
    with safe_open(path, framework="pt") as file:
        assert "sanakit_latents" in file.metadata()


def test_free_memory_is_the_least_of_machine_container_and_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sanakit.pipeline import decoder

    device = torch.device("cpu")
    assert 0 < free_bytes(device) < 1 << 50
    monkeypatch.setattr(decoder, "_container_rooms", lambda: [12345, 99999])
    assert free_bytes(device) == 12345
    monkeypatch.setattr(decoder, "_process_room", lambda: -5)
    assert free_bytes(device) == 0


def test_a_control_group_leaves_its_limit_less_what_cannot_be_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sanakit.pipeline import decoder

    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\n")
    groups = [(tmp_path, "memory.max", "memory.current"), (tmp_path / "absent", "a", "b")]
    monkeypatch.setattr(decoder, "_groups", lambda: groups)
    assert decoder._container_rooms() == [400]
    (tmp_path / "memory.max").write_text("max\n")
    assert decoder._container_rooms() == []


CAPPED = """
import resource, sys
from dataclasses import replace
import psutil, torch
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AUTOENCODERS
from sanakit.pipeline import decoder

small = dict(block_out_channels=(8, 16, 16, 16, 32, 32), layers_per_block=(0, 1, 1, 1, 1, 1))
sides = ("encoder", "decoder")
both = {f"{side}_{name}": value for side in sides for name, value in small.items()}
torch.manual_seed(0)
autoencoder = Autoencoder(replace(AUTOENCODERS["glyph"], **both)).eval().requires_grad_(False)
latent = torch.randn(1, 32, 32, 32)
decoder.decode_pixels(autoencoder, latent[:, :, :2, :2])
tried = []
fill = decoder._fill
decoder._fill = lambda out, way, *more: (tried.append(str(way)), fill(out, way, *more))
decoder.free_bytes = lambda device: 1 << 40  # an optimist: only the allocator tells the truth
limit = psutil.Process().memory_info().vms + int(sys.argv[1]) * 2**20
endless = resource.RLIM_INFINITY
resource.setrlimit(resource.RLIMIT_AS, (limit, endless))
pixels = decoder.decode_pixels(autoencoder, latent)
resource.setrlimit(resource.RLIMIT_AS, (endless, endless))
print(pixels.shape, "; ".join(tried))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce the limit")
def test_under_a_real_limit_of_the_process_it_steps_down_and_succeeds() -> None:
    # Freed maps go back to the system, as those of large pictures always do: from 32 MB on.
    # One thread and one arena: each more would reserve 64 MB of addresses and hold nothing in them.
    given = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "200000",
        "MALLOC_ARENA_MAX": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CAPPED, "70"],
        capture_output=True,
        text=True,
        check=False,
        env=given,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("(1, 1024, 1024, 3) whole; stripes of ")
