"""NVlabs' layout of tars: `wids-meta.json`, and captions and CLIP scores in files of their own.

Their format: {"name", "__kind__": "SANA-WebDataset", "wids_version": 1, "shardlist": [{"url",
"nsamples", "filesize"}]} beside tars whose KEY.json has "prompt" and further captions; a file
`{tar stem}{suffix}.json` is {key: {kind of caption: text or score}}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from sanakit.data.samples import Caption, Refusal
from sanakit.data.shards import INDEX, read_index
from sanakit.data.sources.captions import (
    BAD_CAPTIONS,
    ORIGINAL,
    caption_keys,
    captions_in,
    from_keys,
    number_in,
    parsed,
)
from sanakit.data.sources.names import without_ending
from sanakit.data.sources.places import read_inside
from sanakit.data.sources.source import UNREADABLE, SourceSettings, file_state
from sanakit.data.sources.tars import Keyed, Shard, TarSource, index_tar
from sanakit.errors import DataError
from sanakit.files import write_atomically
from sanakit.untrusted import LARGEST_FILE

META = "wids-meta.json"
KIND = "SANA-WebDataset"
PROMPT = "prompt"
SCORES = "_clip_score.json"


class WidsSource(TarSource):
    """The samples of the tars that `wids-meta.json` in ``root`` lists.

    The caption "prompt" is by "original"; others are by their kind. Every file beside a tar whose
    name begins with the tar's stem and ends in `.json` adds captions or scores.
    """

    def __init__(self, root: Path, settings: SourceSettings) -> None:
        shards = read_meta(root)
        super().__init__(root, shards, settings, kind="wids")
        self._about: dict[str, list[str]] = {shard.file: [] for shard in shards}
        stems = {shard.stem: shard.file for shard in shards}
        folders = sorted({shard.file.rpartition("/")[0] for shard in shards})
        for folder in folders:
            if not (root / folder).is_dir():
                continue
            for path in sorted((root / folder).glob("*.json")):
                name = path.relative_to(root).as_posix()
                rest = without_ending(name)
                # "a-1" must not take the files of "a-10"; ".keys" and the like are ours.
                lengths = range(len(rest), 0, -1)
                stem = next((rest[:length] for length in lengths if rest[:length] in stems), None)
                if stem is not None and not rest[len(stem) :].startswith("."):
                    self._about[stems[stem]].append(name)

    def files_about(self, shard: Shard) -> list[str]:
        """The files with captions or scores of a tar's samples."""
        return self._about[shard.file]

    def at_end(self, shard: Shard, entries: Sequence[Keyed | Refusal]) -> Iterator[Refusal]:
        """Say which files about the tar are damaged, and where its number of samples is wrong."""
        samples = sum(isinstance(entry, Keyed) for entry in entries)
        if samples != shard.count:
            detail = f"{META} says {shard.count} samples, the tar has {samples}"
            yield Refusal(id=shard.file, reason=UNREADABLE, detail=detail)
        for name in self.files_about(shard) if self.captions.reads else ():
            problem = _external(self.root, name, file_state(self.root / name))[1]
            if problem:
                yield Refusal(id=name, reason=BAD_CAPTIONS, detail=problem)

    def captions_of(self, shard: Shard, key: str, value: Any) -> list[Caption]:
        """The captions of KEY.json and of the files about the tar, with the scores of these."""
        found = captions_by_kind(value)
        scores: dict[str, float] = {}
        for name in self.files_about(shard):
            notes = _external(self.root, name, file_state(self.root / name))[0].get(key)
            for kind, note in notes.items() if isinstance(notes, Mapping) else ():
                score = _score(note)
                if score is not None:
                    scores[kind] = score
                elif isinstance(note, str):
                    unknown = Caption(text="", captioner=ORIGINAL if kind == PROMPT else kind)
                    before = found.get(kind, unknown)
                    if before.text != note:  # the score of another text says nothing of this one
                        found[kind] = replace(before, text=note, score=None)
        return [
            replace(caption, score=scores.get(kind, caption.score))
            for kind, caption in found.items()
        ]


