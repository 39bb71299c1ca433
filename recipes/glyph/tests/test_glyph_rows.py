"""The rows of the mixture: interface, recoloured, clip art, furniture and avatars."""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recipes.glyph.data.attribution import attribution_text, credit_of
from recipes.glyph.data.captions import article
from recipes.glyph.data.colours import WORDS, dominant_colour
from recipes.glyph.data.emoji import plain_name
from recipes.glyph.data.iconify import read_collections
from recipes.glyph.data.nouns import read_nouns
from recipes.glyph.data.packages import (
    DICEBEAR,
    EMOJIBASE,
    ICONIFY,
    OPENCLIPART,
    SWEET_HOME,
    WORDNET,
    Package,
)
from recipes.glyph.data.rasterize import render_icon
from recipes.glyph.data.rows import avatars
from recipes.glyph.data.rows.all_rows import ROWS
from recipes.glyph.data.rows.avatar_words import avatar_parts, colour_word, skin_tone
from recipes.glyph.data.rows.avatars import AvatarRow, avatar_captions, avatar_icon
from recipes.glyph.data.rows.clipart import ClipartRow, is_gray
from recipes.glyph.data.rows.clipart_names import cleaned, wanted_folder
from recipes.glyph.data.rows.emoji import STYLES
from recipes.glyph.data.rows.everyday_nouns import NOUNS
from recipes.glyph.data.rows.furniture import CATALOG, FurnitureRow, item_name, read_properties
from recipes.glyph.data.rows.interface import PREFIXES as INTERFACE_SETS
from recipes.glyph.data.rows.interface import InterfaceRow, weather_name
from recipes.glyph.data.rows.recoloured import PREFIXES as PAINTED_SETS
from recipes.glyph.data.rows.recoloured import RecolouredRow
from recipes.glyph.data.rows.row import Art
from recipes.glyph.data.shades import SHADES
from recipes.glyph.data.suitable import is_brand, is_suitable

from sanakit.errors import DataError
from tiny_art import (
    deb_bytes,
    tar_bytes,
    write_emojibase,
    write_iconify,
    write_wordnet,
)

Sets = Mapping[str, Mapping[str, object]]


def archives_of(folder: Path, prefixes: tuple[str, ...], sets: Sets) -> dict[Package, Path]:
    whole: dict[str, Mapping[str, object]] = {prefix: {} for prefix in (*STYLES, *prefixes)}
    return {
        ICONIFY: write_iconify(folder / "icons.tgz", {**whole, **sets}),
        EMOJIBASE: write_emojibase(folder / "emoji.tgz"),
        WORDNET: write_wordnet(folder / "wordnet.tgz"),
    }


def test_the_rows_have_different_names_and_leave_a_fifth_to_composites() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) == 8
    assert sum(row.share for row in ROWS) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("name", "suitable"),
    [
        ("red apple", True), ("google drive", False), ("github", False), ("adobe logo", False),
        ("pokeball", False), ("pac man", False), ("steve jobs", False), ("vine", True),
        ("nazi flag", False), ("underwear", False), ("metaphor", True), ("grape", True),
    ],
)  # fmt: skip
def test_brands_characters_and_harm_stay_out_and_words_that_contain_them_do_not(
    name: str, suitable: bool
) -> None:
    assert is_suitable(name) is suitable
    assert not (is_brand(name) and suitable)


def test_the_noun_table_knows_plurals_heads_and_what_is_no_thing(tmp_path: Path) -> None:
    nouns = read_nouns(write_wordnet(tmp_path / "wordnet.tgz"))
    assert [nouns.kind(name) for name in ("otters", "wolves", "bakeries", "fire engine")] == [
        "animal", "animal", "artifact", "artifact"
    ]  # fmt: skip
    assert nouns.kind("overview") == ""
    assert nouns.head_kind("big otter with a hat of bread") == "animal"
    assert nouns.head_kind("overview of otters") == ""
    assert nouns.is_english("big otters with the hammer")
    assert not nouns.is_english("gatto with hat")


def test_an_archive_without_the_nouns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.tgz").write_bytes(tar_bytes({"package/dict/index.noun": b""}))
    with pytest.raises(DataError, match=r"data\.noun"):
        read_nouns(tmp_path / "other.tgz")


def test_a_set_under_a_licence_that_is_not_free_is_refused(tmp_path: Path) -> None:
    path = write_iconify(tmp_path / "icons.tgz", {"some": {}})
    some = read_collections(path, ["some"])["some"]
    assert credit_of(some, ICONIFY).licence == "MIT"
    with pytest.raises(DataError, match="is under CC-BY-NC"):
        credit_of(replace(some, licence="CC-BY-NC-4.0"), ICONIFY)


