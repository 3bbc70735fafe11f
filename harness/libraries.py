"""Which GPU libraries this process has loaded, and of which version each of them is: not what something was built with.

Torch-free and Linux: /proc/self/maps says which files are mapped, a library's own version call says what it is, and
where it has none the version in its file's name. Parsing is pure. Called by `harness.environment`.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import MappingProxyType

KNOWN: MappingProxyType[str, str] = MappingProxyType(
    {
        "libcuda": "cuda_driver",
        "libcudart": "cuda",
        "libnccl": "nccl",
        "libnvshmem_host": "nvshmem",
        "libmscclpp": "mscclpp",
    }
)
"""A library's file name up to ".so" to its name among the versions of a record."""

_LIBRARY = re.compile(r"(?P<name>lib[^/]*?)\.so(?P<version>(?:\.\d+)*)")


def mapped(maps: str) -> dict[str, str]:
    """Known libraries in the text of /proc/<pid>/maps: name as in `KNOWN` to the path that is mapped."""
    found: dict[str, str] = {}
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) < 6:
            continue
        path = fields[5].removesuffix(" (deleted)")
        match = _LIBRARY.fullmatch(path.rpartition("/")[2])
        if match and match["name"] in KNOWN:
            found.setdefault(match["name"], path)
    return found


def version_in(file_name: str) -> str:
    """The version at the end of a library's file name: "libcudart.so.13.0.96" is 13.0.96; "" where it has none."""
    match = _LIBRARY.fullmatch(file_name)
    return match["version"].removeprefix(".") if match else ""


def _integers(library: ctypes.CDLL, function: str, count: int) -> list[int] | None:
    """What a function that fills in `count` integers and returns 0 gives; None where it does not."""
    values = [ctypes.c_int() for _ in range(count)]
    try:
        failed = getattr(library, function)(*map(ctypes.byref, values))
    except AttributeError:
        return None
    return None if failed else [value.value for value in values]


def _cuda(function: str) -> Callable[[ctypes.CDLL], str | None]:
    def ask(library: ctypes.CDLL) -> str | None:
        found = _integers(library, function, 1)
        return f"{found[0] // 1000}.{found[0] % 1000 // 10}" if found else None

    return ask


def _nccl(library: ctypes.CDLL) -> str | None:
    found = _integers(library, "ncclGetVersion", 1)
    return f"{found[0] // 10000}.{found[0] % 10000 // 100}.{found[0] % 100}" if found else None


def _nvshmem(library: ctypes.CDLL) -> str | None:
    found = [ctypes.c_int() for _ in range(3)]
    try:
        library.nvshmemx_vendor_get_version_info(*map(ctypes.byref, found))
    except AttributeError:
        return None
    return ".".join(str(part.value) for part in found)


_OWN_WORDS: MappingProxyType[str, Callable[[ctypes.CDLL], str | None]] = MappingProxyType(
    {
        "libcuda": _cuda("cuDriverGetVersion"),
        "libcudart": _cuda("cudaRuntimeGetVersion"),
        "libnccl": _nccl,
        "libnvshmem_host": _nvshmem,
    }
)


def _version(name: str, path: str) -> str:
    """What the loaded library says, unless its file's name says more."""
    in_name, said = version_in(Path(path).resolve().name), None
    if name in _OWN_WORDS:
        try:
            said = _OWN_WORDS[name](ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY))
        except OSError:
            said = None
    if said is None or (name != "libcuda" and in_name.startswith(f"{said}.")):
        return in_name
    return said


def loaded() -> dict[str, str]:
    """The known libraries in this process: name as in `KNOWN` to the path of its file."""
    try:
        return mapped(Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return {}


def versions(paths: dict[str, str]) -> dict[str, str]:
    """Versions of loaded libraries, by their names among a record's versions. paths: as `loaded` gives them.

    The driver's own version is the one in the name of its libcuda.
    """
    found = {KNOWN[name]: _version(name, path) for name, path in sorted(paths.items())}
    if "libcuda" in paths:
        found["driver"] = version_in(Path(paths["libcuda"]).resolve().name)
    return {name: version for name, version in found.items() if version}


def file_names(paths: Iterable[str]) -> str:
    """The files themselves, by the names their links lead to, sorted: "libcudart.so.13.0.96, libnccl.so.2"."""
    return ", ".join(sorted(Path(path).resolve().name for path in paths))
