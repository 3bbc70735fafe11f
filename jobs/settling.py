"""An attempt has ended: what that means for the runs it still owed. Tried again, or given up?

Pure. Called by `jobs.nightly`. The rules:

- What the cluster did to the job (preemption, its node, its time limit while it got on) counts against no run; so it
  is where the job's own deadline ended ranks that got on.
- A run during which ranks died, failed or hung gets a strike; at `tries` strikes it is given up. Those behind it in the
  queue get none, and are tried again without it standing in their way again.
- An attempt that ended before any run had begun counts against all: so many of these in a row and all are given up.
- Whoever cancels a job means it: what it owed is given up at once. So is what a cluster refuses for good.
- However often the cluster interferes, after `MOST_IN_VAIN` such attempts in a row without a single record the job is
  given up, so that every night ends. Strikes come to an end by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.diagnosis import OUT_OF_TIME, Diagnosis
from jobs.cluster import JobState
from jobs.night_folder import Cause, Settled

MOST_IN_VAIN = 5

_NOBODYS_FAULT: frozenset[Cause] = frozenset({"node", "preempted", "lost"})
_FINAL: frozenset[Cause] = frozenset({"cancelled", "queue", "refused"})


@dataclass(frozen=True)
class Ending:
    """What is known of an attempt that has ended. owed: run ids without a record, in order; measured: how many of its
    runs it recorded. at_run: the run it was at, "" where none had begun.
    """

    state: JobState
    owed: tuple[str, ...]
    measured: int
    at_run: str
    diagnosis: Diagnosis | None


def settle(ending: Ending, past: Sequence[Settled], tries: int, at: str) -> Settled:
    """What the end of an attempt means; `past` are the earlier ones at the same job, oldest first."""
    state, owed = ending.state, ending.owed
    cause = _cause(ending)
    words = state.words or ("the job ended well but left no record" if owed and not ending.measured else "")
    if ending.diagnosis is not None and (cause in ("hung", "killed", "failed", "memory") or cause != state.cause):
        words = ending.diagnosis.message if cause != "memory" else f"{state.words}; {ending.diagnosis.message}"
    at_fault = ending.at_run if ending.at_run in owed else ""
    strike = False
    given_up: tuple[str, ...] = ()
    if owed and cause in _FINAL:
        given_up = owed
    elif owed and cause not in _NOBODYS_FAULT and not (cause == "time limit" and ending.measured):
        if at_fault:
            strike = True
            strikes = 1 + sum(one.strike and one.at_fault == at_fault for one in past)
            given_up = (at_fault,) if strikes >= tries else ()
        elif ending.measured == 0 and 1 + _started_in_vain(past) >= tries:
            given_up = owed
    in_vain = owed and not ending.measured and not strike and cause != "lost"
    if in_vain and not given_up and 1 + _in_vain(past) >= MOST_IN_VAIN:
        given_up = owed
        words = f"{words}; it was attempt {1 + _in_vain(past)} in a row without a result"
    return Settled(
        at=at,
        cause=cause,
        words=words,
        at_fault=at_fault,
        strike=strike,
        progress=ending.measured > 0,
        hosts=list(state.hosts),
        bad_hosts=list(state.bad_hosts),
        log_tail=state.log_tail,
        given_up=list(given_up),
    )


def _cause(ending: Ending) -> Cause:
    """The cluster's word, sharpened by what the ranks left."""
    cause, found = ending.state.cause, ending.diagnosis
    if found is None or cause not in ("done", "failed", "killed", "gone"):
        return cause
    if cause == "gone" and found.kind == "LaunchFailed":
        return cause
    if found.outcome == "hung":
        return "hung"
    if found.kind == OUT_OF_TIME:
        return "time limit"
    return "killed" if found.kind == "RankKilled" else "failed"


def _started_in_vain(past: Sequence[Settled]) -> int:
    """How many of the newest attempts in a row ended, by a fault of their own, before any run had begun."""
    count = 0
    for one in reversed(past):
        if one.progress or one.at_fault:
            break
        count += one.cause not in _NOBODYS_FAULT
    return count


def _in_vain(past: Sequence[Settled]) -> int:
    """How many attempts since the newest record were begun, brought none, and struck no run."""
    count = 0
    for one in reversed(past):
        if one.progress:
            break
        count += one.cause != "lost" and not one.strike
    return count
