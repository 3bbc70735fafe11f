"""The document of benchmarks/cuda_engine.py as text. Pure: a recorded document gives the same text anywhere.

A time is the median over rounds of a round's value: per iteration the slowest rank, then the median over iterations. A
ratio to a peer is the median over rounds of the ratios within a round, since the two took turns there.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cuda_engine_plan import COPY, FILL, FLAGS, NO_TOKENS, PROTOCOLS, PUT, PUT_FEW

from harness.stats import LEADING_DROPPED, summarise

Document = Mapping[str, Any]
Row = Sequence[str]

NEEDED = (
    *("settings", "started_at", "environment", "gpus", "ranks_of_gpu", "sms_per_rank", "ll_sms"),
    *("conditions", "held_down", "absent", "limits", "blocks"),
)
"""What a document must have to be shown."""

PARTS = ("dispatch", "combine", "pair")
_NAMES = {"ll": "Low latency", "ht": "High throughput"}


def text(document: Document) -> str:
    """Settings, limits, and for each mode its times and its ratios to the peers."""
    parts = ["\n".join(_settings(document)), *_warnings(document), _limits(document)]
    for mode in dict.fromkeys(block["mode"] for block in document["blocks"]):
        parts += _mode(document, mode)
    if document["absent"]:
        absent = [f"  {name}: {why}" for name, why in document["absent"].items()]
        parts.append("\n".join(["Peers that are not here", *absent]))
    if document.get("ended", ""):
        parts.append(f"NOT COMPLETE: {document['ended']}")
    return "\n\n".join(parts)


def complete(document: Document) -> bool:
    """Whether everything of ours that was planned has a time, and no peer gave a wrong answer unseen."""
    ours = [one for block in document["blocks"] for one in block["contenders"] if not one["peer"]]
    return bool(ours) and not document.get("ended", "") and all(one["outcome"] == "ok" for one in ours)


def round_values(contender: Mapping[str, Any], part: str) -> list[float]:
    """A contender's value in each round, µs; empty where it has none."""
    return [value for found in contender["rounds"] if (value := _value(found, part)) is not None]


def _value(found: Mapping[str, Any], part: str) -> float | None:
    samples: Mapping[str, list[list[float]]] = found["samples_us"]
    if part != "pair":
        return summarise(samples[part], LEADING_DROPPED).slowest_p50_us
    pair: float | None = found["figures"].get("pair_slowest_p50_us")
    return pair


def _settings(document: Document) -> Iterator[str]:
    settings, environment = document["settings"], document["environment"]
    code, versions, topology = (environment[name] for name in ("code", "versions", "topology"))
    dirty = {"yes": ", with changes", "unknown": ", perhaps with changes"}.get(code.get("dirty", ""), "")
    yield f"epwatch at {code.get('commit', 'no commit')[:12]}{dirty}, {document['started_at']}"
    yield (
        f"{settings['ranks']} ranks, hidden {settings['hidden']}, top-k {settings['topk']}, {settings['experts']} "
        f"experts, routing {settings['routing']}@{settings['seed']}; tokens a rank: {settings['tokens']} (ll), "
        f"{settings['ht_tokens']} (ht)"
    )
    yield f"rounds: {settings['rounds']} (ll), {settings['ht_rounds']} (ht), of {settings['iters']} iterations each"
    names = ("torch", "cuda", "driver", "cuda_driver", "nccl", "mscclpp", "python")
    yield ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    for number, gpu in enumerate(document["gpus"]):
        conditions = document["conditions"]
        clocks = [
            f"{conditions[key]:.0f} MHz {when}"
            for when in ("before", "after")
            if (key := f"gpu{number}_sm_clock_mhz_{when}") in conditions
        ]
        ranks = ", ".join(map(str, document["ranks_of_gpu"][number]))
        yield f"gpu{number}: {gpu['name']}, {gpu['sms']} SMs, rank {ranks}{'; ' if clocks else ''}{', '.join(clocks)}"
    if document["gpus"]:
        chosen = document["ll_sms"] or "the engine's choice of"
        yield f"{document['sms_per_rank']} SMs for each rank; low latency takes {chosen} SMs; {settings['mps']}"
    else:
        yield f"host engine on {topology.get('cpu_model', 'this CPU')}, {topology.get('cores_usable', '?')} cores"
    yield from document["held_down"]


def _warnings(document: Document) -> Iterator[str]:
    if not any(len(ranks) > 1 for ranks in document["ranks_of_gpu"]):
        return
    beside = document["settings"]["mps"].startswith("MPS")
    yield "\n".join(
        [
            f"THE {document['settings']['ranks']} RANKS SHARE {len(document['gpus'])} GPU: no row crosses NVLink.",
            "This shows the kernels, their launches and their waits. It cannot show a link: what stands for one is the",
            "GPU's own memory, and each rank has a part of the GPU only.",
            "The ranks run side by side, under MPS."
            if beside
            else "WITHOUT MPS they take turns on it: times hold time slices, and say nothing of speed (see --mps).",
        ]
    )


def _limits(document: Document) -> str:
    limits = document["limits"]
    same = " (same GPU)" if any(len(ranks) > 1 for ranks in document["ranks_of_gpu"]) else ""
    lines = [["limit, all ranks at once", "us", "GB/s per rank"]]
    for name in limits.get("samples_us", {}):
        value_us, moved = limit_us(document, name), limits["bytes_moved"][name]
        speed = f"{moved / value_us / 1e3:.0f}" if moved else ""
        where = same if name in (PUT, PUT_FEW, FLAGS) else ""
        lines.append([name + where, f"{value_us:.2f}", speed])
    missing = [f"not measured: {name}: {why}" for name, why in limits.get("missing", {}).items()]
    return "\n".join([_table(lines), *missing])


