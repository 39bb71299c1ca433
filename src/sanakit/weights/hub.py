"""The Hugging Face cache: fetch a checkpoint, check it, say what is there, remove it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    WeakFileLock,
    build_hf_headers,
)

from sanakit.errors import (
    DataError,
    MissingModelError,
    MissingVariantError,
    SanakitError,
    WeightsError,
)
from sanakit.files import check_room
from sanakit.weights.catalog import find_checkpoint, nearest_models
from sanakit.weights.layout import PLAIN, Selection, missing_by_structure, select_files
from sanakit.weights.lockfile import (
    ACCESS,
    COMMIT,
    FileFact,
    Listing,
    Lockfile,
    cache_folder,
    digest_of,
    is_digest,
    known_commit,
    read_lockfile,
    repository_folder,
    snapshot_folder,
    split_revision,
    write_lockfile,
    write_ref,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedRepository:
    """One repository on this disk."""

    folder: Path
    bytes: int
    """Of all contents, partial downloads included."""
    commits: tuple[str, ...]
    complete: bool
    """Whether one of the commits has all files that a loader looks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What is wrong with one file."""

    file: str
    problem: str


def cached_repository(repository: str) -> CachedRepository | None:
    """Say what is on disk of a repository; None where there is nothing."""
    folder = repository_folder(repository)
    snapshots = _snapshots(folder)
    contents = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    size = sum(path.stat().st_size for path in contents)
    if not snapshots and not size:
        return None
    return CachedRepository(
        folder=folder,
        bytes=size,
        commits=tuple(path.name for path in snapshots),
        complete=any(not missing_by_structure(path) for path in snapshots),
    )


def verify(repository: str) -> tuple[int, list[Finding]]:
    """Hash every file again; give how many were looked at, and what is wrong.

    A file is compared with its digest in the lockfile, and where another program fetched it, with
    the name under which the cache keeps contents, which is their digest. Files that the pinned
    commit does not have, and links that lead out of the repository's contents, are findings too.

    Raises:
        MissingModelError: nothing of it is on disk. WeightsError: a damaged lockfile.
    """
    folder = repository_folder(repository)
    snapshots = _snapshots(folder)
    if not snapshots:
        raise MissingModelError(
            f"{repository}: is not in the local cache", hint=f"sanakit models pull {repository}"
        )
    lockfile = read_lockfile(repository)
    findings: list[Finding] = []
    count = 0
    hashed: dict[tuple[Path, str], bool] = {}
    for snapshot in snapshots:
        for path in sorted(snapshot.rglob("*")):
            if not (path.is_symlink() or path.is_file()):
                continue
            count += 1
            name = path.relative_to(snapshot).as_posix()
            listing = lockfile.listings.get(snapshot.name)
            if problem := _problem(path, name, folder, listing, hashed):
                findings.append(Finding(file=f"{snapshot.name[:7]}/{name}", problem=problem))
    return count, findings


def remove(repository: str) -> int:
    """Delete a repository from the cache, for all programs that share it; give the bytes freed.

    Raises:
        MissingModelError: nothing of it is there. DataError: the disk refuses.
    """
    held = cached_repository(repository)
    if held is None:
        raise MissingModelError(
            f"{repository}: is not in the local cache", hint="`sanakit models list` says what is"
        )
    try:
        shutil.rmtree(held.folder)
        shutil.rmtree(held.folder.parent / ".locks" / held.folder.name, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{held.folder}: cannot be removed ({error.strerror or error})") from error
    return held.bytes


def _problem(
    path: Path,
    name: str,
    folder: Path,
    listing: Listing | None,
    hashed: dict[tuple[Path, str], bool],
) -> str | None:
    if listing is not None and name not in listing:
        return "is not in this commit: somebody put it here"
    # One step, not all of them: a content may itself be a link to a store that repositories share.
    target = Path(os.path.normpath(path.parent / os.readlink(path))) if path.is_symlink() else path
    if path.is_symlink() and target.parent != Path(os.path.normpath(folder / "blobs")):
        return f"is a link that leads elsewhere ({target})"
    expected = listing[name].digest if listing is not None else target.name
    if not is_digest(expected):
        return "cannot be checked: neither the lockfile nor its name tells a digest"
    if not path.is_file():
        return "its content is gone"
    if (target, expected) not in hashed:
        hashed[target, expected] = digest_of(path, expected) == expected
    return None if hashed[target, expected] else "was changed: its digest differs"


def _snapshots(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "snapshots").glob("*") if path.is_dir())


Report = Callable[[str], None]
SHOWN = 4
# The HTTP library under huggingface_hub changed between its versions; its base error did not move.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


def fetch(
    repository: str,
    *,
    variant: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    offline: bool = False,
    update: bool = False,
    report: Report = lambda note: None,
) -> Path:
    """Give the folder of a repository, in the local cache; download what is missing of it.

    A revision is pinned by its first use: later calls get the same commit until one says
    ``update``, and a call that finds all its files asks no network.

    Args:
        repository: ``owner/name`` or ``owner/name@revision``.
        variant: of the weights: ``fp16``, ``bf16``, or ``plain`` for files without one in their
            name. None takes the one of the catalogued checkpoint's recommended dtype, else plain;
            a component that has it not comes in another, and ``report`` says so.
        revision: branch, tag or commit; ``main`` where none is named.
        subfolder: fetch this component only, e.g. ``transformer``.
        offline: never ask the network; also by the environment's ``HF_HUB_OFFLINE``.
        update: ask what the revision means today, and pin that.
        report: gets one line for everything that the caller should know.

    Raises:
        MissingModelError: not there, gated, unreachable, or offline with files missing (named).
        WeightsError: only pickles there; a file is not what the hub says it is.
        DataError: the disk is full or refuses. ConfigError: a revision that is none.
    """
    repository, revision = split_revision(repository, revision)
    checkpoint = find_checkpoint(repository)
    if checkpoint is not None:
        repository = checkpoint.repository  # in the case that the hub spells it
    wanted = variant or (checkpoint.variant if checkpoint else None)
    lockfile = read_lockfile(repository)
    commit = None if update else known_commit(repository, revision, lockfile)
    missing = ["everything"]
    again = ACCESS.get().force_download
    if commit is not None and not again:
        folder = snapshot_folder(repository, commit)
        if commit in lockfile.listings:
            plan = _plan(lockfile.listings[commit], repository, wanted, variant, subfolder)
            missing = [name for name in plan.files if not (folder / name).is_file()]
        else:  # put there by another program
            missing = missing_by_structure(folder, variant=variant, subfolder=subfolder)
        if not missing:
            return folder
    if offline or constants.is_offline_mode():
        raise _offline(repository, revision, commit, missing)
    with _hub_errors(repository, revision):
        commit, lockfile = _pinned(repository, revision, commit, lockfile)
        listing = lockfile.listings[commit]
        plan = _plan(listing, repository, wanted, variant, subfolder)
        _tell(plan, repository, wanted, report)
        folder = _complete(repository, commit, {name: listing[name] for name in plan.files})
    write_ref(repository, revision, commit, replace=update)
    return folder


def fetch_files(
    repository: str,
    choose: Callable[[Collection[str]], list[str]],
    *,
    revision: str | None = None,
    offline: bool = False,
) -> tuple[Path, list[str]]:
    """Give the folder of a repository that is no model, and the files that ``choose`` takes.

    ``choose`` is shown the names of all, and raises where what it looks for is not among them.
    Errors otherwise, and revisions, are those of :func:`fetch`.
    """
    repository, revision = split_revision(repository, revision)
    lockfile = read_lockfile(repository)
    commit = known_commit(repository, revision, lockfile)
    offline = offline or constants.is_offline_mode()
    if commit is not None and (offline or not ACCESS.get().force_download):
        folder = snapshot_folder(repository, commit)
        there = [each for each in folder.rglob("*") if each.is_file()]
        held = {each.relative_to(folder).as_posix() for each in there}
        if offline or commit in lockfile.listings:
            chosen = choose(held if offline else lockfile.listings[commit].keys())
            if held.issuperset(chosen):
                return folder, chosen
    if offline:
        raise MissingModelError(
            _offline(repository, revision, commit, ["everything"]).message,
            hint="where there is a network it is fetched; or name a file or a folder that is here",
        )
    with _hub_errors(repository, revision):
        commit, lockfile = _pinned(repository, revision, commit, lockfile)
        listing = lockfile.listings[commit]
        chosen = choose(listing.keys())
        folder = _complete(repository, commit, {name: listing[name] for name in chosen})
    write_ref(repository, revision, commit, replace=False)
    return folder, chosen


def _complete(repository: str, commit: str, wanted: Listing) -> Path:
    """Download what is missing of some files."""
    folder = snapshot_folder(repository, commit)
    if ACCESS.get().force_download:
        _drop_damaged(folder, wanted)
    missing = [name for name in wanted if not (folder / name).is_file()]
    _check_space(repository, [wanted[name] for name in missing])
    for name in missing:
        _download(repository, commit, name, wanted[name])
    return folder


def _drop_damaged(folder: Path, facts: Listing) -> None:
    for name, fact in facts.items():
        path = folder / name
        if path.is_file() and digest_of(path, fact.digest) != fact.digest:
            _unlink(path)


def _unlink(path: Path) -> None:
    """Remove a file of a snapshot, and what it points to."""
    blob = path.resolve()
    path.unlink()
    blob.unlink(missing_ok=True)


def upload(
    folder: Path,
    repository: str,
    *,
    message: str,
    private: bool | None = None,
    token: str | bool | None = None,
    as_pull_request: bool = False,
) -> str:
    """Put a folder into a repository of the hub, made if need be; give the commit's address.

    Raises:
        MissingModelError: the hub cannot be reached or refuses.
    """
    hub = HfApi(endpoint=constants.ENDPOINT, token=token)
    try:
        made = hub.create_repo(repository, private=private, exist_ok=True)
        done = hub.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message=message,
            create_pr=as_pull_request,
        )
    except (HTTP_ERROR, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise MissingModelError(
            f"{repository}: cannot be written to ({reason})",
            hint="log in with `hf auth login`, or pass token=",
        ) from error
    return str(done.commit_url)


def latest_commit(repository: str, revision: str) -> str:
    """Ask the hub what a revision means today.

    Raises:
        MissingVariantError: as :func:`fetch`.
    """
    with _hub_errors(repository, revision):
        return str(
            HfApi(endpoint=constants.ENDPOINT, token=ACCESS.get().token)
            .model_info(repository, revision=revision)
            .sha
        )


def _pinned(
    repository: str, revision: str, commit: str | None, lockfile: Lockfile
) -> tuple[str, Lockfile]:
    """Make sure that the commit and its listing are known, and write them down."""
    if commit is not None and commit in lockfile.listings:
        return commit, lockfile
    info = HfApi(endpoint=constants.ENDPOINT, token=ACCESS.get().token).model_info(
        repository, revision=commit or revision, files_metadata=True
    )
    if info.sha is None or not COMMIT.fullmatch(info.sha):
        raise WeightsError(f"{repository}: the hub names {info.sha!r} as its commit")
    if commit is not None and info.sha != commit:
        raise WeightsError(f"{repository}: asked for commit {commit}, the hub gave {info.sha}")
    listing: dict[str, FileFact] = {}
    for file in info.siblings or []:
        digest = file.lfs.sha256 if file.lfs is not None else file.blob_id
        if digest is not None and file.size is not None:
            listing[file.rfilename] = FileFact(size=file.size, digest=digest)
    card = info.card_data
    licence = card.get("license_name") or card.get("license") if card is not None else None
    lockfile = lockfile.with_commit(revision, info.sha, listing, licence)
    write_lockfile(repository, lockfile)
    return info.sha, lockfile


def _plan(
    listing: Listing,
    repository: str,
    wanted: str | None,
    named: str | None,
    subfolder: str | None,
) -> Selection:
    """Choose the files; a variant that the caller named must be there in some component."""
    plan = select_files(listing.keys(), variant=wanted, source=repository, subfolder=subfolder)
    if named is not None and len(plan.without(named)) == len(plan.variants):
        held = sorted({name or PLAIN for name in plan.variants.values()})
        raise MissingVariantError(
            f"{repository}: has no variant {named!r}",
            hint=f"what it has: {', '.join(held)}; or name none",
        )
    return plan


def _tell(plan: Selection, repository: str, wanted: str | None, report: Report) -> None:
    """Say which components come in another variant; silent where the plain one was wanted."""
    for part in plan.without(wanted):
        held = plan.variants[part]
        report(
            f"{repository}: {part or 'its network'} has no {wanted or PLAIN} variant, "
            f"its {held or PLAIN} files are used"
        )


def _download(repository: str, commit: str, name: str, fact: FileFact) -> None:
    """Put one file into the cache; afterwards it is what the hub's listing says it is."""
    if fact.large:
        _load_blob(repository, commit, name, fact)
    path = Path(
        hf_hub_download(
            repository,
            name,
            revision=commit,
            cache_dir=cache_folder(),
            endpoint=constants.ENDPOINT,
            token=ACCESS.get().token,
        )
    )
    if not fact.large and digest_of(path, fact.digest) != fact.digest:
        _unlink(path)
        raise _tampered(repository, name)


