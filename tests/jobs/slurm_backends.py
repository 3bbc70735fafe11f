"""Backends for nights on a Slurm: one fault each, on a rank that is not the first, or a look at what the rank is given.

Installed for the ranks as a user's plugin would be: `install` makes a folder to put on PYTHONPATH.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from harness.backends.torch_a2a import TorchBackend


class _Faulty(TorchBackend):
    """Rank 2 fails in its first dispatch, while the others wait for it."""

    def setup(self, given):
        super().setup(given)
        self.rank = given.rank

    def dispatch(self):
        if self.rank == 2:
            self.fail()
        super().dispatch()


class RaisesOnRank2(_Faulty):
    """An ordinary exception."""

    name = "raises-on-rank-2"

    def fail(self):
        raise RuntimeError("out of send slots")


class _Unpicklable(BaseException):
    """No `Exception`, and nothing that could be sent to another process."""

    def __init__(self, words):
        super().__init__(words)
        self.held = (value for value in ())


class EscapesOnRank2(_Faulty):
    """What nobody catches and nobody can pickle."""

    name = "escapes-on-rank-2"

    def fail(self):
        raise _Unpicklable("the link is down")


class LeavesOnRank2(_Faulty):
    """`sys.exit(0)`."""

    name = "leaves-on-rank-2"

    def fail(self):
        sys.exit(0)


class KilledOnRank1(_Faulty):
    """SIGKILL, on rank 1."""

    name = "killed-on-rank-1"

    def dispatch(self):
        if self.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        TorchBackend.dispatch(self)


class TellsItsEnvironment(TorchBackend):
    """Writes the rank's environment to the folder that ENVIRONMENTS names."""

    name = "tells-its-environment"

    def setup(self, given):
        super().setup(given)
        here = Path(os.environ["ENVIRONMENTS"]) / f"rank{given.rank}-of-{os.environ['SLURM_JOB_ID']}"
        here.write_text("".join(f"{name}={value}\n" for name, value in os.environ.items()))


ALL = (RaisesOnRank2, EscapesOnRank2, LeavesOnRank2, KilledOnRank1, TellsItsEnvironment)


def install(folder: Path) -> Path:
    """Register the backends in `folder`, as pip would have left a distribution that holds them; returns it."""
    shutil.copy(__file__, folder / "slurm_backends.py")
    info = folder / "slurm_backends-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slurm-backends\nVersion: 1\n")
    lines = [f"{one.name} = slurm_backends:{one.__name__}\n" for one in ALL]
    (info / "entry_points.txt").write_text("[epwatch.backends]\n" + "".join(lines))
    return folder