def limit_us(document: Document, name: str) -> float:
    """A limit's time: the slowest rank's, median over iterations."""
    return summarise(document["limits"]["samples_us"][name], LEADING_DROPPED).slowest_p50_us


def _speed(document: Document, name: str) -> float | None:
    """Bytes per µs of a limit, where it was measured."""
    limits = document["limits"]
    if name not in limits.get("samples_us", {}):
        return None
    speed: float = limits["bytes_moved"][name] / limit_us(document, name)
    return speed


def _least_us(document: Document, contender: Mapping[str, Any], part: str) -> dict[str, float]:
    """What the limits allow for a phase, µs: its bytes over the link, and its bytes in memory."""
    if part == "pair" or contender["name"] == NO_TOKENS:
        return {}
    speeds = {
        "link": (contender["link_bytes"][part], _speed(document, PUT)),
        "memory": (contender["memory_bytes"][part], _speed(document, FILL if part == "dispatch" else COPY)),
    }
    return {name: count / speed for name, (count, speed) in speeds.items() if speed}


def _mode(document: Document, mode: str) -> Iterator[str]:
    blocks = {block["protocol"]: block for block in document["blocks"] if block["mode"] == mode}
    protocols = [protocol for protocol in PROTOCOLS if protocol in blocks]
    by_name: dict[str, dict[str, Any]] = {}
    for protocol in protocols:
        for contender in blocks[protocol]["contenders"]:
            by_name.setdefault(contender["name"], {})[protocol] = contender
    nearest = protocols[-1]
    header = [_NAMES[mode] + ", us", "", *protocols, "link", "memory", f"{nearest} / limit"]
    lines, ratios, spread, reasons = [header], list[list[str]](), [(0.0, "")], dict[str, None]()
    for part in PARTS:
        for name, cases in by_name.items():
            cells = [_cell(cases.get(protocol), part) for protocol in protocols]
            if not any(cells):
                continue
            some = next(iter(cases.values()))
            least = _least_us(document, some, part)
            value = _time(cases.get(nearest), part)
            against = f"{value / max(least.values()):.2f}" if least and value is not None else ""
            lines.append(
                [part, name, *cells, *(f"{least[k]:.2f}" if k in least else "" for k in ("link", "memory")), against]
            )
            ratios += _ratios(part, some, by_name, protocols)
    for protocol in protocols:
        for contender in blocks[protocol]["contenders"]:
            where = f"{contender['name']}, {protocol}"
            spread += [(_spread(round_values(contender, part)), f"{part}, {where}") for part in PARTS]
            if contender["why"]:
                reasons[f"{contender['outcome']}: {where}: {contender['why']}"] = None
    widest, of_what = max(spread)
    differ = (
        f"rounds differ by up to {widest:.0%} of their median ({of_what})" if widest else "no two rounds to compare"
    )
    yield "\n".join([_table(lines), differ, *reasons])
    if ratios:
        yield _table([[_NAMES[mode] + ", peer's time / ours", "", "", *protocols], *ratios])


def _ratios(
    part: str, ours: Mapping[str, Any], by_name: Mapping[str, Mapping[str, Any]], protocols: Sequence[str]
) -> Iterator[list[str]]:
    """One row for each peer that moves the same rows as one of ours."""
    if ours["peer"] or ours["name"] == NO_TOKENS:
        return
    for name, cases in by_name.items():
        theirs = next(iter(cases.values()))
        if theirs["peer"] and _dtype(theirs) == _dtype(ours):
            cells = [_ratio(by_name[ours["name"]].get(one), cases.get(one), part) for one in protocols]
            if any(cells):
                yield [part, ours["name"], name, *cells]


def _dtype(contender: Mapping[str, Any]) -> str:
    """What dispatch carries, by the case's key."""
    return str(contender["case"].split("/")[8])


def _ratio(ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None, part: str) -> str:
    if ours is None or theirs is None:
        return ""
    pairs = list(zip(round_values(ours, part), round_values(theirs, part), strict=False))
    return f"{statistics.median(peer / own for own, peer in pairs):.2f}" if pairs else ""


def _time(contender: Mapping[str, Any] | None, part: str) -> float | None:
    values = [] if contender is None else round_values(contender, part)
    return statistics.median(values) if values else None


def _cell(contender: Mapping[str, Any] | None, part: str) -> str:
    """A time, or what came instead of one; "" where nothing was to come."""
    if contender is None:
        return ""
    if contender["outcome"] != "ok":
        return "" if part == "pair" else str(contender["outcome"]).upper()
    value = _time(contender, part)
    return "" if value is None else f"{value:.2f}"


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values) if values else 0.0


def _table(lines: Sequence[Row]) -> str:
    """A header and lines, in columns as wide as they must be: words to the left, numbers to the right.

    A column without anything below its header is left out.
    """
    columns = [column for column in zip(*lines, strict=True) if any(column[1:])]
    set_out = []
    for column in columns:
        width, words = max(map(len, column)), any(cell and not _is_number(cell) for cell in column[1:])
        set_out.append([cell.ljust(width) if words else cell.rjust(width) for cell in column])
    return "\n".join("  ".join(line).rstrip() for line in zip(*set_out, strict=True))


def _is_number(cell: str) -> bool:
    return cell.isupper() or cell.replace(".", "", 1).isdigit()
