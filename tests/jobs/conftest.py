"""What the tests of the jobs share: the helper modules, and real Slurms."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from slurm_fixtures import own_slurm, slurm, slurm_without_accounting
from slurm_namespaces import slurm_in_namespaces

__all__ = ["own_slurm", "slurm", "slurm_in_namespaces", "slurm_without_accounting"]
