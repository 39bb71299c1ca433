"""Tiny archives of the kinds art comes in: .tgz, .deb, and what is inside them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10">{}</svg>'
SQUARE = '<rect width="10" height="10" fill="currentColor"/>'


def tar_bytes(files: Mapping[str, bytes], mode: str = "w:gz", links: tuple[str, ...] = ()) -> bytes:
    """A tar archive, packed as ``mode`` says, with symbolic links to /etc/passwd at ``links``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    return buffer.getvalue()


def ar_bytes(members: Mapping[str, bytes]) -> bytes:
    """An ar archive, as deb(5) lays it out."""
    parts = [b"!<arch>\n"]
    for name, data in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}".encode() + b"`\n"
        parts += [header, data, b"\n" * (len(data) % 2)]
    return b"".join(parts)


def deb_bytes(files: Mapping[str, bytes], packing: str = "xz") -> bytes:
    """A Debian package with these files."""
    data = tar_bytes({f"./{name}": content for name, content in files.items()}, f"w:{packing}")
    return ar_bytes({"debian-binary": b"2.0", "control.tar.xz": b"c", f"data.tar.{packing}": data})


def write_iconify(path: Path, sets: Mapping[str, Mapping[str, object]]) -> Path:
    """An archive of icon sets; a set may say ``names``, ``chars``, ``aliases`` and ``categories``.

    Every icon is a square of the current colour.
    """
    files: dict[str, bytes] = {}
    infos: dict[str, object] = {}
    for prefix, given in sets.items():
        names = given.get("names", ())
        assert isinstance(names, tuple)
        icons = {name: {"body": SQUARE} for name in names}
        rest = {key: value for key, value in given.items() if key != "names"}
        data = {"icons": icons, "width": 10, "height": 10, **rest}
        files[f"package/json/{prefix}.json"] = json.dumps(data).encode()
        infos[prefix] = {
            "name": prefix.title(), "author": {"name": "Ann"}, "license": {"title": "MIT"}
        }  # fmt: skip
    files["package/collections.json"] = json.dumps(infos).encode()
    path.write_bytes(tar_bytes(files))
    return path


_EMOJI = (
    ("1F34E", "red apple", 4, ("fruit",)), ("1F697", "automobile", 5, ("car",)),
    ("1F401", "mouse", 3, ("animal",)), ("1F512", "locked", 7, ("lock",)),
    ("1F1EF-1F1F5", "flag: Japan", 9, ()), ("1F1FA-1F1F8", "flag: United States", 9, ()),
)  # fmt: skip


def write_emojibase(path: Path) -> Path:
    """An archive of six characters and of a waving hand in six skin tones and one pair."""
    groups = {1: "people & body", 3: "animals & nature", 4: "food & drink"}
    groups |= {5: "travel & places", 7: "objects", 9: "flags"}
    entries: list[dict[str, object]] = [
        {
            "hexcode": code, "emoji": "x" * 2, "label": label, "tags": list(tags), "group": group,
            "subgroup": group,
        }
        for code, label, group, tags in _EMOJI
    ]  # fmt: skip
    tones: list[object] = [1, 2, 3, 4, 5, [1, 5]]
    skins = [
        {"hexcode": f"1F44B-{tone}", "emoji": "xx", "label": f"waving hand: {tone}", "tone": tone}
        for tone in tones
    ]
    wave = {"hexcode": "1F44B", "emoji": "xx", "label": "waving hand", "tags": ["hello"]}
    entries.append({**wave, "group": 1, "subgroup": 1, "skins": skins})
    messages = {
        "groups": [{"order": order, "message": message} for order, message in groups.items()],
        "subgroups": [
            {"order": order, "message": "country flags" if order == 9 else "things"}
            for order in groups
        ],
    }
    short = {"1F697": ["car", "red_car"], "1F401": "mouse2"}
    files = {
        "package/en/data.json": entries,
        "package/en/messages.json": messages,
        "package/en/shortcodes/some.json": short,
    }
    path.write_bytes(tar_bytes({name: json.dumps(data).encode() for name, data in files.items()}))
    return path


_NOUNS = {
    "otter": 5, "hammer": 6, "horse": 5, "wolf": 5, "bakery": 6, "cherry": 20, "overview": 10,
    "fire_engine": 6, "bread": 13, "star": 17, "hat": 6, "cat": 5, "car": 6, "teapot": 6,
}  # fmt: skip


def write_wordnet(path: Path) -> Path:
    """An archive of a few nouns, each with one sense, and of a few other words."""
    licence = "  1 This is a licence  \n"
    index, data = licence, licence
    for number, (lemma, kind) in enumerate(_NOUNS.items()):
        index += f"{lemma} n 1 2 @ ~ 1 0 {number:08d}  \n"
        data += f"{number:08d} {kind:02d} n 01 {lemma} 0 000 | a {lemma}  \n"
    files = {
        "package/dict/index.noun": index,
        "package/dict/data.noun": data,
        "package/dict/index.adj": licence + "big a 1 0 1 0 00000001  \n",
        "package/dict/index.adv": licence,
        "package/dict/index.verb": licence,
    }
    path.write_bytes(tar_bytes({name: text.encode() for name, text in files.items()}))
    return path
