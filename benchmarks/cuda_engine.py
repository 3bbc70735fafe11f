"""How fast the CUDA engine is: every protocol, beside its peers and the physical limits of this machine.

    python benchmarks/cuda_engine.py [--json FILE_OR_FOLDER] [--mps] [--ranks 2] [--protocols graph kernel] ...
    python benchmarks/cuda_engine.py --from FILE
    python benchmarks/cuda_engine.py --device cpu --hidden 1024 --ht-tokens 256

Ranks take the GPUs in turn; what they say to each other goes over gloo. All contenders of a mode and protocol live in
the same processes with the same routing and take turns, round after round. Each is checked by the harness's oracle
before its first and after every timing: a wrong answer is shown as wrong and has no time. Protocols and bytes are those
of docs/metrics.md. Columns `link` and `memory` are the least times that the limits measured in the same run allow: the
bytes that must leave a rank (a token once for each other rank; with combine exact each selection's row) by the put
kernel's speed, and the bytes that dispatch writes or combine reads in its own memory by that of fill or copy.

Ranks that share a GPU take turns on it unless MPS lets them run side by side: `--mps` starts a private MPS daemon for
this run and stops it. Ctrl-C and SIGTERM end the run; the blocks that are done are shown and kept. Exit code: 0; 2 what
was asked for cannot be; 3 something of ours has no valid result; 130 the run was interrupted.
Next to read: benchmarks/cuda_engine_ranks.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cuda_engine_table
import mps
import msgspec
from cuda_engine_plan import ALL_SMS, FEW_SMS, MODES, PEERS, PROTOCOLS, Block, Plan, blocks

from harness import diagnosis, gpus, routing
from harness.case import Case
from harness.errors import CaseError, EpwatchError
from harness.job import JobSpec
from harness.launch import ranks_environment
from harness.supervise import JobEvent, supervise

RANKS = Path(__file__).with_name("cuda_engine_ranks.py")
ROOT = RANKS.parent.parent
PROGRAM = "cuda_engine.py"
VERSION = 1
INTERRUPTED = "it was interrupted"
EXIT_INTERRUPTED = 130


class BenchError(EpwatchError):
    """What was asked for cannot be measured or shown."""


class NothingMeasured(BenchError):
    """The ranks left no document."""

    def __init__(self, why: str) -> None:
        super().__init__(f"nothing was measured: {why}")
        self.exit_code = EXIT_INTERRUPTED if why == INTERRUPTED else 2


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: the host engine, by the same table")
    add("--ranks", type=int, default=2)
    add("--tokens", type=int, default=128, help="of a rank, low latency")
    add("--ht-tokens", type=int, default=4096, help="of a rank, high throughput")
    add("--hidden", type=int, default=7168)
    add("--topk", type=int, default=8)
    add("--experts", type=int, default=256)
    add("--routing", choices=[*routing.GENERATORS], default="uniform")
    add("--seed", type=int, default=0)
    add("--modes", nargs="+", choices=MODES, default=[*MODES])
    add("--protocols", nargs="+", choices=PROTOCOLS, help="without it all of the device")
    add("--peers", nargs="*", choices=[*PEERS], default=[*PEERS])
    add("--no-fp8", action="store_true", help="leave fp8 dispatch out")
    add("--ll-sms", type=int, help="of a rank, low latency; 0: engine's choice; without it as EP_LL_SMS says, else 0")
    add("--ht-sms", type=int, nargs="+", default=[ALL_SMS, FEW_SMS], help="of a rank, high throughput; 0: all")
    add(
        "--ranks-per-node",
        type=int,
        default=0,
        metavar="N",
        help="low latency also with every N ranks acting as a node, by port channels on cuda; 0: as the ranks are",
    )
    add("--rounds", type=int, default=5, help="of a low-latency block")
    add("--ht-rounds", type=int, default=3, help="of a high-throughput block")
    add("--iters", type=int, default=50, help="in a round")
    add("--warmup", type=int, default=10, help="pairs before each timing")
    add("--deadline", type=float, default=540.0, metavar="S", help="of everything")
    add("--hang", type=float, default=60.0, metavar="S", help="of one step: a hang ends after so long")
    add("--mps", action="store_true", help="run under a private MPS daemon")
    add("--json", type=Path, metavar="FILE", help="write all samples there; a folder gets DEVICE-DATE-COMMIT.json")
    add("--from", dest="recorded", type=Path, metavar="FILE", help="measure nothing, show a recorded document")
    add("--if-gpu", action="store_true", help="where there is no GPU say so and end with exit code 0")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    options = arguments(words)
    try:
        if options.recorded is not None:
            if options.json is not None:
                raise BenchError("--json is for what is measured, and --from measures nothing: leave one of them out")
            document = _recorded(options.recorded)
        else:
            if options.if_gpu and (why := _no_gpu(options.device)):
                print(f"The CUDA engine is not measured here: {why}.")
                return 0
            plan_blocks, settings = _checked(options)
            document = _measured(options, plan_blocks, settings)
        print(cuda_engine_table.text(document))
        if options.json is not None:
            _save(document, options.json)
    except EpwatchError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{PROGRAM}: {INTERRUPTED}", file=sys.stderr)
        return EXIT_INTERRUPTED
    if options.recorded is None and document["ended"] == INTERRUPTED:
        return EXIT_INTERRUPTED
    return 0 if cuda_engine_table.complete(document) else 3


def _no_gpu(device: str) -> str:
    """Why the CUDA engine cannot be measured, "" when it can."""
    if device == "cpu":
        return ""
    from ep_core import cuda

    return gpus.obstacle() or cuda.obstacle()


def _checked(options: argparse.Namespace) -> tuple[list[Block], dict[str, Any]]:
    """The blocks that were asked for, and the settings of the document. Raises `EpwatchError`."""
    if why := _no_gpu(options.device):
        raise BenchError(f"the CUDA engine cannot be measured here: {why}; --device cpu measures the host engine")
    if min(options.rounds, options.ht_rounds) < 1 or options.iters < 2 or options.warmup < 0:
        raise BenchError("wanted --rounds and --ht-rounds from 1 on, --iters from 2 on, --warmup from 0 on")
    ll_sms = _ll_sms(options.ll_sms, os.environ)
    if min(ll_sms, *options.ht_sms) < 0 or any(count % 2 for count in options.ht_sms):
        raise BenchError("wanted --ll-sms from 0 on, and even numbers from 0 on for --ht-sms")
    if not all(0 < seconds < math.inf for seconds in (options.deadline, options.hang)):
        raise BenchError("wanted positive numbers of seconds for --deadline and --hang")
    if options.mps and options.device == "cpu":
        raise BenchError("--mps is for device cuda: leave it out")
    known = ["phased", "paired"] if options.device == "cpu" else [*PROTOCOLS]
    protocols = known if options.protocols is None else options.protocols
    if unknown := [one for one in protocols if one not in known]:
        raise CaseError(f"protocol {unknown[0]!r} needs a GPU; on device cpu there are {', '.join(known)}")
    sizes = Case(
        backend="ep_core",
        mode="ll",
        device=options.device,
        ranks=options.ranks,
        tokens=options.tokens,
        hidden=options.hidden,
        topk=options.topk,
        experts=options.experts,
        routing=options.routing,
        seed=options.seed,
    )
    names = {"modes": options.modes, "protocols": protocols, "peers": options.peers}
    planned = blocks(
        sizes,
        options.ht_tokens,
        options.ht_sms,
        names,
        fp8=not options.no_fp8,
        ranks_per_node=_ranks_per_node(options),
    )
    for block in planned:
        for contender in block.contenders:
            contender.run.case.validate()
    if options.json is not None:
        _check_target(options.json)
    kept = {name: value for name, value in vars(options).items() if name not in ("json", "recorded", "if_gpu")}
    return planned, {**kept, "protocols": protocols, "ll_sms": ll_sms}


def _ranks_per_node(options: argparse.Namespace) -> int:
    """What the option says. Raises `BenchError` where ranks so divided cannot be joined."""
    wanted: int = options.ranks_per_node
    if not 0 <= wanted <= options.ranks:
        raise BenchError(f"wanted --ranks-per-node from 0 to the {options.ranks} ranks, got {wanted}")
    if wanted and options.device == "cuda":
        from ep_core import peers

        if why := peers.port_obstacle():
            raise BenchError(f"--ranks-per-node: ranks on several nodes cannot be joined here: {why}")
    return wanted


def _ll_sms(wanted: int | None, environ: Mapping[str, str]) -> int:
    """What the option says, else the variable, which the ranks' engines would refuse where it is nonsense."""
    if wanted is not None:
        return wanted
    from ep_core import cuda

    try:
        return cuda.sms_wanted(environ.get("EP_LL_SMS", ""))
    except ValueError as error:
        raise BenchError(str(error)) from None


