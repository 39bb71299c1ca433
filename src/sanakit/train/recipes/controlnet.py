"""Train a control branch: the transformer stays as it is, and learns to be steered by pictures.

The branch begins as a copy of the transformer's first blocks with projections of zero, so that the
first step sees the model as it was. Loss and levels are the transformer's own. Sources: ControlNet
(arXiv 2302.05543), section 3; SANA's branch of seven blocks, NVlabs/Sana
configs/sana_controlnet_config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError, DataError
from sanakit.files import expanded
from sanakit.images.files import read_image
from sanakit.models.config import CONTROL_LAYERS
from sanakit.models.controlnet import ControlBranch
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import CONTROLNET
from sanakit.pipeline.control_images import KINDS, control_image
from sanakit.pipeline.editing import covering
from sanakit.pipeline.input_images import of_pil
from sanakit.pipeline.networks import SanaControlNetModel
from sanakit.pipeline.pixels import to_pixels
from sanakit.shapes import Latent, PerSample, Text, TextMask
from sanakit.train.checkpoint import newest_weights
from sanakit.train.config import LoopConfig
from sanakit.train.mfu import Shapes, counted
from sanakit.train.recipe import Timers
from sanakit.train.recipes.diffusion import DiffusionBatch, DiffusionRecipe, FlowObjective
from sanakit.train.recipes.diffusion_run import (
    DiffusionData,
    Report,
    check_sizes,
    same_shards,
    start_components,
)
from sanakit.train.recipes.encoders import Encoders
from sanakit.train.recipes.shard_dataset import (
    ShardDataset,
    cached_of,
    resolution_of,
    shards_of,
)
from sanakit.train.runs.run_config import RunConfig, lasting, speaks
from sanakit.weights.store import load_strict

WHAT = "controlnet"
OBJECTIVE = FlowObjective
SHOWN = 4
"""Pictures of the validation grid."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What is followed: a kind of control image made of pictures, or a folder of ready ones.

    A ready one has the name of its picture in the set, ``FOLDER/ID.png`` (or jpg, jpeg, webp), and
    is scaled to cover the picture's size, its centre cut out, as `sanakit data build` does it.

    Raises:
        ConfigError: neither a kind that is made here nor a folder; what makes it is not installed.
    """

    of: str

    def __post_init__(self) -> None:
        if self.of in KINDS and self.of != "none":
            control_image(np.zeros((8, 8, 3), np.uint8), self.kind)
        elif not expanded(self.of).is_dir():
            made = ", ".join(kind for kind in KINDS if kind != "none")
            raise ConfigError(
                f"--condition {self.of}: no such folder, and no kind of control image",
                hint=f"{made}, or a folder of ready ones, ID.png for each picture",
            )

    @property
    def kind(self) -> Any:
        """The kind that is made of pictures."""
        return self.of

    def image(self, id: str, picture: Tensor) -> Tensor:
        """The control image, uint8 ``H W 3``, of a picture of that form.

        Raises:
            DataError: a folder that holds none for it, or one that is no picture.
        """
        if self.of in KINDS:
            return torch.from_numpy(np.array(control_image(picture.numpy(), self.kind)))
        ready = covering(of_pil(read_image(self._file(id))), *picture.shape[:2])
        return torch.from_numpy(to_pixels(ready, component="control image")[0])

    def _file(self, id: str) -> Path:
        folder = expanded(self.of).resolve()
        for ending in ("png", "jpg", "jpeg", "webp"):
            path = (folder / f"{id}.{ending}").resolve()
            if path.is_relative_to(folder) and path.is_file():
                return path
        raise DataError(
            f"--condition {self.of}: no control image for {id!r}", hint=f"expected {id}.png in it"
        )


class ControlNetRecipe(DiffusionRecipe):
    """Velocity regression along control images; ``module`` is the branch, in diffusers' wiring.

    What it learns is added to tokens of the ``transformer``, whose weights stay.
    """

    def __init__(
        self,
        transformer: LinearDiT,
        branch: ControlBranch,
        encoders: Encoders,
        defaults: Any,
        pictures: ShardDataset,
        objective: FlowObjective,
        condition: Condition,
        *,
        held: ShardDataset | None = None,
    ) -> None:
        super().__init__(transformer, encoders, defaults, pictures, objective, held=held)
        self.module, self.branch, self.condition = branch, branch, condition
        transformer.requires_grad_(False).eval()

    def prepare(
        self, batch: DiffusionBatch, device: torch.device, timers: Timers
    ) -> DiffusionBatch:
        """As without a branch, and the scaled latents of the control images."""
        ready = super().prepare(batch, device, timers)
        if next(self.transformer.parameters()).device != device:
            self.transformer.to(device)
        names = [f"{self.condition.of}: {name}" for name in batch.names]
        with timers("autoencoder"):
            control = self.encoders.latents(names, self._control_of(batch), device)
        return replace(ready, control=control)

    def blocks(self) -> Any:
        """The branch's blocks."""
        yield from self.branch.transformer_blocks.children()

    def checkpoint_gradients(self) -> None:
        """Recompute blocks of both: gradients pass through the transformer, too."""
        self.branch.gradient_checkpointing = self.transformer.gradient_checkpointing = True

    def validation_grid(self, module: nn.Module) -> npt.NDArray[Any] | None:
        """Rows of held pictures: the control image, a drawing along it for each seed, the picture.

        None after NaN.
        """
        device = next(module.parameters()).device
        batch = next(self._fixed())
        control = self.prepare(batch, device, Timers(device)).control
        assert control is not None
        assert batch.pixels is not None
        made, rows = self._control_of(batch), []
        for row, caption in enumerate(batch.captions[:SHOWN]):
            drawn = self._drawn_of(module, caption, control[row : row + 1])
            if drawn is None:
                return None
            rows.append(
                np.concatenate([made(row).numpy(), *drawn, batch.pixels[row].numpy()], axis=1)
            )
        return np.concatenate(rows, axis=0)

    @property
    def frozen(self) -> list[nn.Module]:
        """The networks beside the branch."""
        return [*super().frozen, self.transformer]

    def _control_of(self, batch: DiffusionBatch) -> Callable[[int], Tensor]:
        pixels = batch.pixels
        assert pixels is not None
        return lambda row: self.condition.image(batch.ids[row], pixels[row])

    def _velocity(
        self,
        module: nn.Module,
        x: Latent,
        text: Text,
        timestep: PerSample,
        mask: TextMask | None,
        control: Latent | None,
    ) -> Latent:
        given = {"encoder_hidden_states": text, "timestep": timestep}
        how = {"encoder_attention_mask": mask, "return_dict": False}
        (residuals,) = module(x, controlnet_cond=control, **given, **how)
        velocity: Latent = self.transformer(x, controlnet_block_samples=residuals, **given, **how)[
            0
        ]
        return velocity

    def _operations(self, shapes: Shapes) -> float:
        def forward() -> Tensor:
            x, text = (torch.zeros(1, *shape) for shape in shapes)
            branch = ControlBranch(self.branch.config)
            (residuals,) = branch(x, text, torch.zeros(1), controlnet_cond=x, return_dict=False)
            return residuals[-1]

        return super()._operations(shapes) + counted(forward)


