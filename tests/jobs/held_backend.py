"""A backend that does what files say, installed for a night's ranks as a user's plugin would be.

It is the torch backend. Before each operation it looks into the folder that HELD_BACKEND_FAULTS names: while a file
`<phase>.<rank>.hold` is there the rank stays in that operation, and with `<phase>.<rank>.slow` each one takes a while.
`install` makes a folder to put on PYTHONPATH.
"""

import os
import shutil
import time
from pathlib import Path

from harness.backends.torch_a2a import TorchBackend

FAULTS = "HELD_BACKEND_FAULTS"
SLOW_S = 0.25
POLL_S = 0.05


class HeldBackend(TorchBackend):
    name = "held"

    def setup(self, given):
        super().setup(given)
        self._rank, self._faults = given.rank, Path(os.environ[FAULTS])

    def dispatch(self):
        self._obey("dispatch")
        super().dispatch()

    def combine(self):
        self._obey("combine")
        super().combine()

    def _obey(self, phase):
        if (self._faults / f"{phase}.{self._rank}.slow").exists():
            time.sleep(SLOW_S)
        while (self._faults / f"{phase}.{self._rank}.hold").exists():
            time.sleep(POLL_S)


def install(folder: Path) -> None:
    """Register the backend in `folder`, as pip would have left a distribution that holds it."""
    shutil.copy(__file__, folder / "held_backend.py")
    info = folder / "held_backend-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: held-backend\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[epwatch.backends]\nheld = held_backend:HeldBackend\n")
