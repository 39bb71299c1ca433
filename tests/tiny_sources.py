"""Small folders, tars and tables for the tests of sources."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from sanakit.data.samples import Refusal, Sample
from sanakit.data.sources.source import Source


def png(shade: int = 0) -> bytes:
    """A picture of one grey."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def fill(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write files by their relative names; text as UTF-8."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def tar(path: Path, members: Iterable[tuple[str, bytes | str]]) -> Path:
    """Write an uncompressed tar; a name may come twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def everything(source: Source) -> list[Sample | Refusal]:
    """What all units give, in order."""
    return [entry for unit in source.units() for entry in source.read(unit)]


def samples(source: Source) -> dict[str, Sample]:
    """The samples by id."""
    found = [entry for entry in everything(source) if isinstance(entry, Sample)]
    by_id = {sample.id: sample for sample in found}
    assert len(by_id) == len(found)
    return by_id


def refusals(source: Source) -> list[tuple[str, str]]:
    """Ids and reasons of what was refused."""
    return [(e.id, e.reason) for e in everything(source) if isinstance(e, Refusal)]


def texts(sample: Sample) -> dict[str, str]:
    """The captions of a sample by captioner."""
    return {caption.captioner: caption.text for caption in sample.captions}