def _check_target(target: Path) -> None:
    """Raise `BenchError` where no document could be written in the end."""
    folder = target if target.is_dir() else target.parent
    if not folder.is_dir():
        raise BenchError(f"--json: there is no folder {folder}")
    try:
        if target.is_file():
            target.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise BenchError(f"--json: cannot write {target}: {error.strerror or error}") from None


@contextlib.contextmanager
def _mps(wanted: bool) -> Iterator[dict[str, str]]:
    if not wanted:
        yield {}
        return
    try:
        with mps.daemon() as variables:
            yield variables
    except mps.MpsError as error:
        raise BenchError(str(error)) from None


def _measured(options: argparse.Namespace, planned: list[Block], settings: dict[str, Any]) -> dict[str, Any]:
    """Start the ranks, wait for them, and return what they found, with the reason where that is not all."""
    with tempfile.TemporaryDirectory(prefix="epwatch-bench-") as name, _mps(options.mps) as variables:
        folder = Path(name)
        spec = JobSpec(
            runs=[contender.run for block in planned for contender in block.contenders],
            spool=str(folder / "spool"),
            log_folder=str(folder),
            warmup=options.warmup,
            iters=options.iters,
            deadline_s=options.deadline,
            heartbeat_s=options.hang,
            op_deadline_s=options.hang / 2,
        )
        environ = {**os.environ, **variables}
        in_words = mps.in_words(environ)
        plan = Plan(
            spec=spec,
            blocks=planned,
            rounds={"ll": options.rounds, "ht": options.ht_rounds},
            ll_sms=settings["ll_sms"],
            settings={**settings, "mps": f"{in_words}, private to this run" if options.mps else in_words},
        )
        (folder / "plan.json").write_bytes(msgspec.json.encode(plan))
        environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environ.get("PYTHONPATH")])])
        try:
            ended = supervise(spec, _command(spec), ranks_environment(environ), folder / "launch.log", tell=_tell)
        except KeyboardInterrupt:
            return {**_of_ranks(folder, INTERRUPTED), "ended": INTERRUPTED}
        print(file=sys.stderr)
        found = (
            diagnosis.halted(spec, ended.halted, alive=ended.alive)
            if ended.halted
            else diagnosis.explain(spec, ended.exit_code)
        )
        if found is not None:
            print(found.log_tail, file=sys.stderr)
        document = _of_ranks(folder, "the ranks ended without a word" if found is None else found.message)
        document["ended"] = "" if found is None else found.message
        return document


