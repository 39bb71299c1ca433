"""Original checkpoints: single files under the authors' own names, most of them pickles.

What they hold becomes components of the published layout, and back. This is the only place that
unpickles, with torch's allow-list of tensors and plain containers, and only `sanakit convert` and
the training of autoencoders come here; what serves pictures reads safetensors alone.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError, WeightsError
from sanakit.files import read_json, replacing
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import (
    AUTOENCODERS,
    TRANSFORMERS,
    AutoencoderConfig,
    ControlBranchConfig,
    TransformerConfig,
    config_from_dict,
)
from sanakit.models.controlnet import ControlBranch
from sanakit.models.tiny_decoder import TINY_DECODERS, TinyDecoder, TinyDecoderConfig
from sanakit.models.transformer import LinearDiT
from sanakit.models.unfilled import unfilled
from sanakit.nn.embed import sincos_positions
from sanakit.untrusted import DEEPEST, other_readers
from sanakit.weights.convert import gguf_file
from sanakit.weights.convert.infer_config import (
    Kind,
    autoencoder_config,
    branch_config,
    kind_of,
    tiny_decoder_config,
    transformer_config,
)
from sanakit.weights.convert.keymaps import (
    NULL_TEXT,
    POSITIONS,
    autoencoder_keymap,
    control_keymap,
    transformer_keymap,
)
from sanakit.weights.store import load_strict, read_tensors, tensor_bytes, write_tensors

PICKLED = (".pth", ".pt", ".ckpt", ".bin")
SAFE = ".safetensors"
# Where training scripts put the weights, the moving average last.
NESTS = ("state_dict", "model", "module", "params")
AVERAGES = ("state_dict_ema", "ema", "model_ema", "params_ema")
PREFIXES = ("_orig_mod.", "module.", "model.diffusion_model.")
REBUILD: Any = np.empty(0).__reduce__()[0]
# Resumable checkpoints keep the state of numpy's generator, an array of integers.
HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (np.ndarray, "numpy.ndarray"),
    (np.dtype, "numpy.dtype"),
    (type(np.dtype(np.uint32)), "numpy.dtypes.UInt32DType"),
    # The one function that rebuilds an array moved when numpy 2 came; files of both are about.
    (REBUILD, "numpy.core.multiarray._reconstruct"),
    (REBUILD, "numpy._core.multiarray._reconstruct"),
]


def read_original(
    path: Path,
    *,
    config: str | None = None,
    average: bool = False,
    dtype: torch.dtype | None = None,
) -> OriginalModel:
    """Read an original file and give it in the published layout; tensors stay on disk until used.

    Args:
        path: a ``.pth``, ``.pt``, ``.ckpt``, ``.bin``, ``.safetensors`` or ``.gguf`` file.
        config: a preset's name or a ``config.json``, in place of what the shapes say.
        average: take the moving average of a training checkpoint.
        dtype: of the tensors of a ``.gguf`` file, else fp32 where they are quantized.

    Raises:
        WeightsError: a file that is cut, not of tensors alone, of another kind, or whose tensors
            do not fit. ConfigError: shapes that leave something open; a config that is not there.
    """
    content = read_file(path, dtype=dtype)
    state, notes = unwrapped(content, source=str(path), average=average)
    if path.suffix == gguf_file.SUFFIX:
        state = original_names(state, source=str(path))
    # Shapes and dtypes may be any.
    with other_readers(path, WeightsError, what="holds no model", hint="download it again"):
        return identified(state, source=str(path), config=config, notes=notes)


def write_original(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write one file under the original names, whole or not at all.

    ``.safetensors`` holds the tensors; any other ending a pickle ``{"state_dict": tensors}`` that
    ``torch.load(weights_only=True)`` reads.

    Raises:
        DataError: the disk refuses.
    """
    if path.suffix == SAFE:
        write_tensors(path, state, {})
        return
    # A view would take its whole storage along.
    own = {name: t if _whole(t) else t.clone() for name, t in state.items()}
    with replacing(path) as temporary:
        torch.save({"state_dict": {name: t.contiguous() for name, t in own.items()}}, temporary)


def read_file(path: Path, *, dtype: torch.dtype | None = None) -> Mapping[str, Any]:
    """Give what a pickle or a file of tensors holds, as it is nested there.

    ``dtype`` is for files of GGUF, whose tensors are made one by one.

    Raises:
        WeightsError: not a file, cut, not a dictionary, or holding more than tensors and numbers.
            ConfigError: GGUF, and its package is not there.
    """
    if path.is_dir():
        raise WeightsError(f"{path}: is a folder, not a checkpoint file", hint="name the file")
    if not path.is_file():
        raise WeightsError(f"{path}: no such file", hint="check the path")
    if path.suffix == SAFE:
        return read_tensors(path)
    if path.suffix == gguf_file.SUFFIX:
        return gguf_file.read_gguf(path, dtype=dtype)
    if path.suffix not in PICKLED:
        known = ", ".join((*PICKLED, SAFE, gguf_file.SUFFIX))
        raise WeightsError(f"{path}: is no checkpoint by its name", hint=f"known: {known}")
    with _diagnosed(path):
        content = _unpickled(path)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a dictionary")
    return content


