"""What a text encoder has computed and is asked for again: instructions, and finished prompts.

An instruction's states are kept in memory and on disk. Prompts are what users wrote: they stay in
memory, unless their owner asks for files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import torch

from sanakit.errors import ConfigError, WeightsError
from sanakit.files import cache_folder, sha256_of
from sanakit.models.text_encoder import Prefix, TextEncoder, depth_of
from sanakit.shapes import Text, TextMask
from sanakit.weights.fingerprint import llm_fingerprint, weights_stamp
from sanakit.weights.tensor_cache import TensorCache

MAX_PREFIXES = 4
"""In memory; the published instruction has two spellings, and a model may bring its own."""
PROMPT_BYTES = 64 * 2**20
"""In memory; some 50 prompts of 300 tokens at the published width in bf16."""
DISK_BYTES = 512 * 2**20
"""Of each kind; the published instruction takes about 25 MB in bf16."""
STATES_VERSION = 1
"""Changes when the package computes states in another way, so that files of before are left."""

Encoded = tuple[Text, TextMask]


class PromptCache:
    """Results of one text encoder, forgotten as soon as its weights change; safe with threads.

    A copy, by pickle too, has the same settings and holds nothing yet.
    """

    def __init__(
        self,
        *,
        prefixes: bool = True,
        prompt_bytes: int = PROMPT_BYTES,
        disk: bool = True,
        folder: Path | None = None,
        prompts_on_disk: bool = False,
    ) -> None:
        """Decide what is kept, and where.

        Args:
            prefixes: whether instructions run once, rather than with every prompt.
            prompt_bytes: memory for finished prompts, the least recently used go first; 0: none.
            disk: whether files are kept at all.
            folder: for the files; None: the user's cache folder, where ``SANAKIT_CACHE=off`` still
                means no files.
            prompts_on_disk: keep finished prompts as files, readable by this user alone.

        Raises:
            ConfigError: a negative size, or files asked for and refused at once.
        """
        self._settings: dict[str, Any] = {
            "prefixes": prefixes,
            "prompt_bytes": prompt_bytes,
            "disk": disk,
            "folder": folder,
            "prompts_on_disk": prompts_on_disk,
        }
        if prompt_bytes < 0:
            raise ConfigError(f"prompt_bytes={prompt_bytes} must be 0 or more")
        if not disk and (folder is not None or prompts_on_disk):
            raise ConfigError("disk=False leaves no place for folder and prompts_on_disk")
        root = (folder or cache_folder()) if disk else None
        self._prefix_files = _files(root, "prefixes") if prefixes else None
        self._prompt_files = _files(root, "prompts") if prompts_on_disk else None
        self._lock = RLock()
        self._stamp: Hashable = None
        self._fingerprint: str | None = None
        self._prefixes: OrderedDict[tuple[int, ...], Prefix | None] = OrderedDict()
        self._prompts: OrderedDict[str, tuple[Text, TextMask, torch.device]] = OrderedDict()

    @classmethod
    def off(cls) -> PromptCache:
        """Keep nothing: every call runs everything."""
        return cls(prefixes=False, prompt_bytes=0, disk=False)

    def __reduce__(self) -> tuple[Callable[[], PromptCache], tuple[()]]:
        return partial(PromptCache, **self._settings), ()

    @property
    def memory_bytes(self) -> int:
        """What finished prompts take."""
        with self._lock:
            return sum(text.nbytes + mask.nbytes for text, mask, _ in self._prompts.values())

    def clear(self) -> None:
        """Forget all that is in memory; files stay."""
        with self._lock:
            self._stamp = self._fingerprint = None
            self._prefixes.clear()
            self._prompts.clear()

    def prefix(
        self, text_encoder: TextEncoder, ids: Sequence[int], *, on_disk: bool
    ) -> Prefix | None:
        """Give what is kept of the tokens, computing it where need be; None: run them each time.

        ``on_disk``: whether these tokens are a model's own and may be kept as a file.
        """
        if not self._settings["prefixes"] or not ids:
            return None
        with self._lock:  # held while computing: who comes second waits instead of repeating it
            self._renew(text_encoder)
            key = tuple(ids)
            if key not in self._prefixes:
                files = self._prefix_files if on_disk else None
                self._prefixes[key] = self._made_prefix(text_encoder, key, files)
            self._prefixes.move_to_end(key)
            while len(self._prefixes) > MAX_PREFIXES:
                self._prefixes.popitem(last=False)
            return self._prefixes[key]

    def finished(
        self, text_encoder: TextEncoder, content: object, compute: Callable[[], Encoded]
    ) -> Encoded:
        """Give what ``compute`` gave for this content before, or run it now.

        What ran at once is kept whole: rows of another batch would differ from fresh ones by their
        rounding, and one seed has to give one picture. The tensors are the caller's own.
        """
        if not self._settings["prompt_bytes"] and self._prompt_files is None:
            return compute()
        key = _hash(repr(content))
        with self._lock:
            stamp = self._renew(text_encoder)
            if key in self._prompts:
                self._prompts.move_to_end(key)
                text, mask, device = self._prompts[key]
                return text.to(device, copy=True), mask.to(device, copy=True)
            file_key = self._file_key(text_encoder, key, self._prompt_files)
        found = self._read_prompt(file_key, text_encoder)
        text, mask = found or compute()
        with self._lock:
            # Not if somebody else changed the weights in the meantime.
            if self._renew(text_encoder) == stamp:
                self._keep_prompt(key, text, mask)
                if file_key and self._prompt_files and found is None:
                    self._prompt_files.write(file_key, {"text": text, "mask": mask})
        return text, mask

    def _renew(self, text_encoder: TextEncoder) -> Hashable:
        """Forget everything if the weights are others than before; give their stamp."""
        stamp = (text_encoder.moves, weights_stamp(text_encoder.llm))
        if stamp != self._stamp:
            self.clear()
            self._stamp = stamp
        return stamp

    def _made_prefix(
        self, text_encoder: TextEncoder, ids: tuple[int, ...], files: TensorCache | None
    ) -> Prefix | None:
        key = self._file_key(text_encoder, _hash(repr(ids)), files)
        if key and files and (tensors := files.read(key)):
            try:
                depth = depth_of(text_encoder.llm)
                return Prefix.from_tensors(tensors, length=len(ids), depth=depth)
            except WeightsError:
                pass  # somebody else's file under our name: made again, and written over
        made = text_encoder.read_prefix(ids)
        if made is not None and key and files:
            files.write(key, made.tensors())
        return made

    def _file_key(
        self, text_encoder: TextEncoder, content: str, files: TensorCache | None
    ) -> str | None:
        if files is None:
            return None
        if self._fingerprint is None:
            self._fingerprint = llm_fingerprint(text_encoder.llm)
        if self._fingerprint is None:
            return None
        return _hash(f"{STATES_VERSION} {self._fingerprint} {content}")

    def _read_prompt(self, key: str | None, text_encoder: TextEncoder) -> Encoded | None:
        tensors = self._prompt_files.read(key) if key and self._prompt_files else None
        if tensors is None or set(tensors) != {"text", "mask"}:
            return None
        device = text_encoder.device
        return tensors["text"].to(device), tensors["mask"].to(device)

    def _keep_prompt(self, key: str, text: Text, mask: TextMask) -> None:
        most = self._settings["prompt_bytes"]
        if text.nbytes + mask.nbytes > most:
            return
        # In the memory of the host: that of a device is for weights.
        own = text.detach().to("cpu", copy=True), mask.to("cpu", copy=True)
        self._prompts[key] = (*own, text.device)
        while self.memory_bytes > most:
            self._prompts.popitem(last=False)


def _files(root: Path | None, kind: str) -> TensorCache | None:
    return None if root is None else TensorCache(root / kind, max_bytes=DISK_BYTES)


def _hash(text: str) -> str:
    return sha256_of(text)
