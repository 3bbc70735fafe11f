"""Environment variables that engineers' scripts already set, turned into another case. Pure and torch-free.

Used by `epwatch run` alone. They never change a named case in silence: the case that comes out has another key.

    MSCCLPP_EP_LL_TOKENS, _HIDDEN, _TOPK, _EXPERTS_PER_RANK        sizes of `ll` cases
    MSCCLPP_EP_BENCH_TOKENS, _HIDDEN, _EXPERTS, _TOPK              sizes of `ht` and `ll` cases; for `ll` the above win
    MSCCLPP_EP_BENCH_WARMUP, _ITERS                                iterations of the protocol
    MSCCLPP_EP_BENCH                                               0 switches all MSCCLPP_EP_BENCH_* off, else 1

And one that is no size: EPWATCH_INJECT_DELAY_US, the fault for drills (`injected_delay_us`).
Next to read: `harness.case`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from harness.case import Case
from harness.errors import CaseError

SWITCH = "MSCCLPP_EP_BENCH"
WARMUP = "MSCCLPP_EP_BENCH_WARMUP"
ITERS = "MSCCLPP_EP_BENCH_ITERS"
INJECT_DELAY = "EPWATCH_INJECT_DELAY_US"
MAX_INJECTED_DELAY_US = 10e6

_BENCH = {
    "MSCCLPP_EP_BENCH_TOKENS": "tokens",
    "MSCCLPP_EP_BENCH_HIDDEN": "hidden",
    "MSCCLPP_EP_BENCH_EXPERTS": "experts",
    "MSCCLPP_EP_BENCH_TOPK": "topk",
}
_LL = {
    "MSCCLPP_EP_LL_TOKENS": "tokens",
    "MSCCLPP_EP_LL_HIDDEN": "hidden",
    "MSCCLPP_EP_LL_TOPK": "topk",
    "MSCCLPP_EP_LL_EXPERTS_PER_RANK": "experts_per_rank",
}


def _integer(environ: Mapping[str, str], name: str, least: int) -> int | None:
    """The variable's value, None where unset or empty. Raises `CaseError` for what is not an integer >= least."""
    text = environ.get(name, "").strip()
    if not text:
        return None
    try:
        value = int(text)
    except ValueError:
        raise CaseError(f"{name}={text!r} is not an integer") from None
    if value < least:
        raise CaseError(f"{name} is {value}, wanted at least {least}")
    return value


def _bench_on(environ: Mapping[str, str]) -> bool:
    text = environ.get(SWITCH, "1").strip() or "1"
    if text not in ("0", "1"):
        raise CaseError(f"{SWITCH}={text!r} is neither 0 nor 1")
    return text == "1"


def apply(case: Case, environ: Mapping[str, str]) -> Case:
    """The case with the sizes the environment asks for; the same case where it asks for none.

    Raises `CaseError` for a value that is not a positive integer. The result may still be one that cannot run:
    `Case.validate` says so when it is measured.
    """
    fields: dict[str, int] = {}
    if _bench_on(environ):
        fields |= {field: value for name, field in _BENCH.items() if (value := _integer(environ, name, 1)) is not None}
    if case.mode == "ll":
        fields |= {field: value for name, field in _LL.items() if (value := _integer(environ, name, 1)) is not None}
        if "experts_per_rank" in fields:
            fields["experts"] = fields.pop("experts_per_rank") * case.ranks
    return msgspec.structs.replace(case, **fields)


def warmup(environ: Mapping[str, str], default: int) -> int:
    """Warm-up pairs of the protocol. Raises `CaseError` for a bad value."""
    value = _integer(environ, WARMUP, 0) if _bench_on(environ) else None
    return default if value is None else value


def iters(environ: Mapping[str, str], default: int) -> int:
    """Timed iterations of the protocol, at least 2 (the first is not counted). Raises `CaseError` for a bad value."""
    value = _integer(environ, ITERS, 2) if _bench_on(environ) else None
    return default if value is None else value


def in_force(environ: Mapping[str, str]) -> dict[str, str]:
    """The override variables that are set, by name, for showing to the person who may have forgotten them."""
    names = [*_LL, *([SWITCH, *_BENCH, WARMUP, ITERS] if _bench_on(environ) else [])]
    return {name: environ[name] for name in names if environ.get(name, "").strip()}


def injected_delay_us(environ: Mapping[str, str]) -> float:
    """The fault for drills, µs added to every combine of the ep_core backend; 0 where unset.

    Raises `CaseError` for what is not a number from 0 to 10 seconds.
    """
    text = environ.get(INJECT_DELAY, "").strip()
    if not text:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        raise CaseError(f"{INJECT_DELAY}={text!r} is not a number of microseconds") from None
    if not 0 <= value <= MAX_INJECTED_DELAY_US:
        raise CaseError(f"{INJECT_DELAY} is {text}, wanted 0 to {MAX_INJECTED_DELAY_US:.0f} microseconds")
    return value
