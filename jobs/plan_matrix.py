"""The cases of a plan: matrices, what they leave out, and every case that is left.

Pure and torch-free. Called by `jobs.plan`; docs/plan.md tells the same to users.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from harness.case import Case, CombineKind, Device, DType, Mode, Protocol

T = TypeVar("T")


class Exclude(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One entry of `exclude`: a combination goes when it has, for every field named here, (one of) the given values."""

    backend: str | list[str] | None = None
    mode: Mode | list[Mode] | None = None
    ranks: int | list[int] | None = None
    tokens: int | list[int] | None = None
    hidden: int | list[int] | None = None
    topk: int | list[int] | None = None
    experts: int | list[int] | None = None
    device: Device | list[Device] | None = None
    nodes: int | list[int] | None = None
    dtype: DType | list[DType] | None = None
    combine: CombineKind | list[CombineKind] | None = None
    routing: str | list[str] | None = None
    seed: int | list[int] | None = None
    protocol: Protocol | list[Protocol] | None = None


class Matrix(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[cases]]`: every combination of its fields' values, less those that `exclude` names.

    The fields are those of `harness.case.Case`; each is one value or a list. combine left out is `exact` for `ll` and
    `local_reduce` for `ht`. floor: overrides the verdict's floor for these cases. clusters: names of those they run
    on; left out, all of the plan's.
    """

    backend: str | list[str]
    mode: Mode | list[Mode]
    ranks: int | list[int]
    tokens: int | list[int]
    hidden: int | list[int]
    topk: int | list[int]
    experts: int | list[int]
    device: Device | list[Device] = "cpu"
    nodes: int | list[int] = 1
    dtype: DType | list[DType] = "bf16"
    combine: CombineKind | list[CombineKind] | None = None
    routing: str | list[str] = "uniform"
    seed: int | list[int] = 0
    protocol: Protocol | list[Protocol] = "phased"
    floor: float | None = None
    clusters: str | list[str] | None = None
    exclude: list[Exclude] = []


FIELDS = Case.__struct_fields__
"""A case's fields, which are the axes of a matrix."""


def values(given: T | list[T]) -> list[T]:
    """A matrix field's values, as a list."""
    return given if isinstance(given, list) else [given]


def combinations(matrix: Matrix) -> Iterator[Case]:
    """Every case of the matrix before exclusion, the last field varying fastest."""
    axes = [values(getattr(matrix, field)) for field in FIELDS]
    for combination in itertools.product(*axes):
        fields = dict(zip(FIELDS, combination, strict=True))
        if fields["combine"] is None:
            fields["combine"] = "local_reduce" if fields["mode"] == "ht" else "exact"
        yield Case(**fields)


def excludes(entry: Exclude, case: Case) -> bool:
    """Whether `entry` names `case`: every field it gives holds the case's value."""
    return all(getattr(case, field) in values(wanted) for field, wanted in named_fields(entry))


def named_fields(entry: Exclude) -> list[tuple[str, object]]:
    """The fields an exclusion gives."""
    return [(field, wanted) for field in FIELDS if (wanted := getattr(entry, field)) is not None]
