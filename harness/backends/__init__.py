"""The libraries that can be measured, found by the entry point group `epwatch.backends`.

Listing them imports none of them, and not torch. Next to read: `harness.backends.base`, how to write one.
"""

from __future__ import annotations

import functools
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from harness.backends.base import Backend
from harness.errors import BackendError

GROUP = "epwatch.backends"


@functools.cache
def _registered_on(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """The backends of the packages on `path`, which is sys.path; reading all of their metadata takes 10 ms."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise BackendError(
                f"backend {entry.name!r} is registered twice, as {other.value} and as {entry.value}: uninstall one"
            )
    return found


def _registered() -> dict[str, EntryPoint]:
    return _registered_on(tuple(sys.path))


def names() -> list[str]:
    """Names of all registered backends, sorted."""
    return sorted(_registered())


def load(name: str) -> type[Backend]:
    """The class of a backend. Raises `BackendError` when it is not registered or its module cannot be imported."""
    entry = _registered().get(name)
    if entry is None:
        raise BackendError(f"backend {name!r} is not known; known are {', '.join(names()) or 'none'}")
    try:
        return cast("type[Backend]", entry.load())
    except (ImportError, AttributeError) as error:
        raise BackendError(f"backend {name!r} ({entry.value}) cannot be loaded: {error}") from error


def availability(name: str) -> str | None:
    """None when the backend can be used on this machine, else the reason. May import the library."""
    try:
        return load(name).availability()
    except BackendError as error:
        return str(error)
