"""Backends that fail on purpose, installed for the ranks of a test as a user's plugin would be.

Each is the torch backend with one fault. `install` makes a folder to put on PYTHONPATH.
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

from harness.backends.ep_core import EpCoreBackend
from harness.backends.torch_a2a import TorchBackend


class CrossesRows(TorchBackend):
    """Combine's result has two tokens exchanged."""

    name = "crosses-rows"

    def combined(self):
        return super().combined().flip(0)


class LosesRowWhenTimed(TorchBackend):
    """Right at first, wrong once it has been called often, on rank 1 alone."""

    name = "loses-row-when-timed"

    def setup(self, given):
        super().setup(given)
        self.calls, self.rank = 0, given.rank

    def dispatch(self):
        super().dispatch()
        self.calls += 1
        if self.calls > 5 and self.rank == 1:
            self._engine._rows[0] = 0


class StaleOutput(TorchBackend):
    """Combine does nothing after its first call: what it leaves is right, and old."""

    name = "stale-output"

    def combine(self):
        if not self.combined().numel():
            super().combine()


class RaisesOnOneRank(TorchBackend):
    """Rank 1 raises in dispatch, while the others wait for it."""

    name = "raises-on-one-rank"

    def setup(self, given):
        super().setup(given)
        self.rank = given.rank

    def dispatch(self):
        if self.rank == 1:
            raise RuntimeError("out of send slots")
        super().dispatch()


class Unavailable(TorchBackend):
    """Its library is not here."""

    name = "unavailable"

    @classmethod
    def availability(cls):
        return "libfast.so.2 is not installed"


class KilledInCombine(TorchBackend):
    """Rank 1 is killed in the middle of its first combine."""

    name = "killed-in-combine"

    def setup(self, given):
        super().setup(given)
        self.rank = given.rank

    def combine(self):
        if self.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        super().combine()


class ComesLate(EpCoreBackend):
    """Rank 1 comes to its first dispatch long after the others have given up waiting."""

    name = "comes-late"

    def setup(self, given):
        super().setup(given)
        self.late_s = 3 * given.deadline_s if given.rank == 1 else 0

    def dispatch(self):
        time.sleep(self.late_s)
        super().dispatch()


class HangsInDispatch(TorchBackend):
    """Rank 0 never comes out of dispatch, and does not listen to SIGTERM either."""

    name = "hangs-in-dispatch"

    def setup(self, given):
        super().setup(given)
        self.rank = given.rank

    def dispatch(self):
        if self.rank == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(0.05)
        super().dispatch()


class _Unpicklable(BaseException):
    """No `Exception`, so that the protocol lets it through, and nothing that could be sent to another process."""

    def __init__(self, words):
        super().__init__(words)
        self.held = (value for value in ())


class EscapesOnOneRank(TorchBackend):
    """Rank 1 raises what nobody catches, while the others wait for it."""

    name = "escapes-on-one-rank"

    def setup(self, given):
        super().setup(given)
        self.rank = given.rank

    def dispatch(self):
        if self.rank == 1:
            raise _Unpicklable("the link is down")
        super().dispatch()


class CannotBeSent(TorchBackend):
    """Rank 1 raises an exception that cannot be pickled."""

    name = "cannot-be-sent"

    def setup(self, given):
        super().setup(given)
        if given.rank == 1:
            error = ValueError("no room for the handle")
            error.held = (value for value in ())
            raise error


class LeavesOnOneRank(EscapesOnOneRank):
    """Rank 1 calls `sys.exit(0)` in dispatch."""

    name = "leaves-on-one-rank"

    def dispatch(self):
        if self.rank == 1:
            sys.exit(0)
        super().dispatch()


class LeavesOnEveryRank(TorchBackend):
    """Every rank calls `sys.exit(0)` in setup."""

    name = "leaves-on-every-rank"

    def setup(self, given):
        sys.exit(0)


class DropsDead(EscapesOnOneRank):
    """Rank 1 ends without a word, with an exit code."""

    name = "drops-dead"

    def dispatch(self):
        if self.rank == 1:
            os._exit(4)
        super().dispatch()


class CannotBeClosed(TorchBackend):
    """Rank 1 raises in close."""

    name = "cannot-be-closed"

    def setup(self, given):
        super().setup(given)
        self.rank = given.rank

    def close(self):
        if self.rank == 1:
            raise RuntimeError("the segment is still mapped")
        super().close()


FAULTY = (
    CannotBeClosed,
    EscapesOnOneRank,
    CannotBeSent,
    LeavesOnOneRank,
    LeavesOnEveryRank,
    DropsDead,
    CrossesRows,
    LosesRowWhenTimed,
    StaleOutput,
    RaisesOnOneRank,
    Unavailable,
    KilledInCombine,
    ComesLate,
    HangsInDispatch,
)


def install(folder: Path) -> None:
    """Register the faulty backends in `folder`, as pip would have left a distribution that holds them."""
    shutil.copy(__file__, folder / "plugin_backends.py")
    info = folder / "faulty_plugins-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-plugins\nVersion: 1\n")
    lines = [f"{faulty.name} = plugin_backends:{faulty.__name__}\n" for faulty in FAULTY]
    (info / "entry_points.txt").write_text("[epwatch.backends]\n" + "".join(lines))
