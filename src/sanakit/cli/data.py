"""The verbs of `sanakit data`, in the order in which a set goes through them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast

import typer

from sanakit.cli.terminal import say
from sanakit.errors import ConfigError, Interrupted
from sanakit.untrusted import number, whole_number

if TYPE_CHECKING:
    from sanakit.data.build import BuildSettings, BuildSummary
    from sanakit.data.samples import Sample
    from sanakit.data.scan import ScanSummary
    from sanakit.data.training_set import TrainingSet
    from sanakit.data.units import Engine, Stage

DEFAULT_FOLDER = Path("data")
EMBEDDED = "glyph"
_OF_PICTURES = ("caption", "captions", "licence")

SetFolder: TypeAlias = Annotated[Path, typer.Argument(metavar="SET", help="Folder of a set.")]
EngineName: TypeAlias = Annotated[
    str, typer.Option("--engine", help="What runs the work: local or ray.")
]
Workers: TypeAlias = Annotated[int, typer.Option(help="Processes that work at once.")]
Dtype: TypeAlias = Annotated[
    str | None,
    typer.Option(help="float32 or bfloat16. Default: bfloat16 on a GPU, float32 elsewhere."),
]
Device: TypeAlias = Annotated[
    str | None, typer.Option(help="cpu, cuda or mps. Default: cuda where there is one.")
]
Threads: TypeAlias = Annotated[
    int, typer.Option(help="CPU threads of a process; another number changes the last bits.")
]
BatchSize: TypeAlias = Annotated[int, typer.Option(help="How many at a time.")]

app = typer.Typer(
    help="Make training sets of pictures: from a folder to shards, with a report.",
    no_args_is_help=True,
)


def _of_shards(help_: str) -> Any:
    return typer.Option(help=help_, rich_help_panel="Shards")


def _of_pictures(help_: str) -> Any:
    return typer.Option(help=help_, rich_help_panel="Pictures")


@app.command()
def build(
    target: Annotated[
        str,
        typer.Argument(
            help="A folder or file of pictures; or a set that was scanned, which is only built."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the set; data/NAME unless given."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="The model to train: its resolution, and sizes that it takes. Default: glyph.",
            rich_help_panel="Shards",
        ),
    ] = None,
    resolution: Annotated[
        int | None, _of_shards("About the side of a square picture, px; else that of --model.")
    ] = None,
    buckets: Annotated[
        str | None, _of_shards("Sizes: training (40 ratios), inference (33), square.")
    ] = None,
    store: Annotated[
        str | None, _of_shards("fitted: pictures cut to their bucket; original: as they came.")
    ] = None,
    min_side: Annotated[int | None, _of_shards("Leave out pictures with a shorter side.")] = None,
    shard_samples: Annotated[int | None, _of_shards("Most pictures of a shard; 1000.")] = None,
    seed: Annotated[int | None, _of_shards("Of the order of the pictures; 0.")] = None,
    max_bad: Annotated[
        float | None,
        _of_shards("Share of pictures lost since the scan that ends the build; 0.05."),
    ] = None,
    caption: Annotated[str | None, _of_pictures("One caption for all pictures.")] = None,
    captions: Annotated[
        str | None,
        _of_pictures("source: each line of a text is one; whole: each text; none."),
    ] = None,
    licence: Annotated[str | None, _of_pictures("Of all pictures that state none.")] = None,
    engine: EngineName = "local",
    workers: Workers = 2,
) -> None:
    """Make a training set: check the pictures, cut them to buckets, write shards and a report.

    Every step can be stopped and started again; what is finished is not done twice. Settings of
    the shards that are not given stay as they were.
    """
    from sanakit.data.build import BuildSettings
    from sanakit.data.engines import engine_named
    from sanakit.data.units import SET

    given: dict[str, Any] = {
        "resolution": resolution, "buckets": buckets, "store": store, "min_side": min_side,
        "shard_samples": shard_samples, "seed": seed, "max_bad": max_bad,
        "caption": caption, "captions": captions, "licence": licence,
    }  # fmt: skip
    options = {name: value for name, value in given.items() if value is not None}
    number(options.get("max_bad", 0), name="--max-bad", low=0, high=1)
    folder = Path(target)
    if model is None and resolution is None and not (folder / SET).is_file():
        model = EMBEDDED
    if model is not None:
        from sanakit.data.encode import sizes_of

        side, options["multiple"] = sizes_of(model)
        options.setdefault("resolution", side)
    elif resolution is not None:
        options["multiple"] = None
    runs = engine_named(engine, workers)
    if (folder / SET).is_file():
        if out is not None:
            raise ConfigError(
                f"--out has no meaning for {target}, a set that is built where it is",
                hint="leave out --out",
            )
        for name in _OF_PICTURES:
            if name in options:
                raise ConfigError(
                    f"--{name} has no meaning for a set that was scanned",
                    hint=f"leave out --{name}",
                )
    else:
        if not folder.exists():
            raise ConfigError(
                f"there is no {target}",
                hint="name a folder of pictures, or a file that lists them",
            )
        about = {name: options.pop(name) for name in _OF_PICTURES if name in options}
        # A setting that cannot be is refused now, not after an hour of scanning.
        BuildSettings(**{name: v for name, v in options.items() if name != "max_bad"})
        set_folder = out or DEFAULT_FOLDER / folder.resolve().stem
        _scan(folder, set_folder, runs, **about)
        folder = set_folder
    _build_set(folder, options, runs, model=model)


@contextmanager
def _alone_in(folder: Path, verb: str) -> Iterator[None]:
    """Keep a set to this process; what Ctrl-C ends goes on later."""
    from sanakit.locks import in_use

    try:
        with in_use(folder, by=f"sanakit data {verb}"):
            yield
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped; what is finished stays", hint="the same command goes on from there"
        ) from None


def _build_set(folder: Path, options: dict[str, Any], engine: Engine, *, model: str | None) -> None:
    from sanakit.data.build import BuildSettings, build_shards, last_settings
    from sanakit.data.training_set import TrainingSet

    max_bad = options.pop("max_bad", 0.05)
    training_set = TrainingSet.open(folder)
    # What is not asked for stays as it was: `build SET` after new captions changes no size.
    settings = replace(last_settings(training_set) or BuildSettings(), **options)
    with _alone_in(folder, "build"):
        summary = build_shards(training_set, settings, engine=engine, report=say, max_bad=max_bad)
        from sanakit.data.report.page import write_report

        page = write_report(training_set)
    _tell_built(training_set, summary, page, settings, model)


def _tell_built(
    training_set: TrainingSet,
    summary: BuildSummary,
    page: Path,
    settings: BuildSettings,
    model: str | None,
) -> None:
    """What there is, what there is not, and what to do next."""
    from sanakit.data.build import LEFT_OUT
    from sanakit.data.scan import REMARKS
    from sanakit.data.training_set import SHARDS

    reasons = Counter(one.reason for one in training_set.quarantined())
    reasons.update(summary.left_out)
    left_out = {key: number for key, number in reasons.most_common() if key not in REMARKS}
    remarks = {key: number for key, number in reasons.most_common() if key in REMARKS}
    folder = training_set.folder
    manifest = folder / SHARDS / LEFT_OUT
    lines = [
        "",
        f"{summary.samples} pictures in {summary.buckets} buckets at {settings.resolution} px, "
        f"{summary.shards} shards, {summary.bytes / 1e6:.1f} MB",
        f"left out: {sum(left_out.values())}" + (f"; {manifest} names each" if left_out else ""),
        *(f"  {number:>6}  {reason}" for reason, number in left_out.items()),
        *(f"kept, with a remark: {number} {reason}" for reason, number in remarks.items()),
    ]
    if summary.enlarged:
        lines.append(
            f"enlarged to their bucket: {summary.enlarged}; --min-side {settings.resolution} "
            "leaves out what is smaller"
        )
    lines.append(f"without captions: {summary.without_captions}")
    lines.append(f"report: {page}")
    named = shlex.quote(str(folder))
    if summary.without_captions == summary.samples:
        lines.append(f"captions, by a model: sanakit data caption {named} --model MODEL")
    start = model or _usual_model(settings)
    lines.append(f"next: sanakit train diffusion --data {named} --from {shlex.quote(start)}")
    say(*lines)


def _usual_model(settings: BuildSettings) -> str:
    """The model to train on a set that was built for none: of its resolution, if there is one."""
    from sanakit.weights.catalog import smallest_at

    published = smallest_at(settings.resolution)
    return EMBEDDED if published is None else published.alias


@app.command()
def scan(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of pictures, table, data set or tars to read; never changed."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the training set.")],
    caption: Annotated[
        str, typer.Option(help="One caption for all pictures, instead of their own.")
    ] = "",
    captions: Annotated[
        str,
        typer.Option(help="source: each line of a text is one; whole: each text; none."),
    ] = "source",
    licence: Annotated[str, typer.Option(help="Licence of pictures that name none.")] = "",
    near: Annotated[
        int, typer.Option(help="Bits of 64 that duplicates may differ in; 0: same bytes only.")
    ] = 4,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Keep pictures that show the same.")
    ] = False,
    min_side: Annotated[
        int, typer.Option(help="Refuse pictures with a shorter side than this, px.")
    ] = 8,
    first_frame: Annotated[
        bool, typer.Option("--first-frame", help="Take the first frame of animations.")
    ] = False,
    max_refused: Annotated[
        float | None,
        typer.Option(help="Stop when more than this share is refused, as 0.1; never if not given."),
    ] = None,
    workers: Workers = 2,
    engine: EngineName = "local",
) -> None:
    """Look at all pictures: decode, measure, find duplicates; list what stays out and why."""
    from sanakit.data.engines import engine_named
    from sanakit.images.decode import DecodeLimits

    summary = _scan(
        source,
        out,
        engine_named(engine, workers),
        caption=caption,
        captions=captions,
        licence=licence,
        near=None if keep_duplicates else near,
        limits=DecodeLimits(min_side=min_side, first_frame=first_frame),
        max_refused=max_refused,
    )
    say(*_lines_of(out, summary))


def _scan(
    source: Path,
    out: Path,
    engine: Engine,
    *,
    caption: str = "",
    captions: str = "source",
    licence: str = "",
    **settings: Any,
) -> ScanSummary:
    from sanakit.data.scan import scan_source
    from sanakit.data.sources.captions import CAPTION_USES, CaptionPolicy
    from sanakit.data.sources.opening import open_source

    _known("--captions", captions, CAPTION_USES)
    policy = CaptionPolicy(use=cast("Any", captions), user=caption)
    opened = open_source(source, captions=policy, licence=licence)
    with _alone_in(out, "scan"):
        return scan_source(opened, out, engine, given=source, report=say, **settings)


def _lines_of(out: Path, summary: ScanSummary) -> list[str]:
    """What a scan found, for the terminal."""
    lines = [f"{out}: {summary.pictures} of {summary.seen} pictures are in the set"]
    if summary.refused:
        reasons = ", ".join(f"{n} {reason}" for reason, n in summary.refused.items())
        lines.append(f"  refused      {reasons}")
    if summary.same_bytes or summary.same_look:
        lines.append(
            f"  duplicates   {summary.same_bytes} with the same bytes,"
            f" {summary.same_look} that look the same"
        )
    lines += [f"  remarks      {n} {reason}" for reason, n in summary.remarks.items()]
    if summary.misnamed:
        lines.append(f"  misnamed     {summary.misnamed} have the ending of another format; kept")
    without = f", {summary.without_captions} pictures have none" * bool(summary.without_captions)
    lines.append(f"  captions     {summary.captions}{without}")
    least, middle, most = summary.sides
    small = ", ".join(f"{n} below {size}" for size, n in summary.smaller_than.items() if n)
    lines.append(
        f"  shorter side {least} to {most} px, median {middle}" + (f"; {small}" if small else "")
    )
    if summary.refused or summary.remarks or summary.same_bytes or summary.same_look:
        lines.append(f"{out / 'quarantine.jsonl'} names what stays out, and why")
    return lines


@app.command()
def caption(
    folder: SetFolder,
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="Folder or owner/name; may be repeated.")
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="What to ask; may be repeated, each is a captioner of its own. "
            'Default: "Describe the picture in one sentence.", or nothing where models do not chat.'
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Name of the captioner. Default: of the model, and -2, -3 for prompts."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most new tokens of a caption.")] = 120,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest of this share.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the drawing.")] = 0,
    side: Annotated[int, typer.Option(help="Shrink pictures to this many pixels first.")] = 1024,
    batch_size: BatchSize = 8,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = 1,
    engine: EngineName = "local",
    workers: Workers = 1,
) -> None:
    """Let models describe every picture of a set; finished parts are not done again."""
    from sanakit.data.captions.captioning import Captioning, Writing, captioner_names
    from sanakit.data.captions.vision_models import find_vision_model, fingerprint_of_folder
    from sanakit.data.engines import running_engine
    from sanakit.data.training_set import TrainingSet

    writing = Writing(
        max_new_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, side=side
    )
    training_set = TrainingSet.open(folder)
    running = _running(dtype, device, batch_size=batch_size, threads=threads)
    planned = captioner_names(model, prompt or [None], name or [])
    hashes = {one: fingerprint_of_folder(find_vision_model(one)) for one in model}
    with _alone_in(folder, "caption"), running_engine(engine, workers) as runs:
        for one, asked, called in planned:
            stage = Captioning(
                training_set=training_set,
                model=one,
                model_hash=hashes[one],
                name=called,
                writing=replace(writing, prompt=asked),
                **running,
            )
            total = _run(stage, training_set.units, runs)
            say(
                f"{called}: {total['captions']} captions, {total['cut']} cut at {max_tokens} "
                f"tokens; pictures without: {total['empty']} of which it said nothing, "
                f"{total['unreadable']} that could not be read"
            )
    say(f"next: sanakit data score {folder} --model CLIP")


@app.command()
def score(
    folder: SetFolder,
    model: Annotated[
        str, typer.Option("--model", "-m", help="CLIP or SigLIP: a folder or owner/name.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the scorer. Default: of the model.")
    ] = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = 1,
    engine: EngineName = "local",
    workers: Workers = 1,
) -> None:
    """Give every caption 100 times its cosine with the picture; finished parts stay."""
    from sanakit.data.captions import vision_models
    from sanakit.data.captions.scoring import Scoring
    from sanakit.data.engines import engine_named
    from sanakit.data.training_set import TrainingSet

    training_set = TrainingSet.open(folder)
    running = _running(dtype, device, batch_size=batch_size, threads=threads)
    stage = Scoring(
        training_set=training_set,
        model=model,
        model_hash=vision_models.fingerprint_of_folder(vision_models.find_vision_model(model)),
        name=vision_models.safe_name(name or model),
        **running,
    )
    with _alone_in(folder, "score"):
        total = _run(stage, training_set.units, engine_named(engine, workers))
    say(
        f"{stage.name}: {total['scores']} captions scored, {total['cut']} of them longer than "
        f"the model reads; {total['unreadable']} pictures could not be read"
    )
    say(f"next: sanakit data build {folder}")


@app.command()
def encode(
    folder: SetFolder,
    model: Annotated[
        str, typer.Option("--model", "-m", help="glyph, a folder, or owner/name of a SANA model.")
    ],
    what: Annotated[str, typer.Option(help="both, latents or text.")] = "both",
    store: Annotated[str, typer.Option(help="float16, or bfloat16: wider and coarser.")] = (
        "float16"
    ),
    max_tokens: Annotated[int, typer.Option(help="Most tokens of a caption.")] = 300,
    batch_size: BatchSize = 8,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = 1,
    engine: EngineName = "local",
    workers: Workers = 1,
) -> None:
    """Compute what the frozen networks of a model make of each shard; finished shards stay."""
    _known("--what", what, ("both", "latents", "text"))
    _known("--store", store, ("float16", "bfloat16"))
    from sanakit.data import encode as encoding
    from sanakit.data.engines import running_engine
    from sanakit.data.training_set import TrainingSet

    TrainingSet.open(folder)
    index = encoding.built(folder)
    settings: dict[str, Any] = {
        "set_folder": folder,
        "model": model,
        "storage": store,
        **_running(dtype, device, batch_size=batch_size, threads=threads),
    }
    stages: list[tuple[Stage, list[str]]] = []
    shards = [shard.unit for shard in index.shards]
    if what != "text":
        identity = encoding.autoencoder_hash(model)
        latents = encoding.LatentEncoding(
            encoder_hash=identity, resolution=index.resolution, **settings
        )
        stages.append((latents, shards))
    if what != "latents":
        identity = encoding.text_encoder_hash(model)
        text = encoding.TextEncoding(encoder_hash=identity, max_tokens=max_tokens, **settings)
        stages.append((text, [encoding.NULL, *shards]))
    with _alone_in(folder, "encode"), running_engine(engine, workers) as runs:
        for stage, units in stages:
            total = _run(stage, units, runs)
            kind, left = ("samples", "unreadable") if "samples" in total else ("captions", "cut")
            count, size, plain = total[kind], total["bytes"], total["plain_bytes"]
            say(
                f"{stage.folder}: {count} {kind}, {total[left]} {left}; {size / 1e6:.1f} MB, "
                f"{size / max(count, 1) / 1e3:.2f} kB each, {plain / max(size, 1):.2f} times "
                "smaller than without compression"
            )


@app.command()
def stats(
    folder: SetFolder,
    pictures: Annotated[int, typer.Option(help="How many pictures the report shows.")] = 24,
) -> None:
    """Write report/index.html and report/contact-sheet.png of a set, and print the main numbers."""
    if pictures < 0:
        raise ConfigError(f"--pictures {pictures} is below 0", hint="0 shows none")
    from sanakit.data.report.facts import gather
    from sanakit.data.report.page import write_report
    from sanakit.data.training_set import TrainingSet

    training_set = TrainingSet.open(folder)
    facts = gather(training_set, choose=0)
    page = write_report(training_set, choose=pictures)
    say(f"{facts.samples} pictures, {facts.captions} captions, {facts.refused} left out")
    for one in facts.left_out:
        say(f"  {one.count:>6}  {one.reason}")
    if facts.index is None:
        say(f"no shards yet: sanakit data build {folder}")
    say(f"report: {page}")


@app.command()
def show(
    folder: SetFolder,
    which: Annotated[str, typer.Argument(help="Number of a sample, from 0, or its id.")] = "0",
    save: Annotated[
        Path | None, typer.Option(help="Write the picture, as training sees it, to a PNG.")
    ] = None,
) -> None:
    """Print a sample: id, captions with captioner and score, sizes, bucket, licence."""
    from PIL import Image

    from sanakit.data.report.page import encoded, stored_pictures
    from sanakit.data.resize_and_crop import fitted
    from sanakit.data.shards import read_index
    from sanakit.data.sources.places import read_place
    from sanakit.data.training_set import SHARDS, TrainingSet
    from sanakit.files import write_atomically
    from sanakit.images.decode import decode

    training_set = TrainingSet.open(folder)
    sample = _find(training_set, which)
    index = read_index(folder / SHARDS)
    stored = stored_pictures(folder / SHARDS, index, [sample.id]) if index else {}
    data, bucket = stored.get(sample.id, (b"", None))
    say(f"id       {sample.id}")
    say(f"picture  {sample.height} x {sample.width}, {sample.place.file}")
    say(f"licence  {sample.licence or 'not stated'}")
    for one in sample.captions:
        scored = "" if one.score is None else f", score {one.score:.1f}"
        weight = "" if one.weight == 1 else f", weight {one.weight:g}"
        say(f"caption  {one.text}  ({one.captioner}{scored}{weight})")
    if not sample.captions:
        say("caption  none")
    size = f"{bucket[0]} x {bucket[1]}" if bucket else "none: left out, or not built yet"
    say(f"bucket   {size}")
    if save is not None:
        data = data or read_place(Path(training_set.source), sample.place)
        pixels = decode(data).pixels
        pixels = pixels if bucket is None else fitted(pixels, bucket)
        write_atomically(save, encoded(Image.fromarray(pixels), "PNG", optimize=True))
        say(f"saved    {save}, {pixels.shape[0]} x {pixels.shape[1]}")


def _find(training_set: TrainingSet, which: str) -> Sample:
    """The sample with an id, or else with a number."""
    for unit in training_set.units:
        for sample in training_set.scanned(unit):
            if sample.id == which:
                return next(one for one in training_set.samples(unit) if one.id == which)
    place = whole_number(which)
    if place is None:
        raise ConfigError(
            f"{training_set.folder} holds no sample {which!r}", hint="name one by its number: 0"
        )
    left = place
    for unit in training_set.units:
        here = len(training_set.scanned(unit))
        if left < here:
            return next(islice(training_set.samples(unit), left, None))
        left -= here
    raise ConfigError(
        f"{training_set.folder} holds no sample {which}",
        hint=f"the last one has number {place - left - 1}",
    )


def _known(option: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise ConfigError(f"{option} {value!r} is unknown", hint=f"one of {', '.join(known)}")


def _running(
    dtype: str | None, device: str | None, *, batch_size: int, threads: int
) -> dict[str, Any]:
    """Where and how a stage runs its networks, the usual where nothing was named."""
    import torch

    from sanakit.data.captions.vision_models import DTYPES

    for name, value in (("--batch-size", batch_size), ("--threads", threads)):
        if value < 1:
            raise ConfigError(f"{name} {value} must be at least 1")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    what = dtype or ("bfloat16" if where.startswith("cuda") else "float32")
    _known("--dtype", what, DTYPES)
    return {"dtype": what, "device": where, "batch_size": batch_size, "threads": threads}


def _run(stage: Stage, units: Sequence[str], engine: Engine) -> Mapping[str, int]:
    """Run a stage with progress on the terminal, and give the sums of its statistics."""
    from sanakit.data.units import run_stage

    total: Counter[str] = Counter()
    for mark in run_stage(stage, units, engine=engine, report=say).values():
        total.update({name: v for name, v in mark.stats.items() if isinstance(v, int)})
    return total
