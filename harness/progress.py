"""What each rank is doing, in files beside its log: how the launcher knows where a rank died or hangs.

One file a rank, one JSON line a step, appended in one write each. A line that a full disk has torn is ignored, with the
step that was written onto its end; a last line without an end is not there yet. Torch-free.
Written by `harness.worker`, read by `harness.supervise` and `harness.diagnosis`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

RECORDED = "recorded"
"""The step that says: the record of `run_id` is in the spool, with `outcome`; "" where an earlier attempt made it."""

WAITS = ", done, waits for the others"
"""What a step ends with once the rank has done its part of it."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """One step of one rank. at_s: seconds since the epoch. run_id: "" before the first run. pid: of the rank."""

    at_s: float
    rank: int
    pid: int
    run_id: str
    step: str
    outcome: str = ""
    error: str = ""


def _path(folder: Path, rank: int) -> Path:
    return folder / f"progress-rank{rank}.jsonl"


def append(folder: Path, rank: int, run_id: str, step: str, *, outcome: str = "", error: str = "") -> None:
    """Say that this rank begins `step` of a run (or has ended it, for `RECORDED`)."""
    entry = Progress(
        at_s=time.time(), rank=rank, pid=os.getpid(), run_id=run_id, step=step, outcome=outcome, error=error
    )
    file = os.open(_path(folder, rank), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(file, msgspec.json.encode(entry) + b"\n")
    finally:
        os.close(file)


def read(folder: Path, rank: int) -> list[Progress]:
    """All steps of one rank so far; empty when it has not begun."""
    return read_new(folder, rank, 0)[0]


def read_new(folder: Path, rank: int, offset: int) -> tuple[list[Progress], int]:
    """The steps of one rank from byte `offset` on, and the offset to go on from."""
    try:
        with _path(folder, rank).open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return [step for line in whole.split(b"\n") if (step := _step(line)) is not None], offset + len(whole)


def _step(line: bytes) -> Progress | None:
    try:
        return msgspec.json.decode(line, type=Progress)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