@dataclass(frozen=True, kw_only=True)
class ControlNetData:
    """The arguments of a run; ``index`` is found out when it begins."""

    data: str
    start: str
    """The model that is to be steered."""
    condition: str
    """A kind of control image, or a folder of ready ones."""
    layers: int | None = None
    """Blocks of the branch; None: seven, or all of the transformer's but one."""
    held: str | None = None
    workers: int = 0
    index: str | None = None
    """Identifies the shards."""


def usual_loop() -> LoopConfig:
    """The loop of a run where no setting is given.

    Batch and warm-up are the published ones (NVlabs/Sana configs/sana_controlnet_config); the rate
    is for AdamW.
    """
    return LoopConfig(
        batch_size=16,
        total_images=16_000,
        peak_lr=1e-4,
        warmup_images=480,
        decay_share=0.3,
        weight_decay=0.01,
        betas=(0.9, 0.99),
        log_every=20,
        evaluate_every=100,
        pictures_every=200,
    )


def new_run(typed: Mapping[str, Any], pairs: Sequence[str] = ()) -> RunConfig:
    """A run from arguments by name, None for those not given, and ``key=value`` settings.

    Raises:
        ConfigError: an argument that is missing, or settings that break a rule.
        DataError: no shards.
    """
    given = lasting(typed)
    needed = {
        "data": "sanakit data build my-pictures --out my-set makes one",
        "start": "the model to be steered: --from glyph, or --from MODEL",
        "condition": "what is to be followed: --condition canny, scribble, or a folder",
    }
    for name, hint in needed.items():
        if given.get(name) is None:
            option = "from" if name == "start" else name
            raise ConfigError(f"--{option} is missing", hint=hint)
    Condition(of=given["condition"])
    shards_of(given["data"])  # before a model is fetched
    run = RunConfig(what=WHAT, data=given, objective=FlowObjective(), loop=usual_loop())
    return run.with_settings(pairs)


