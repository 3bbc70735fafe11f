"""What several views have in common: the answer's frame, parts of a case's key, facts that differ, notes of people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Literal

import msgspec

from harness.case import Case, Phase
from harness.errors import CaseError
from regress_db.environments import Difference

VERSION = 1
"""Of the JSON. Fields may be added within a version; a change of a field's meaning, or one that goes, is a new one."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What a page shows. In JSON, `kind` says which view it is."""

    version: Literal[1] = 1


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """One fact that differs between two sides, None on the side that does not have it."""

    name: str
    first: str | None
    second: str | None


class NoteLine(msgspec.Struct, frozen=True, kw_only=True):
    """What a person noted: at is the moment it speaks of; case, platform, phase, night, run_id: "" for any."""

    number: int
    at: datetime
    who: str
    text: str
    case: str = ""
    platform: str = ""
    phase: str = ""
    night: str = ""
    run_id: str = ""


class SeriesName(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Which series: a case's key, a phase, a platform's key."""

    case: str
    phase: Phase
    platform: str


def facts(found: Iterable[Difference]) -> list[Fact]:
    """Differences as they are shown."""
    return [Fact(name=one.name, first=one.first, second=one.second) for one in found]


def parts_of(key: str) -> dict[str, str]:
    """The fields of a case's key by name, in the key's order; empty for a key that has none."""
    try:
        return {name: str(value) for name, value in msgspec.structs.asdict(Case.parse(key)).items()}
    except CaseError:
        return {}


def in_common(keys: Iterable[str]) -> dict[str, str]:
    """The fields on which all these keys agree, so that a table says them once. A key that has none has no say: it is
    shown whole.
    """
    common: dict[str, str] | None = None
    for parts in filter(None, map(parts_of, keys)):
        common = parts if common is None else {name: one for name, one in common.items() if parts.get(name) == one}
    return common or {}


def apart(key: str, common: Mapping[str, str]) -> dict[str, str]:
    """The fields of a key that are not in common: what tells it from the others."""
    return {name: value for name, value in parts_of(key).items() if name not in common}
