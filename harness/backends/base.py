"""How a library is plugged in: the `Backend` protocol, and what it hands back to be checked.

The harness owns routing, timing, checking and bytes; a backend only moves rows. To write one:

1. Write a class with the members of `Backend` (it need not inherit) in any importable module, with a constructor of
   no arguments. Import the library inside `availability` and the methods, never at the top of the module: listing
   backends must stay cheap, and a machine without the library must still be able to say so.
2. Allocate in `setup` all that `dispatch` and `combine` need: those two are the timed region, and do what a user of
   the library would do in the loop of a model and nothing else.
3. Register it in the package that holds it, in `pyproject.toml`; the name is the first part of a case's key::

       [project.entry-points."epwatch.backends"]
       mylib = "mypackage.epwatch_backend:MyBackend"

4. Run `epwatch run mylib/ll/cpu/r2n1/t64/h1024/k4/e16/bf16/exact/uniform@0/phased`. The oracle says what is wrong.

One measurement calls, on every rank: `setup`; then, any number of times, `dispatch`, `received`, `give`, `combine`,
`combined`, where `dispatch` and `combine` may be repeated without the others in between; at last `close`, also after a
failure anywhere. Methods raise what they like; an exception on any rank fails the run, not the job. The harness fills
the tensors of `scratch` with poison before each check, so nothing may be kept in them across calls of `dispatch`.

Tensors given and taken are on the device of the case, which is the device of `Setup.inputs`. On `cuda` operations are
enqueued on the current stream and not waited for; `received` and `combined` wait, and raise what a kernel has found
wrong. For protocol `kernel` a backend also has the attribute `kernels`, by phase
the beginnings of its kernels' names (`kernels_of`).

Importing this module does not import torch. Next to read: `harness.backends.torch_a2a`, a backend in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from harness.case import Case, Phase
    from harness.inputs import Inputs


@dataclass(frozen=True)
class Received:
    """What one dispatch put on this rank, as the library itself describes it. N rows in any order.

    x: [N, H], bf16 or float8_e4m3fn. scales: float32 [N, H / 128] for fp8, else None.
    source: int64 [N], rank each row came from. token: int64 [N], its index there.
    expert, slot: int64 [N], `ll` only: local expert, and the row's place in that expert's receive buffer.
    counts: int64 [L], `ll` only: rows per local expert.
    begin, length: int64 [L, R], `ll` only, None where the library has no such thing: the slots of each source.
    topk_idx: int64 [N, K], `ht` only: local expert or -1. topk_weights: float32 [N, K], `ht` only: 0 where -1.
    ordered: the library promises order by source, then token (within an expert for `ll`), and slots in that order.
    """

    x: torch.Tensor
    source: torch.Tensor
    token: torch.Tensor
    scales: torch.Tensor | None = None
    expert: torch.Tensor | None = None
    slot: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    begin: torch.Tensor | None = None
    length: torch.Tensor | None = None
    topk_idx: torch.Tensor | None = None
    topk_weights: torch.Tensor | None = None
    ordered: bool = False

    def on_cpu(self) -> Received:
        """The same on the CPU, the tensors that are there already as they are."""
        given = {name: getattr(self, name) for name in (field.name for field in fields(self)) if name != "ordered"}
        return replace(self, **{name: tensor.cpu() for name, tensor in given.items() if tensor is not None})


@dataclass(frozen=True)
class Setup:
    """What a backend is given: the case, this rank and its inputs, and a process group of its own.

    group: made for this run alone, over all ranks, with `deadline_s` as the timeout of its collectives.
    deadline_s: how long a wait inside an operation may last before it must raise.
    """

    case: Case
    rank: int
    inputs: Inputs
    group: dist.ProcessGroup
    deadline_s: float


class Backend(Protocol):
    """One library under measurement, on one rank. See the module's docstring for the order of calls."""

    name: ClassVar[str]

    @classmethod
    def availability(cls) -> str | None:
        """None when the library can be used on this machine, else the reason in one clause."""

    @classmethod
    def supports(cls, case: Case) -> str | None:
        """None when the library can run the case, else the reason in one clause."""

    def setup(self, given: Setup) -> None:
        """Allocate and connect. Called once, by all ranks."""

    def scratch(self) -> Sequence[torch.Tensor]:
        """The tensors that dispatch, `give` and combine write: the harness poisons them before a check."""

    def dispatch(self) -> None:
        """Send this rank's tokens and receive what is due here. Timed."""

    def received(self) -> Received:
        """What the last dispatch put here. Not timed; may copy."""

    def give(self, expert_output: torch.Tensor) -> None:
        """Put the experts' outputs, bf16 [N, H] in the order of `received`, where combine reads them. Not timed.

        For `ht` a row is already the weighted sum over this rank's experts.
        """

    def combine(self) -> None:
        """Return the experts' outputs to the tokens' ranks and reduce them there. Timed."""

    def combined(self) -> torch.Tensor:
        """The result of the last combine: bf16 [T, H]."""

    def wire_bytes(self) -> dict[Phase, float] | None:
        """Bytes per rank that really leave it, averaged over ranks, by phase; None where not known."""

    def notes(self) -> list[str]:
        """What a reader of the record must know about this run: faults injected, fallbacks taken."""

    def close(self) -> None:
        """Give everything back. Must not wait for peers, which may have failed."""


def kernels_of(backend: Backend, phase: Phase) -> tuple[str, ...]:
    """The beginnings of the names of the phase's kernels, without template arguments; empty where not said.

    They come from the backend's attribute `kernels`, a mapping of phase to names, which it need not have.
    """
    return tuple(getattr(backend, "kernels", {}).get(phase, ()))
