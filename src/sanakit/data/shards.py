"""Built shards on disk: plain tars of pictures with their records, and the list of all of them.

    512x512-00000.tar         KEY.jpg, KEY.png or KEY.webp, then KEY.json, for each sample
    512x512-00000.keys.json   ids, and where in the tar their bytes lie
    index.json                all shards by bucket; written last, so it lists whole files only

The same samples give the same bytes, at any time and on any machine.
"""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import quote

from sanakit.data.resize_and_crop import Bucket
from sanakit.data.samples import reading
from sanakit.errors import DataError
from sanakit.files import sha256_of
from sanakit.untrusted import open_file, parse_json, read_file

FORMAT = 1
_AGAIN = "run `sanakit data build` again"
INDEX = "index.json"
KEYS = ".keys.json"
TAR = ".tar"
Span: TypeAlias = tuple[int, int]
_BLOCK, _RECORD = 512, 10240
_LONGEST_KEY = 180
_TORN_ESCAPE = re.compile("%[0-9A-F]?$")


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What a shard holds: ids, and the (start, length) of picture and record of each."""

    keys: tuple[str, ...]
    images: tuple[Span, ...]
    meta: tuple[Span, ...]


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """A finished shard as the index lists it."""

    file: str
    samples: int
    bytes: int
    sha256: str

    @property
    def unit(self) -> str:
        """The name that its files share."""
        return self.file.removesuffix(TAR)


@dataclass(frozen=True, kw_only=True)
class Index:
    """All shards of a set by the size of their pictures; ``made_from`` identifies their content."""

    resolution: int
    store: str
    made_from: str
    buckets: dict[Bucket, tuple[ShardFile, ...]]

    @property
    def samples(self) -> int:
        """How many pictures there are in all."""
        return sum(shard.samples for shards in self.buckets.values() for shard in shards)

    @property
    def shards(self) -> list[ShardFile]:
        """The shards of all buckets, in order."""
        return [shard for shards in self.buckets.values() for shard in shards]

    def to_bytes(self) -> bytes:
        """The content of `index.json`."""
        value = {
            "format": FORMAT,
            "resolution": self.resolution,
            "fit": "crop",
            "store": self.store,
            "samples": self.samples,
            "buckets": [
                {
                    "height": height,
                    "width": width,
                    "shards": [
                        {
                            "file": shard.file,
                            "samples": shard.samples,
                            "bytes": shard.bytes,
                            "sha256": shard.sha256,
                        }
                        for shard in shards
                    ],
                }
                for (height, width), shards in self.buckets.items()
            ],
            "made_from": self.made_from,
        }
        return f"{json.dumps(value, indent=1)}\n".encode()


def read_index(folder: Path) -> Index | None:
    """The index of a folder of shards, None where none was finished."""
    path = folder / INDEX
    if not path.exists():
        return None
    with reading(path, _AGAIN):
        value = parse_json(read_file(path))
        if value["format"] != FORMAT:
            raise DataError(f"{path} has format {value['format']}, and this is {FORMAT}")
        return Index(
            resolution=int(value["resolution"]),
            store=str(value["store"]),
            made_from=str(value["made_from"]),
            buckets={
                (int(bucket["height"]), int(bucket["width"])): tuple(
                    ShardFile(**shard) for shard in bucket["shards"]
                )
                for bucket in value["buckets"]
            },
        )


def read_keys(folder: Path, unit: str) -> Keys:
    """What a shard holds."""
    path = folder / f"{unit}{KEYS}"
    with reading(path, _AGAIN):
        value = parse_json(read_file(path))
        return Keys(
            keys=tuple(value["keys"]),
            images=tuple((int(start), int(length)) for start, length in value["images"]),
            meta=tuple((int(start), int(length)) for start, length in value["meta"]),
        )


def read_span(path: Path, span: Span) -> bytes:
    """Some bytes of a shard."""
    start, length = span
    with reading(path, _AGAIN), open_file(path) as file:
        file.seek(start)
        data = file.read(length)
    if len(data) != length:
        raise DataError(f"{path} ends before byte {start + length}", hint=_AGAIN)
    return data


def unit_name(bucket: Bucket, number: int) -> str:
    """The name of a shard: height x width, and its number."""
    return f"{bucket[0]}x{bucket[1]}-{number:05}"


def bucket_of(unit: str) -> Bucket:
    """Undo :func:`unit_name` for the bucket."""
    height, width = unit.rsplit("-", 1)[0].split("x")
    return int(height), int(width)


def key_of(identity: str) -> str:
    """The name of a sample inside a tar: readable, ASCII, without dots, slashes and surprises.

    Unique for each id. A long one is cut and ends in a hash, so that tars can be unpacked.
    """
    key = quote(identity, safe="", errors="surrogatepass").replace(".", "%2E").replace("~", "%7E")
    if len(key) <= _LONGEST_KEY:
        return key
    digest = sha256_of(identity)[:24]
    # A torn escape would not be one any more; "~" is in no other key, so no id comes out like it.
    return f"{_TORN_ESCAPE.sub('', key[: _LONGEST_KEY - 25])}~{digest}"


@dataclass(kw_only=True)
class ShardWriter:
    """Writes the two files of a shard into a folder; :meth:`close` ends them."""

    folder: Path
    unit: str
    _file: BinaryIO = field(init=False, repr=False)
    _keys: list[str] = field(init=False, default_factory=list)
    _images: list[Span] = field(init=False, default_factory=list)
    _meta: list[Span] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._file = (self.folder / f"{self.unit}{TAR}").open("wb")

    def add(self, identity: str, image: bytes, ending: str, record: dict[str, Any]) -> None:
        """Append a picture, with the ending of its format (``jpg``), and its record."""
        key = key_of(identity)
        # Escaped, as names of files may hold what UTF-8 cannot.
        text = json.dumps(record, separators=(",", ":"))
        self._keys.append(identity)
        self._images.append(self._member(f"{key}.{ending}", image))
        self._meta.append(self._member(f"{key}.json", text.encode()))

    def close(self) -> None:
        """End the tar, and write the list of keys."""
        self._file.write(bytes(2 * _BLOCK))
        self._file.write(bytes(-self._file.tell() % _RECORD))
        self._file.close()
        value = {"keys": self._keys, "images": self._images, "meta": self._meta}
        (self.folder / f"{self.unit}{KEYS}").write_text(f"{json.dumps(value)}\n", encoding="utf-8")

    def abandon(self) -> None:
        """Close the file of a shard that will not be finished."""
        self._file.close()

    def _member(self, name: str, data: bytes) -> Span:
        header = tarfile.TarInfo(name)
        header.size = len(data)
        header.mode = 0o644
        self._file.write(header.tobuf(tarfile.PAX_FORMAT))
        span = (self._file.tell(), len(data))
        self._file.write(data)
        self._file.write(bytes(-len(data) % _BLOCK))
        return span