def _load_blob(repository: str, commit: str, name: str, fact: FileFact) -> None:
    """Load a large file where the cache keeps contents, going on from what is there of it."""
    folder = repository_folder(repository)
    blob = folder / "blobs" / fact.digest
    part = blob.with_name(f"{fact.digest}.incomplete")
    lock = folder.parent / ".locks" / folder.name / f"{fact.digest}.lock"
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        url = hf_hub_url(repository, name, revision=commit, endpoint=constants.ENDPOINT)
        token = ACCESS.get().token
        there = get_hf_file_metadata(url, endpoint=constants.ENDPOINT, token=token)
        if there.etag != fact.digest:
            raise _tampered(repository, name)
        headers = build_hf_headers(token=token)
        if urlsplit(there.location).netloc != urlsplit(url).netloc:
            headers.pop("authorization", None)  # the token is the hub's, not its storage's
        held = part.stat().st_size if part.exists() else 0
        if held > fact.size:
            part.unlink()
            held = 0
        with part.open("ab") as file:
            http_get(
                there.location,
                file,
                resume_size=held,
                headers=headers,
                expected_size=fact.size,
                displayed_filename=name,
            )
        if digest_of(part, fact.digest) != fact.digest:
            part.unlink()
            raise _tampered(repository, name)
        os.replace(part, blob)


