"""What the blocks of an evaluation did, kept for later ones of the same run that hardly differ."""

from __future__ import annotations

import torch
from torch import Tensor

from sanakit.nn.linear_attention import Total
from sanakit.shapes import Tokens


class StepCache:
    """Spares a run the blocks after the first where the first does about what it did before.

    What the first block adds to its input tells how far a state has moved. Where it differs from
    what it was at the last full evaluation by less than ``threshold`` of its size (mean absolute
    values), the sum of what all other blocks added then is added again. A picture decides by its
    own rows alone, all of them together; one that may skip gets the kept sum even where another of
    its batch has the blocks run. An object serves one run.
    """

    def __init__(self, threshold: float, pictures: int = 1) -> None:
        """Begin a run whose rows of one picture are ``pictures`` apart; 0 skips nothing."""
        self.threshold = threshold
        self.pictures = pictures
        self.evaluations = 0
        self.skipped = 0
        """Evaluations whose other blocks did not run."""
        self._first: Tokens | None = None
        self._rest: Tokens | None = None
        self._fresh: Tensor | None = None

    def anew(self) -> StepCache:
        """The same for another run, or where all has changed."""
        return StepCache(self.threshold, self.pictures)

    def skips(self, x: Tokens, y: Tokens, total: Total | None) -> bool:
        """Look at the first block's input and result; say whether no picture needs the others.

        With ``total`` the tokens are some of a picture's, and processes decide together.
        """
        self.evaluations += 1
        added = y - x
        if self._first is None or self._first.shape != added.shape:
            self._first, self._rest, self._fresh = added, None, None
            return False
        sizes = [(added - self._first).abs(), self._first.abs()]
        moved, size = torch.stack(
            [each.sum((1, 2), dtype=torch.float32) for each in sizes]
        ).unbind()
        if total is not None:
            moved, size = total(torch.stack([moved, size])).unbind()
        near = (moved < self.threshold * size).view(-1, self.pictures).all(dim=0)
        fresh = ~near.repeat(len(added) // self.pictures)
        self._first = torch.where(fresh[:, None, None], added, self._first)
        self._fresh = fresh[:, None, None]
        skips = not bool(fresh.any())
        self.skipped += skips
        return skips

    def kept(self, y: Tokens) -> Tokens:
        """What the other blocks would about make of the first one's result."""
        assert self._rest is not None
        return y + self._rest

    def completed(self, y: Tokens, end: Tokens) -> Tokens:
        """Take what all blocks made of the first one's result; give what the run goes on with."""
        if self._fresh is None or self._rest is None or bool(self._fresh.all()):
            self._rest = end - y
            return end
        self._rest = torch.where(self._fresh, end - y, self._rest)
        return torch.where(self._fresh, end, y + self._rest)
