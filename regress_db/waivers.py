"""Waivers: a slowing that is known, bounded and tolerated until a day, as one value and its rule. Pure.

A waived regression is still called one, and is shown; it only does not fail the night. `jobs.waivers` reads the file
in which they stand, so that they are reviewed like code; `regress_db.verdicts` applies them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase


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

    def covers(self, case: str, phase: str, platform: str, effect: float, today: date) -> bool:
        """Whether this slowing of this series is waived today."""
        return today <= self.until and effect <= self.up_to and self.is_for(case, phase, platform)

    def is_for(self, case: str, phase: str, platform: str) -> bool:
        """Whether it speaks of this series at all."""
        return fnmatchcase(case, self.case) and self.phase in (None, phase) and fnmatchcase(platform, self.platform)

    @property
    def words(self) -> str:
        """Who waives it, until when, why."""
        return f"waived until {self.until:%Y-%m-%d} by {self.who}, up to {self.up_to * 100:.3g} %: {self.why}"


def waiver_for(
    waivers: Iterable[Waiver], case: str, phase: str, platform: str, effect: float, today: date
) -> Waiver | None:
    """The waiver that covers the slowing, the one that ends last where several do."""
    covering = [one for one in waivers if one.covers(case, phase, platform, effect, today)]
    return max(covering, key=lambda one: one.until, default=None)


def why_not(waivers: Iterable[Waiver], case: str, phase: str, platform: str, effect: float, today: date) -> str:
    """Why a waiver for this series does not cover the slowing, in words; "" where there is none for it."""
    for one in waivers:
        if one.is_for(case, phase, platform):
            if today > one.until:
                return f"the waiver by {one.who} ended on {one.until:%Y-%m-%d}"
            if effect > one.up_to:
                return f"the waiver by {one.who} covers up to {one.up_to * 100:.3g} %"
    return ""
