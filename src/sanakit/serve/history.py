"""Jobs and finished pictures on disk: SQLite beside files; a kill at any moment loses no picture.

A row is written after its file is whole, and a file without a row is swept away at the next start.
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sanakit.errors import ConfigError, DataError
from sanakit.files import write_atomically

DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL,
  key TEXT, request TEXT NOT NULL, state TEXT NOT NULL, error TEXT, code TEXT,
  created REAL NOT NULL, finished REAL);
CREATE UNIQUE INDEX IF NOT EXISTS keys ON jobs (owner, key) WHERE key IS NOT NULL;
CREATE INDEX IF NOT EXISTS states ON jobs (state);
CREATE TABLE IF NOT EXISTS images (
  job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, place INTEGER NOT NULL,
  seed INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL, bytes INTEGER NOT NULL,
  PRIMARY KEY (job, place));
"""
FORMAT = 1
MOST_JOBS = 10_000
"""After so many more a job without pictures is forgotten."""
Row = dict[str, Any]


class History:
    """The history of one server; all methods may be called from any thread, one runs at a time."""

    def __init__(self, folder: Path, *, most_bytes: int) -> None:
        """Open or begin a history.

        Raises:
            ConfigError: another server uses it, or it is of a newer sanakit.
        """
        self.folder, self.most_bytes = folder, most_bytes
        self.pictures, self.inputs = folder / "pictures", folder / "inputs"
        for one in (self.pictures, self.inputs):
            one.mkdir(parents=True, exist_ok=True)
        self._owned = FileLock(folder / "lock", thread_local=False)
        try:
            self._owned.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(
                f"{folder}: another server keeps its history here",
                hint="stop it, or give this one --history with another folder",
            ) from error
        self._one = threading.RLock()
        self._held: Counter[str] = Counter()
        self._db = sqlite3.connect(folder / "history.db", check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            self._db.execute(f"PRAGMA {pragma}")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > FORMAT:
            raise ConfigError(
                f"{folder}: written by a newer sanakit", hint="pip install --upgrade sanakit"
            )
        self._db.executescript(SCHEMA)
        self._db.execute(f"PRAGMA user_version={FORMAT}")
        self._db.commit()
        self._sweep()
        self._size = self._total()

    def close(self) -> None:
        """Let another server have the folder."""
        with self._one:
            self._db.close()
        self._owned.release()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._one, self._db:
            yield self._db

    def _rows(self, query: str, *values: Any) -> list[Row]:
        with self._one, closing(self._db.execute(query, values)) as found:
            return [dict(row) for row in found]

    def add(self, job: Row) -> None:
        """Write down a job that was accepted."""
        values = {**job, "request": json.dumps(job["request"])}
        names = ", ".join(values)
        marks = ", ".join("?" * len(values))
        with self._change() as db:
            query = f"INSERT INTO jobs ({names}) VALUES ({marks})"
            number = db.execute(query, tuple(values.values())).lastrowid or 0
            # Those without pictures take little, and are many where many are given up.
            db.execute(
                "DELETE FROM jobs WHERE number < ? AND state NOT IN ('queued', 'running') "
                "AND id NOT IN (SELECT job FROM images)",
                (number - MOST_JOBS,),
            )
        self._evict(but=job["id"])  # for what was handed in for it

    def update(self, job: str, **values: Any) -> None:
        """Write down how a job goes on: its state, error, end."""
        names = ", ".join(f"{name} = ?" for name in values)
        with self._change() as db:
            db.execute(f"UPDATE jobs SET {names} WHERE id = ?", (*values.values(), job))

    def keep(self, job: str, place: int, png: bytes, **image: Any) -> None:
        """Keep a picture, and let go of the oldest ones where there are too many bytes."""
        path = self.picture(job, place)
        write_atomically(path, png)
        row = {"job": job, "place": place, **image, "bytes": len(png)}
        with self._change() as db:
            db.execute(
                f"INSERT OR REPLACE INTO images ({', '.join(row)}) "
                f"VALUES ({', '.join('?' * len(row))})",
                tuple(row.values()),
            )
        self._size += len(png)
        self._evict(but=job)

    def picture(self, job: str, place: int) -> Path:
        """Where a picture is; ``job`` is one of our own names."""
        return self.pictures / f"{job}-{place}.png"

    def job(self, job: str) -> Row | None:
        """Give a job with its pictures; None where there is none."""
        found = self._rows("SELECT * FROM jobs WHERE id = ?", job)
        return self._with_images(found)[0] if found else None

    def of_key(self, owner: str, key: str) -> Row | None:
        """Give the job that an owner asked for under a key."""
        found = self._rows("SELECT * FROM jobs WHERE owner = ? AND key = ?", owner, key)
        return self._with_images(found)[0] if found else None

    def recent(self, owner: str, limit: int, before: str | None = None) -> list[Row]:
        """Give an owner's jobs, the newest first, those before another one."""
        number = "(SELECT number FROM jobs WHERE id = ?)"
        where = "owner = ?" + (f" AND number < {number}" if before else "")
        values = (owner, before, limit) if before else (owner, limit)
        query = f"SELECT * FROM jobs WHERE {where} ORDER BY number DESC LIMIT ?"
        return self._with_images(self._rows(query, *values))

    def unfinished(self) -> list[Row]:
        """Give the jobs that a server left behind, the oldest first."""
        query = "SELECT * FROM jobs WHERE state IN ('queued', 'running') ORDER BY number"
        return self._with_images(self._rows(query))

    def remove(self, job: str) -> None:
        """Forget a job, its pictures, and what was handed in for it alone."""
        images = self._rows("SELECT * FROM images WHERE job = ?", job)
        requests = self._rows("SELECT request FROM jobs WHERE id = ?", job)
        with self._change() as db:
            db.execute("DELETE FROM jobs WHERE id = ?", (job,))
        for image in images:
            self.picture(job, image["place"]).unlink(missing_ok=True)
            self._size -= image["bytes"]
        for digest in {name for row in requests for name in DIGEST.findall(row["request"])}:
            self._let_go(digest)

    def _let_go(self, digest: str) -> None:
        """Remove a picture that was handed in, where no job names it and none is about to."""
        named = "SELECT 1 FROM jobs WHERE request LIKE ? LIMIT 1"
        path = self.inputs / digest
        if self._held[digest] or self._rows(named, f"%{digest}%") or not path.exists():
            return
        self._size -= path.stat().st_size
        path.unlink()

    def keep_input(self, data: bytes) -> str:
        """Keep a picture that was handed in; give the name that it is asked for by."""
        digest = sha256(data).hexdigest()
        path = self.inputs / digest
        if not path.exists():
            write_atomically(path, data)
            self._size += len(data)
        return f"sha256:{digest}"

    def hold_input(self, given: bytes | str) -> str:
        """Keep a picture, or one of that name, for a job to be added; until it is released.

        Raises:
            DataError: there is none of that name.
        """
        with self._one:
            name = self.keep_input(given) if isinstance(given, bytes) else given
            self._held[self.input_file(name).name] += 1
            return name

    def release_inputs(self, names: Iterable[str]) -> None:
        """Let go of held pictures that no job names, as where it was refused after all."""
        with self._one:
            digests = [name.removeprefix("sha256:") for name in names]
            self._held -= Counter(digests)
            for digest in digests:
                self._let_go(digest)

    def input_file(self, name: str) -> Path:
        """Where a picture that was handed in is.

        Raises:
            DataError: it is not there.
        """
        match = DIGEST.fullmatch(name)
        path = None if match is None else self.inputs / match[1]
        if path is None or not path.is_file():
            raise DataError(f"{name[:80]}: no such picture was handed in", hint="send it again")
        return path

    def _with_images(self, jobs: list[Row]) -> list[Row]:
        for job in jobs:
            job["request"] = json.loads(job["request"])
            job["images"] = self._rows(
                "SELECT * FROM images WHERE job = ? ORDER BY place", job["id"]
            )
        return jobs

    def _total(self) -> int:
        kept = self._rows("SELECT COALESCE(SUM(bytes), 0) AS total FROM images")[0]["total"]
        return int(kept) + sum(path.stat().st_size for path in self.inputs.iterdir())

    def _evict(self, *, but: str) -> None:
        while self._size > self.most_bytes:
            oldest = self._rows(
                "SELECT id FROM jobs WHERE id != ? AND state NOT IN ('queued', 'running') "
                "ORDER BY number LIMIT 1",
                but,
            )
            if not oldest:
                return
            self.remove(oldest[0]["id"])

    def _sweep(self) -> None:
        """Remove files that a kill left without a row, and rows without their file."""
        asked = "\n".join(row["request"] for row in self._rows("SELECT request FROM jobs"))
        for name in {path.name for path in self.inputs.iterdir()} - set(DIGEST.findall(asked)):
            (self.inputs / name).unlink(missing_ok=True)
        rows = self._rows("SELECT job, place FROM images")
        known = {self.picture(row["job"], row["place"]).name for row in rows}
        there = {path.name for path in self.pictures.iterdir()}
        for name in there - known:
            (self.pictures / name).unlink(missing_ok=True)
        with self._change() as db:
            for row in rows:
                if self.picture(row["job"], row["place"]).name not in there:
                    db.execute(
                        "DELETE FROM images WHERE job = ? AND place = ?", (row["job"], row["place"])
                    )