def build(run: RunConfig, *, report: Report = print) -> tuple[ControlNetRecipe, RunConfig]:
    """Load, check and put together; the run comes back with what was found out of its data.

    Raises:
        ConfigError: settings or parts that do not go together. MissingModelError: no such model.
        DataError: no shards, or others than when the run began. WeightsError: damaged weights.
    """
    data, objective, loop = ControlNetData(**run.data), run.objective, run.loop
    shards = shards_of(data.data)
    held = None if data.held is None else shards_of(data.held)
    begun = DiffusionData(data=data.data, start=data.start, resolution=resolution_of(shards))
    parts = start_components(begun, objective, device=loop.device, report=report)
    transformer = parts.transformer
    multiple = parts.autoencoder.config.spatial_factor * transformer.config.patch_size
    for each, name in ((shards, data.data), (held, data.held)):
        if each is not None:
            check_sizes(each, multiple, f"sanakit data build {name} --model {data.start}")
    branch = SanaControlNetModel.from_transformer(
        transformer, _layers(data.layers, transformer.config.num_layers)
    ).requires_grad_(True)
    # Control images are made of pictures, so that cached latents spare nothing.
    _, text = cached_of(shards, data.start, "auto")
    pictures = ShardDataset(
        shards=shards, captions=objective.choice(), text=text, workers=data.workers
    )
    index = same_shards(pictures, loop, data.data, data.index, report)
    recipe = ControlNetRecipe(
        transformer,
        branch,
        Encoders(parts.autoencoder, parts.prompts, max_tokens=objective.max_tokens),
        parts.defaults,
        pictures,
        objective,
        Condition(of=data.condition),
        held=None if held is None else ShardDataset(shards=held, workers=data.workers),
    )
    learning = sum(parameter.numel() for parameter in branch.parameters())
    report(f"{learning:,} weights of {branch.config.num_layers} blocks learn")
    return recipe, replace(run, data=asdict(replace(data, index=index)))


def _layers(asked: int | None, blocks: int) -> int:
    """Blocks of the branch: what the last of as many as the transformer's gives goes nowhere.

    Raises:
        ConfigError: none, or as many.
    """
    if asked is None:
        asked = min(CONTROL_LAYERS, blocks - 1)
    if not 1 <= asked < blocks:
        raise ConfigError(
            f"--layers {asked}: the transformer has {blocks} blocks, and a branch fewer",
            hint=f"1 to {blocks - 1}; seven are usual",
        )
    return asked


def finish(recipe: ControlNetRecipe, run: Path, *, report: Report) -> Path:
    """Write the branch in the published layout, averaged where there is an average."""
    folder = run / CONTROLNET
    if speaks():
        branch = SanaControlNetModel(recipe.branch.config)
        load_strict(branch, newest_weights(run), source=str(run))
        branch.save_pretrained(folder)
        kind = "" if recipe.condition.of not in KINDS else f" --control-kind {recipe.condition.of}"
        report(f"draw: sanakit generate PROMPT --control PICTURE{kind} --controlnet {run}")
    return folder
