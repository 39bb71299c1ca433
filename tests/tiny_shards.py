"""Built shards small enough for every test, written by the description of the format alone."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from sanakit.data.samples import Caption

Size = tuple[int, int]


def colour_of(id: str) -> tuple[int, int, int]:
    """The one colour of a sample's picture: a test sees whose picture it got."""
    red, green, blue = hashlib.sha256(id.encode()).digest()[:3]
    return red, green, blue


def plain_picture(id: str, size: Size) -> bytes:
    """A PNG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (size[1], size[0]), colour_of(id)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def three_captions(id: str) -> tuple[Caption, ...]:
    """Captions with scores and texts that no other sample has."""
    return tuple(
        Caption(text=f"{id} by {name}", captioner=name, score=score)
        for name, score in (("original", 24.0), ("long", 26.0), ("short", 25.5))
    )


def no_captions(id: str) -> tuple[Caption, ...]:
    return ()


def write_shards(
    folder: Path,
    buckets: Mapping[Size, Sequence[int]],
    *,
    captions: Callable[[str], tuple[Caption, ...]] = three_captions,
    picture: Callable[[str, Size], bytes] = plain_picture,
    ending: str = "png",
) -> Path:
    """Write shards with these numbers of samples for each (height, width); returns the folder.

    Ids are ``HEIGHTxWIDTH/SHARD.ROW``: unique, with characters that must be escaped in a tar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for size, counts in buckets.items():
        shards = []
        for number, count in enumerate(counts):
            unit = f"{size[0]}x{size[1]}-{number:05}"
            ids = [f"{size[0]}x{size[1]}/{number}.{row}" for row in range(count)]
            members = []
            for id in ids:
                key = quote(id, safe="").replace(".", "%2E")
                members.append((f"{key}.{ending}", picture(id, size)))
                members.append(
                    (f"{key}.json", json.dumps(_record(id, size, captions(id))).encode())
                )
            _write_tar(folder / f"{unit}.tar", members)
            with tarfile.open(folder / f"{unit}.tar") as tar:
                spans = [(member.offset_data, member.size) for member in tar]
            keys = {"keys": ids, "images": spans[::2], "meta": spans[1::2]}
            (folder / f"{unit}.keys.json").write_text(json.dumps(keys))
            data = (folder / f"{unit}.tar").read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            shards.append(
                {"file": f"{unit}.tar", "samples": count, "bytes": len(data), "sha256": digest}
            )
        listed.append({"height": size[0], "width": size[1], "shards": shards})
    index = {
        "format": 1,
        "resolution": 32,
        "fit": "crop",
        "store": "fitted",
        "samples": sum(sum(counts) for counts in buckets.values()),
        "buckets": listed,
        "made_from": "tests",
    }
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def damage(folder: Path, id: str, *, part: str = "images", data: bytes = b"\0\0\0\0") -> None:
    """Overwrite the first bytes of a sample's picture or record (``meta``) in its shard."""
    for path in folder.glob("*.keys.json"):
        keys = json.loads(path.read_text())
        if id in keys["keys"]:
            start, _ = keys[part][keys["keys"].index(id)]
            with path.with_name(path.name.replace(".keys.json", ".tar")).open("r+b") as file:
                file.seek(start)
                file.write(data)
            return
    raise KeyError(id)


def write_latents(folder: Path, shards: Path) -> Path:
    """Write a latent of bfloat16 bits, 4 x 1 x 1, for every sample: its colour, and 0."""

    def entries(ids: list[str]) -> dict[str, np.ndarray]:
        return {
            quote(id, safe="").replace(".", "%2E"): _bits([*colour_of(id), 0]).reshape(4, 1, 1)
            for id in ids
        }

    return _write_states(folder, shards, entries)


def write_text(folder: Path, shards: Path) -> Path:
    """Write text states ``l 2`` for every caption of :func:`three_captions`: l times its length."""

    def entries(ids: list[str]) -> dict[str, np.ndarray]:
        texts = [caption.text for id in ids for caption in three_captions(id)]
        return {hashlib.sha256(text.encode()).hexdigest(): text_states(text) for text in texts}

    _write_states(folder, shards, entries)
    np.savez(folder / "null.npz", **{hashlib.sha256(b"").hexdigest(): text_states("")})
    return folder


def text_states(text: str) -> np.ndarray:
    """Bits of ``l 2``: the number of characters, as often as the text has words, once for none."""
    return np.tile(_bits([len(text), len(text)]), (max(1, len(text.split())), 1))


def _bits(values: list[int]) -> np.ndarray:
    numbers = np.array(values, dtype=np.float32)  # small whole numbers are exact in bfloat16
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


def _write_states(
    folder: Path, shards: Path, entries: Callable[[list[str]], dict[str, np.ndarray]]
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for path in shards.glob("*.keys.json"):
        unit = path.name.removesuffix(".keys.json")
        np.savez_compressed(folder / f"{unit}.npz", **entries(json.loads(path.read_text())["keys"]))
        digest = hashlib.sha256((shards / f"{unit}.tar").read_bytes()).hexdigest()
        with zipfile.ZipFile(folder / f"{unit}.npz", "a") as file:
            file.writestr("about.json", json.dumps({"format": 1, "shard_sha256": digest}))
    return folder


def _record(id: str, size: Size, captions: tuple[Caption, ...]) -> dict[str, object]:
    return {
        "file_name": id,
        "prompt": captions[0].text if captions else "",
        "height": size[0],
        "width": size[1],
        "sanakit": {
            "id": id,
            "captions": [asdict(caption) for caption in captions],
            "licence": "CC0-1.0",
            "source": "tests",
            "sha256": "",
            "original_size": [size[0] * 2, size[1] * 2 + 4],
            "crop": [0.0, 2.0, 0.5],
        },
    }


def _write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
