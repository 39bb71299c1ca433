"""The text that thanks the authors of all art in a data set, as their licences ask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from recipes.glyph.data.iconify import Collection
from recipes.glyph.data.packages import EMOJIBASE, FLUENT_3D, WORDNET, Package
from recipes.glyph.data.suitable import LICENCES
from sanakit.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Credit:
    """Whose work a source is and under which terms; links may be empty.

    ``works`` are single works with their authors, where the authors of a source differ.
    """

    source: str
    title: str
    author: str
    author_url: str
    licence: str
    licence_url: str
    package: Package
    works: tuple[str, ...] = ()


def credit_of(collection: Collection, package: Package) -> Credit:
    """The credit for an icon set.

    Raises:
        DataError: its licence is not one of those that leave the pictures free to share.
    """
    if collection.licence not in LICENCES:
        raise DataError(
            f"icon set {collection.prefix!r} is under {collection.licence}",
            hint=f"the set is made of works under {', '.join(sorted(LICENCES))}",
        )
    return Credit(
        source=collection.prefix,
        title=collection.title,
        author=collection.author,
        author_url=collection.author_url,
        licence=collection.licence,
        licence_url=collection.licence_url,
        package=package,
    )


def _link(text: str, url: str) -> str:
    return f"[{text}]({url})" if url else text


def attribution_text(credits: Iterable[Credit], counts: Mapping[str, int]) -> str:
    """A Markdown page that names the author, the licence and the links of each source.

    ``counts`` are pictures by source; a source with none has given only text.
    """
    credits = list(credits)
    lines = [
        "# Attribution",
        "",
        "The pictures in this folder were rendered from the works below, scaled and centred;",
        "drawings of one colour were also repainted. Authors, licences and links are as stated",
        "by the packages they came in.",
        "",
        "| source | work | author | licence | pictures | package |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.source} | {one.title} | {_link(one.author, one.author_url)} "
        f"| {_link(one.licence, one.licence_url)} | {counts.get(one.source, 0) or 'text only'} "
        f"| {one.package.name} {one.package.version} |"
        for one in credits
    ]
    for one in credits:
        if one.works:
            lines += ["", f"## {one.title}", "", *(f"- {work}" for work in one.works)]
    return "\n".join(lines) + "\n"


# The two packages that are not icon sets, as their own package.json and LICENSE state.
FLUENT_3D_CREDIT = Credit(
    source="fluent-emoji-3d",
    title="Fluent Emoji 3D, renderings of Microsoft's Fluent Emoji",
    author="LobeHub and Microsoft Corporation",
    author_url="https://github.com/lobehub/fluent-emoji",
    licence="MIT",
    licence_url="https://github.com/lobehub/fluent-emoji/blob/master/LICENSE",
    package=FLUENT_3D,
)
EMOJIBASE_CREDIT = Credit(
    source="emojibase",
    title="Emojibase data: labels and tags used in captions",
    author="Miles Johnson",
    author_url="https://github.com/milesj/emojibase",
    licence="MIT",
    licence_url="",
    package=EMOJIBASE,
)
WORDNET_CREDIT = Credit(
    source="wordnet",
    title="WordNet 3.1: which names are nouns for things",
    author="Princeton University",
    author_url="https://wordnet.princeton.edu",
    licence="WordNet License",
    licence_url="https://wordnet.princeton.edu/license-and-commercial-use",
    package=WORDNET,
)
