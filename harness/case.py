"""What one measurement is about: the case and its canonical key.

Pure and torch-free: the history, the plans and the command line all speak of cases without loading torch.
A key is read by people and kept for ever: the history hangs on it. Next to read: `harness.record`.

Key grammar (all parts always present, in this order, joined by "/")::

    backend/mode/device/r<ranks>n<nodes>/t<tokens>/h<hidden>/k<topk>/e<experts>/dtype/combine/routing@seed/protocol
    ep_core/ll/cpu/r2n1/t128/h7168/k8/e256/bf16/exact/uniform@0/phased
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, get_args

import msgspec

from harness.errors import CaseError

Mode = Literal["ll", "ht"]
Device = Literal["cpu", "cuda"]
DType = Literal["bf16", "fp8"]
CombineKind = Literal["exact", "local_reduce"]
Protocol = Literal["phased", "paired", "graph", "kernel"]
Phase = Literal["dispatch", "combine"]

PHASES: tuple[Phase, ...] = get_args(Phase)

CPU_PROTOCOLS: tuple[Protocol, ...] = ("phased", "paired")
"""Protocols that need no GPU."""

ROUTINGS = ("uniform", "balanced", "skewed", "masked", "duplicates")
"""Names of the generators in `harness.routing`."""

MAX_TOPK = 32
MAX_RANKS = 64
ROW_ALIGNMENT_BYTES = 16
FP8_BLOCK = 128

_NAME = re.compile(r"[a-z0-9][a-z0-9_.+-]*")
_KEY = re.compile(
    r"(?P<backend>[^/]+)/(?P<mode>[^/]+)/(?P<device>[^/]+)/r(?P<ranks>\d+)n(?P<nodes>\d+)/t(?P<tokens>\d+)"
    r"/h(?P<hidden>\d+)/k(?P<topk>\d+)/e(?P<experts>\d+)/(?P<dtype>[^/]+)/(?P<combine>[^/]+)"
    r"/(?P<routing>[^/@]+)@(?P<seed>\d+)/(?P<protocol>[^/]+)"
)
_INTEGERS = ("ranks", "nodes", "tokens", "hidden", "topk", "experts", "seed")


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One problem on one world. Construct freely; `validate` says whether it can run.

    Fields, with units:
        backend: plugin name (`ep_core`, `torch`, ...).
        mode: `ll` (per-expert packed receive buffers) or `ht` (exact-size receive, one copy per destination rank).
        device: `cpu` or `cuda`.
        ranks: ranks in the world. nodes: sets of ranks that can map each other's memory.
        tokens: tokens per rank (T). hidden: elements per token (H). topk: selections per token (K).
        experts: experts over all ranks (E); expert e lives on rank e // (E / ranks).
        dtype: what dispatch carries: `bf16`, or `fp8` (e4m3 with float32 scales per 128 columns).
        combine: arithmetic of combine, `exact` or `local_reduce` (docs/metrics.md). `ht` is always `local_reduce`.
        routing: generator's name (`uniform`, `balanced`, `skewed`, `masked`, `duplicates`). seed: of inputs, routing.
        protocol: timing protocol; numbers of different protocols never share a series.
    """

    backend: str
    mode: Mode
    ranks: int
    tokens: int
    hidden: int
    topk: int
    experts: int
    device: Device = "cpu"
    nodes: int = 1
    dtype: DType = "bf16"
    combine: CombineKind = "exact"
    routing: str = "uniform"
    seed: int = 0
    protocol: Protocol = "phased"

    @property
    def key(self) -> str:
        """The canonical key; `Case.parse(case.key) == case`."""
        return (
            f"{self.backend}/{self.mode}/{self.device}/r{self.ranks}n{self.nodes}/t{self.tokens}/h{self.hidden}"
            f"/k{self.topk}/e{self.experts}/{self.dtype}/{self.combine}/{self.routing}@{self.seed}/{self.protocol}"
        )

    @property
    def experts_per_rank(self) -> int:
        """Local experts on each rank, L = E / R."""
        return self.experts // self.ranks

    @classmethod
    def parse(cls, key: str) -> Case:
        """The case of a canonical key. Raises `CaseError` naming what does not fit."""
        found = _KEY.fullmatch(key)
        if found is None:
            raise CaseError(
                f"case key {key!r} is malformed; wanted backend/mode/device/r<ranks>n<nodes>/t<tokens>/h<hidden>"
                "/k<topk>/e<experts>/dtype/combine/routing@seed/protocol"
            )
        fields: dict[str, str | int] = dict(found.groupdict())
        for name in _INTEGERS:
            fields[name] = int(fields[name])
        return cls.of(fields)

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> Case:
        """A case from a mapping (a plan's table, a key's parts). Raises `CaseError` naming the field."""
        try:
            return msgspec.convert(dict(fields), cls)
        except msgspec.ValidationError as error:
            raise CaseError(f"case is not valid: {error}") from None

    def validate(self) -> None:
        """Raise `CaseError` with the reason when no run could have this case, else return."""
        for name in ("backend", "routing"):
            value = getattr(self, name)
            if not _NAME.fullmatch(value):
                raise CaseError(
                    f"{name} {value!r} is not a name: use lower-case letters, digits and _ . + -, "
                    "starting with a letter or digit"
                )
        for name, least in (
            ("ranks", 1),
            ("nodes", 1),
            ("tokens", 0),
            ("hidden", 1),
            ("topk", 1),
            ("experts", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise CaseError(f"{name} is {getattr(self, name)}, wanted at least {least}")
        if self.ranks > MAX_RANKS:
            raise CaseError(f"ranks is {self.ranks}, wanted at most {MAX_RANKS}")
        if self.ranks % self.nodes:
            raise CaseError(f"{self.ranks} ranks cannot be spread evenly over {self.nodes} nodes")
        if self.topk > MAX_TOPK:
            raise CaseError(f"topk is {self.topk}, wanted at most {MAX_TOPK}")
        if self.topk > self.experts:
            raise CaseError(f"topk is {self.topk} but there are only {self.experts} experts")
        if self.experts % self.ranks:
            raise CaseError(f"{self.experts} experts cannot be divided among {self.ranks} ranks")
        if self.hidden * 2 % ROW_ALIGNMENT_BYTES:
            raise CaseError(f"hidden is {self.hidden}: a bf16 row must be a multiple of {ROW_ALIGNMENT_BYTES} bytes")
        if self.dtype == "fp8" and self.hidden % FP8_BLOCK:
            raise CaseError(
                f"hidden is {self.hidden}: fp8 needs a multiple of {FP8_BLOCK} (one scale per {FP8_BLOCK} columns)"
            )
        if self.device == "cpu" and self.protocol not in CPU_PROTOCOLS:
            raise CaseError(
                f"protocol {self.protocol!r} needs a GPU; on device cpu there are {', '.join(CPU_PROTOCOLS)}"
            )
        if self.mode == "ht" and self.combine != "local_reduce":
            raise CaseError("mode ht returns one row per destination rank: its combine is always local_reduce")
