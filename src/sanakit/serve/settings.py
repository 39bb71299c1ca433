"""What a server was started with, as far as its routes ask."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sanakit.serve.access import Access
from sanakit.serve.limits import HandedIn, Limits
from sanakit.serve.moderation import BlockedWords
from sanakit.serve.refusals import Refused
from sanakit.serve.requests import DrawRequest


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """``ui`` serves the page; what is refused is told by ``access``, ``limits`` and ``blocked``."""

    model: str
    ui: bool = True
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    blocked: BlockedWords = field(default_factory=lambda: BlockedWords.of(()))
    started: float = field(default_factory=time.time)

    async def check(
        self, request: DrawRequest, able: Mapping[str, Any], handed_in: HandedIn
    ) -> None:
        """Judge a request; ``able`` is what the model can do, ``handed_in`` finds pictures.

        Raises:
            Refused: 400 with what is at fault.
        """
        self.limits.check(request, able)
        self.blocked.check(request.prompt)
        await self.limits.check_pictures(request, handed_in)

    def check_model(self, name: object, param: str = "model") -> None:
        """Judge the model that a client names; one that it leaves out is ours.

        Raises:
            Refused: 404, it is another.
        """
        if name not in (None, "", self.model):
            said = f"model {str(name)[:80]!r} is not served here, {self.model!r} is"
            raise Refused(404, said, param=param, code="model_not_found")
