"""A process that owns a private Slurm and waits to be killed. Run by tests.

Arguments: `accounting` for one with it, and the folder for one that is not to go.
"""

import json
import sys
import time
from pathlib import Path

from jobs.private_slurm import PrivateSlurm, SlurmSettings

if __name__ == "__main__":
    settings = SlurmSettings(nodes=2, cpus=2, memory_mb=4000, gpus=0, accounting=sys.argv[1] == "accounting")
    with PrivateSlurm(settings, Path(sys.argv[2]) if sys.argv[2:] else None) as slurm:
        status = slurm.status()
        print(json.dumps({"folder": status.folder, "guard": status.guard_pid, "supervisor": status.supervisor_pid}))
        sys.stdout.flush()
        time.sleep(600)
