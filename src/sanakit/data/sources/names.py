"""File names: which are pictures, which are safe, and which read as a caption."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path, PurePosixPath

from sanakit.errors import DataError


def listed(text: str) -> tuple[str, ...]:
    """The words of a text: a long list of names in few lines."""
    return tuple(text.split())


# What Pillow may read.
PICTURES = frozenset(listed(".png .jpg .jpeg .jpe .jfif .webp .bmp .tif .tiff .gif .avif"))
# Seen among pictures and refused by name, so that a phone's folder does not shrink silently.
FOREIGN = frozenset(
    listed(
        ".heic .heif .jxl .jp2 .svg .psd .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .pdf .mp4"
        " .mov .avi .mkv .webm .zip .tar .tgz .gz .7z .rar"
    )
)
_DRIVE = re.compile(r"[A-Za-z]:")
# A name that starts so was given by a device or a program; the others say nothing by themselves.
_DEVICES = frozenset(
    listed(
        "img dsc dscn dscf dcim pxl vid mvimg screenshot untitled unnamed download whatsapp"
        " snapchat signal fb received"
    )
)
_EMPTY = frozenset(
    listed(
        "photo image images picture pic frame file scan screen output sample capture render copy"
        " thumb thumbnail tmp temp final edit edited"
    )
)


def ending(name: str) -> str:
    """The last ending of a name in small letters, with its dot."""
    return os.path.splitext(name)[1].lower()


def without_ending(name: str) -> str:
    """The name up to its last ending."""
    return os.path.splitext(name)[0]


def is_hidden(name: str) -> bool:
    """Whether a name is a system's own bookkeeping: hidden, or left by macOS and NAS devices."""
    return name.startswith((".", "__MACOSX", "@eaDir"))


def safe_name(name: str) -> str:
    """A relative name with "/" between its parts and without ".".

    Raises:
        DataError: it is empty, absolute, leads upwards, is not Unicode or holds what another
            system takes for a separator.
    """
    parts = name.split("/")
    if not name.strip("/.") or name.startswith("/") or _DRIVE.match(name):
        problem = "is not a relative path to a file"
    elif ".." in parts:
        problem = 'leads upwards through ".."'
    elif "\0" in name or "\\" in name:
        problem = "holds a backslash or a zero byte"
    elif not is_unicode(name):
        problem = "is not UTF-8"
    else:
        return "/".join(part for part in parts if part not in ("", "."))
    raise DataError(f"unsafe name: {shown(name)} {problem}", hint="rename it")


def is_unicode(text: str) -> bool:
    """Whether text can be written as UTF-8: bytes that were none become lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(name: str) -> str:
    """A name that can be printed and stored, whatever bytes it had."""
    return name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def path_inside(root: Path, name: str) -> Path:
    """The real path of a file below ``root``, links followed.

    Raises:
        DataError: the name is unsafe or a link leads out of ``root``.
    """
    base = os.path.realpath(root)
    real = os.path.realpath(os.path.join(base, safe_name(name)))
    if os.path.commonpath([base, real]) != base:
        raise DataError(
            f"unsafe name: {shown(name)} is a link that leads out of {root}",
            hint=f"make a copy with the files themselves: cp -rL {root} COPY",
        )
    return Path(real)


def words_of(name: str) -> str:
    """A file name as words ("red_apple-2.jpg" gives "red apple"); "" if it does not read as such.

    Names of cameras, numbers, hashes and the like give "".
    """
    stem = unicodedata.normalize("NFC", without_ending(PurePosixPath(name).name))
    stem = re.sub(r"\(\d+\)", " ", stem)
    stem = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
    words = [word for word in re.split(r"[\s_\-+.,]+", stem) if word and not word.isdigit()]
    if not words or words[0].lower() in _DEVICES:
        return ""
    kinds = [_reads_as(word) for word in words]
    return " ".join(words) if "word" in kinds and "noise" not in kinds else ""


def _reads_as(word: str) -> str:
    """One of "word", "short" (an article, initials, a word that says nothing) and "noise"."""
    letters = word.replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", "")
    if not letters.isalpha():
        return "noise"
    if word.lower() in _EMPTY:
        return "short"
    if not letters.isascii():
        return "word"
    if len(letters) >= 3 and re.search("[aeiouy]", letters.lower()) and len(letters) <= 20:
        return "word"
    return "short" if len(letters) <= 2 or (letters.isupper() and len(letters) <= 4) else "noise"
