"""A small history with one of everything that a page shows, made of records as a harness could have written them.

Sixteen nights of two backends, two dtypes and a high-throughput case, the last three with three runs of each, the last
six judged against their series' own past:

- `SLOWER` gets a fifth slower in combine from the eleventh night on and stays so: a change point, open;
- `FASTER` gets 15 % faster in dispatch in the last night;
- `FAILING` fails in the last night, `RECOVERED` failed in the one before, `NEW` runs in the last night alone;
- one run of the last night is missing, one hung, one was wrong;
- torch changes with the sixth night, the driver with the eleventh; ranks stand on other hosts each night;
- what can be named oddly is: a case's backend, a host, a commit's branch, what a run
  says of itself, a failure's message and log.
"""

from __future__ import annotations

import sqlite3
import zlib
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from synthetic_records import failed_record, ok_record

from harness import record as records
from harness.case import Case
from harness.record import Environment, PlannedRun, Platform
from regress_db.history import History
from regress_db.ingest import collect
from regress_db.nights import close_night, open_night
from regress_db.verdicts import judge_night

ODD = "<script>alert(1)</script>"
START = datetime(2026, 10, 1, 2, 0, tzinfo=UTC)
NIGHTS = tuple(f"{START + timedelta(days=day):%Y%m%dT%H%M%SZ}-{day:06x}" for day in range(16))
LAST = len(NIGHTS) - 1
REPEATS = 3
_SLOWER_FROM = 10
_OTHER_TORCH_FROM = 5
_REPEATED = 3
_JUDGED = 6
PLATFORM = Platform(device_model="Some GPU 3000", devices_per_node=8, interconnect="nvlink", cluster="alps")
HOSTS = ("gpu01", "gpu02", "gpu03", ODD)


def _case(backend: str, dtype: str = "bf16", mode: str = "ll", ranks: int = 2, tokens: int = 128) -> Case:
    return Case(
        backend=backend,
        device="cuda",
        mode=mode,
        dtype=dtype,
        ranks=ranks,
        tokens=tokens,
        hidden=1024,
        topk=4,
        experts=16,
        combine="local_reduce" if mode == "ht" else "exact",
    )


SLOWER = _case("ep_core")
FASTER = _case("ep_core", "fp8")
STEADY = _case("torch")
FAILING = _case("torch", "fp8")
RECOVERED = _case("ep_core", mode="ht", tokens=4096)
WIDE = _case("ep_core", ranks=8)
NEW = _case("ep_core", "fp8", ranks=8)
ODDLY_NAMED = _case("odd")
CASES = (SLOWER, FASTER, STEADY, FAILING, RECOVERED, WIDE, ODDLY_NAMED)
ODD_KEY = ODDLY_NAMED.key.replace("odd", ODD, 1)
"""The key of `ODDLY_NAMED` as the history has it: no case may be named so, but who knows who wrote the database."""

_LEVELS_US = {case.key: (80.0 + 35 * place, 110.0 + 40 * place) for place, case in enumerate((*CASES, NEW))}
_BAD = {
    (FAILING.key, 0): "failed",
    (FAILING.key, 1): "failed",
    (FAILING.key, 2): "failed",
    (STEADY.key, 2): "missing",
    (WIDE.key, 1): "hung",
    (WIDE.key, 2): "wrong",
}
"""What goes wrong in the last night, by case and repeat."""


def make(path: Path, spool: Path) -> None:
    """Make the history at a new path, by way of an empty spool."""
    spool.mkdir(parents=True, exist_ok=True)
    with History.open(path) as history:
        for night in range(len(NIGHTS)):
            measure_night(history, spool, night)
            if night > LAST - _JUDGED:
                judge_night(history, NIGHTS[night], baseline="auto")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE cases SET key = ?, backend = ? WHERE key = ?", (ODD_KEY, ODD, ODDLY_NAMED.key))


def measure_night(history: History, spool: Path, night: int) -> None:
    """Open a night, measure, collect, close. Nights after the last of `NIGHTS` are like it, but nothing fails."""
    name = name_of(night)
    cases = (*CASES, NEW) if night >= LAST else CASES
    planned = [
        PlannedRun(run_id=_run_id(name, case, repeat), case=case, night=name, repeat=repeat)
        for case in cases
        for repeat in range(REPEATS if night > LAST - _REPEATED else 1)
    ]
    started = START + timedelta(days=night)
    open_night(history, name, "nightly", started, planned)
    for place, run in enumerate(planned):
        outcome = _outcome(run, night)
        if outcome != "missing":
            records.write(_record(run, night, outcome, started + timedelta(minutes=place)), spool)
    collect(history, spool)
    close_night(history, name)


def name_of(night: int) -> str:
    """Of a night by its place; there are names beyond `NIGHTS`."""
    return NIGHTS[night] if night <= LAST else f"{START + timedelta(days=night):%Y%m%dT%H%M%SZ}-{night:06x}"


def _run_id(night: str, case: Case, repeat: int) -> str:
    text = f"{night} {case.key} {repeat}".encode()
    return f"{zlib.crc32(text):08x}{zlib.adler32(text):08x}{zlib.crc32(text[::-1]):08x}{len(text):08x}"


def _outcome(run: PlannedRun, night: int) -> str:
    if night == LAST - 1 and run.case == RECOVERED:
        return "failed"
    return _BAD.get((run.case.key, run.repeat), "ok") if night == LAST else "ok"


def _record(run: PlannedRun, night: int, outcome: str, started: datetime) -> records.Record:
    shared = {
        "case": run.case,
        "run_id": run.run_id,
        "night": run.night,
        "repeat": run.repeat,
        "started": started,
        "seed": zlib.crc32(run.run_id.encode()),
        "platform": PLATFORM,
        "env": _environment(night),
        "hostnames": [HOSTS[(night + rank) % len(HOSTS)] for rank in range(2)],
    }
    if outcome != "ok":
        return failed_record(
            outcome,
            f"rank 1 of {ODD} was killed by signal 9",
            f"\x1b[31mTraceback\x1b[0m of {ODD}\nTimeoutError: no word from rank 0 for 30 s\n",
            **shared,
        )
    dispatch_us, combine_us = _LEVELS_US[run.case.key]
    weather = 1 + 0.004 * ((zlib.crc32(run.night.encode()) % 1000) / 500 - 1)
    if run.case == SLOWER and night >= _SLOWER_FROM:
        combine_us *= 1.2
    if run.case == FASTER and night >= LAST:
        dispatch_us *= 0.85
    found = ok_record(dispatch_us=dispatch_us * weather, combine_us=combine_us * weather, iters=21, **shared)
    return msgspec.structs.replace(found, notes=[f"a note of the run, with {ODD}"])


def _environment(night: int) -> Environment:
    torch = "2.12.1" if night < _OTHER_TORCH_FROM else "2.13.0"
    driver = "570.12" if night < _SLOWER_FROM else "580.1"
    return Environment(
        code={"commit": f"{night + 1:040x}"[::-1], "branch": f"main{ODD}", "dirty": "false"},
        versions={"torch": torch, "driver": driver},
        variables={"OMP_NUM_THREADS": "1"},
        topology={"numa_nodes": "2"},
    )
