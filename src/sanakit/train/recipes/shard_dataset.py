"""Built shards as diffusion reads them: pictures or their latents, captions or their states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from sanakit.data.captions.choice import CaptionChoice
from sanakit.data.encode import ENDING, NULL, CachedStates, autoencoder_hash, text_encoder_hash
from sanakit.data.loader.batches import Batch
from sanakit.data.loader.folders import open_folder
from sanakit.data.loader.loader import Loader
from sanakit.data.shards import INDEX, read_index
from sanakit.data.training_set import LATENTS, SHARDS, TEXT, TrainingSet
from sanakit.errors import ConfigError, DataError
from sanakit.train.sample_schedule import Share

States = Literal["auto", "live", "cached"]


@dataclass(frozen=True, kw_only=True)
class ShardDataset:
    """Where pictures come from; ``latents`` and ``text`` are folders of cached states, or None."""

    shards: str
    captions: CaptionChoice = field(default_factory=CaptionChoice)
    latents: Path | None = None
    text: Path | None = None
    workers: int = 0

    def batches(self, share: Share) -> Iterator[Batch]:
        """A rank's part of each batch from where ``share`` stands, without end.

        Raises:
            ConfigError: ``share`` does not stand between two batches.
        """
        if share.images_seen % share.batch_size:
            raise ConfigError(
                f"{share.images_seen} images are no whole number of batches of {share.batch_size}",
                hint="resume with the batch_size that the run was started with",
            )
        loader = self.loader(share)
        loader.restore({**loader.state(), "next": share.images_seen // share.batch_size})
        return iter(loader)

    def loader(self, share: Share) -> Loader:
        """The loader of a rank's part.

        Raises:
            DataError: there are no shards. ConfigError: as `Loader`.
        """
        return Loader(
            self.shards,
            batch_size=share.batch_size,
            seed=share.seed,
            rank=share.rank,
            world=share.ranks,
            workers=self.workers,
            captions=self.captions,
            latents=self.latents,
            text=self.text,
        )


def shards_of(data: str) -> str:
    """The shards of a set's folder, of a folder of shards, or an address of one.

    Raises:
        DataError: the folder is a set without shards, or nothing of that kind.
    """
    folder = Path(data).expanduser()
    if (folder / SHARDS / INDEX).is_file():
        return str(folder / SHARDS)
    if (folder / INDEX).is_file() or "://" in data:
        return data
    if folder.is_dir():
        TrainingSet.open(folder)
        raise DataError(f"{data} holds no built shards", hint=f"run: sanakit data build {data}")
    raise DataError(
        f"{data}: no such folder", hint="make it: sanakit data build my-pictures --out my-set"
    )


def resolution_of(shards: str) -> int:
    """About the side of the pictures, px.

    Raises:
        DataError: there is no index, or it is damaged.
    """
    return open_folder(shards, cache=None, cache_gb=None, verify=False).index().resolution


def cached_of(shards: str, model: str | None, states: States) -> tuple[Path | None, Path | None]:
    """Folders of the latents and the text states that the networks of ``model`` made of all shards.

    Raises:
        DataError: ``states`` is "cached" and there are none of this model.
        ConfigError: ``states`` is unknown.
    """
    if states not in get_args(States):
        raise ConfigError(f"--states {states!r} is unknown", hint="auto, live or cached")
    found: tuple[Path | None, Path | None] = (None, None)
    if states != "live" and "://" not in shards and model is not None:
        root = Path(shards).parent
        found = (
            _complete(root / LATENTS, Path(shards), autoencoder_hash(model), ()),
            _complete(root / TEXT, Path(shards), text_encoder_hash(model), (NULL,)),
        )
    if states == "cached" and None in found:
        what = "latents" if found[0] is None else "text states"
        raise DataError(
            f"{shards}: no {what} of {model or 'these networks'} beside them",
            hint=f"make them: sanakit data encode {Path(shards).parent} --model {model}",
        )
    return found


def _complete(folder: Path, shards: Path, encoder: str, more: tuple[str, ...]) -> Path | None:
    """The folder in ``folder`` whose states are of this encoder and of these very shards."""
    index = read_index(shards)
    assert index is not None
    for states in sorted(folder.iterdir()) if folder.is_dir() else ():
        whole = all((states / f"{unit}{ENDING}").is_file() for unit in more)
        for shard in index.shards if whole else ():
            if not (states / f"{shard.unit}{ENDING}").is_file():
                whole = False
                break
            about = CachedStates(states, shard.unit).about
            if about.get("encoder") != encoder or about.get("shard_sha256") != shard.sha256:
                whole = False
                break
        if whole:
            return states
    return None
