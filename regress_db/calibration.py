"""Calibration: how often a plan's own history, shuffled, gives a false alarm, and the level that keeps to its budget.

`calibrate` is called by `epwatch calibrate`, `level_for` by whoever judges a night of the plan. Next to read:
`regress_db.calibration_history` (which runs are shuffled) and `regress_db.method.shuffles` (how).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select

from regress_db.errors import NotFoundError
from regress_db.history import History
from regress_db.schema import CALIBRATIONS, NIGHTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regress_db.calibration_history import Floor
    from regress_db.method.shuffles import Alarms, Settled

DEFAULT_SHUFFLES = 200
DEFAULT_BUDGET = 1 / 30
DEFAULT_NIGHTS = 200
DEFAULT_CONFIRMATIONS = 2
DEFAULT_CONTROLS = ("torch",)

_REPLAYED = 100
"""So many of the newest nights are judged again in their own order."""

_WORST = 10
"""So many of the series that sound most are recorded."""


@dataclass(frozen=True, slots=True)
class SeriesRate:
    """One series of a calibration. nights: in settled stretches. alarms of shuffles: false; low, high: 95 % interval of
    the rate.
    """

    case: str
    platform: str
    phase: str
    nights: int
    shuffles: int
    alarms: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was found, and recorded unless `recorded_at` is None.

    level: false discovery rate to judge the plan's nights at; None where the history is too short, or nothing keeps to
    the budget. alarms, per_night (low, high: 95 % interval): false alarms at `level`, over all series; nights_with:
    nights that had any. replayed, replayed_alarms: nights judged in their own order, and their alarms. night_share:
    part of a run's variance that is its night's; night_share_known: whether the history says so. default_per_night:
    alarms a night at the default level. budget: what the plan allows, a night. left_out: series too short to shuffle.
    nights: of the history. sentence: all of it in words.
    """

    plan: str
    judge: str
    series: tuple[SeriesRate, ...]
    left_out: int
    nights: int
    runs: int
    shuffles: int
    seed: int
    budget: float
    level: float | None
    default_level: float
    alarms: int
    improvements: int
    nights_with: int
    replayed: int
    replayed_alarms: int
    night_share: float
    night_share_known: bool
    per_night: float
    low: float
    high: float
    default_per_night: float
    recorded_at: datetime | None
    sentence: str


def level_for(history: History, plan: str) -> float | None:
    """The level that the newest calibration of the plan found; None where it was never calibrated."""
    with history.read() as connection:
        level: float | None = connection.execute(
            select(CALIBRATIONS.c.level)
            .where(CALIBRATIONS.c.plan == plan)
            .order_by(CALIBRATIONS.c.made_at.desc(), CALIBRATIONS.c.id.desc())
            .limit(1)
        ).scalar()
    return level


def plans(history: History) -> list[str]:
    """Names of the plans that the history has nights of, by name."""
    with history.read() as connection:
        return list(connection.execute(select(NIGHTS.c.plan).distinct().order_by(NIGHTS.c.plan)).scalars())


def calibrate(
    history: History,
    plan: str,
    *,
    who: str,
    seed: int,
    shuffles: int = DEFAULT_SHUFFLES,
    budget: float = DEFAULT_BUDGET,
    floor: Floor = 0.1,
    confirmations: int = DEFAULT_CONFIRMATIONS,
    controls: Sequence[str] = DEFAULT_CONTROLS,
    newest: int = DEFAULT_NIGHTS,
    when: datetime | None = None,
) -> Calibration:
    """Shuffle the plan's history, find the level that keeps to the budget, and record it.

    budget: false alarms a night over all series. floor, confirmations, controls: as nights of the plan are judged.
    newest: so many nights are looked at. Raises `NotFoundError` for a plan without nights, `ValueError` for a budget or
    numbers that are none. Where no series has nights enough, or no level keeps to the budget, nothing is recorded and
    the sentence says so.
    """
    from regress_db import calibration_history
    from regress_db.automatic import LEVEL_NIGHTS
    from regress_db.method.comparing import DEFAULT_LEVEL, METHOD
    from regress_db.method.shuffles import (
        Design,
        level_within,
        night_share,
        replayed_alarms,
        shuffled_alarms,
    )

    if not 0 < budget < math.inf or shuffles < 1 or newest < 1:
        raise ValueError(f"budget {budget}, {shuffles} shuffles, {newest} nights: wanted numbers above 0")
    with history.read() as connection:
        past = calibration_history.read(connection, plan, newest)
    if not past.nights:
        raise NotFoundError(f"the history has no night of plan {plan!r}; it has nights of {_told(plans(history))}")
    known = calibration_history.settled(past, floor, controls)
    usable = [one for one in known.series if one.usable]
    share = night_share(known.pairs)
    design = Design(confirmations, LEVEL_NIGHTS)
    if share is not None:
        design = replace(design, night_share=share)
    alarms = shuffled_alarms(usable, design, shuffles=shuffles, seed=seed)
    replayed = replayed_alarms(usable, design, newest=_REPLAYED, seed=seed)
    level = level_within(budget, alarms, replayed) if usable else None
    shown = DEFAULT_LEVEL if level is None else level
    per_night, low, high = alarms.per_night(shown)
    made = Calibration(
        plan=plan,
        judge=METHOD,
        series=_of_series(alarms, usable, shown),
        left_out=len(known.series) - len(usable),
        nights=len(past.nights),
        runs=sum(len(night.values_us) for one in usable for stretch in one.usable for night in stretch),
        shuffles=shuffles,
        seed=seed,
        budget=budget,
        level=level,
        default_level=DEFAULT_LEVEL,
        alarms=alarms.count(shown),
        improvements=alarms.improvements(shown),
        nights_with=alarms.nights(shown).hits,
        replayed=replayed.judged,
        replayed_alarms=replayed.count(shown),
        night_share=design.night_share,
        night_share_known=share is not None,
        per_night=per_night,
        low=low,
        high=high,
        default_per_night=alarms.per_night(DEFAULT_LEVEL)[0],
        recorded_at=None if level is None else when or datetime.now(UTC),
        sentence="",
    )
    made = replace(made, sentence=_sentence(made))
    if made.recorded_at is not None:
        _record(history, made, who)
    return made


