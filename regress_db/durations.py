"""How long runs of a case take, as they took before: what a night's jobs are packed by. Read-only.

Called by `jobs.nightly` and `epwatch plan check`.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable

from sqlalchemy import select

from harness.case import Case
from regress_db.history import History
from regress_db.schema import CASES, PLATFORMS, RUNS

_NEWEST = 20
_CASES_AT_ONCE = 200


def usual_durations_s(history: History, cases: Iterable[Case], cluster: str) -> dict[str, float]:
    """Case key to the median seconds of its newest valid runs on the cluster, check and set-up included.

    A case without any is left out; so is what a clock that jumped makes impossible.
    """
    keys = sorted({case.key for case in cases})
    took: dict[str, list[float]] = defaultdict(list)
    with history.read() as connection:
        for start in range(0, len(keys), _CASES_AT_ONCE):
            wanted = (
                select(CASES.c.key, RUNS.c.started_at, RUNS.c.ended_at)
                .join(CASES, CASES.c.id == RUNS.c.case_id)
                .join(PLATFORMS, PLATFORMS.c.id == RUNS.c.platform_id)
                .where(
                    CASES.c.key.in_(keys[start : start + _CASES_AT_ONCE]),
                    PLATFORMS.c.cluster == cluster,
                    RUNS.c.outcome == "ok",
                )
                .order_by(RUNS.c.started_at.desc())
                .limit(_NEWEST * _CASES_AT_ONCE)
            )
            for key, started_at, ended_at in connection.execute(wanted):
                seconds = (ended_at - started_at).total_seconds()
                if len(took[key]) < _NEWEST and seconds >= 0:
                    took[key].append(seconds)
    return {key: statistics.median(values) for key, values in took.items() if values}