def _check_space(repository: str, facts: list[FileFact]) -> None:
    folder = repository_folder(repository)
    blobs = {fact.digest: fact.size for fact in facts}
    needed = sum(blobs.values())
    for digest in blobs:
        part = folder / "blobs" / f"{digest}.incomplete"
        needed -= part.stat().st_size if part.exists() else 0
    hint = "free some (sanakit models rm NAME), or set HF_HOME to a folder on another disk"
    check_room(folder.parent, needed, what=repository, hint=hint)


def _tampered(repository: str, name: str) -> WeightsError:
    return WeightsError(
        f"{repository}: {name} is not the file that the hub lists: its sha256 differs",
        hint="nothing of it was kept; pull again, and distrust the mirror if it happens again",
    )


def _offline(
    repository: str, revision: str, commit: str | None, missing: list[str]
) -> MissingModelError:
    checkpoint = find_checkpoint(repository)
    name = checkpoint.alias if checkpoint else repository
    if commit is None:
        message = f"{repository}: nothing of its revision {revision} is in the local cache"
    else:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        message = (
            f"{repository}: {len(missing)} file{'s'[: len(missing) > 1]} missing in the local "
            f"cache: {', '.join(missing[:SHOWN])}{more}"
        )
    return MissingModelError(
        f"{message}, and this is offline",
        hint=f"where there is a network, run: sanakit models pull {name}; the model 'glyph' is "
        "embedded and needs none",
    )


@contextmanager
def _hub_errors(repository: str, revision: str) -> Iterator[None]:
    """Turn what goes wrong between here and the hub into one line and a hint."""
    try:
        yield
    except SanakitError:  # said in our own words already
        raise
    except GatedRepoError as error:
        raise MissingModelError(
            f"{repository}: is gated",
            hint=f"accept its terms on {constants.ENDPOINT}/{repository}, then: hf auth login",
        ) from error
    except RepositoryNotFoundError as error:
        near = nearest_models(repository)
        raise MissingModelError(
            f"{repository}: is no folder here and no repository of the hub (or a private one)",
            hint=(f"did you mean {near[0]}? " if near else "check the spelling; ")
            + "`sanakit models list` names what there is",
        ) from error
    except RevisionNotFoundError as error:
        raise MissingModelError(
            f"{repository}: has no revision {revision!r}", hint="name a branch, tag or commit"
        ) from error
    except (HTTP_ERROR, OSError, HFValidationError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise MissingModelError(
            f"{repository}: is not complete in the local cache and cannot be downloaded ({reason})",
            hint="try again, it goes on where it stopped; the model 'glyph' needs no network",
        ) from error
