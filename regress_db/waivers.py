"""What is tolerated: a slowing that is known, as values and the one rule that applies them. Pure.

A `Waiver` stands in a file that is reviewed like code (`jobs.waivers` reads it); an `Acknowledgement` is what a person
decided in the history (`regress_db.acknowledged` reads it). Either way a tolerated regression is still called one, and
is shown; it only does not fail the night. `regress_db.verdicts` and `regress_db.nightverdict` apply `tolerated`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Self, TypeVar

from regress_db.wording import percent

if TYPE_CHECKING:
    from regress_db.nightverdict import SeriesVerdict


@dataclass(frozen=True, slots=True)
class Slowing:
    """A slowing of a series as it was judged. effect, low (the interval's lower end): relative changes.

    floor: the smallest change that counts, the larger of what the plan asks and what the noise supports.
    """

    case: str
    phase: str
    platform: str
    effect: float
    low: float
    floor: float

    @classmethod
    def of(cls, case: str, phase: str, platform: str, judged: Any) -> Self | None:
        """From a verdict, or a row of one; None where it has no effect."""
        if judged.effect is None:
            return None
        low = judged.effect if judged.low is None else judged.low
        return cls(case, phase, platform, judged.effect, low, max(judged.floor, judged.noise_floor or 0.0))


@dataclass(frozen=True, slots=True)
class Waiver:
    """One waiver.

    case, platform: patterns on the keys (`*` any text). phase: None for both. up_to: the largest slowing it covers, a
    relative change (0.15: 15 %). until: the last day it holds, UTC.
    """

    case: str
    phase: str | None
    platform: str
    up_to: float
    until: date
    who: str
    why: str

    def is_for(self, slowing: Slowing) -> bool:
        """Whether it speaks of this series at all."""
        return (
            fnmatchcase(slowing.case, self.case)
            and self.phase in (None, slowing.phase)
            and fnmatchcase(slowing.platform, self.platform)
        )

    def is_worse(self, slowing: Slowing) -> bool:
        """Whether the slowing is more than what it covers."""
        return slowing.effect > self.up_to

    @property
    def name(self) -> str:
        """How it is called."""
        return f"the waiver by {self.who}"

    @property
    def bound(self) -> str:
        """Why a worse slowing is not covered, in words that follow the name."""
        return f"covers up to {self.up_to * 100:.3g} %"

    @property
    def words(self) -> str:
        """Who waives it, until when, why."""
        return f"waived until {self.until:%Y-%m-%d} by {self.who}, up to {self.up_to * 100:.3g} %: {self.why}"


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """One regression that a person acknowledged, as it was then.

    number: of the decision. effect: the relative change that was acknowledged. until: the last day it holds, UTC;
    None: until the regression is fixed.
    """

    number: int
    case: str
    phase: str
    platform: str
    effect: float
    until: date | None
    who: str
    at: datetime
    why: str

    def is_for(self, slowing: Slowing) -> bool:
        """Whether it speaks of this series at all."""
        return (slowing.case, slowing.phase, slowing.platform) == (self.case, self.phase, self.platform)

    def is_worse(self, slowing: Slowing) -> bool:
        """Whether the whole interval lies above what was acknowledged by more than the floor.

        Changes are factors: a slowing to 1.3 times with a floor of 10 % is worse from 1.43 times on.
        """
        return 1 + slowing.low > (1 + self.effect) * (1 + slowing.floor)

    @property
    def name(self) -> str:
        """How it is called."""
        return f"the acknowledgement by {self.who}"

    @property
    def bound(self) -> str:
        """Why a worse slowing is not covered, in words that follow the name."""
        return f"was of {percent(self.effect)}, and it has got worse"

    @property
    def words(self) -> str:
        """Who acknowledged it, until when, why."""
        until = "" if self.until is None else f" until {self.until:%Y-%m-%d}"
        return f"acknowledged{until} by {self.who}, at {percent(self.effect)}: {self.why}"


Tolerance = Waiver | Acknowledgement
Kind = TypeVar("Kind", Waiver, Acknowledgement, Waiver | Acknowledgement)


def tolerated(said: SeriesVerdict, tolerances: Sequence[Tolerance], today: date) -> SeriesVerdict:
    """The verdict with what lets it pass today, where it regressed and anything does; else with why what is there for
    its series does not. One that is tolerated already stays as it is.
    """
    slowing = Slowing.of(said.case, said.phase, said.platform_key, said)
    if said.verdict != "regressed" or slowing is None or said.waiver:
        return said
    covering = tolerance_for(tolerances, slowing, today)
    if covering is None:
        reason = why_not(tolerances, slowing, today)
        return dataclasses.replace(said, warnings=(*said.warnings, reason)) if reason else said
    return dataclasses.replace(
        said,
        waiver=covering.words,
        acknowledged=covering.number if isinstance(covering, Acknowledgement) else None,
        sentence=f"{said.sentence.removesuffix('.')}; {covering.words}.",
    )


def tolerance_for(tolerances: Iterable[Kind], slowing: Slowing, today: date) -> Kind | None:
    """The one that lets the slowing pass today, the one that ends last where several do."""
    covering = [
        one for one in tolerances if one.is_for(slowing) and not _is_over(one, today) and not one.is_worse(slowing)
    ]
    return max(covering, key=lambda one: one.until or date.max, default=None)


def why_not(tolerances: Iterable[Tolerance], slowing: Slowing, today: date) -> str:
    """Why what is there for this series does not let the slowing pass, in words; "" where there is nothing for it."""
    for one in tolerances:
        if one.is_for(slowing):
            if one.until is not None and _is_over(one, today):
                return f"{one.name} ended on {one.until:%Y-%m-%d}"
            if one.is_worse(slowing):
                return f"{one.name} {one.bound}"
    return ""


def _is_over(one: Tolerance, today: date) -> bool:
    return one.until is not None and today > one.until
