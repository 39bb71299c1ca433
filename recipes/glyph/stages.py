"""The stages: what each needs, the commands that make it, and how to see that it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from recipes.glyph.data.pictures import SUMMARY, store_folder
from recipes.glyph.data.store import INDEX as STORE
from recipes.glyph.made_up import write_made_up
from recipes.glyph.presets import Preset, Training
from recipes.glyph.running import ROOT, Command, Ended
from recipes.glyph.train.start import TEXT
from sanakit.errors import ConfigError
from sanakit.train.checkpoint import checkpoints, read_manifest
from sanakit.train.recipes.autoencoder_run import VAE
from sanakit.weights.layout import CONFIG
from sanakit.weights.resolve import INDEX

Execute = Callable[[Command], Ended]
HERE, LIBRARY = "recipes.glyph", "sanakit"
AUTOENCODER = (
    *("pooled=1.0", "l2=1.0", "perceptual=0", "side=null", "schedule=linear-end"),
    *("weight_decay=0.01", "betas=[0.9, 0.99]", "batch_size=32", "evaluate_every=300"),
)
FULL = ("peak_lr=1e-3", "warmup_images=6400", "decay_share=0.33")
DECODER = ("peak_lr=5e-4", "warmup_images=1600", "decay_share=0.7", "latent_noise=0.15")
"""How the autoencoder trains unless a preset says otherwise, and its decoder after it."""
MAX_TOKENS = 32
TRANSFORMER = (
    *("batch_size=128", "peak_lr=8e-4", "warmup_images=4000", "decay_share=0.35"),
    *("weight_decay=0.02", "betas=[0.9, 0.98]", "average_halflife=12000"),
    *("log_every=50", "evaluate_every=200", f"max_tokens={MAX_TOKENS}"),
)
"""How the transformer trains unless a preset says otherwise: what the embedded model learned by."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A preset, the folder that it is carried out in, and what it begins with.

    ``inputs`` may hold ``drawings``, of an earlier build, and archives of packages.
    """

    preset: Preset
    out: Path
    inputs: Path | None = None

    @property
    def data(self) -> Path:
        """The folder of the glyph set."""
        return self.out / "data"

    @property
    def shards(self) -> Path:
        """The training set that is made of it."""
        return self.out / "set"

    @property
    def held(self) -> Path:
        """The set that is measured on."""
        return self.out / "held"

    @property
    def start(self) -> Path:
        """The model that diffusion training begins with."""
        return self.out / "start"

    @property
    def model(self) -> Path:
        """The folder of the exported model."""
        return self.out / "model"

    @property
    def sheet(self) -> Path:
        """The contact sheet."""
        return self.out / "contact-sheet.png"

    def run(self, name: str) -> Path:
        """The folder of a training."""
        return self.out / "runs" / name

    def measure(self, name: str) -> Path:
        """The folder of an evaluation."""
        return self.out / "evaluation" / name

    def training(self, name: str) -> Training:
        """What the preset says of a training."""
        found: Training = getattr(self.preset, name)
        return found


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One of the steps; ``needs`` are those whose results it reads."""

    name: str
    needs: tuple[str, ...]
    is_done: Callable[[Work], bool]
    commands: Callable[[Work], Iterable[Command]]


def required(work: Work) -> set[str]:
    """The stages that are still to be done, and those whose results they read."""
    found: set[str] = set()

    def ask(name: str) -> None:
        stage = STAGES[name]
        if name not in found:
            found.add(name)
            if not stage.is_done(work):
                for need in stage.needs:
                    ask(need)

    for goal in GOALS:
        if not STAGES[goal].is_done(work):
            ask(goal)
    return found


def _here(*arguments: object, ranks: int = 1) -> Command:
    return Command(module=HERE, arguments=[str(each) for each in arguments], ranks=ranks)


def _sanakit(*arguments: object, ranks: int = 1) -> Command:
    return Command(module=LIBRARY, arguments=[str(each) for each in arguments], ranks=ranks)


# Data.


def _data_done(work: Work) -> bool:
    store = store_folder(work.data, work.preset.data.size) / STORE
    return (work.data / SUMMARY).is_file() and store.is_file()


