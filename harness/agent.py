"""torch's elastic launch as a process of its own: starts the ranks, and writes down which of them failed and how.

`python -m harness.agent PARENT_PID FAILURES.json <arguments of torch.distributed.run>`, started by `harness.launch`.
Apart from dying with its parent and the file of failures it is `python -m torch.distributed.run`.
Next to read: `harness.worker`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from harness.processes import die_with_parent


class RankFailure(msgspec.Struct, frozen=True, kw_only=True):
    """One rank that ended badly. exit_code: as the system gives it, minus the signal's number where one ended it."""

    rank: int
    exit_code: int
    at_s: float


def main(arguments: list[str]) -> int:
    """Run the ranks; 0 when all of them ended well."""
    die_with_parent(int(arguments[0]))
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    config, command, rest = config_from_args(parse_args(arguments[2:]))  # type: ignore[no-untyped-call]
    try:
        elastic_launch(config=config, entrypoint=command)(*rest)
    except ChildFailedError as error:
        failures = [
            RankFailure(rank=rank, exit_code=failure.exitcode, at_s=failure.timestamp)
            for rank, failure in error.failures.items()
        ]
        Path(arguments[1]).write_bytes(msgspec.json.encode(sorted(failures, key=lambda failure: failure.at_s)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
