"""Pictures a second into 512 x 512 batches: our loader, a plain DataLoader over files, webdataset.

All read the same pictures, shuffle, resize to cover by Lanczos, cut the centre out, and give uint8
batches with captions from two workers. ``draft`` is a JPEG decoded at a reduced scale that still
covers, ``torch`` our resize in place of Pillow's: given to the others too, they show where a
difference comes from. Contestants run in turn, each round in another order; ratios are of one
round. Processor time counts all processes: it means the same on a machine with other work.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader, Dataset

from benchmarks import ROOT
from sanakit.bench.record import facts, summarise
from sanakit.data.loader.batches import fit_into
from sanakit.data.loader.loader import Loader
from sanakit.files import sha256_of

RESULTS = ROOT / "benchmarks" / "results" / "loading_pictures.jsonl"
SIZE = 512
EPOCHS = 100  # more than are measured: none of the others starts anew in between
SHARDS = 8  # webdataset gives each worker shards of its own: as many to each
CASES = {  # sides in pixels, quality of the JPEG, its chroma subsampling, share of the pictures
    "600 to 1200 px": ((600, 1200), 90, 2, 1.0),
    "1400 to 2400 px": ((1400, 2400), 90, 2, 0.4),
    "512 px, as built": ((SIZE, SIZE), 95, 0, 1.0),
}
Batches = Iterator[tuple[torch.Tensor, list[str]]]


def picture(number: int, sides: tuple[int, int]) -> Image.Image:
    """Clouds of several scales, sharp shapes and grain: about as hard to decode as a photograph."""
    rng = np.random.default_rng(number)
    height, width = (int(side) for side in rng.integers(sides[0], sides[1] + 1, 2))
    made = cloud(rng, 3, (width, height))
    for cells, share in ((12, 0.35), (48, 0.2), (192, 0.12)):
        made = Image.blend(made, cloud(rng, cells, (width, height)), share)
    draw = ImageDraw.Draw(made)
    for _ in range(6):
        x, y, radius = rng.integers(0, width), rng.integers(0, height), rng.integers(20, 200)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    grain = np.tile(rng.normal(0, 4, (128, 128, 1)), (height // 128 + 1, width // 128 + 1, 1))
    noisy = np.asarray(made, dtype=np.float32) + grain[:height, :width].astype(np.float32)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def cloud(rng: np.random.Generator, cells: int, size: tuple[int, int]) -> Image.Image:
    """Random colours on a grid, smoothly enlarged."""
    colours = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def write(folder: Path, case: str, count: int) -> None:
    """Write a case's pictures as files, and the same bytes as shards with an index."""
    sides, quality, chroma, share = CASES[case]
    count = int(count * share)
    (folder / "files").mkdir(parents=True)
    shards = []
    size = -(-count // SHARDS)
    for unit, first in enumerate(range(0, count, size)):
        name = f"{SIZE}x{SIZE}-{unit:05}"
        numbers = range(first, min(first + size, count))
        spans = []
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for number in numbers:
                made = picture(number, sides)
                file = io.BytesIO()
                made.save(file, "JPEG", quality=quality, subsampling=chroma)
                (folder / "files" / f"{number:06}.jpg").write_bytes(file.getvalue())
                record = json.dumps(described(number, made.height, made.width)).encode()
                (folder / "files" / f"{number:06}.json").write_bytes(record)
                for ending, data in (("jpg", file.getvalue()), ("json", record)):
                    header = tarfile.TarInfo(f"{number:06}.{ending}")
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
        with tarfile.open(folder / f"{name}.tar") as tar:
            spans = [(member.offset_data, member.size) for member in tar]
        ids = [f"{number:06}" for number in numbers]
        keys = {"keys": ids, "images": spans[::2], "meta": spans[1::2]}
        (folder / f"{name}.keys.json").write_text(json.dumps(keys))
        data = (folder / f"{name}.tar").read_bytes()
        digest = sha256_of(data)
        shards.append(
            {"file": f"{name}.tar", "samples": len(ids), "bytes": len(data), "sha256": digest}
        )
    index = {
        "format": 1,
        "resolution": SIZE,
        "fit": "crop",
        "store": "original",
        "samples": count,
        "buckets": [{"height": SIZE, "width": SIZE, "shards": shards}],
        "made_from": case,
    }
    (folder / "index.json").write_text(json.dumps(index))


def described(number: int, height: int, width: int) -> dict[str, Any]:
    """A record as the builder writes it."""
    texts = [f"picture {number}, a cloud with circles", f"{number} as told by another model"]
    return {
        "file_name": f"{number:06}.jpg",
        "prompt": texts[0],
        "width": width,
        "height": height,
        "other": texts[1],
        "sanakit": {
            "id": f"{number:06}",
            "captions": [
                {"text": text, "captioner": name, "score": 26.0, "weight": 1.0}
                for text, name in zip(texts, ("original", "other"), strict=True)
            ],
            "licence": "CC0-1.0",
            "source": "made here",
            "sha256": "",
            "original_size": [height, width],
            "crop": [0.0, 0.0, 1.0],
        },
    }


def fitted(data: bytes, *, draft: bool, torch_resize: bool) -> torch.Tensor:
    """What the others do with a picture: uint8 ``h w 3``."""
    image = Image.open(io.BytesIO(data))
    if draft:
        image.draft("RGB", (SIZE, SIZE))
    image = image.convert("RGB")
    if torch_resize:
        slot = torch.empty(SIZE, SIZE, 3, dtype=torch.uint8)
        fit_into(slot, image)
        return slot
    scale = max(SIZE / image.width, SIZE / image.height)
    size = (max(SIZE, round(image.width * scale)), max(SIZE, round(image.height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    if image.size != (SIZE, SIZE):
        left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
        image = image.crop((left, top, left + SIZE, top + SIZE))
    return torch.from_numpy(np.array(image))


class Files(Dataset[tuple[torch.Tensor, str]]):
    """The plain way: one file a picture."""

    def __init__(self, folder: Path, transform: Callable[[bytes], torch.Tensor]) -> None:
        self.paths = sorted((folder / "files").glob("*.jpg")) * EPOCHS
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, str]:
        path = self.paths[number]
        prompt = json.loads(path.with_suffix(".json").read_bytes())["prompt"]
        return self.transform(path.read_bytes()), prompt


def plain(folder: Path, options: argparse.Namespace, **tricks: bool) -> Batches:
    files = Files(folder, partial(fitted, **tricks))
    loader = DataLoader(
        files, batch_size=options.batch_size, shuffle=True, drop_last=True,
        num_workers=options.workers,
    )  # fmt: skip
    for pixels, captions in loader:
        yield pixels, list(captions)


def web(folder: Path, options: argparse.Namespace, **tricks: bool) -> Batches:
    import webdataset as wds

    transform = partial(fitted, **tricks)
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    dataset = (
        wds.WebDataset(shards, shardshuffle=len(shards), detshuffle=True, seed=0)
        .shuffle(1000)
        .to_tuple("jpg", "json")
        .map_tuple(transform, lambda record: json.loads(record)["prompt"])
        .batched(options.batch_size, partial=False)
        .repeat(EPOCHS)
    )
    for pixels, captions in wds.WebLoader(dataset, batch_size=None, num_workers=options.workers):
        yield pixels, list(captions)


def ours(folder: Path, options: argparse.Namespace) -> Batches:
    loader = Loader(folder, batch_size=options.batch_size, workers=options.workers)
    for batch in loader:
        assert batch.pixels is not None
        yield batch.pixels, batch.captions


PLAIN = {"draft": False, "torch_resize": False}
CONTESTANTS: dict[str, Callable[..., Batches]] = {
    "plain": partial(plain, **PLAIN),
    "webdataset": partial(web, **PLAIN),
    "ours": ours,
    "plain + draft": partial(plain, draft=True, torch_resize=False),
    "webdataset + draft": partial(web, draft=True, torch_resize=False),
    "plain + draft + torch": partial(plain, draft=True, torch_resize=True),
    "webdataset + draft + torch": partial(web, draft=True, torch_resize=True),
}


def processor_seconds() -> float:
    """What this process and its living children have computed."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def measure(batches: Batches, options: argparse.Namespace) -> dict[str, float]:
    """Pictures a second, and processor time of 1000, once all workers are at work.

    Their start is told apart: it is the same before an epoch of a million pictures.
    """
    begun = time.perf_counter()
    next(batches)
    first = time.perf_counter()
    for _ in range(3 * options.workers):
        next(batches)
    warm, busy = time.perf_counter(), processor_seconds()
    for pixels, captions in itertools.islice(batches, options.batches):
        assert pixels.shape == (options.batch_size, SIZE, SIZE, 3)
        assert len(captions) == options.batch_size
    ended, spent = time.perf_counter(), processor_seconds() - busy
    count = options.batches * options.batch_size
    return {
        "pictures_a_second": count / (ended - warm),
        "processor_seconds_of_1000": 1000 * spent / count,
        "seconds_to_first_batch": first - begun,
    }


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of every contestant and, round by round, ours over each of the others."""
    names = list(CONTESTANTS)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(options.rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found = measure(CONTESTANTS[name](folder, options), options)
            if turn:  # the first round reads files from the disk and fills the fork server
                runs[name].append(found)
    others = [name for name in names if name != "ours"]
    return {
        "contestants": {name: summarise(found) for name, found in runs.items()},
        "ours_over": {
            name: {
                "speed": _middle(_ratios(runs["ours"], runs[name], "pictures_a_second")),
                "processor": _middle(
                    _ratios(runs[name], runs["ours"], "processor_seconds_of_1000")
                ),
            }
            for name in others
        },
        "ours_over_better_of_plain_and_webdataset": _middle(
            min(pair)
            for pair in zip(
                _ratios(runs["ours"], runs["plain"], "pictures_a_second"),
                _ratios(runs["ours"], runs["webdataset"], "pictures_a_second"),
                strict=True,
            )
        ),
    }


def _ratios(
    ours: Iterable[dict[str, float]], theirs: Iterable[dict[str, float]], key: str
) -> list[float]:
    return [one[key] / other[key] for one, other in zip(ours, theirs, strict=True)]


def _middle(values: Iterable[float]) -> dict[str, float]:
    known = sorted(values)
    return {"min": known[0], "median": statistics.median(known), "max": known[-1]}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading_pictures")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=40, help="measured in a round")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep the pictures here for the next run")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    return parser.parse_args()


def main() -> None:
    """Write pictures, run all in turn, print the table, append one line of JSON a case."""
    options = parse()
    torch.set_num_threads(1)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        for case in options.cases:
            folder = root / case.replace(" ", "-").replace(",", "")
            if not (folder / "index.json").exists():
                write(folder, case, options.pictures)
            settings = {**vars(options), "folder": None, "case": case}
            record = {
                **facts(("sanakit", "torch", "numpy", "pillow", "webdataset")),
                "settings": settings,
                **compare(folder, options),
            }
            print(f"\n{case:<28}{'pictures/s':>12}{'CPU s/1000':>12}{'ours over it':>14}{'CPU':>7}")
            for name, found in record["contestants"].items():
                line = f"{name:<28}{found['pictures_a_second']['median']:>12.1f}"
                line += f"{found['processor_seconds_of_1000']['median']:>12.2f}"
                if name in record["ours_over"]:
                    ratio = record["ours_over"][name]
                    line += f"{ratio['speed']['median']:>14.2f}{ratio['processor']['median']:>7.2f}"
                print(line)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
