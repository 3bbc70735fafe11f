"""jobs.private_slurm: a real Slurm of one's own, in a folder, without root: for tests, newcomers and single machines.

`PrivateSlurm` is all that most callers need. Needs Debian's packages slurmctld, slurmd, slurm-client and munge, for
accounting slurmdbd and mariadb-server-core too. Start reading at `jobs.private_slurm.settings`, then
`jobs.private_slurm.configuration`; the processes are `jobs.private_slurm.supervisor`.
"""

from jobs.private_slurm.client import PrivateSlurm
from jobs.private_slurm.settings import SlurmError, SlurmSettings

__all__ = ["PrivateSlurm", "SlurmError", "SlurmSettings"]
