"""Names under which published code loads any pipeline; of SANA's there are two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sanakit.errors import ConfigError
from sanakit.pipeline.published.pag import SanaPAGPipeline
from sanakit.pipeline.published.sana import SanaPipeline


class AutoPipelineForText2Image:
    """Chooses between `SanaPipeline` and, with ``enable_pag``, `SanaPAGPipeline`."""

    def __init__(self, *_: object, **__: object) -> None:
        raise ConfigError(
            f"{type(self).__name__} is made by from_pretrained or from_pipe",
            hint="of parts: SanaPipeline(**parts)",
        )

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | Path,
        *,
        enable_pag: bool | None = None,
        **loading: Any,
    ) -> SanaPipeline:
        """Load a model; ``loading`` are the keywords of the class that is chosen.

        ``pag_applied_layers`` among them chooses, too.
        """
        chosen = enable_pag if enable_pag is not None else "pag_applied_layers" in loading
        kind = SanaPAGPipeline if chosen else SanaPipeline
        return kind.from_pretrained(pretrained_model_name_or_path, **loading)

    @staticmethod
    def from_pipe(
        pipeline: SanaPipeline, *, enable_pag: bool | None = None, **parts: Any
    ) -> SanaPipeline:
        """Make a pipeline of another's parts, of its own kind unless ``enable_pag`` says."""
        own = isinstance(pipeline, SanaPAGPipeline)
        chosen = enable_pag if enable_pag is not None else own or "pag_applied_layers" in parts
        kind = SanaPAGPipeline if chosen else SanaPipeline
        return kind.from_pipe(pipeline, **parts)


class DiffusionPipeline(AutoPipelineForText2Image):
    """The same by the name of the class that all pipelines of diffusers have in common."""
