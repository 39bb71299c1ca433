"""The two stages of a build, as resumable units: rows become drawings, drawings become pictures."""

from __future__ import annotations

import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipes.glyph.data.attribution import Credit
from recipes.glyph.data.drawing import Drawing, read_drawings, write_drawings
from recipes.glyph.data.packages import Package
from recipes.glyph.data.records import drawing_of
from recipes.glyph.data.rows.row import Row
from recipes.glyph.data.store import write_pack
from sanakit.data.units import MARK, Mark, fingerprint, read_mark
from sanakit.errors import DataError
from sanakit.files import sha256_of

DRAWINGS_VERSION = 1  # raise it when the same packages would give other drawings or records
PICTURES_VERSION = 1  # raise it when the same drawings would give other pictures
PACK = 1000  # drawings in a pack: a minute's rendering at most
NAMED = 5  # failures that are named in a summary


@dataclass(frozen=True)
class DrawingStage:
    """A unit is a row: its art is read, looked at once, and written as packs of drawings.

    ``archives`` are the packages' files; ``limits`` the most drawings to keep of a row, by name.
    """

    folder: Path
    rows: tuple[Row, ...]
    archives: Mapping[Package, Path]
    limits: Mapping[str, int]

    def made_from(self, unit: str) -> str:
        """The row, what it is read from and how much of it is kept."""
        packages = [package.sha256 for package in self._row(unit).packages]
        return fingerprint(DRAWINGS_VERSION, unit, packages, self.limits.get(unit))

    def open(self) -> None:
        """Nothing to load: a process that never meets a row need not read its packages."""

    def process(self, unit: str, staging: Path) -> dict[str, Any]:
        """Write the packs of one row; statistics say what they are, and what was left out.

        Raises:
            DataError: two pieces of art have one id, or one is of a source without a credit.
        """
        row = self._row(unit)
        art, credits = row.read(self.archives)
        limit = self.limits.get(unit, len(art))
        if limit < len(art):
            art = [art[index * len(art) // limit] for index in range(limit)]
        licences = {credit.source: credit.licence for credit in credits}
        if unknown := {one.source for one in art} - licences.keys():
            raise DataError(f"row {unit}: no author is credited for {', '.join(sorted(unknown))}")
        twice = [key for key, count in Counter(one.id for one in art).items() if count > 1]
        if twice:
            raise DataError(f"row {unit}: {len(twice)} ids occur twice, first {twice[0]}")
        drawings: list[Drawing] = []
        blank, failed = 0, {}
        for one in art:
            drawing = drawing_of(one, licences[one.source])
            if isinstance(drawing, Drawing):
                drawings.append(drawing)
            elif drawing is None:
                blank += 1
            else:
                failed[one.id] = drawing
        packs = []
        for number, start in enumerate(range(0, len(drawings), PACK)):
            name, part = f"{unit}-{number:03d}", drawings[start : start + PACK]
            write_drawings(staging, name, part)
            packs.append([name, len(part)])
        return {
            "packs": packs,
            "share": row.share,
            "credits": [asdict(credit) for credit in credits],
            "blank": blank,
            "failed": len(failed),
            "failures": dict(list(failed.items())[:NAMED]),
        }

    def _row(self, unit: str) -> Row:
        return next(row for row in self.rows if row.name == unit)


@dataclass(frozen=True)
class PictureStage:
    """A unit is a pack: its drawings are drawn at one size.

    ``inputs`` are hashes of the packs in the folder ``drawings``, by name.
    """

    folder: Path
    drawings: Path
    size: int
    inputs: Mapping[str, str]

    def made_from(self, unit: str) -> str:
        """The drawings and the size."""
        return fingerprint(PICTURES_VERSION, self.size, self.inputs[unit])

    def open(self) -> None:
        """Nothing to load."""

    def process(self, unit: str, staging: Path) -> dict[str, Any]:
        """Draw one pack."""
        pictures = (one.draw(self.size) for one in read_drawings(self.drawings, unit))
        return {"pictures": write_pack(staging, unit, pictures)}


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A pack of drawings: its row, how many it holds, and a hash of its files."""

    name: str
    row: str
    count: int
    sha256: str


def packs_of(marks: Sequence[Mark]) -> list[Pack]:
    """The packs that rows gave, in order."""
    found = []
    for mark in marks:
        for name, count in mark.stats["packs"]:
            files = [
                digest for file, (_, digest) in mark.files.items() if file.split(".")[0] == name
            ]
            found.append(Pack(name=name, row=mark.unit, count=count, sha256=fingerprint(files)))
    return found


def credits_of(marks: Sequence[Mark]) -> list[Credit]:
    """Whom rows thank, each once."""
    found: dict[str, Credit] = {}
    for mark in marks:
        for value in mark.stats["credits"]:
            credit = Credit(**{**value, "package": Package(**value["package"])})
            found.setdefault(credit.source, credit)
    return list(found.values())


def read_marks(folder: Path, rows: Sequence[str]) -> dict[str, Mark]:
    """The marks of the finished rows in a folder of drawings that came from elsewhere.

    Raises:
        DataError: there are none, or a file is not what its mark says.
    """
    marks = {}
    for row in rows:
        if not (folder / f"{row}{MARK}").is_file():
            continue
        mark = read_mark(folder, row)
        if mark is None:
            raise DataError(f"{folder}: row {row} is damaged", hint="copy the folder again")
        for name, (_, digest) in mark.files.items():
            if sha256_of(folder / name) != digest:
                raise DataError(f"{folder / name} is damaged", hint="copy the folder again")
        marks[row] = mark
    if not marks:
        raise DataError(
            f"{folder} holds no drawings",
            hint="give the folder `drawings` that a build leaves, or a .tar of it",
        )
    return marks


_MEMBER = re.compile(r"(?:.*/)?([\w-]+(?:\.records\.xz|\.drawings\.xz|\.rasters|\.done\.json))")


def unpack_drawings(archive: Path, folder: Path) -> None:
    """Take a folder of drawings out of a .tar; only plain files of its own kinds are written.

    Raises:
        DataError: it is no readable .tar.
    """
    try:
        with tarfile.open(archive) as tar:
            folder.mkdir(parents=True, exist_ok=True)
            # Marks last: after an interruption no row looks finished that is not.
            members = sorted(tar, key=lambda member: member.name.endswith(MARK))
            for member in members:
                match = _MEMBER.fullmatch(member.name)
                file = tar.extractfile(member) if member.isreg() and match else None
                if file is not None and match is not None:
                    with (folder / match[1]).open("wb") as out:
                        shutil.copyfileobj(file, out)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{archive} cannot be read as a .tar of drawings: {error}", hint="copy it again"
        ) from error
