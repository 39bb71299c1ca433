"""Make the teacher of a model of few steps out of one's own model.

It is the model that it begins with, told levels in [0, 1], with norms in both attentions, and all
weights learn on, together: tuning the time embedding alone first makes the loss climb. The loss is
the model's own. A teacher is drawn as its model was, in many steps. Source: SANA-Sprint
(arXiv 2503.09641), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.models.few_steps import is_teacher, make_teacher, teacher_config
from sanakit.models.unfilled import unfilled
from sanakit.pipeline.components import Components, GenerationDefaults, save_components
from sanakit.pipeline.networks import SanaTransformer2DModel
from sanakit.train.checkpoint import newest_weights
from sanakit.train.config import LoopConfig
from sanakit.train.recipes.diffusion import DiffusionRecipe, FlowObjective, usual_loop
from sanakit.train.recipes.diffusion_run import (
    DiffusionData,
    Report,
    captions_of,
    check_sizes,
    same_shards,
    start_components,
    width_of,
)
from sanakit.train.recipes.encoders import Encoders
from sanakit.train.recipes.shard_dataset import (
    ShardDataset,
    cached_of,
    resolution_of,
    shards_of,
)
from sanakit.train.runs.run_config import RunConfig, is_run, lasting, read_run, speaks
from sanakit.weights.store import load_strict

WHAT = "sprint-teacher"
OBJECTIVE = FlowObjective


@dataclass(frozen=True, kw_only=True)
class SprintData:
    """The arguments of a run; ``index`` and ``prompts`` are found out when it begins."""

    data: str
    start: str
    """The model to make a teacher of; of a student, its teacher."""
    held: str | None = None
    prompts: Sequence[str] = ()
    workers: int = 0
    index: str | None = None
    """Identifies the shards."""


def checked(typed: Mapping[str, Any], start: str) -> dict[str, Any]:
    """The arguments of a new run, by name; ``start`` says how --from is given.

    Raises:
        ConfigError: an argument that is missing. DataError: no shards.
    """
    given = lasting(typed)
    needed = {"data": "sanakit data build my-pictures --out my-set makes one", "start": start}
    for name, hint in needed.items():
        if given.get(name) is None:
            option = "from" if name == "start" else name
            raise ConfigError(f"--{option} is missing", hint=hint)
    shards_of(given["data"])  # before a model is fetched
    return given


def new_run(typed: Mapping[str, Any], pairs: Sequence[str] = ()) -> RunConfig:
    """A run from arguments by name, None for those not given, and ``key=value`` settings.

    Raises:
        ConfigError: an argument that is missing, or settings that break a rule.
        DataError: no shards. MissingModelError: no such model.
    """
    given = checked(typed, "the model to make few steps of: --from glyph, --from MODEL or RUN")
    width = width_of(DiffusionData(data=given["data"], start=given["start"]))
    loop = loop_of_teachers(width)
    return RunConfig(what=WHAT, data=given, objective=FlowObjective(), loop=loop).with_settings(
        pairs
    )


def loop_of_teachers(width: int) -> LoopConfig:
    """The loop of a run where no setting is given.

    At SANA 1.6B its rate is the published one, 2e-5; published are 5,000 steps of 1,024.
    """
    return replace(
        usual_loop(width=width, lora=False, scratch=False),
        batch_size=32,
        total_images=32_000,
        warmup_images=640,
        average_halflife=1000,
        pictures_every=500,
        evaluate_every=250,
    )


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What a run of either stage begins with."""

    parts: Components
    encoders: Encoders
    pictures: ShardDataset
    held: ShardDataset | None
    data: SprintData


def begin(run: RunConfig, report: Report) -> Begun:
    """Load and check the model, the set and the held one.

    Raises:
        ConfigError: parts that do not go together. MissingModelError: no such model.
        DataError: no shards, or others than when the run began. WeightsError: damaged weights.
    """
    data, objective, loop = SprintData(**run.data), run.objective, run.loop
    shards = shards_of(data.data)
    held = None if data.held is None else shards_of(data.held)
    begun = DiffusionData(data=data.data, start=data.start, resolution=resolution_of(shards))
    parts = start_components(begun, objective, device=loop.device, report=report)
    multiple = parts.autoencoder.config.spatial_factor * parts.transformer.config.patch_size
    for each, name in ((shards, data.data), (held, data.held)):
        if each is not None:
            check_sizes(each, multiple, f"sanakit data build {name} --model {data.start}")
    latents, text = cached_of(shards, model_before(data.start), "auto")
    for name, found in (("latents", latents), ("text states", text)):
        if found is not None:
            report(f"{name}: read from {found}")
    pictures = ShardDataset(
        shards=shards,
        captions=objective.choice(),
        latents=latents,
        text=text,
        workers=data.workers,
    )
    index = same_shards(pictures, loop, data.data, data.index, report)
    prompts = tuple(data.prompts) or captions_of(pictures, objective)
    return Begun(
        parts=parts,
        encoders=Encoders(parts.autoencoder, parts.prompts, max_tokens=objective.max_tokens),
        pictures=pictures,
        held=None if held is None else ShardDataset(shards=held, workers=data.workers),
        data=replace(data, index=index, prompts=prompts),
    )


def model_before(start: str) -> str | None:
    """The model whose autoencoder and text encoder a run uses; None where it has several."""
    while is_run(start):
        before = read_run(start)["data"]
        if any(before.get(name) for name in ("autoencoder", "text_encoder", "tune_text")):
            return None
        if before.get("instruction") is not None or before.get("start") is None:
            return None
        start = before["start"]
    return start


def build(run: RunConfig, *, report: Report = print) -> tuple[DiffusionRecipe, RunConfig]:
    """Load, check and put together; the run comes back with what was found out of its data.

    Raises:
        ConfigError: a model that is a teacher already; as `begin`.
    """
    begun = begin(run, report)
    trained = begun.parts.transformer
    if is_teacher(trained.config):
        raise ConfigError(
            f"--from {begun.data.start}: is a teacher already",
            hint=f"its student: sanakit train sprint --from {begun.data.start}",
        )

    with unfilled():
        teacher = SanaTransformer2DModel(teacher_config(trained.config))
    teacher = teacher.to_empty(device="cpu")
    make_teacher(teacher, trained)
    recipe = DiffusionRecipe(
        teacher,
        begun.encoders,
        begun.parts.defaults,
        begun.pictures,
        run.objective,
        held=begun.held,
        prompts=begun.data.prompts,
    )
    return recipe, replace(run, data=asdict(begun.data))


def finish(recipe: DiffusionRecipe, run: Path, *, report: Report) -> None:
    """Write the model, averaged where there is an average, into the run's own folder."""
    if speaks():
        write_model(recipe, newest_weights(run), run, recipe.defaults, "SanaPipeline")
        report(f"next: sanakit train sprint --data SET --from {run}")


def write_model(
    recipe: DiffusionRecipe,
    weights: Mapping[str, Tensor],
    run: Path,
    defaults: GenerationDefaults,
    pipeline: str,
) -> None:
    """Write what a run learned as a model, beside its checkpoints."""
    transformer = SanaTransformer2DModel(recipe.transformer.config)
    load_strict(transformer, weights, source=str(run))
    parts = Components(
        transformer=transformer,
        autoencoder=recipe.encoders.autoencoder,
        prompts=recipe.encoders.prompts,
        defaults=defaults,
        pipeline_class=pipeline,
    )
    save_components(parts, run)
