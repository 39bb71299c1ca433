"""One unit of a build: the samples of a plan become the files of a shard."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sanakit.data.buckets import Bucket, fit, fitted
from sanakit.data.pictures import BadPicture, DecodeLimits, decode
from sanakit.data.samples import Refusal, Sample, sample_from, to_line
from sanakit.data.shard_plan import Store, bucket_of
from sanakit.data.shards import ShardWriter, key_of
from sanakit.data.sources.places import read_place
from sanakit.data.stages import fingerprint, sha256_of
from sanakit.data.training_set import REFUSED, SHARDS, read_lines
from sanakit.errors import DataError

VERSION = 1  # raise it when the same plan would give other shards
PLAN = "plan"
JPEG_QUALITY = 95
_SIGNATURES = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png"}


@dataclass(frozen=True, kw_only=True)
class BuildShards:
    """The stage: a unit is a shard, its input the lines of its plan. See `data/stages.py`."""

    set_folder: Path
    root: Path
    store: Store
    limits: DecodeLimits

    @property
    def folder(self) -> Path:
        """The folder of the shards."""
        return self.set_folder / SHARDS

    def made_from(self, unit: str) -> str:
        """The plan of the shard, which holds the hash of each picture, and how they are stored."""
        return fingerprint(
            VERSION, self.store, asdict(self.limits), sha256_of(plan_path(self.folder, unit))
        )

    def open(self) -> None:
        """Nothing to load."""

    def process(self, unit: str, staging: Path) -> dict[str, Any]:
        """Write one shard; a picture that cannot be had any more is left out with a line."""
        bucket = bucket_of(unit)
        counts: Counter[str] = Counter(samples=0, captions=0, without_captions=0, enlarged=0)
        captioners: Counter[str] = Counter()
        left_out = []
        writer = ShardWriter(folder=staging, unit=unit)
        try:
            for value in read_lines(plan_path(self.folder, unit)):
                sample = sample_from(value)
                stored = self._stored(sample, bucket)
                if isinstance(stored, Refusal):
                    left_out.append(stored)
                    continue
                image, ending = stored
                writer.add(sample.id, image, ending, self._record(sample, bucket, ending))
                counts["samples"] += 1
                counts["captions"] += len(sample.captions)
                counts["without_captions"] += not sample.captions
                counts["enlarged"] += fit(sample.height, sample.width, bucket).scale > 1
                captioners.update(caption.captioner for caption in sample.captions)
            writer.close()
        finally:
            writer.abandon()
        if left_out:
            lines = "".join(to_line(refusal) for refusal in left_out)
            (staging / f"{unit}{REFUSED}").write_bytes(lines.encode("utf-8", "surrogatepass"))
        return {**counts, "captioners": dict(sorted(captioners.items())), "left_out": len(left_out)}

    def _stored(self, sample: Sample, bucket: Bucket) -> tuple[bytes, str] | Refusal:
        """The bytes that the shard holds and their ending, or why there are none."""
        try:
            data = read_place(self.root, sample.place)
            if sample.sha256 and hashlib.sha256(data).hexdigest() != sample.sha256:
                detail = "its bytes are not those of the scan; run `sanakit data scan` again"
                return Refusal(id=sample.id, reason="changed since the scan", detail=detail)
            ending = _ending_of(data)
            if self.store == "original" and ending:
                return data, ending
            cover = bucket if self.store == "fitted" else None
            pixels = decode(data, limits=self.limits, cover=cover).pixels
        except BadPicture as error:
            return Refusal(id=sample.id, reason=error.reason, detail=error.message)
        except DataError as error:
            return Refusal(id=sample.id, reason="unreadable", detail=error.message)
        if self.store == "fitted":
            pixels = fitted(pixels, bucket)
        return _encoded(pixels, "jpg" if ending == "jpg" else "png")

    def _record(self, sample: Sample, bucket: Bucket, ending: str) -> dict[str, Any]:
        how = fit(sample.height, sample.width, bucket)
        height, width = bucket if self.store == "fitted" else (sample.height, sample.width)
        record: dict[str, Any] = {
            "file_name": f"{key_of(sample.id)}.{ending}",
            "prompt": sample.captions[0].text if sample.captions else "",
            "width": width,
            "height": height,
        }
        for caption in sample.captions[1:]:
            name = caption.captioner
            record[f"{name} caption" if name in (*record, "sanakit") else name] = caption.text
        record["sanakit"] = {
            "id": sample.id,
            "captions": [asdict(caption) for caption in sample.captions],
            "licence": sample.licence,
            "source": sample.source,
            "sha256": sample.sha256,
            "original_size": [sample.height, sample.width],
            "crop": [how.top, how.left, how.scale],
        }
        return record


def plan_path(folder: Path, unit: str) -> Path:
    """The file with the plan of a shard: its samples, a line each, in order."""
    return folder / PLAN / f"{unit}.jsonl"


def _ending_of(data: bytes) -> str:
    """The ending of what other readers of shards know; "" for other formats."""
    for signature, ending in _SIGNATURES.items():
        if data.startswith(signature):
            return ending
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def _encoded(pixels: np.ndarray, ending: str) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if ending == "jpg":
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue(), ending