class TestInterface:
    def read(self, folder: Path, sets: Sets) -> list[Art]:
        return InterfaceRow().read(archives_of(folder, INTERFACE_SETS, sets))[0]

    def test_logos_brands_and_nameless_icons_are_dropped(self, tmp_path: Path) -> None:
        names = ("hammer-one", "apple", "github", "a", "3d", "otter")
        sets = {"icon-park": {"names": names, "categories": {"Brand": ["apple"]}}}
        found = {one.id for one in self.read(tmp_path, sets)}
        assert found == {"icon-park/hammer-one", "icon-park/otter"}

    def test_one_set_gives_each_of_its_styles_to_its_own_icons(self, tmp_path: Path) -> None:
        sets = {"streamline-color": {"names": ("hammer-2", "hammer-2-flat")}}
        art = self.read(tmp_path, sets)
        assert {one.id: one.style for one in art} == {
            "streamline-color/hammer-2": "violet", "streamline-color/hammer-2-flat": "violet-flat"
        }  # fmt: skip
        assert {one.concept for one in art} == {"hammer"}

    def test_things_outweigh_phrases_and_phrases_outweigh_actions(self, tmp_path: Path) -> None:
        sets = {"glyphs-poly": {"names": ("hammer", "big-hammer", "overview", "car-1", "car-2")}}
        weights = {one.id.split("/")[1]: one.weight for one in self.read(tmp_path, sets)}
        assert weights["hammer"] > weights["big-hammer"] > weights["overview"] > 0
        assert weights["car-1"] == weights["car-2"] == weights["hammer"] / 2

    def test_a_thing_has_an_article_and_an_action_has_none(self, tmp_path: Path) -> None:
        sets = {"glyphs-poly": {"names": ("automobile", "overview")}}
        art = {one.concept: one for one in self.read(tmp_path, sets)}
        assert art["car"].captions[0] == "an icon of a car"
        assert art["car"].cutout
        assert art["overview"].captions[0] == "an overview icon"
        assert not art["overview"].cutout

    @pytest.mark.parametrize(
        ("name", "english"),
        [
            ("partly cloudy night haze", "partly cloudy night with haze"),
            ("overcast rain", "overcast weather with rain"), ("fog night", "fog at night"),
            ("thunderstorms day snow", "thunderstorms by day with snow"),
            ("overcast day", "overcast day"), ("thermometer", "thermometer"),
        ],
    )  # fmt: skip
    def test_key_words_of_the_weather_become_english(self, name: str, english: str) -> None:
        assert weather_name(name) == english


class TestRecoloured:
    def read(self, folder: Path, sets: Sets) -> list[Art]:
        return RecolouredRow().read(archives_of(folder, PAINTED_SETS, sets))[0]

    def test_an_everyday_noun_is_painted_in_every_colour_in_every_style(
        self, tmp_path: Path
    ) -> None:
        sets = {"mdi": {"names": ("car",)}, "lucide": {"names": ("car",)}}
        art = self.read(tmp_path, sets)
        assert ("mdi", "car") in NOUNS["car"]
        for style in ("silhouette", "line"):
            assert {one.colour for one in art if one.style == style} == set(SHADES)
        assert {one.concept for one in art} == {"car"}
        assert all(one.shade in SHADES[str(one.colour)] for one in art)

    def test_other_nouns_are_painted_in_a_few_different_colours(self, tmp_path: Path) -> None:
        sets = {"game-icons": {"names": ("otter", "big-otter-hammer")}}
        art = self.read(tmp_path, sets)
        for concept, count in Counter(one.concept for one in art).items():
            colours = {one.colour for one in art if one.concept == concept}
            assert len(colours) == count == 5

    def test_brands_colours_numbers_and_what_is_no_thing_are_left_out(self, tmp_path: Path) -> None:
        names = (
            "otter",
            "overview",
            "otter-plus",
            "otter-2",
            "red-otter",
            "discord",
            "otter-sharp",
        )
        sets = {
            "mdi": {"names": ("teapot",), "categories": {"Brand / Logo": ["teapot"]}},
            "material-symbols": {"names": names},
        }
        assert {one.concept for one in self.read(tmp_path, sets)} == {"otter"}

    def test_literal_names_are_spoken_and_stand_in_no_composition(self, tmp_path: Path) -> None:
        sets = {"pinhead": {"names": ("otter-under-hammer",)}, "ph": {"names": ("otter-fill",)}}
        art = {one.concept: one for one in self.read(tmp_path, sets)}
        assert set(art) == {"otter", "otter under a hammer"}
        assert art["otter"].cutout
        assert not art["otter under a hammer"].cutout

    def test_the_colour_said_is_the_colour_drawn(self, tmp_path: Path) -> None:
        pytest.importorskip("resvg_py")
        for one in self.read(tmp_path, {"mdi": {"names": ("car",)}}):
            assert one.icon is not None
            picture = render_icon(one.icon, size=32, colour=one.shade)
            assert picture is not None
            assert dominant_colour(picture) == one.colour
            assert all(re.search(rf"\b{one.colour}\b", caption) for caption in one.captions)


