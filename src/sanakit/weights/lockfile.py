"""What a repository was when it was first fetched: its commit, and the digest of every file.

Kept beside the files, in the repository's folder of the Hugging Face cache, so that a revision that
moves and a file that changes are noticed, and so that "what is missing?" needs no network.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from sanakit.errors import ConfigError, MissingModelError, WeightsError
from sanakit.files import read_json, sha256_of, write_atomically, write_json
from sanakit.weights.catalog import HUB_FOLDER

LOCKFILE = "sanakit-pins.json"
MAIN = "main"
COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFact:
    """Size in bytes, and sha256 (64 digits) of a large file or git blob id (40) of a small one."""

    size: int
    digest: str

    @property
    def large(self) -> bool:
        """Whether it is stored apart from git: weights, mostly."""
        return len(self.digest) == 64


Listing = Mapping[str, FileFact]


@dataclass(frozen=True, kw_only=True)
class Lockfile:
    """One repository's. Branches and tags to commits, commits to what they hold."""

    revisions: Mapping[str, str] = field(default_factory=dict)
    listings: Mapping[str, Listing] = field(default_factory=dict)
    licence: str | None = None
    """As the repository's page said when it was fetched."""

    def with_commit(
        self, revision: str, commit: str, listing: Listing, licence: str | None
    ) -> Lockfile:
        """Give the same and one commit more."""
        return Lockfile(
            revisions={**self.revisions, revision: commit},
            listings={**self.listings, commit: listing},
            licence=licence or self.licence,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """How the hub is asked; None is the environment's way."""

    cache_dir: Path | None = None
    token: str | bool | None = None
    force_download: bool = False
    """Hash what is here, and fetch again what is not as the hub says."""


AS_USUAL = Access()
ACCESS: ContextVar[Access] = ContextVar("hub_access", default=AS_USUAL)


@contextmanager
def asking(
    *,
    cache_dir: str | PathLike[str] | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
) -> Iterator[None]:
    """Ask the hub so within the block, in this thread."""
    folder = None if cache_dir is None else Path(cache_dir).expanduser()
    before = ACCESS.set(Access(cache_dir=folder, token=token, force_download=force_download))
    try:
        yield
    finally:
        ACCESS.reset(before)


def cache_folder() -> Path:
    """Where the Hugging Face cache is."""
    return ACCESS.get().cache_dir or Path(constants.HF_HUB_CACHE)


def repository_folder(repository: str) -> Path:
    """Where the Hugging Face cache keeps a repository, whether it is there or not."""
    return cache_folder() / f"{HUB_FOLDER}{repository.replace('/', '--')}"


def snapshot_folder(repository: str, commit: str) -> Path:
    """Where one commit's files are."""
    return repository_folder(repository) / "snapshots" / commit


def read_lockfile(repository: str) -> Lockfile:
    """Read a repository's lockfile; empty where it was never fetched, or by other programs only.

    Raises:
        WeightsError: a damaged file.
    """
    path = repository_folder(repository) / LOCKFILE
    try:
        return _parsed(read_json(path))
    except MissingModelError:
        return Lockfile()
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(
            f"{path}: is damaged ({error})",
            hint=f"run: sanakit models rm {repository}, then pull it again",
        ) from error


def write_lockfile(repository: str, lockfile: Lockfile) -> None:
    """Write a repository's lockfile, whole."""
    content = {
        "revisions": dict(lockfile.revisions),
        "licence": lockfile.licence,
        "listings": {
            commit: {name: [fact.size, fact.digest] for name, fact in sorted(listing.items())}
            for commit, listing in lockfile.listings.items()
        },
    }
    folder = repository_folder(repository)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / LOCKFILE, content, indent=1)


def known_commit(repository: str, revision: str, lockfile: Lockfile) -> str | None:
    """Give the commit that a revision meant here so far; None where it was never asked for."""
    if COMMIT.fullmatch(revision):
        return revision
    if revision in lockfile.revisions:
        return lockfile.revisions[revision]
    ref = repository_folder(repository) / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""
    return commit if COMMIT.fullmatch(commit) else None


def write_ref(repository: str, revision: str, commit: str, *, replace: bool) -> None:
    """Tell other programs that share the cache what a branch or tag means, unless they know."""
    ref = repository_folder(repository) / "refs" / revision
    if COMMIT.fullmatch(revision) or (ref.exists() and not replace):
        return
    ref.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(ref, commit.encode())


def split_revision(name: str, revision: str | None) -> tuple[str, str]:
    """Take ``owner/name@revision`` apart; the revision is ``main`` where none is named.

    Raises:
        ConfigError: two different revisions, or one that is no branch, tag or commit.
    """
    name, at, inner = name.partition("@")
    if at and revision not in (None, inner):
        raise ConfigError(
            f"two revisions of {name}: @{inner} and revision={revision!r}", hint="name one"
        )
    chosen = inner if at else revision or MAIN
    if not _REVISION.fullmatch(chosen) or ".." in chosen:
        raise ConfigError(
            f"{name}: {chosen!r} is no revision",
            hint="a revision is a branch, a tag or the 40 digits of a commit",
        )
    return name, chosen


def digest_of(path: Path, like: str) -> str:
    """Hash a file the way ``like`` was made: sha256 for 64 digits, a git blob's sha1 for 40."""
    if len(like) == 64:
        return sha256_of(path)
    content = path.read_bytes()  # not a defence: what the hub says of small files
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def is_digest(name: str) -> bool:
    """Whether a file of the cache is named by its content."""
    return _DIGEST.fullmatch(name) is not None


def _parsed(values: Any) -> Lockfile:
    listings = {
        commit: {name: FileFact(size=size, digest=digest) for name, (size, digest) in held.items()}
        for commit, held in values["listings"].items()
    }
    commits = [*listings, *values["revisions"].values()]
    facts = [fact for held in listings.values() for fact in held.values()]
    if not all(COMMIT.fullmatch(commit) for commit in commits):
        raise ValueError("a commit is not 40 hex digits")
    if not all(isinstance(fact.size, int) and is_digest(fact.digest) for fact in facts):
        raise ValueError("a digest is not 40 or 64 hex digits")
    return Lockfile(revisions=values["revisions"], listings=listings, licence=values["licence"])
