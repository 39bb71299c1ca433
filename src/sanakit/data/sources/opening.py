"""Find out how pictures are laid out, and open them as a source."""

from __future__ import annotations

from pathlib import Path

from sanakit.data.sources.captions import CaptionPolicy
from sanakit.data.sources.folder import FolderSource, Listing, list_folder
from sanakit.data.sources.names import FOREIGN, PICTURES, ending
from sanakit.data.sources.rows import TABLES
from sanakit.data.sources.source import Source, SourceSettings
from sanakit.data.sources.table import TableSource
from sanakit.data.sources.tars import Shard, TarSource
from sanakit.data.sources.wids import META, WidsSource
from sanakit.data.training_set import SHARDS
from sanakit.data.units import SET
from sanakit.errors import ConfigError, DataError, nearest_names
from sanakit.files import expanded
from sanakit.untrusted import parse_json, read_file

READ = (
    "a folder of pictures, a table (.csv, .jsonl, .json, .parquet) that names or holds them, a"
    " Hugging Face dataset saved on disk, WebDataset tars, or a folder with wids-meta.json"
)
_PICKED = CaptionPolicy()


def open_source(
    path: Path, *, captions: CaptionPolicy = _PICKED, unit_size: int = 256, licence: str = ""
) -> Source:
    """Open pictures however they are laid out; ``kind`` of the source says what was found.

    ``licence`` is that of samples whose source names none. ``unit_size`` is the largest number of
    samples in a unit.

    Raises:
        DataError: there is nothing, nothing that can be read, or a package is missing.
        ConfigError: ``unit_size`` is not positive.
    """
    if unit_size < 1:
        raise ConfigError(f"unit_size={unit_size} is not positive", hint="the default is 256")
    path = expanded(path)
    if not path.exists():
        raise _absent(path)
    root = path if path.is_dir() else path.parent

    settings = SourceSettings(captions=captions, unit_size=unit_size, licence=licence)

    def table(kind: str, files: list[str]) -> Source:
        return TableSource(root, files, kind=kind, settings=settings)

    def tars(files: list[str]) -> Source:
        return TarSource(root, [Shard(file) for file in files], settings)

    if not path.is_dir():
        kind = ending(path.name)
        if path.name == META:
            return WidsSource(root, settings)
        if kind == ".arrow":
            return table("hugging-face", [path.name])
        if kind in TABLES:
            return table("table", [path.name])
        if kind == ".tar":
            return tars([path.name])
        raise _unknown_file(path, kind)
    if (path / META).is_file():
        return WidsSource(root, settings)
    if (path / SET).is_file() and (path / "scan").is_dir():
        raise DataError(
            f"{path} is a training set already",
            hint=f"name the pictures it was made from, or its shards: {path / SHARDS}",
        )
    saved = _saved_by_datasets(path)
    if saved:
        return table("hugging-face", saved)
    listing = list_folder(path)
    if listing.with_ending(*PICTURES):
        return FolderSource(root, listing, settings)
    if files := listing.with_ending(".tar"):
        return tars(files)
    if files := listing.with_ending(".parquet"):
        return table("table", files)
    raise _nothing(path, listing)


def _saved_by_datasets(path: Path) -> list[str]:
    """Arrow files of a folder that `save_to_disk` of Hugging Face `datasets` wrote, in order."""
    try:
        if (path / "dataset_dict.json").is_file():
            splits = parse_json(read_file(path / "dataset_dict.json"))["splits"]
            folders = [str(split) for split in splits]
        elif (path / "state.json").is_file():
            folders = [""]
        else:
            return []
        files = []
        for folder in folders:
            state = parse_json(read_file(path / folder / "state.json"))
            files += [(Path(folder) / file["filename"]).as_posix() for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} looks like a saved Hugging Face dataset, and is damaged ({error!r})",
            hint="save it again with save_to_disk, or to_parquet",
        ) from error
    return files


def _absent(path: Path) -> DataError:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest_names(path.name, names)
    hint = f"did you mean {path.parent / near[0]}?" if near else f"name {READ}"
    return DataError(f"{path} does not exist", hint=hint)


def _unknown_file(path: Path, kind: str) -> DataError:
    if kind in PICTURES:
        return DataError(f"{path} is one picture", hint="name the folder that it is in")
    if kind in FOREIGN:
        return DataError(
            f"{path}: {kind} is not read", hint="unpack it, then name the folder or the tar"
        )
    return DataError(f"{path}: what it is cannot be told from {kind or 'its name'}", hint=READ)


def _nothing(path: Path, listing: Listing) -> DataError:
    tables = listing.with_ending(*TABLES)
    if tables:
        return DataError(
            f"{path} holds no pictures (found: {listing.seen()})",
            hint=f"if a table says where they are, name it: {path / tables[0]}",
        )
    refused = listing.refusals[:1]
    reason = "".join(f"{refusal.id}: {refusal.detail}" for refusal in refused) or f"read are {READ}"
    return DataError(f"{path} holds no pictures (found: {listing.seen()})", hint=reason)
