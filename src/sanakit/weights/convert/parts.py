"""What an original checkpoint holds, as components of the published layout, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError, WeightsError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import (
    AUTOENCODERS,
    TRANSFORMERS,
    AutoencoderConfig,
    TransformerConfig,
    config_from_dict,
)
from sanakit.models.controlnet import ControlBranch
from sanakit.models.transformer import LinearDiT
from sanakit.nn.embed import sincos_positions
from sanakit.weights.convert.infer_config import (
    Kind,
    autoencoder_config,
    branch_config,
    kind_of,
    transformer_config,
)
from sanakit.weights.convert.keymaps import (
    NULL_TEXT,
    POSITIONS,
    autoencoder_keymap,
    control_keymap,
    transformer_keymap,
)
from sanakit.weights.store import load_strict, read_json

TEXT_TOKENS = 300
"""Length of the empty prompt that original files carry."""


TRANSFORMER, BRANCH, AUTOENCODER = (
    "SanaTransformer2DModel",
    "SanaControlNetModel",
    "AutoencoderDC",
)
FOLDERS = {TRANSFORMER: "transformer", BRANCH: "controlnet", AUTOENCODER: "vae"}
Config: TypeAlias = TransformerConfig | AutoencoderConfig


@dataclass(frozen=True, kw_only=True)
class Part:
    """One component in the published layout; its tensors fit its config, name by name."""

    class_name: str
    config: Config
    state: dict[str, Tensor]

    @classmethod
    def checked(
        cls, class_name: str, config: Config, state: dict[str, Tensor], *, source: str
    ) -> Part:
        """Make a part of tensors that fit.

        Raises:
            WeightsError: missing, unexpected or mis-shaped tensors.
        """
        module: nn.Module
        with torch.device("meta"):
            if isinstance(config, AutoencoderConfig):
                module = Autoencoder(config)
            else:
                module = ControlBranch(config) if class_name == BRANCH else LinearDiT(config)
        load_strict(module, state, source=source)
        return cls(class_name=class_name, config=config, state=state)

    @property
    def folder(self) -> str:
        """Where the component is in a model folder."""
        return FOLDERS[self.class_name]

    @property
    def presets(self) -> list[str]:
        """Named presets of this config: several published models share one; none of a branch."""
        known: list[Mapping[str, Config]] = [TRANSFORMERS, AUTOENCODERS]
        return [name for table in known for name, preset in table.items() if preset == self.config]


@dataclass(frozen=True, kw_only=True)
class OriginalModel:
    """What an original file holds. A ControlNet's holds two parts, its branch first."""

    kind: Kind
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()
    """What was left out, or could not be told for certain; for the user."""


def identified(
    state: Mapping[str, Tensor],
    *,
    source: str,
    config: str | None = None,
    notes: tuple[str, ...] = (),
) -> OriginalModel:
    """Tell what a state under original names is, and give it in the published layout.

    ``config`` is a preset's name or a ``config.json``, in place of what the shapes say.

    Raises:
        WeightsError: no kind known here, or tensors that do not fit. ConfigError: shapes that
            leave something open; a config that is not there.
    """
    kind = kind_of(state, source=source)
    if kind == "autoencoder":
        ae = (
            autoencoder_config(state, source=source)
            if config is None
            else _chosen(config, AutoencoderConfig, AUTOENCODERS)
        )
        published = autoencoder_keymap(ae).to_published(state, source=source)
        part = Part.checked(AUTOENCODER, ae, published, source=source)
        return OriginalModel(kind=kind, parts=(part,), notes=notes)
    dit = (
        transformer_config(state, source=source)
        if config is None
        else _chosen(config, TransformerConfig, TRANSFORMERS)
    )
    base = {name: t for name, t in state.items() if not name.startswith("controlnet.")}
    published = transformer_keymap(dit).to_published(base, source=source)
    parts = [Part.checked(TRANSFORMER, dit, published, source=source)]
    if kind == "controlnet":
        branch = branch_config(state, dit, source=source)
        own = {n: t for n, t in state.items() if not n.startswith(("blocks.", "final_layer."))}
        published = control_keymap().to_published(own, source=source)
        parts.insert(0, Part.checked(BRANCH, branch, published, source=source))
    return OriginalModel(kind=kind, parts=tuple(parts), notes=notes)


def original_state(part: Part, branch: Part | None = None, *, source: str) -> dict[str, Tensor]:
    """Give an autoencoder, or a transformer and its control branch, under the original names.

    The positional table is computed; the embedding of the empty prompt, which the original code
    overwrites when it loads a file, is zeros.

    Raises:
        WeightsError: a tensor that the original layout has no name for, or a branch that does not
            share its transformer's embedders.
    """
    config, published = part.config, part.state
    if isinstance(config, AutoencoderConfig):
        return autoencoder_keymap(config).to_original(published, source=source)
    state = transformer_keymap(config).to_original(published, source=source)
    if branch is not None:
        own = control_keymap().to_original(branch.state, source=source)
        for name in sorted(own.keys() & state.keys()):
            if not torch.equal(own[name], state[name]):
                raise WeightsError(
                    f"{source}: {name} differs between the control branch and the transformer",
                    hint="original ControlNet files hold one for both: use the branch with the "
                    "transformer that it was trained on",
                )
        state |= own
    dtype = published["proj_out.weight"].dtype
    side = config.sample_size // config.patch_size
    table = torch.zeros(side**2, config.width)
    if config.position_span is not None:
        grid, cpu = (side, side), torch.device("cpu")
        table = sincos_positions(config.width, grid, config.position_span, device=cpu)
    state[POSITIONS] = table.unsqueeze(0).to(dtype)
    state[NULL_TEXT] = torch.zeros(TEXT_TOKENS, config.caption_channels, dtype=dtype)
    return state


def _chosen(name: str, kind: type[Any], presets: Mapping[str, Any]) -> Any:
    if name in presets:
        return presets[name]
    path = Path(name)
    if path.suffix != ".json" and not path.is_file():
        raise ConfigError(
            f"{name!r} is neither a preset nor a config.json",
            hint=f"presets: {', '.join(presets)}",
        )
    return config_from_dict(kind, read_json(path), source=name)