def read_meta(root: Path) -> list[Shard]:
    """The tars that `wids-meta.json` lists, in its order."""
    path = root / META
    try:
        value = parsed(read_inside(root, META, limit=LARGEST_FILE))
        shards = [Shard(str(item["url"]), int(item["nsamples"])) for item in value["shardlist"]]
    except DataError as error:
        raise DataError(f"{path}: {error.message}", hint=error.hint) from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is damaged ({error!r})",
            hint='it should hold {"shardlist": [{"url", "nsamples", "filesize"}]}',
        ) from error
    if not shards:
        raise DataError(f"{path} lists no tars")
    # Lists made elsewhere name tars by the path or address that they had there.
    here = [replace(shard, file=shard.file.rpartition("/")[2]) for shard in shards]
    return [
        moved if (root / moved.file).is_file() and not (root / shard.file).is_file() else shard
        for shard, moved in zip(shards, here, strict=True)
    ]


def captions_by_kind(value: Any) -> dict[str, Caption]:
    """The captions of a KEY.json by NVlabs' kinds: "prompt" first."""
    if not isinstance(value, Mapping):
        return {}
    own = value.get("sanakit")
    if not isinstance(own, Mapping):
        found = from_keys(value, caption_keys(value, all_texts=True))
    else:
        found = captions_in(own.get("captions"), ORIGINAL)
    kinds: dict[str, Caption] = {}
    for caption in found:
        is_prompt = not kinds and (isinstance(own, Mapping) or caption.captioner == ORIGINAL)
        kind, number = PROMPT if is_prompt else caption.captioner, 1
        while kind in kinds:
            number += 1
            kind = f"{caption.captioner}-{number}"
        kinds[kind] = caption
    return kinds


def write_wids(shards: Path) -> None:
    """Make the shards that `sanakit data build` wrote readable for NVlabs' training code.

    ``shards`` has the `index.json`. Beside each tar go the scores of its captions, where there are
    any; `wids-meta.json` comes last.
    """
    listed = []
    index = read_index(shards)
    if index is None:
        raise DataError(f"{shards / INDEX} is missing", hint="run `sanakit data build` first")
    for shard in index.shards:
        path = shards / shard.file
        if file_state(path)[0] != shard.bytes:
            raise DataError(
                f"{path} has not the {shard.bytes} bytes of the index",
                hint="run `sanakit data build` again",
            )
        listed.append({"url": shard.file, "nsamples": shard.samples, "filesize": shard.bytes})
        scores = {}
        for key, kinds in _captions_of(shards, shard.file):
            scored = {kind: c.score for kind, c in kinds.items() if c.score is not None}
            if scored:
                scores[key] = scored
        beside = shards / f"{shard.unit}{SCORES}"
        if scores:
            _write(beside, scores)
        else:
            beside.unlink(missing_ok=True)  # of an earlier build
    name = shards.resolve().parent.name
    _write(shards / META, {"name": name, "__kind__": KIND, "wids_version": 1, "shardlist": listed})


def _score(note: Any) -> float | None:
    """The number of a score file, which may be written as text."""
    try:
        return number_in(float(note) if isinstance(note, str) else note)
    except ValueError:
        return None


def _captions_of(shards: Path, file: str) -> Iterator[tuple[str, dict[str, Caption]]]:
    for entry in index_tar(shards / file):
        if isinstance(entry, Refusal):
            raise DataError(f"{shards / file}: {entry.detail}", hint="build it again")
        start, length = entry.texts.get("json", (0, 0))
        data = read_inside(shards, file, start=start, length=length, limit=LARGEST_FILE)
        yield entry.key, captions_by_kind(parsed(data))


def _write(path: Path, value: Any) -> None:
    write_atomically(path, f"{json.dumps(value, ensure_ascii=False, indent=1)}\n".encode())


@lru_cache(maxsize=16)
def _external(root: Path, name: str, state: tuple[int, int]) -> tuple[Mapping[str, Any], str]:
    try:
        value = parsed(read_inside(root, name, limit=LARGEST_FILE))
    except DataError as error:
        return {}, error.message
    return (value, "") if isinstance(value, Mapping) else ({}, "not {key: {kind: text or score}}")