def _data(work: Work) -> Iterable[Command]:
    data = work.preset.data
    command = ["build", "--out", work.data, "--size", data.size]
    command += ["--workers", work.preset.whole.workers]
    for row in data.without:
        command += ["--without", row]
    drawings = None if work.inputs is None else work.inputs / "drawings"
    if data.made_up:
        command += ["--from", write_made_up(work.out / "made-up")]
    elif drawings is not None and drawings.is_dir():
        if data.limit is not None:
            raise ConfigError(
                f"limit={data.limit} of drawings that are there already",
                hint="leave it out: --set data.limit=null",
            )
        command += ["--from", drawings]
    else:
        command += [] if work.inputs is None else ["--packages", work.inputs]
        command += [] if data.limit is None else ["--limit", data.limit]
    yield _here(*command)


def _tokenizer_done(work: Work) -> bool:
    text = work.data / TEXT
    return (text / "tokenizer" / "tokenizer.json").is_file() and (text / "held.npy").is_file()


def _tokenizer(work: Work) -> Iterable[Command]:
    command = ["tokenizer", "--data", work.data]
    if not work.preset.tokenizer.dictionary:
        command.append("--no-dictionary")
    elif work.inputs is not None:
        command += ["--packages", work.inputs]
    yield _here(*command)


def _shards(work: Work) -> Iterable[Command]:
    """Samples as pictures with captions, and what the library makes of any such pictures."""
    data, workers = work.preset.data, ("--workers", work.preset.whole.workers)
    mixed: tuple[object, ...] = ("--composites", data.composites, "--everyday", data.everyday)
    for place, count, more in (
        (work.shards, data.samples, mixed),
        (work.held, data.held, ("--held",)),
    ):
        tars = work.out / f"{place.name}-samples"
        told = ("--data", work.data, "--out", tars, "--count", count, "--size", data.size)
        yield _here("samples", *told, *workers, *more)
        # The same thing on another ground is no duplicate.
        yield _sanakit("data", "scan", tars, "--out", place, "--keep-duplicates", *workers)
        fit = ("--resolution", data.size, "--buckets", "square")
        yield _sanakit("data", "build", place, *fit, *workers)


def _is_built(place: Path) -> bool:
    return (place / "shards" / "index.json").is_file()


# Trainings.


def _seen(run: Path) -> int:
    """How many pictures a training has seen; 0 if it has saved nothing."""
    found = checkpoints(run)
    return int(read_manifest(found[-1])["images_seen"]) if found else 0


def _trained(name: str) -> Callable[[Work], bool]:
    def is_done(work: Work) -> bool:
        run = work.run(name)
        whole = name not in ("autoencoder", "decoder") or (run / VAE / CONFIG).is_file()
        return whole and _seen(run) >= work.training(name).images

    return is_done


def _training(
    work: Work, name: str, *words: object, usual: Iterable[str] = ()
) -> Iterable[Command]:
    """The command of a training, which goes on where it was broken off."""
    training, run, whole = work.training(name), work.run(name), work.preset.whole
    make = _here if name == "lm" else _sanakit
    verb = [words[0]] if name == "lm" else ["train", words[0]]
    start = [*verb, "--out", run, "--set", f"device={whole.device}"]
    if checkpoints(run):
        # All else stands in the run's own file.
        yield make(*start, "--resume", ranks=whole.ranks)
        return
    pairs = {pair.partition("=")[0]: pair for pair in (*usual, *training.settings)}
    pairs["total_images"] = f"total_images={training.images}"
    settings = [part for pair in pairs.values() for part in ("--set", pair)]
    yield make(*start, *words[1:], *settings, ranks=whole.ranks)


def _lm(work: Work) -> Iterable[Command]:
    words = ("--data", work.data, "--shape", work.preset.whole.shape)
    yield from _training(work, "lm", "lm", *words)


def _on_shards(work: Work) -> tuple[object, ...]:
    return "--data", work.shards / "shards", "--held", work.held / "shards"


def _autoencoder(work: Work) -> Iterable[Command]:
    words = (*_on_shards(work), "--preset", work.preset.whole.shape)
    yield from _training(work, "autoencoder", "autoencoder", *words, usual=(*AUTOENCODER, *FULL))


def _decoder(work: Work) -> Iterable[Command]:
    """Its encoder is the same, so that latents and the transformer need not wait for another."""
    words = (*_on_shards(work), "--phase", "decoder", "--from", work.run("autoencoder"))
    usual = (*AUTOENCODER, *DECODER)
    yield from _training(work, "decoder", "autoencoder", *words, usual=usual)