def _of_ranks(folder: Path, why: str) -> dict[str, Any]:
    try:
        return {"program": PROGRAM, "version": VERSION, **json.loads((folder / "found.json").read_bytes())}
    except FileNotFoundError:
        raise NothingMeasured(why) from None


def _command(spec: JobSpec) -> list[str]:
    folder = Path(spec.log_folder)
    return [
        *(sys.executable, "-m", "harness.agent", str(os.getpid()), str(folder), "agent"),
        *("--nnodes=1", f"--nproc-per-node={spec.ranks}", "--max-restarts=0", "--monitor-interval=0.1"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"),
        *(f"--log-dir={folder / 'ranks'}", "--redirects=3"),
        *(str(RANKS), str(folder / "plan.json")),
    ]


def _tell(event: JobEvent) -> None:
    """One line that changes on a terminal; a dot a step elsewhere would be noise."""
    if event.kind == "step" and sys.stderr.isatty():
        print(f"\r\x1b[K{event.step[:110]}", end="", file=sys.stderr, flush=True)


def _recorded(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise BenchError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise BenchError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("program") != PROGRAM:
        raise BenchError(f"{path} is no document of {PROGRAM}")
    if document.get("version") != VERSION:
        raise BenchError(f"{path} has version {document.get('version')}, this program reads {VERSION}")
    if lacking := [name for name in cuda_engine_table.NEEDED if name not in document]:
        raise BenchError(f"{path} is damaged: it has no {', '.join(lacking)}")
    try:
        cuda_engine_table.text(document)
        cuda_engine_table.complete(document)
    except (ArithmeticError, AttributeError, CaseError, LookupError, TypeError, ValueError) as error:
        raise BenchError(f"{path} is damaged: it cannot be shown ({type(error).__name__}: {error})") from None
    return document


def _save(document: dict[str, Any], target: Path) -> None:
    path = target / file_name(document) if target.is_dir() else target
    try:
        path.write_text(json.dumps(document, indent=None, separators=(",", ":")) + "\n")
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror or error}") from None
    print(f"\nall samples: {path}")


def file_name(document: dict[str, Any]) -> str:
    """DEVICE-DATE-COMMIT.json: "2x-nvidia-h100-80gb-hbm3-2026-11-24-313fffe.json"."""
    names = [gpu["name"] for gpu in document["gpus"]]
    device = f"{len(names)}x-{names[0]}" if names else document["environment"]["topology"].get("cpu_model", "cpu")
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    commit = document["environment"]["code"].get("commit", "unknown")[:7]
    return f"{slug}-{document['started_at'][:10]}-{commit}.json"


if __name__ == "__main__":
    # What must not be left behind, ranks and a daemon, is ended as after Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    sys.exit(main())
