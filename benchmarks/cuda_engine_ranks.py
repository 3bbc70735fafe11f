"""One rank of benchmarks/cuda_engine.py: `cuda_engine_ranks.py PLAN.json`, started by it under the harness's agent.

Joins the harness's world, measures the physical limits, then does block after block: sets the contenders up, has each
checked by the oracle, times them in turn with the harness's protocols, has each checked again. Rank 0 writes what has
been found after each block, so that what comes after can spoil nothing. A contender that fails leaves the block; its
reason stays. Next to read: benchmarks/cuda_limits.py, harness/protocols.py.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cuda_limits
import msgspec
import torch
import torch.distributed as dist
from cuda_engine_plan import ALL_SMS, PEERS, Block, Contender, Plan

from ep_core import Buffer
from harness import environment, gpus, nvml, progress, rank_end, routing, traffic
from harness.backends.base import Backend, Setup
from harness.checking import check
from harness.errors import BackendError
from harness.inputs import make_inputs
from harness.processes import MARK, die_with_parent
from harness.protocols import PROTOCOLS
from harness.steps import Run, RunFailed
from harness.timers import Timed
from harness.world import World, join, place

LL_SMS = "EP_LL_SMS"
RANKS_PER_NODE = "EP_RANKS_PER_NODE"
MPS_PERCENTAGE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
FOUND = "found.json"


def main(plan_file: Path) -> None:
    if MARK in os.environ:
        die_with_parent()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    plan = msgspec.json.decode(plan_file.read_bytes(), type=Plan)
    folder, rank = plan_file.parent, place(os.environ).rank
    with rank_end.told(folder, rank):
        progress.append(folder, rank, "", "join the world")
        device = plan.blocks[0].contenders[0].run.case.device
        with join(plan.spec.op_deadline_s, device=device) as world:
            if device == "cuda":
                # The oracle's: it reckons on the CPU, outside of the clock.
                torch.set_num_threads(max(world.cpus_per_node // world.size, 1))
            _Bench(plan, world, folder).all_blocks()


@dataclass
class _Entry:
    """A contender in its block. why: what it failed of, "" as long as it did not."""

    contender: Contender
    run: Run
    backend: Backend
    rounds: list[dict[str, Any]]
    outcome: str = "ok"
    why: str = ""

    @contextlib.contextmanager
    def turn(self, sms: int) -> Iterator[None]:
        """What only this contender may do to the process: how many processors high throughput takes."""
        before = Buffer.num_sms
        Buffer.set_num_sms(sms - sms % 2)
        try:
            yield
        except RunFailed as failed:
            self.outcome, self.why = failed.outcome, f"{failed.failure.step}: {failed.failure.message}"
        finally:
            Buffer.set_num_sms(before)


class _Bench:
    """The blocks of a plan on one rank, and the document that rank 0 writes of them."""

    def __init__(self, plan: Plan, world: World, folder: Path) -> None:
        self._plan, self._world, self._folder = plan, world, folder
        self._device = plan.blocks[0].contenders[0].run.case.device
        self._sms = 0
        sharing = [1]
        if world.gpu is not None:
            sharing = [len(ranks) for ranks in gpus.ranks_of(world.gpu_of_rank)]
            self._sms = torch.cuda.get_device_properties(world.gpu.index).multi_processor_count
            # With a percentage MPS gives each process its part, and CUDA counts no more than that.
            self._sms //= 1 if MPS_PERCENTAGE in os.environ else max(sharing)
        self._shared = max(sharing) > 1
        self._document: dict[str, Any] = {
            "settings": plan.settings,
            "started_at": environment.utc_now(),
            "gpus": self._gpus(),
            "ranks_of_gpu": gpus.ranks_of(world.gpu_of_rank),
            "sms_per_rank": self._sms,
            "ll_sms": self._ll_sms(),
            "interconnect": nvml.interconnect(gpus.distinct(world.gpu_of_rank)) if self._sms else "shared-memory",
            "conditions": {},
            "held_down": [],
            "absent": {},
            "limits": {},
            "blocks": [],
        }

    def all_blocks(self) -> None:
        """Measure everything."""
        self._look("before")
        first = self._plan.blocks[0].contenders[0]
        with self._world.group() as group:
            align = functools.partial(dist.barrier, group=group)
            run = self._run(first)
            with contextlib.suppress(RunFailed):
                self._document["limits"] = asdict(cuda_limits.measure(run, self._folder, self._sms, align))
        for block in self._plan.blocks:
            self._document["blocks"].append(self._block(block))
            self._look("after")
            self._write()

    def _run(self, contender: Contender) -> Run:
        rank, run_id = self._world.rank, contender.run.run_id
        return Run(
            self._world,
            contender.run,
            self._plan.spec,
            lambda step: progress.append(self._folder, rank, run_id, f"{contender.name}: {step}"),
        )

    def _block(self, block: Block) -> dict[str, Any]:
        present = [contender for contender in block.contenders if self._is_here(contender)]
        entries: list[_Entry] = []
        with contextlib.ExitStack() as stack:
            group = stack.enter_context(self._world.group())
            align = functools.partial(dist.barrier, group=group)
            for contender in present:
                entry = _Entry(contender, self._run(contender), _class_of(contender)(), [])
                entries.append(entry)
                stack.callback(entry.backend.close)
                self._begin(entry, group)
            measure = PROTOCOLS[self._device][block.protocol]
            for _ in range(self._plan.rounds[block.mode]):
                for entry in entries:
                    self._round(entry, measure, align)
            for entry in entries:
                if not entry.why:
                    with entry.turn(self._ht_sms(entry.contender)):
                        check(entry.run, entry.backend, "after")
            told = [self._told(entry) for entry in entries]
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()
        return {"mode": block.mode, "protocol": block.protocol, "contenders": told}

    def _begin(self, entry: _Entry, group: dist.ProcessGroup) -> None:
        """Set up and check."""
        world, case = self._world, entry.run.case
        inputs = make_inputs(case, world.rank, world.device(case.device))
        with (
            entry.turn(self._ht_sms(entry.contender)),
            _variable(LL_SMS, self._ll_sms()),
            _variable(RANKS_PER_NODE, entry.contender.ranks_per_node),
        ):
            given = Setup(case=case, rank=world.rank, inputs=inputs, group=group, deadline_s=world.deadline_s)
            entry.run.agreed("setup", lambda: entry.backend.setup(given))
            check(entry.run, entry.backend, "before")

    def _round(self, entry: _Entry, measure: Callable[..., Timed], align: Callable[[], None]) -> None:
        if entry.why:
            return
        with entry.turn(self._ht_sms(entry.contender)):
            timed = measure(entry.run, entry.backend, align)
            entry.rounds.append({"samples_us": timed.samples_us, "figures": timed.figures, "rows": timed.rows})

    def _told(self, entry: _Entry) -> dict[str, Any]:
        """A contender as the document has it; without times where it failed at any moment."""
        case = entry.run.case
        selections = routing.all_selections(case)
        logical = traffic.logical_bytes(case, selections)
        return {
            "name": entry.contender.name,
            "peer": entry.contender.peer,
            "case": case.key,
            "outcome": entry.outcome,
            "why": entry.why,
            "rounds": [] if entry.why else entry.rounds,
            "link_bytes": traffic.deduplicated_bytes(case, selections),
            "memory_bytes": {phase: logical[phase][_IN_MEMORY[case.mode, phase]] for phase in logical},
        }

    def _is_here(self, contender: Contender) -> bool:
        """Whether a contender can run here; why a peer cannot is noted once."""
        if not contender.peer:
            return True
        why = ""
        try:
            backend = _class_of(contender)
            why = backend.availability() or backend.supports(contender.run.case) or ""
        except (BackendError, ImportError) as error:
            why = str(error)
        if not why and self._shared and PEERS[contender.peer].own_gpu:
            why = "it wants a GPU for each rank"
        reasons = [one for one in self._world.gather(why) if one]
        absent = self._document["absent"]
        if reasons and absent.get(contender.peer) != reasons[0]:
            absent.setdefault(contender.name, reasons[0])
        return not reasons

    def _ht_sms(self, contender: Contender) -> int:
        wanted = contender.ht_sms
        return self._sms if wanted == ALL_SMS else min(wanted, self._sms)

    def _ll_sms(self) -> int:
        """For EP_LL_SMS; 0 leaves it as it is."""
        return self._plan.ll_sms or (self._sms if self._shared else 0)

    def _gpus(self) -> list[dict[str, Any]]:
        found = gpus.distinct(self._world.gpu_of_rank)
        return [
            {"name": one.name, "sms": torch.cuda.get_device_properties(one.index).multi_processor_count}
            for one in found
        ]

    def _look(self, when: str) -> None:
        looks = gpus.one_each(self._world.gpu_of_rank, self._world.gather(nvml.look(self._world.gpu)))
        document = self._document
        document["conditions"] |= environment.conditions(when) | gpus.conditions(looks, when)
        document["held_down"] = sorted({*document["held_down"], *gpus.held_down_notes(looks, when)})
        document["environment"] = msgspec.to_builtins(environment.capture(os.environ, looks))
        document["ended_at"] = environment.utc_now()

    def _write(self) -> None:
        if self._world.rank == 0:
            partial = self._folder / f".{FOUND}"
            partial.write_bytes(msgspec.json.encode(self._document))
            partial.replace(self._folder / FOUND)


_IN_MEMORY = {
    ("ll", "dispatch"): "recv",
    ("ll", "combine"): "send",
    ("ht", "dispatch"): "total_recv",
    ("ht", "combine"): "total_send",
}
"""The bytes that a phase at the least writes (dispatch) or reads (combine) in its own memory."""


def _class_of(contender: Contender) -> type[Backend]:
    module, _, name = contender.backend.partition(":")
    made: type[Backend] = getattr(importlib.import_module(module), name)
    return made


@contextlib.contextmanager
def _variable(name: str, value: int) -> Iterator[None]:
    """An environment variable for as long as the block runs; as it is for 0."""
    before = os.environ.get(name)
    if value:
        os.environ[name] = str(value)
    try:
        yield
    finally:
        if value and before is None:
            del os.environ[name]
        elif value:
            os.environ[name] = str(before)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
