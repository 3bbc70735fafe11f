"""How a rank ended, in its own words: one small file a rank, so that the rank that failed is blamed and not its peers.

A rank that loses a peer fails in the same second as the one it lost, and a rank that leaves with exit code 0 fails in
no launcher's eyes: only the ranks themselves can say what happened. A rank that a signal ended says nothing.
Torch-free. Written by `harness.worker`; read by `harness.launch` and `jobs`. Next to read: `harness.launch`.
"""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from harness.environment import hostname, utc_now

TRACE_LINES = 40
_LOST_PEER = re.compile(
    r"connection (?:was )?(?:closed|reset|refused)|broken pipe|socket closed|timed? ?out|no longer connected|"
    r"failed to (?:recv|send)|could not join its peers",
    re.IGNORECASE,
)

_TIMED_OUT = re.compile(r"timed? ?out", re.IGNORECASE)


class RankEnd(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one rank ended: `done`, or `error` with the exception's type, message and trace. ended_at: UTC, RFC 3339."""

    rank: int
    host: str
    pid: int
    outcome: Literal["done", "error"]
    kind: str = ""
    message: str = ""
    trace: str = ""
    ended_at: str

    @property
    def lost_a_peer(self) -> bool:
        """Whether the error is what a rank sees when another has gone."""
        return _LOST_PEER.search(self.message) is not None

    @property
    def timed_out(self) -> bool:
        """Whether the error is what a rank sees that waited for another until its deadline."""
        return _TIMED_OUT.search(self.message) is not None


def path_of(log_folder: Path, rank: int) -> Path:
    """Where a rank leaves its end."""
    return log_folder / f"end-rank{rank}.json"


@contextlib.contextmanager
def told(log_folder: Path, rank: int) -> Iterator[None]:
    """Write down how the block ended; what it raised goes on. Ctrl-C is a signal: nothing is written.

    What an earlier attempt of the job wrote here is removed first.
    """
    with contextlib.suppress(OSError):
        path_of(log_folder, rank).unlink(missing_ok=True)
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _write(log_folder, rank, "error", type(error).__name__, _message(error), _trace(error))
        raise
    else:
        _write(log_folder, rank, "done")


def _message(error: BaseException) -> str:
    """What the exception says; an exception that cannot be made into text is named all the same."""
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        return f"left with exit code {error.code or 0}"
    try:
        return str(error) or type(error).__name__
    except Exception as broken:
        return f"no message: {type(broken).__name__} while it was made"


def _trace(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(lines[-TRACE_LINES:])


def _write(
    log_folder: Path, rank: int, outcome: Literal["done", "error"], kind: str = "", message: str = "", trace: str = ""
) -> None:
    """Leave the file, whole or not at all. A folder that takes none is no reason to hide how the rank ended."""
    end = RankEnd(
        rank=rank,
        host=hostname(),
        pid=os.getpid(),
        outcome=outcome,
        kind=kind,
        message=message,
        trace=trace,
        ended_at=utc_now(),
    )
    target = path_of(log_folder, rank)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with contextlib.suppress(OSError):
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(end), indent=1))
        partial.replace(target)


def read(log_folder: Path, rank: int) -> RankEnd | None:
    """How the rank ended; None where it has not, or died before it could say."""
    try:
        return msgspec.json.decode(path_of(log_folder, rank).read_bytes(), type=RankEnd)
    except (OSError, msgspec.MsgspecError):
        return None


def read_all(log_folder: Path, ranks: int) -> list[RankEnd]:
    """The ends of those of `ranks` ranks that left one, in rank order."""
    return [end for rank in range(ranks) if (end := read(log_folder, rank)) is not None]


def to_blame(ends: Sequence[RankEnd]) -> RankEnd | None:
    """The end that explains the others: the first error that is not the loss of a peer, else the first error."""
    errors = sorted((end for end in ends if end.outcome == "error"), key=lambda end: (end.lost_a_peer, end.ended_at))
    return errors[0] if errors else None
