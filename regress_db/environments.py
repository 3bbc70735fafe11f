"""Where two environments differ: flat, readable, one line each. Pure; used by `regress_db.sides` and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact that differs: its name (`versions.torch`), and its value on each side, None where it is absent."""

    name: str
    first: str | None
    second: str | None


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """What differs between two mappings of strings, or of mappings of strings, by name."""
    one, other = flatten(first), flatten(second)
    return [
        Difference(name, one.get(name), other.get(name))
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    ]


def flatten(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"versions": {"torch": "2"}}` as `{"versions.torch": "2"}`."""
    flat: dict[str, str] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat
