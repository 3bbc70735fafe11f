"""torch's elastic launch as a process of its own: starts the ranks, and writes down which of them failed and how.

`python -m harness.agent PARENT_PID LOG_FOLDER NAME <arguments of torch.distributed.run>`, started by `harness.launch`
or, on each host of a cluster's job, by `jobs.rank_task`; failures-NAME.json receives the failures.
Apart from dying with its parent and the file of failures it is `python -m torch.distributed.run`.
Next to read: `harness.worker`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness.diagnosis import RankFailure, write_failures
from harness.processes import die_with_parent


def main(arguments: list[str]) -> int:
    """Run the ranks; 0 when all of them ended well."""
    die_with_parent(int(arguments[0]))
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    config, command, rest = config_from_args(parse_args(arguments[3:]))  # type: ignore[no-untyped-call]
    try:
        elastic_launch(config=config, entrypoint=command)(*rest)
    except ChildFailedError as error:
        failures = [
            RankFailure(rank=rank, exit_code=failure.exitcode, at_s=failure.timestamp)
            for rank, failure in error.failures.items()
        ]
        write_failures(Path(arguments[1]), arguments[2], failures)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