METADATA = """<metadata xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:dc="http://purl.org/dc/elements/1.1/"><rdf:RDF><rdf:Work><dc:title>{title}</dc:title>
 <dc:subject><rdf:li>{keyword}</rdf:li></dc:subject>
 <license rdf:resource="http://web.resource.org/cc/{licence}"/></rdf:Work></rdf:RDF></metadata>"""


def drawing(
    title: str, *, keyword: str = "", licence: str = "PublicDomain", shape: str = "", fill: str = ""
) -> bytes:
    head = METADATA.format(title=title, keyword=keyword, licence=licence)
    rect = shape or f'<rect width="5" height="5" x="{sum(map(ord, title)) % 90}" fill="{fill}"/>'
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99">'
    return f"{svg}{head}{rect}</svg>".encode()


class TestClipart:
    def read(self, folder: Path, files: Mapping[str, bytes]) -> list[Art]:
        (folder / "clipart.deb").write_bytes(
            deb_bytes({f"usr/share/openclipart/svg/{path}.svg": d for path, d in files.items()})
        )
        rest = archives_of(folder, (), {})
        return ClipartRow().read({**rest, OPENCLIPART: folder / "clipart.deb"})[0]

    def test_a_name_comes_from_title_file_key_word_or_folder_in_this_order(
        self, tmp_path: Path
    ) -> None:
        art = self.read(
            tmp_path,
            {
                "food/x_ganson": drawing("Big Teapot (Whole)", fill="#f00"),
                "tools/hammer_01": drawing("Clipart by Ann - set", fill="#f00"),
                "animals/y": drawing("Qwertz", keyword="otter", fill="#f00"),
                "animals/birds/z": drawing("Zxcv", keyword="unsorted", fill="#f00"),
                "animals/cavallo_architetto_01": drawing("Cavallo", fill="#f00"),
                "misc/w": drawing("Zzxcv", fill="#f00"),
            },
        )
        assert {one.id.rsplit("/", 1)[1]: one.concept for one in art} == {
            "x_ganson": "big teapot", "hammer_01": "hammer", "y": "otter", "z": "bird",
            "cavallo_architetto_01": "horse",
        }  # fmt: skip
        sure = {one.concept for one in art if one.weight == 1}
        assert sure == {"big teapot", "hammer", "horse"}

    def test_only_the_public_domain_enters_and_each_drawing_once(self, tmp_path: Path) -> None:
        files = {
            "a/one": drawing("Teapot", fill="#f00"),
            "a/two": drawing("Teapot", fill="#f00"),
            "a/three": drawing("Hammer", licence="GPL", fill="#f00"),
            "a/four": drawing("Otter", shape="<image href='x.png'/>"),
            "shapes/stars/five": drawing("Star", fill="#f00"),
        }
        assert [one.id for one in self.read(tmp_path, files)] == ["openclipart/a/one"]

    def test_a_drawing_without_hues_is_black_and_white_and_says_no_colour(
        self, tmp_path: Path
    ) -> None:
        files = {
            "a/ink": drawing("Teapot", fill="#777"),
            "a/red": drawing("Hammer", fill="#f00"),
            "a/said": drawing("Otter (B and W)", fill="#f00"),
        }
        found = {one.concept: one for one in self.read(tmp_path, files)}
        assert [found[name].style for name in ("teapot", "hammer", "otter")] == [
            "ink", "clipart", "ink"
        ]  # fmt: skip
        assert found["teapot"].colour is None
        assert found["hammer"].colour == ""

    def test_gray_is_told_by_every_hex_colour_and_name(self) -> None:
        assert is_gray('fill="#777777" stroke="#ABC" style="color:white"') is False
        assert is_gray('fill="#777777" stroke="#888"')
        assert not is_gray('fill="red"')

    def test_titles_are_bared_of_numbers_and_authors(self) -> None:
        assert cleaned("Tulips_in_Bloom 02 (B and W)") == "tulips in bloom"
        assert cleaned("simple_house_icon_ganson") == "house"
        assert not wanted_folder("signs_and_symbols/flags/africa")
        assert wanted_folder("animals/birds")


