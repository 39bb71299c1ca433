"""Dictionary lines become sentences; tarballs that are not the pinned one are never opened."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from recipes.glyph.data import corpus
from recipes.glyph.data.corpus import entry_text, read_captions, read_wordnet

from sanakit.errors import DataError

# Lines in the format of wndb(5WN), with invented words.
BLICK = (
    "00000001 06 n 02 blick 0 round_blick 0 001 @ 00000002 n 0000 | (tools) a `hat' for Cups; \"he"
    ' wore a Blick."; "blick of the day!"  '
)
LINES = {
    "noun": [
        "  1 The licence of the database  ",
        BLICK,
        "00000003 05 n 01 Blickus 0 001 @ 00000002 n 0000 | a bird",
        "00000004 15 n 01 Blickton 0 001 @i 00000002 n 0000 | a town",
        "00000005 05 n 02 Wug 0 genus_Wug 0 001 @ 00000002 n 0000 | some birds",
        "00000006 05 n 02 Wuggus 0 apple_wug 0 001 @ 00000002 n 0000 | a bird; eats apples",
    ],
    "verb": ["00000007 29 v 02 zup 0 zap 1 001 @ 00000001 v 0000 01 + 02 00 | move a lot"],
    "adj": ['00000008 00 s 01 dax(p) 0 000 | "dax people"'],
    "adv": ["00000009 02 r 01 daxly 0 000 | in a dax manner; "],
}
TEXTS = [
    "a blick or round blick is a 'hat' for cups. he wore a blick. blick of the day!.",
    "blickus is a bird.",
    "an apple wug is a bird; eats apples.",
    "to zup or zap is to move a lot.",
    "dax. dax people.",
    "daxly means in a dax manner.",
]


def tarball(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def dictionary() -> dict[str, bytes | tarfile.TarInfo]:
    return {
        f"package/dict/data.{part}": ("\n".join(lines) + "\n").encode()
        for part, lines in LINES.items()
    }


def pin(monkeypatch: pytest.MonkeyPatch, path: Path) -> Path:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(corpus, "WORDNET_SHA256", digest)
    return path


def test_entries_become_lower_case_sentences_without_individuals_and_taxa(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pin(monkeypatch, tarball(tmp_path / "w.tgz", dictionary()))
    assert read_wordnet(package) == TEXTS


def test_an_entry_names_at_most_four_of_its_words() -> None:
    words = " ".join(f"w{index} 0" for index in range(11))
    assert entry_text(f"1 06 n 0b {words} 000 | a thing") == "a w0 or w1 or w2 or w3 is a thing."


def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    package = tarball(tmp_path / "w.tgz", dictionary())
    with pytest.raises(DataError, match="sha256"):
        read_wordnet(package)
    with pytest.raises(DataError, match="no such file"):
        read_wordnet(tmp_path / "absent.tgz")


def test_a_link_in_place_of_a_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tarfile.TarInfo("package/dict/data.noun")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    members = {**dictionary(), "package/dict/data.noun": link}
    package = pin(monkeypatch, tarball(tmp_path / "w.tgz", members))
    with pytest.raises(DataError, match="not a regular file"):
        read_wordnet(package)


def test_a_member_that_is_absent_or_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = dictionary()
    del members["package/dict/data.adv"]
    with pytest.raises(DataError, match=r"no package/dict/data\.adv"):
        read_wordnet(pin(monkeypatch, tarball(tmp_path / "a.tgz", members)))
    monkeypatch.setattr(corpus, "_MAX_BYTES", 20)
    with pytest.raises(DataError, match="at most 20 bytes"):
        read_wordnet(pin(monkeypatch, tarball(tmp_path / "b.tgz", dictionary())))


def test_captions_come_once_plain_and_once_on_a_background(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    rows = [{"captions": ["A Cat ", "a cat, icon"]}, {"captions": ["a cat", ""], "other": 1}]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, *rest = read_captions(records)
    assert first == "a cat"
    assert rest[0] == "a cat, on a white background"
    assert rest[1:] == ["a cat, icon", "a cat, icon, on a pale yellow background"]


@pytest.mark.parametrize("line", ["not json", "[]", '{"captions": [1]}', '{"caption": "a"}'])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text('{"captions": ["a"]}\n' + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        read_captions(records)
    with pytest.raises(DataError, match="no such file"):
        read_captions(tmp_path / "absent.jsonl")