def _told(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "no plan"


def _of_series(alarms: Alarms, usable: Sequence[Settled], level: float) -> tuple[SeriesRate, ...]:
    """The rates of each series, the largest first."""
    found = []
    rates = alarms.of_series(level)
    for one in usable:
        case, platform, phase = one.key
        rate = rates[one.key]
        low, high = rate.interval
        found.append(SeriesRate(case, platform, phase, one.nights, rate.trials, rate.hits, rate.value, low, high))
    return tuple(sorted(found, key=lambda one: (-one.rate, one.case, one.platform, one.phase)))


def _sentence(made: Calibration) -> str:
    """What a person should know of it."""
    from regress_db.method.shuffles import LEAST_NIGHTS

    counted = f"{made.nights} nights of plan {made.plan}"
    if not made.series:
        return (
            f"{counted} are too few to calibrate on: a series needs {LEAST_NIGHTS} nights at one level, and none has "
            "them. Nothing was recorded; the method's own level stands."
        )
    shuffled = f"{counted}, {len(made.series)} series, shuffled {made.shuffles} times (seed {made.seed})"
    seen = (
        f"{made.alarms} false alarms, {made.per_night:.4f} a night ({made.low:.4f} to {made.high:.4f}), in "
        f"{made.nights_with} of {made.shuffles} nights"
    )
    if made.level is None:
        return (
            f"{shuffled}: {seen} at the method's own level {made.default_level:.4f}. No level keeps to the budget of "
            f"{made.budget:.4f} a night: look at the series that sound most. Nothing was recorded."
        )
    again = f"; {made.replayed_alarms} in {made.replayed} nights judged in their own order"
    share = f"; {made.night_share:.0%} of the variance is {'' if made.night_share_known else 'taken to be '}a night's"
    unsure = "" if made.high <= made.budget else ", though the interval reaches above it: more shuffles would tell"
    within = f"within the budget of {made.budget:.4f} a night{unsure}"
    return f"{shuffled}: level {made.level:.3g} gives {seen}, {within}{again}{share}."


def _record(history: History, made: Calibration, who: str) -> None:
    details: dict[str, Any] = {
        "seed": made.seed,
        "nights": made.nights,
        "left_out": made.left_out,
        "nights_with": made.nights_with,
        "improvements": made.improvements,
        "replayed": [made.replayed_alarms, made.replayed],
        "night_share": made.night_share,
        "night_share_known": made.night_share_known,
        "per_night": [made.per_night, made.low, made.high],
        "default_level": made.default_level,
        "default_per_night": made.default_per_night,
        "worst": [
            {"case": one.case, "platform": one.platform, "phase": one.phase, "alarms": one.alarms}
            for one in made.series[:_WORST]
            if one.alarms
        ],
    }
    with history.write() as connection:
        connection.execute(
            insert(CALIBRATIONS),
            {
                "made_at": made.recorded_at,
                "made_by": who,
                "plan": made.plan,
                "judge": made.judge,
                "series": len(made.series),
                "runs": made.runs,
                "shuffles": made.shuffles,
                "alarms": made.alarms,
                "budget": made.budget,
                "level": made.level,
                "details": details,
            },
        )
