"""Which of its captions a sample shows in an epoch: chances from scores, and one draw."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from sanakit.data.samples import Caption
from sanakit.errors import ConfigError, DataError

Rule: TypeAlias = Literal["softmax", "power", "uniform", "first"]
_TEMPERED = ("softmax", "power")


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionChoice:
    """A rule that turns scores c_i and weights w_i of a sample's captions into chances.

        softmax   P_i ~ w_i exp(c_i / temperature)
        power     P_i ~ w_i c_i ** (1 / temperature)
        uniform   P_i ~ w_i
        first     the first caption whose weight is not 0

    Scores are points of 100 times a cosine, so ``temperature`` of the softmax is in points; at a
    score of 27 the power law at 0.1 is as sharp as a softmax at 2.7. Captions that score below a
    ``threshold`` are set aside, of ``power`` also those of 0 and less; if none is left, the best
    is taken. A caption without a score counts as the mean of those that have one; where none has,
    ``softmax`` and ``power`` are ``uniform``. ``null_chance`` is the chance that a sample shows the
    null prompt instead.

    Source: paper, section 3.1 (softmax); ``NVLABS`` is the published code's rule.
    """

    rule: Rule = "softmax"
    temperature: float = 1.0
    threshold: float | None = None
    null_chance: float = 0.0

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ConfigError(
                f"no caption rule {self.rule!r}", hint=f"known: {', '.join(get_args(Rule))}"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(
                f"temperature={self.temperature} must be a number above 0",
                hint="rule='softmax', temperature=0.01 all but always takes the best caption",
            )
        if self.rule not in _TEMPERED and self.temperature != 1.0:
            raise ConfigError(
                f"temperature={self.temperature} has no meaning for rule={self.rule!r}",
                hint=f"rules with a temperature: {', '.join(_TEMPERED)}",
            )
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ConfigError(f"threshold={self.threshold} must be a finite score")
        if not 0 <= self.null_chance <= 1:
            raise ConfigError(f"null_chance={self.null_chance} must be in [0, 1]")

    def chances(self, captions: Sequence[Caption]) -> list[float]:
        """The chance of each caption before the null prompt takes its share; they sum to 1.

        All are 0 where every weight is 0. Shares are taken relative to the best score's, so that
        none overflows.

        Raises:
            DataError: a weight is negative or not finite.
        """
        for caption in captions:
            if not (math.isfinite(caption.weight) and caption.weight >= 0):
                raise DataError(
                    f"weight {caption.weight} of a caption by {caption.captioner!r} must be "
                    "a number of at least 0"
                )
        kept = [number for number, caption in enumerate(captions) if caption.weight > 0]
        result = [0.0] * len(captions)
        if not kept:
            return result
        if self.rule == "first":
            result[kept[0]] = 1.0
            return result
        scores = _scores([captions[number] for number in kept])
        if scores is not None:
            pairs = list(zip(kept, scores, strict=True))
            passed = [pair for pair in pairs if self._passes(pair[1])]
            if not passed:
                result[max(pairs, key=lambda pair: pair[1])[0]] = 1.0
                return result
        else:
            passed = [(number, 1.0) for number in kept]
        best = max(score for _, score in passed)
        logs = [
            math.log(captions[number].weight) + self._lead(score, best) for number, score in passed
        ]
        highest = max(logs)
        shares = [math.exp(value - highest) for value in logs]
        for (number, _), share in zip(passed, shares, strict=True):
            result[number] = share / math.fsum(shares)
        return result

    def choose(
        self, captions: Sequence[Caption], *, seed: int, epoch: int, id: str
    ) -> Caption | None:
        """The caption that sample ``id`` shows in this epoch; None is the null prompt.

        A pure function of its arguments. A sample without captions shows the null prompt.

        Raises:
            DataError: as :meth:`chances`.
        """
        if not captions or _uniform("null", seed, epoch, id) < self.null_chance:
            return None
        chances = self.chances(captions)
        possible = [number for number, chance in enumerate(chances) if chance > 0]
        if not possible:
            return None
        drawn = _uniform("caption", seed, epoch, id)
        reached = 0.0
        for number in possible:
            reached += chances[number]
            if drawn < reached:
                return captions[number]
        return captions[possible[-1]]  # the sum may fall a rounding short of 1

    def _passes(self, score: float) -> bool:
        reached = self.threshold is None or score >= self.threshold
        return reached and (self.rule != "power" or score > 0)

    def _lead(self, score: float, best: float) -> float:
        """The logarithm of a score's share over that of the best score: 0 or less."""
        if self.rule == "softmax":
            return (score - best) / self.temperature
        if self.rule == "power":
            return (math.log(score) - math.log(best)) / self.temperature
        return 0.0


NVLABS = CaptionChoice(rule="power", temperature=0.1, threshold=25.0)


def _scores(captions: Sequence[Caption]) -> list[float] | None:
    given = [c.score for c in captions if c.score is not None and math.isfinite(c.score)]
    if not given:
        return None
    mean = math.fsum(given) / len(given)
    return [mean if c.score is None or not math.isfinite(c.score) else c.score for c in captions]


def _uniform(purpose: str, seed: int, epoch: int, id: str) -> float:
    """A number in [0, 1) of 53 bits that depends on the arguments alone."""
    text = f"{purpose}/{seed}/{epoch}/{id}".encode("utf-8", "surrogatepass")
    return (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 11) / 2**53