def sh3f(*items: tuple[str, str, str]) -> bytes:
    """A catalogue with these names, categories and creators, each with a picture of its own."""
    lines, buffer = ["id=some"], io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, (name, category, creator) in enumerate(items, start=1):
            lines += [f"name#{number}={name}", f"category#{number}={category}"]
            lines += [f"icon#{number}=/x/{number}.png", f"creator#{number}={creator}"]
            png = io.BytesIO()
            Image.fromarray(np.full((4, 4, 4), number, np.uint8)).save(png, "PNG")
            archive.writestr(f"x/{number}.png", png.getvalue())
        archive.writestr(CATALOG, "\n".join(lines).encode("latin-1"))
    return buffer.getvalue()


class TestFurniture:
    def read(self, folder: Path, catalogue: bytes) -> tuple[list[Art], str]:
        name = "usr/share/sweethome3d/furniture/BlendSwap-CC-BY.sh3f"
        (folder / "furniture.deb").write_bytes(deb_bytes({name: catalogue}))
        emojibase = write_emojibase(folder / "emoji.tgz")
        packages = {SWEET_HOME: folder / "furniture.deb", EMOJIBASE: emojibase}
        art, credits = FurnitureRow().read(packages)
        return art, attribution_text(credits, Counter(one.source for one in art))

    def test_models_have_their_names_pictures_and_authors(self, tmp_path: Path) -> None:
        items = (("Iron bed (2)", "Bedroom", "Ann"), ("Female", "Characters", "B\\u00e9a"))
        art, text = self.read(tmp_path, sh3f(*items))
        assert [one.concept for one in art] == ["iron bed", "woman"]
        assert [one.colour for one in art] == ["", None]
        assert art[0].cutout
        assert not art[1].cutout
        assert art[0].encoded.startswith(b"\x89PNG")
        assert "- Iron bed (2) by Ann" in text
        assert "- Female by Béa" in text
        assert "CC-BY-3.0" in text

    def test_brands_of_models_are_dropped(self, tmp_path: Path) -> None:
        art, text = self.read(tmp_path, sh3f(("iPad", "x", "Ann"), ("Chair", "x", "Ann")))
        assert [one.concept for one in art] == ["chair"]
        assert "iPad" not in text

    @pytest.mark.parametrize("content", [b"no zip", sh3f()[:-30]])
    def test_a_damaged_catalogue_is_named(self, tmp_path: Path, content: bytes) -> None:
        with pytest.raises(DataError, match="BlendSwap-CC-BY in the furniture package"):
            self.read(tmp_path, content)

    def test_entries_keep_the_order_of_the_file(self) -> None:
        found = read_properties(b"# x\nname#10=B\nname#2 : A\nicon#10=/i.png\nname=none\n")
        assert found == [{"name": "B", "icon": "/i.png"}, {"name": "A"}]
        assert item_name("Mp3 base 12") == "mp3 base"


CORE_JS = """export function createAvatar(style, options) {
  return { toJson: () => ({ svg: style.draw(options), extra: { hair: 'short01',
    hairColor: '#3eac2c', skinColor: '#ffdbb4', seed: options.seed } }) };
}"""
STYLE_JS = """export const meta = { title: 'T', creator: 'Ann', source: '', homepage: 'h',
  license: { name: 'CC0 1.0', url: 'u' } };
export const draw = (o) => `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4" fill="none">
<metadata>Ann</metadata><rect width="${o.seed}" height="3"/></svg>`;"""