def _start(work: Work) -> Iterable[Command]:
    """The parts as one model, and the latents of all pictures by its autoencoder."""
    preset = work.preset
    told = ["--data", work.data, "--autoencoder", work.run("decoder"), "--lm", work.run("lm")]
    told += ["--shape", preset.whole.shape, "--side", preset.data.size, "--out", work.start]
    if preset.diffusion.layers is not None:
        told += ["--layers", preset.diffusion.layers]
    yield _here("start", *told)


def _latents(work: Work) -> Iterable[Command]:
    told: list[object] = ["--model", work.start, "--workers", work.preset.whole.workers]
    frozen = ("--what", "both", "--max-tokens", MAX_TOKENS)
    told += ("--what", "latents") if work.preset.diffusion.tune_text else frozen
    yield _sanakit("data", "encode", work.shards, *told)


def _diffusion(work: Work) -> Iterable[Command]:
    words = ["--data", work.shards, "--held", work.held, "--from", work.start]
    words += ["--tune-text"] if work.preset.diffusion.tune_text else []
    yield from _training(work, "diffusion", "diffusion", *words, usual=TRANSFORMER)


# What comes of it.


def _export(work: Work) -> Iterable[Command]:
    told = ("--out", work.model, "--storage", work.preset.ending.storage)
    yield _sanakit("train", "export", work.run("diffusion"), *told)


def _sheet(work: Work) -> Iterable[Command]:
    ending = work.preset.ending
    told = ["--model", work.model, "--prompts", ROOT / ending.prompts]
    told += ["--steps", ending.steps, "--out", work.sheet]
    yield Command(module="benchmarks.sheet", arguments=[str(each) for each in told])


def _measures(work: Work) -> dict[str, list[object]]:
    ending = work.preset.ending
    common = ["--data", work.data, "--size", work.preset.data.size]
    common += ["--cache", work.measure("cache")]
    found = {}
    if ending.autoencoder:
        found["autoencoder"] = [*common, "--count", ending.autoencoder, "--no-lpips", "--no-rfd"]
    if ending.generation:
        found["generation"] = [*common, "--count", ending.generation]
    return found


def _evaluation_done(work: Work) -> bool:
    return all((work.measure(name) / "evaluation.json").is_file() for name in _measures(work))


def _evaluation(work: Work) -> Iterable[Command]:
    for name, told in _measures(work).items():
        yield _here("eval", name, work.model, *told, "--out", work.measure(name))


STAGES = {
    stage.name: stage
    for stage in (
        Stage(name="data", needs=(), is_done=_data_done, commands=_data),
        Stage(name="tokenizer", needs=("data",), is_done=_tokenizer_done, commands=_tokenizer),
        Stage(
            name="shards",
            needs=("data",),
            is_done=lambda work: _is_built(work.shards) and _is_built(work.held),
            commands=_shards,
        ),
        Stage(name="lm", needs=("tokenizer",), is_done=_trained("lm"), commands=_lm),
        Stage(
            name="autoencoder",
            needs=("shards",),
            is_done=_trained("autoencoder"),
            commands=_autoencoder,
        ),
        Stage(
            name="decoder",
            needs=("shards", "autoencoder"),
            is_done=_trained("decoder"),
            commands=_decoder,
        ),
        Stage(
            name="start",
            needs=("tokenizer", "lm", "decoder"),
            is_done=lambda work: (work.start / INDEX).is_file(),
            commands=_start,
        ),
        Stage(
            name="latents",
            needs=("shards", "start"),
            is_done=lambda work: any((work.shards / "latents").glob("*")),
            commands=_latents,
        ),
        Stage(
            name="diffusion",
            needs=("shards", "start", "latents"),
            is_done=_trained("diffusion"),
            commands=_diffusion,
        ),
        Stage(
            name="export",
            needs=("start", "diffusion"),
            is_done=lambda work: (work.model / INDEX).is_file(),
            commands=_export,
        ),
        Stage(
            name="sheet",
            needs=("export",),
            is_done=lambda work: work.sheet.is_file(),
            commands=_sheet,
        ),
        Stage(
            name="evaluation",
            needs=("data", "export"),
            is_done=_evaluation_done,
            commands=_evaluation,
        ),
    )
}
GOALS = ("export", "sheet", "evaluation")
