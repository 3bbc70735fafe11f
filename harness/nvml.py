"""What the GPU driver says, through NVML: models, links, clocks, power, and by what clocks are held down.

Torch-free. Needs the package nvidia-ml-py (extra `gpu`) and a driver; without either, and whatever a driver does not
tell, is left out, never an error. A GPU is named by its UUID, so that CUDA_VISIBLE_DEVICES cannot mislead: NVML counts
all of a machine's GPUs, torch those it may use. Called by `harness.measure` on every rank and by
`harness.environment`; next to read: `harness.gpus`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from itertools import combinations
from types import MappingProxyType, ModuleType
from typing import Any

from harness.gpus import Gpu, Look, model

HELD_DOWN: MappingProxyType[int, str] = MappingProxyType(
    {
        0x002: "the application's clock setting",
        0x004: "the power limit",
        0x008: "hardware slowdown",
        0x010: "a sync boost group",
        0x020: "temperature, in software",
        0x040: "temperature, in hardware",
        0x080: "the power brake",
        0x100: "the display's clock setting",
    }
)
"""Bits of NVML's reasons why clocks are below what they could be, in words. That a GPU is idle (1) is none."""


@functools.cache
def _nvml() -> ModuleType | None:
    """NVML, ready for use for as long as this process lives; None where there is none.

    Older packages of the same module name do not know all that is asked here: they count as none.
    """
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    if not hasattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons"):
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def _asked(ask: Callable[..., Any], *arguments: Any) -> Any:
    """What NVML answers; None where it does not, a question that this driver or GPU does not know included."""
    import pynvml

    try:
        return ask(*arguments)
    except pynvml.NVMLError:
        return None


def _handle(uuid: str) -> Any:
    nvml = _nvml()
    return None if nvml is None else _asked(nvml.nvmlDeviceGetHandleByUUID, uuid)


def look(gpu: Gpu | None) -> Look:
    """What the driver says of a GPU now; nothing where there is no GPU, no NVML, or no such GPU for it."""
    nvml, handle = _nvml(), None if gpu is None else _handle(gpu.uuid)
    if nvml is None or handle is None:
        return Look()
    numbers = {
        "sm_clock_mhz": _asked(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": _asked(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
        "power_w": _thousandth(_asked(nvml.nvmlDeviceGetPowerUsage, handle)),
        "temperature_c": _asked(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
    }
    return Look(
        facts=_facts(nvml, handle),
        conditions={name: float(value) for name, value in numbers.items() if value is not None},
        held_down=in_words(_asked(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle) or 0),
    )


def _facts(nvml: ModuleType, handle: Any) -> dict[str, str]:
    """What does not change while nobody reconfigures the GPU. A link that is down is such a change."""
    memory = _asked(nvml.nvmlDeviceGetMemoryInfo, handle)
    ecc = _asked(nvml.nvmlDeviceGetEccMode, handle)
    power_limit_w = _thousandth(_asked(nvml.nvmlDeviceGetEnforcedPowerLimit, handle))
    found = {
        "model": _asked(nvml.nvmlDeviceGetName, handle),
        "memory_gb": None if memory is None else f"{memory.total / 1e9:.0f}",
        "max_sm_clock_mhz": _asked(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
        "max_memory_clock_mhz": _asked(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_MEM),
        "power_limit_w": None if power_limit_w is None else f"{power_limit_w:g}",
        "ecc": None if ecc is None else _on_or_off(ecc[0]),
        "persistence": _on_or_off(_asked(nvml.nvmlDeviceGetPersistenceMode, handle)),
        "nvlinks": _links(nvml, handle),
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def _links(nvml: ModuleType, handle: Any) -> str:
    """How many NVLinks there are and are up: "18 of 18 up"."""
    states = [_asked(nvml.nvmlDeviceGetNvLinkState, handle, link) for link in range(nvml.NVML_NVLINK_MAX_LINKS)]
    there = [state for state in states if state is not None]
    return f"{sum(state == nvml.NVML_FEATURE_ENABLED for state in there)} of {len(there)} up" if there else "none"


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1000


def _on_or_off(value: int | None) -> str | None:
    return None if value is None else "on" if value else "off"


def in_words(reasons: int) -> tuple[str, ...]:
    """NVML's bits as words, lowest bit first; a bit that is not known here by its number."""
    bits = (1 << at for at in range(1, reasons.bit_length()))
    return tuple(HELD_DOWN.get(bit, f"reason {bit:#x}") for bit in bits if reasons & bit)


def interconnect(gpus: Sequence[Gpu]) -> str:
    """What carries rows between these GPUs, each of which is there once.

    "one-gpu" for one, "nvlink" where every two of them reach each other over NVLink, else "pcie"; "unknown" without
    GPUs or NVML.
    """
    if len(gpus) == 1:
        return "one-gpu"
    nvml, handles = _nvml(), [_handle(gpu.uuid) for gpu in gpus]
    if nvml is None or not handles or None in handles:
        return "unknown"
    status = [
        _asked(nvml.nvmlDeviceGetP2PStatus, one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
        for one, other in combinations(handles, 2)
    ]
    return "nvlink" if all(found == nvml.NVML_P2P_STATUS_OK for found in status) else "pcie"


def installed() -> list[Gpu]:
    """Every GPU of this machine that NVML shows."""
    nvml = _nvml()
    if nvml is None:
        return []
    handles = [_asked(nvml.nvmlDeviceGetHandleByIndex, index) for index in range(_asked(nvml.nvmlDeviceGetCount) or 0)]
    named = [(_asked(nvml.nvmlDeviceGetName, one), _asked(nvml.nvmlDeviceGetUUID, one)) for one in handles if one]
    return [Gpu(index=index, name=model(name), uuid=uuid) for index, (name, uuid) in enumerate(named) if name and uuid]


def versions() -> dict[str, str]:
    """The driver's version, and the newest CUDA that it can do."""
    nvml = _nvml()
    if nvml is None:
        return {}
    driver, cuda = _asked(nvml.nvmlSystemGetDriverVersion), _asked(nvml.nvmlSystemGetCudaDriverVersion_v2)
    found = {"driver": driver, "cuda_driver": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}"}
    return {name: str(value) for name, value in found.items() if value}