class TestAvatars:
    def archives(self, folder: Path, style: str = STYLE_JS) -> dict[Package, Path]:
        found = {}
        for name, package in DICEBEAR.items():
            code = CORE_JS if name == "core" else style
            files = {
                "package/lib/index.js": code.encode(),
                "package/package.json": b'{"type": "module", "exports": "./lib/index.js"}',
                f"package/{'../' * 20}{str(folder)[1:]}/evil.js": b"",
            }
            found[package] = folder / package.filename
            found[package].write_bytes(tar_bytes(files))
        return found

    def test_every_style_gives_its_avatars_and_thanks_its_author(self, tmp_path: Path) -> None:
        if shutil.which("node") is None:
            pytest.skip("Node.js is not installed")
        row = AvatarRow(count=30)
        art, credits = row.read(self.archives(tmp_path))
        assert Counter(one.style for one in art) == row.counts()
        assert len({one.id for one in art}) == len(art)
        assert {(credit.author, credit.licence) for credit in credits} == {("Ann", "CC0 1.0")}
        first = next(one for one in art if one.id == "dicebear-pixel-art/0")
        assert first.captions[0] == "a person with short green hair"
        assert first.icon is not None
        assert first.icon.canvas == (0, 0, 4, 4)
        assert "Ann" not in first.icon.body
        assert not (tmp_path / "evil.js").exists()

    def test_a_script_that_fails_is_reported_with_its_last_words(self, tmp_path: Path) -> None:
        if shutil.which("node") is None:
            pytest.skip("Node.js is not installed")
        broken = STYLE_JS.replace("`<svg", "o.none.x + `<svg")
        with pytest.raises(DataError, match="ended with status 1"):
            AvatarRow(count=3).read(self.archives(tmp_path, broken))

    def test_without_node_the_hint_says_what_to_install_or_leave_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(avatars.shutil, "which", lambda name: None)
        with pytest.raises(DataError, match="not installed") as raised:
            AvatarRow().read({})
        assert raised.value.hint is not None
        assert "--without avatars" in raised.value.hint

    def test_about_as_many_avatars_as_asked_are_drawn(self) -> None:
        for count in (300, 30_000):
            counts = AvatarRow(count=count).counts()
            assert sum(counts.values()) == pytest.approx(count, rel=0.01)
            assert set(counts) == set(DICEBEAR) - {"core"}

    def test_captions_say_what_the_attributes_say(self) -> None:
        extra = {
            "hair": "curlyBun", "hairColor": "#6c4545", "eyes": "sunglasses", "mouth": "bigSmile",
            "body": "checkered", "clothingColor": "#e24553", "skinColor": "#623d36",
        }  # fmt: skip
        assert avatar_parts("personas", extra) == {
            "hair": ["curly brown hair in a bun"], "glasses": ["sunglasses"],
            "look": ["a big smile"], "wear": ["a checkered red shirt"], "skin": ["dark skin"],
        }  # fmt: skip
        concept, captions = avatar_captions("personas", extra, key="k")
        assert concept == "person with curly brown hair in a bun and sunglasses"
        assert captions[0] == f"{article(concept)}, wearing a checkered red shirt"
        assert 3 <= len(captions) <= 5
        assert not any("background" in caption for caption in captions)

    def test_values_that_are_only_numbers_are_not_spoken_of(self) -> None:
        extra = {"eyes": "variant07", "mouth": "variant30", "hair": "long09", "hairColor": "#x"}
        assert avatar_parts("adventurer", extra) == {"hair": ["long hair"]}

    def test_an_article_fits_the_colour_that_follows_it(self) -> None:
        extra = {"hair": "mohawk", "hairColor": "#d56c0c", "accessories": "sleepMask"}
        assert avatar_parts("big-smile", extra)["hair"] == ["an orange mohawk"]

    def test_figures_without_a_person_have_the_colour_of_their_face(self) -> None:
        extra = {"primaryBackgroundColor": "#059ff2", "eyes": "shades", "mouth": "wideSmile"}
        concept, _ = avatar_captions("fun-emoji", extra, key="k")
        assert concept == "blue emoji face with sunglasses"

    def test_skin_tones_go_from_light_to_dark_with_the_luma(self) -> None:
        grays = [skin_tone(f"#{value:02x}{value:02x}{value:02x}") for value in range(255, -1, -5)]
        assert list(dict.fromkeys(grays)) == [
            "light skin", "medium-light skin", "medium skin", "medium-dark skin", "dark skin"
        ]  # fmt: skip
        assert skin_tone("transparent") == ""

    def test_colours_without_a_word_of_their_own_have_a_basic_word_or_none(self) -> None:
        assert colour_word("#ff0000", "wear") == "red"
        assert colour_word("#b58143", "hair") == "light brown"
        assert colour_word("#40e0d0", "wear") in ("", *WORDS)
        assert colour_word("transparent", "wear") == ""

    def test_a_document_of_another_form_is_refused(self) -> None:
        with pytest.raises(DataError, match="no SVG document"):
            avatar_icon("x", "<html/>")


def test_names_with_accents_and_marks_are_plain_words() -> None:
    assert plain_name("Wi-Fi & Co.") == "wi fi and co"
