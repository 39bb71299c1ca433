"""The report as one HTML page that needs no other file, and the contact sheet beside it.

Everything that comes from a set is escaped: captions and names of files may hold HTML.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from sanakit.data.report.facts import CaptionerFacts, Facts, Refused, gather
from sanakit.data.report.plots import bars, binned, histogram
from sanakit.data.report.sheet import Shown, contact_sheet, jpeg, png, show_samples
from sanakit.data.shards import Index
from sanakit.data.training_set import REPORT, TrainingSet
from sanakit.data.units import clear_leftovers
from sanakit.files import write_atomically

PAGE, SHEET = "index.html", "contact-sheet.png"
_SIDES = (0, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_RATIOS = ((1, 4), (1, 3), (1, 2), (9, 16), (2, 3), (3, 4), (1, 1), (4, 3), (3, 2), (16, 9), (2, 1),
           (3, 1), (4, 1))  # fmt: skip
_SHARES = (0.05, 0.5, 0.95)
_STYLE = """
:root{color-scheme:light dark;--ink:#1d1d22;--faint:#6c6c78;--line:#dcdce4;--fill:#4a6fa5;--bg:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8ee;--faint:#9a9aa8;--line:#3a3a44;
--fill:#7fa3d8;--bg:#17171b}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--bg);max-width:1000px;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}
p,.faint{color:var(--faint)}p{margin:.2rem 0 .8rem}
dl{display:flex;flex-wrap:wrap;gap:.6rem 2.2rem;margin:1rem 0}
dt{color:var(--faint);font-size:.85rem}dd{margin:0;font-size:1.35rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.25rem .8rem .25rem 0;
border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
th{font-weight:500;color:var(--faint)}.n{text-align:right;white-space:nowrap}
svg{width:100%;max-width:640px;height:auto;display:block}svg rect{fill:var(--fill)}
svg text{font:11px system-ui,sans-serif;fill:var(--ink)}svg line{stroke:var(--line)}
.sheet{display:flex;flex-wrap:wrap;gap:1rem .8rem}
figure{margin:0;width:150px}figure img{max-width:100%;display:block}
figcaption{font-size:.8rem;overflow-wrap:anywhere;margin-top:.3rem}
"""


def write_report(training_set: TrainingSet, *, choose: int = 24) -> Path:
    """Write `report/index.html` and `report/contact-sheet.png`; gives the path of the page.

    The pictures shown are those of the shards, and of the source where none are built yet. The
    same set gives the same bytes.

    Raises:
        DataError: the scan is not finished, a file is damaged, or the disk refuses.
    """
    facts = gather(training_set, choose=choose)
    shown = show_samples(facts.chosen, training_set, facts.index)
    folder = training_set.folder / REPORT
    folder.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)
    write_atomically(folder / SHEET, png(contact_sheet(shown)))
    write_atomically(folder / PAGE, page(facts, shown).encode("utf-8", "backslashreplace"))
    return folder / PAGE


def page(facts: Facts, shown: Sequence[Shown]) -> str:
    """The whole page."""
    sections = (
        _headline(facts),
        _sheet(facts, shown),
        _buckets(facts.index),
        _sizes(facts),
        _captions(facts),
        _scores(facts),
        _left_out(facts),
        _licences(facts),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        # Nothing is fetched and nothing runs, whatever a caption holds.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(facts.name)}</title><style>{_STYLE}</style></head><body>"
        f"{''.join(sections)}</body></html>\n"
    )


def _headline(facts: Facts) -> str:
    numbers = {
        "pictures": f"{facts.samples:,}",
        "left out": f"{facts.refused:,}",
        "of these duplicates": f"{facts.duplicates:,}",
        "captions": f"{facts.captions:,}",
        "pictures without captions": f"{facts.without_captions:,}",
    }
    if facts.index is not None:
        numbers["enlarged to their bucket"] = f"{facts.enlarged:,}"
        size = sum(shard.bytes for shard in facts.index.shards)
        numbers[f"in {len(facts.index.shards):,} shards"] = _bytes(size)
    items = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in numbers.items()
    )
    return (
        f"<h1>{_text(facts.name)}</h1><p>pictures from {_text(facts.source)}</p><dl>{items}</dl>"
        + ("" if facts.index else "<p>No shards are built yet: sanakit data build SET</p>")
    )


def _sheet(facts: Facts, shown: Sequence[Shown]) -> str:
    if not shown:
        return ""
    figures = []
    for one in shown:
        picture = '<span class="faint">cannot be read</span>'
        if one.picture is not None:
            code = base64.b64encode(jpeg(one.picture)).decode()
            picture = f'<img alt="" src="data:image/jpeg;base64,{code}">'
        captions = "<br>".join(_text(caption.text) for caption in one.sample.captions[:3])
        size = f"{one.sample.height} x {one.sample.width}"
        if one.bucket is not None:
            size += f" in {one.bucket[0]} x {one.bucket[1]}"
        figures.append(
            f"<figure>{picture}<figcaption>{captions or '<i>no caption</i>'}"
            f'<div class="faint">{_text(one.sample.id)}, {size}</div></figcaption></figure>'
        )
    return (
        f"<h2>{len(shown)} pictures, drawn at random</h2>"
        f'<div class="sheet">{"".join(figures)}</div>'
    )


def _buckets(index: Index | None) -> str:
    if index is None:
        return ""
    counts = [
        (f"{height} x {width}", sum(shard.samples for shard in shards), shards)
        for (height, width), shards in index.buckets.items()
    ]
    rows = [
        (name, f"{number:,}", f"{number / index.samples:.1%}", f"{len(shards):,}",
         _bytes(sum(shard.bytes for shard in shards)))
        for name, number, shards in counts
    ]  # fmt: skip
    return (
        f"<h2>Buckets at {index.resolution} px, height x width</h2>"
        + bars([(name, number) for name, number, _ in counts], label="pictures by bucket")
        + _table(("bucket", "pictures", "share", "shards", "size"), rows, numbers=(1, 2, 3, 4))
    )


def _sizes(facts: Facts) -> str:
    sides: Counter[int] = Counter()
    for side, count in facts.sides.items():
        sides[max(edge for edge in _SIDES if edge <= side)] += count
    used = [edge for edge in _SIDES if min(sides, default=0) <= edge <= max(sides, default=0)]
    return (
        "<h2>Sizes of the pictures as they came</h2><p>Shorter side, from ... px</p>"
        + histogram([(str(edge), sides[edge]) for edge in used], label="shorter side in px")
        + "<p>Width to height, the nearest of</p>"
        + histogram(_named_ratios(facts.ratios), label="width to height")
    )


def _named_ratios(ratios: Counter[float]) -> list[tuple[str, int]]:
    """Pictures by the nearest of the ratios that people have names for."""
    counts: Counter[tuple[int, int]] = Counter()
    for ratio, count in ratios.items():
        tall = math.log(max(ratio, 0.01))
        counts[min(_RATIOS, key=lambda one: abs(math.log(one[1] / one[0]) - tall))] += count
    used = [number for number, one in enumerate(_RATIOS) if counts[one]]
    shown = _RATIOS[min(used, default=0) : max(used, default=0) + 1]
    return [(f"{width}:{height}", counts[width, height]) for width, height in shown]


def _captions(facts: Facts) -> str:
    if not facts.captioners:
        return "<h2>Captions</h2><p>There are none; training sees the empty prompt only.</p>"
    words: Counter[int] = Counter()
    for captioner in facts.captioners.values():
        words.update(captioner.words)
    rows = [
        (_text(name), f"{one.captions:,}", f"{one.captions / max(1, facts.samples):.0%}",
         _quantiles(one.words), _scores_of(one))
        for name, one in facts.captioners.items()
    ]  # fmt: skip
    heads = ("captioner", "captions", "of pictures", "words: 5%, half, 95%", "score: mean")
    return (
        "<h2>Captions</h2>"
        + _table(heads, rows, numbers=(1, 2, 3, 4), safe=True)
        + "<p>Words of a caption</p>"
        + histogram(binned(words), label="words of a caption")
    )


def _scores(facts: Facts) -> str:
    scored = {name: one.scores for name, one in facts.captioners.items() if one.scores}
    if not scored:
        return ""
    plots = (
        f"<p>{_text(name)}</p>{histogram(binned(scores), label=f'scores of {name}')}"
        for name, scores in scored.items()
    )
    return f"<h2>Agreement of captions with their pictures, CLIP score</h2>{''.join(plots)}"


def _left_out(facts: Facts) -> str:
    parts = ["<h2>Left out, by reason</h2>"]
    if facts.left_out:
        parts.append(bars([(one.reason, one.count) for one in facts.left_out], label="left out"))
        parts.append(_examples(facts.left_out))
        parts.append("<p>All of them: shards/left-out.jsonl; before a build, quarantine.jsonl</p>")
    else:
        parts.append("<p>Nothing.</p>")
    if facts.remarks:
        parts.append("<h2>Kept, with a remark</h2>")
        parts.append(_examples(facts.remarks))
    return "".join(parts)


def _licences(facts: Facts) -> str:
    rows = [(name, f"{count:,}") for name, count in facts.licences.most_common()]
    return "<h2>Licences</h2>" + _table(("licence", "pictures"), rows, numbers=(1,))


def _examples(groups: Sequence[Refused]) -> str:
    rows = [
        (group.reason if number == 0 else "", one.id, one.detail)
        for group in groups
        for number, one in enumerate(group.examples)
    ]
    return _table(("reason", "for example", "detail"), rows)


def _table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    safe: bool = False,
) -> str:
    """A table; cells are escaped unless ``safe`` says that they are, ``numbers`` stand right."""

    def line(cells: Sequence[str], tag: str) -> str:
        made = (
            f"<{tag}{' class=n' if number in numbers else ''}>{cell}</{tag}>"
            for number, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    body = (line(row if safe else [_text(cell) for cell in row], "td") for row in rows)
    return f"<table>{line(heads, 'th')}{''.join(body)}</table>"


def _quantiles(counts: Counter[int]) -> str:
    total = sum(counts.values())
    found = []
    for share in _SHARES:
        rank, seen = math.ceil(share * total), 0
        for value, count in sorted(counts.items()):
            seen += count
            if seen >= rank:
                found.append(str(value))
                break
    return ", ".join(found)


def _scores_of(facts: CaptionerFacts) -> str:
    number = sum(facts.scores.values())
    mean = sum(score * count for score, count in facts.scores.items()) / max(1, number)
    return f"{mean:.1f}" if number else "-"


def _bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _text(value: str) -> str:
    """Escaped, and kept from changing the direction of what stands beside it."""
    return f"<bdi>{escape(value)}</bdi>" if value else ""