def unwrapped(
    content: Mapping[str, Any], *, source: str, average: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Find the tensors inside what training scripts write; give them and what was passed over.

    Raises:
        WeightsError: no tensors, no average where one is asked for, or tensors that claim far more
            room than the file has.
    """
    notes: tuple[str, ...] = ()
    for _ in range(DEEPEST):
        kept = [name for name in AVERAGES if isinstance(content.get(name), Mapping)]
        if average and kept:
            content, average = content[kept[0]], False
            continue
        nest = next((name for name in NESTS if isinstance(content.get(name), Mapping)), None)
        if nest is None and not kept:
            break
        if kept:
            notes += (f"its moving average ({kept[0]}) was left out; --average takes it",)
        content = content[nest or kept[0]]
    else:
        raise WeightsError(f"{source}: dictionaries inside each other without end")
    if average:
        raise WeightsError(f"{source}: holds no moving average", hint="leave out --average")
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            state[_plain(str(name))] = value.detach()
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            kind = "quantized" if tensor.is_quantized else str(tensor.layout)
            raise WeightsError(
                f"{source}: {name} is {kind}, which no checkpoint of SANA has",
                hint="save it with .to_dense() or .dequantize()",
            )
    claimed = sum(map(tensor_bytes, state.values()))
    stored = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.values()}
    if claimed > 2 * sum(stored.values()):
        raise WeightsError(
            f"{source}: its tensors claim {claimed} bytes and have {sum(stored.values())}",
            hint="do not use this file: it was made to exhaust memory",
        )
    return state, notes


def _plain(name: str) -> str:
    while prefix := next((each for each in PREFIXES if name.startswith(each)), None):
        name = name.removeprefix(prefix)
    return name


def _unpickled(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                raise ValueError("torch packs nothing: small files could become any size")
    with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols; what cannot be read raises
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )


@contextmanager
def _diagnosed(path: Path) -> Iterator[None]:
    """Say in one line what is wrong with a pickle; damaged ones fail in many ways."""
    try:
        yield
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+\.\w+)", str(error))
        if named is None:
            raise _damaged(path) from error
        raise WeightsError(
            f"{path}: refused, it holds code or objects ({named[1]}), not tensors alone",
            hint="do not load it any other way unless you trust where it comes from",
        ) from error
    except WeightsError:
        raise
    except Exception as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> WeightsError:
    return WeightsError(
        f"{path}: damaged, cut off or no checkpoint ({path.stat().st_size} bytes)",
        hint="download it again",
    )


def _whole(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() == tensor_bytes(tensor)


TEXT_TOKENS = 300
"""Length of the empty prompt that original files carry."""


TRANSFORMER, BRANCH, AUTOENCODER, DECODER = (
    "SanaTransformer2DModel",
    "SanaControlNetModel",
    "AutoencoderDC",
    "TinyDecoder",
)
FOLDERS = {TRANSFORMER: "transformer", BRANCH: "controlnet", AUTOENCODER: "vae", DECODER: "decoder"}
Config: TypeAlias = TransformerConfig | AutoencoderConfig | TinyDecoderConfig


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
        with unfilled():
            if isinstance(config, AutoencoderConfig):
                module = Autoencoder(config)
            elif isinstance(config, ControlBranchConfig):
                module = ControlBranch(config)
            elif isinstance(config, TinyDecoderConfig):
                module = TinyDecoder(config, scaling_factor=1.0)
            else:
                module = LinearDiT(config)
        load_strict(module, state, source=source)
        return cls(class_name=class_name, config=config, state=state)

    @property
    def folder(self) -> str:
        """Where the component is in a model folder."""
        return FOLDERS[self.class_name]

    @property
    def presets(self) -> list[str]:
        """Named presets of this config: several published models share one; none of a branch."""
        known: list[Mapping[str, Config]] = [TRANSFORMERS, AUTOENCODERS, TINY_DECODERS]
        shape = self.config
        if isinstance(shape, TransformerConfig):
            shape = replace(shape, attention_clip=None)
        return [name for table in known for name, preset in table.items() if preset == shape]


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
    if kind == "decoder":
        tiny = (
            tiny_decoder_config(state, source=source)
            if config is None
            else _chosen(config, TinyDecoderConfig, TINY_DECODERS)
        )
        part = Part.checked(DECODER, tiny, dict(state), source=source)
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


def original_names(state: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Give a transformer under its published names, as GGUF files may have it, under the original.

    Raises:
        WeightsError: names of neither.
    """
    if "patch_embed.proj.weight" not in state:
        return dict(state)
    guided = any(".guidance_embedder." in name for name in state)
    known = transformer_keymap(TransformerConfig(guidance_embeds=guided))
    return known.to_original(state, source=source)


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
    if isinstance(config, TinyDecoderConfig):
        return dict(published)
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
