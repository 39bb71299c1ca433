"""A model's folder once more with fewer blocks: those that change their tokens least are left out.

Source: SANA 1.5 (arXiv 2501.18427), section 3.2; block importance is that of ShortGPT
(arXiv 2403.03853), over the steps of drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanakit.errors import ConfigError
from sanakit.files import disk_errors, replacing_folder, write_json
from sanakit.models.transformer import LinearDiT
from sanakit.models.unfilled import unfilled
from sanakit.pipeline.components import save_components
from sanakit.pipeline.networks import SanaTransformer2DModel
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.request import GenerateRequest
from sanakit.quant.quantize import is_quantized
from sanakit.weights.resolve import model_to_copy
from sanakit.weights.store import Storage, load_strict

REPORT = "pruning.json"
Report = Callable[[str], object]


def block_importance(pipeline: Pipeline, requests: Sequence[GenerateRequest]) -> list[float]:
    """Draw, and give for each block 1 - the mean cosine of a token before and after it.

    The mean is over tokens, guidance's passes, steps and pictures. 0 is a block that turns no
    token; the most is 2.
    """
    transformer = pipeline.components.transformer
    sums = torch.zeros(len(transformer.transformer_blocks), 2, dtype=torch.float64)
    with _watched(transformer, sums):
        for request in requests:
            pipeline.generate(request)
    cosines, calls = sums.unbind(dim=1)
    return [float(value) for value in 1 - cosines / calls]


def most_important(importance: Sequence[float], count: int) -> list[int]:
    """Give the ``count`` most important blocks in their order; of equals the earlier ones.

    Raises:
        ConfigError: none, or more than there are.
    """
    if not 1 <= count <= len(importance):
        raise ConfigError(
            f"--blocks {count}: the model has {len(importance)}", hint="keep at least one"
        )
    ranked = sorted(range(len(importance)), key=lambda index: -importance[index])
    return sorted(ranked[:count])


def pruned(transformer: LinearDiT, kept: Sequence[int]) -> SanaTransformer2DModel:
    """Give a transformer of some of another one's blocks, in that order; weights are copies.

    Raises:
        ConfigError: quantized weights.
    """
    if is_quantized(transformer):
        raise ConfigError("the transformer is quantized", hint="begin with the real weights")
    with unfilled():
        smaller = SanaTransformer2DModel(replace(transformer.config, num_layers=len(kept)))
    blocks, prefix = transformer.transformer_blocks, "transformer_blocks."
    state = {k: v.clone() for k, v in transformer.state_dict().items() if not k.startswith(prefix)}
    for place, index in enumerate(kept):
        own = blocks[index].state_dict()
        state |= {f"{prefix}{place}.{name}": value.clone() for name, value in own.items()}
    load_strict(smaller, state, source="the transformer")
    return smaller


def pruned_copy(
    model: str,
    target: Path,
    count: int,
    *,
    requests: Sequence[GenerateRequest],
    storage: Storage = "as-is",
    offline: bool = False,
    force: bool = False,
    report: Report = lambda line: None,
) -> dict[str, Any]:
    """Write ``model`` to a folder with its ``count`` most important blocks; give what was found.

    The folder is whole or not there; ``pruning.json`` in it is what is given.

    Raises:
        ConfigError: a folder that is in the way, a count that the model does not have, quantized
            weights. MissingModelError, WeightsError: as loading. DataError: the disk.
    """
    model_to_copy(model, target, offline=offline, force=force)
    report("loading")
    pipeline = Pipeline.load(model, offline=offline)
    components = pipeline.components
    most_important([0.0] * components.transformer.config.num_layers, count)  # before drawing
    report("drawing")
    importance = block_importance(pipeline, requests)
    kept = most_important(importance, count)
    smaller = pruned(components.transformer, kept)
    told = {
        "model": model,
        "importance": [round(value, 6) for value in importance],
        "kept": kept,
        "weights": {
            "before": sum(each.numel() for each in components.transformer.parameters()),
            "after": sum(each.numel() for each in smaller.parameters()),
        },
    }
    with disk_errors(target), replacing_folder(target) as staging:
        report("writing")
        save_components(replace(components, transformer=smaller), staging, storage=storage)
        write_json(staging / REPORT, told)
    return told


@contextmanager
def _watched(transformer: LinearDiT, sums: Tensor) -> Iterator[None]:
    """Add up, for each block, the mean cosine of every call, and their number."""

    def watcher(index: int) -> Callable[..., None]:
        def watch(block: nn.Module, given: tuple[Any, ...], made: Tensor) -> None:
            cosine = F.cosine_similarity(given[0].float(), made.float(), dim=-1).mean()
            sums[index] += torch.tensor([float(cosine), 1.0], dtype=torch.float64)

        return watch

    hooks = [
        block.register_forward_hook(watcher(index))
        for index, block in enumerate(transformer.transformer_blocks)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
