"""The run record: one JSON document that says everything about one run, and how it is kept in a spool.

Pure and torch-free. The harness writes records (temp file, fsync, rename), the history ingests them, nothing else
passes between the two. Unknown fields of the same schema version are refused, so that nothing is dropped in silence;
a record of a newer version is refused with a sentence. Next to read: `harness.measure` (who fills it in).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from pathlib import Path
from typing import Literal

import msgspec

from harness.case import Case, Phase
from harness.errors import RecordError

SCHEMA_VERSION = 2
INGESTED = "ingested"
"""Folder within the spool where ingestion keeps the records that are in the history."""

Outcome = Literal["ok", "failed", "wrong", "hung"]


class PlannedRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One run that is to be: its id is given here, so that what is missing afterwards can be named."""

    run_id: str
    case: Case
    night: str = ""
    repeat: int = 0


class Platform(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What makes numbers comparable. Versions of drivers and libraries are not here: they are environment.

    device_model: CPU or GPU model as its driver names it. devices_per_node: GPUs, or CPU cores usable by the run.
    interconnect: what carries rows (`shared-memory`, `nvlink`, ...). cluster: name given by the plan, else `local`.
    """

    device_model: str
    devices_per_node: int
    interconnect: str
    cluster: str

    @property
    def key(self) -> str:
        """Canonical readable key; a series hangs on it."""
        return f"{self.cluster}/{self.device_model}/x{self.devices_per_node}/{self.interconnect}"


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One machine of the run: its host name, and the ranks that ran there."""

    hostname: str
    ranks: list[int]


class RankPlacement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where one rank ran. hostname: its node's name. cpus: those it may use, "0-3,8"; numa: the NUMA nodes they
    belong to, "0-1". Both are "" where not known.
    """

    rank: int
    hostname: str
    cpus: str = ""
    numa: str = ""


class Environment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may change under a series: compared between runs by content, never part of a series' identity.

    code: state of the code under test (`commit`, `branch`, `dirty`, `describe`). versions: library or tool to version
    (python, torch, epwatch, kernel; of a GPU run what is loaded of driver, cuda_driver, cuda, nccl, nvshmem, mscclpp).
    variables: the environment variables that matter, by allow-list, never secrets. topology: free-form facts (numa
    nodes, cpu governor, links).
    """

    code: dict[str, str]
    versions: dict[str, str]
    variables: dict[str, str]
    topology: dict[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 hex of the canonical JSON: equal environments have equal digests."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


class Stats(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Statistics of one phase, all times in µs; definitions in docs/metrics.md.

    latency_us, latency_min_us, latency_max_us: avg, min and max over ranks of each rank's mean over iterations.
    p50_us .. mad_us: over all iterations of all ranks (std: sample standard deviation, mad: median absolute deviation).
    skew: latency_max_us / latency_min_us. slowest_rank: the rank of latency_max_us.
    slowest_p50_us, slowest_p95_us, slowest_p99_us: per iteration the maximum over ranks, then the percentile over
    iterations. slowest_p50_us is the run's value: verdicts compare it and nothing else.
    rank_p50_us: [ranks] each rank's median, for attribution.
    """

    latency_us: float
    latency_min_us: float
    latency_max_us: float
    p50_us: float
    p95_us: float
    p99_us: float
    std_us: float
    mad_us: float
    skew: float
    slowest_rank: int
    slowest_p50_us: float
    slowest_p95_us: float
    slowest_p99_us: float
    rank_p50_us: list[float]


class Traffic(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bytes of one phase and the bandwidth they give at `Stats.latency_us` (GB = 1e9 bytes).

    bytes_per_rank: name to bytes, averaged over ranks. `ll`: {"recv"} for dispatch, {"send"} for combine (each
    receive-count row returns); `ht`: total_send, nvl_send, rdma_send, total_recv, nvl_recv, rdma_recv.
    headline: the name in bytes_per_rank whose bandwidth is the phase's bandwidth.
    per_rank_gbs: name to GB/s per rank; aggregate_gbs: headline GB/s times ranks.
    wire_bytes_per_rank: what the engine really moves between ranks after de-duplication; None where not known.
    """

    bytes_per_rank: dict[str, float]
    headline: str
    per_rank_gbs: dict[str, float]
    aggregate_gbs: float
    wire_bytes_per_rank: float | None = None


class PhaseResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One phase of one run. samples_us: [ranks][iterations], in order of time.

    leading_dropped: how many iterations at the head of each rank's samples are left out of the statistics
    (the first is kept and marked, since the first call after idle is a question of its own).
    """

    phase: Phase
    samples_us: list[list[float]]
    leading_dropped: int
    stats: Stats
    traffic: Traffic


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One pass of the oracle: when (`before` or `after` timing), whether it held, how much it looked at."""

    when: Literal["before", "after"]
    passed: bool
    rows: int
    detail: str = ""


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why a run gave no number: step of the protocol, exception type, one sentence, rank (-1: the job), log's tail."""

    step: str
    kind: str
    message: str
    rank: int = -1
    log_tail: str = ""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One run: one case measured once by one job on named nodes. Complete in itself.

    run_id: unique for ever (32 hex digits), made when the run is planned. night: id of the night it belongs to, ""
    for a run outside any night. repeat: which repeat of its case in that night, from 0. started_at, ended_at: UTC,
    RFC 3339. warmup, iters: of the protocol. conditions: what the machine was doing (load averages, clocks, power),
    before and after, and what protocol `graph` found of pairs. phases is empty unless outcome is `ok`. placement: one
    entry a rank, in rank order; empty where nobody saw the ranks. launcher: what started them (`srun`, `torchrun`,
    ...), "" where not known.
    attempt: which attempt of its job this was, from 1. scheduler_job: "Slurm job 123_4", "" outside of a scheduler.
    schema_version: of the document it was read from; a field that this version does not have is as its default says.
    """

    run_id: str
    case: Case
    platform: Platform
    environment: Environment
    nodes: list[Node]
    started_at: str
    ended_at: str
    warmup: int
    iters: int
    outcome: Outcome
    checks: list[Check]
    phases: list[PhaseResult]
    night: str = ""
    repeat: int = 0
    failure: Failure | None = None
    conditions: dict[str, float] = {}
    notes: list[str] = []
    placement: list[RankPlacement] = []
    launcher: str = ""
    attempt: int = 1
    scheduler_job: str = ""
    schema_version: int = SCHEMA_VERSION


class _Record1(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A record of version 1, which knew nodes and not where on them a rank ran. Frozen with its version."""

    run_id: str
    case: Case
    platform: Platform
    environment: Environment
    nodes: list[Node]
    started_at: str
    ended_at: str
    warmup: int
    iters: int
    outcome: Outcome
    checks: list[Check]
    phases: list[PhaseResult]
    night: str = ""
    repeat: int = 0
    failure: Failure | None = None
    conditions: dict[str, float] = {}
    notes: list[str] = []
    schema_version: int = 1


class _Header(msgspec.Struct):
    """The part of a record that every version has."""

    schema_version: int


def new_run_id() -> str:
    """A run id: 32 hex digits, unique for ever."""
    return uuid.uuid4().hex


def encode(record: Record) -> bytes:
    """The record's JSON, in the record's own schema version."""
    return msgspec.json.format(msgspec.json.encode(_in_its_version(record)), indent=1)


def canonical(record: Record) -> bytes:
    """The one JSON of this content in the record's own schema version, whoever wrote it and whoever reads it."""
    return msgspec.json.encode(_in_its_version(record), order="deterministic")


def _in_its_version(record: Record) -> Record | _Record1:
    if record.schema_version != 1:
        return record
    return _Record1(**{name: getattr(record, name) for name in _Record1.__struct_fields__})


def decode(data: bytes) -> Record:
    """The record in `data`. Raises `RecordError` for what is not one, saying where it fails."""
    try:
        version = msgspec.json.decode(data, type=_Header).schema_version
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RecordError(f"not a run record: {error}") from None
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"record has schema version {version}, this epwatch reads up to {SCHEMA_VERSION}: use a newer epwatch"
        )
    try:
        if version == 1:
            first = msgspec.json.decode(data, type=_Record1)
            return Record(**{name: getattr(first, name) for name in first.__struct_fields__})
        return msgspec.json.decode(data, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RecordError(f"not a run record of schema version {version}: {error}") from None


def write(record: Record, spool: Path) -> Path:
    """Put the record into the spool as `<run_id>.json`: temp file, fsync, rename, fsync of the folder.

    Readers see the whole record or none. Raises `RecordError` naming the path when the file system refuses.
    """
    target = spool / f"{record.run_id}.json"
    partial = spool / f".{record.run_id}.{os.getpid()}.partial"
    try:
        spool.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(encode(record))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        folder = os.open(spool, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise RecordError(f"cannot write the record {target}: {error.strerror or error}") from error
    return target


def recorded(spool: Path, run_id: str) -> Path | None:
    """Where the run's record is: in the spool, or where ingestion has moved it; None where it has none."""
    for path in (spool / f"{run_id}.json", spool / INGESTED / f"{run_id}.json"):
        if path.exists():
            return path
    return None


def read(path: Path) -> Record:
    """The record in the file `path`. Raises `RecordError` naming the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"cannot read the record {path}: {error.strerror or error}") from error
    try:
        return decode(data)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
