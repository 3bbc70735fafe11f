"""What MSCCL++ needs of this side: the reason where it is not there, and messages that never wait without an end."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from ep_world import Context, RankWorld
from hypothesis import given, settings
from hypothesis import strategies as st

from ep_core import EPTimeoutError, _host
from ep_core.messages import Messages
from ep_core.rendezvous import next_name, store_of


def reason(before: str) -> str:
    """What `obstacle` says in a new interpreter in which `before` was run."""
    code = f"import sys, ep_core\n{before}\nfrom ep_core import mscclpp_mapping\nprint(mscclpp_mapping.obstacle())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def test_where_it_was_not_built_the_reason_says_what_to_do() -> None:
    said = reason("sys.modules['ep_core._mscclpp'] = None")
    assert said == (
        "ep_core was built without it; install mscclpp, or name its folder in EP_CORE_MSCCLPP, and build again"
    )


def test_where_it_cannot_be_loaded_the_reason_says_why(tmp_path: Path) -> None:
    suffix = Path(_host.__file__).name.removeprefix("_host")
    (tmp_path / f"_mscclpp{suffix}").write_text("not a library")
    said = reason(f"ep_core.__path__.insert(0, {str(tmp_path)!r})")
    assert said.startswith("it was there when ep_core was built, but cannot be loaded now: ")
    assert f"_mscclpp{suffix}" in said


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(-1, 2), st.binary(max_size=40), st.booleans()),
        max_size=20,
    )
)
def test_messages_of_one_tag_arrive_in_order_whatever_lies_between(steps: list[tuple[int, int, bytes, bool]]) -> None:
    store = dist.HashStore()
    both = [Messages(store, "talk", rank, 2, 5.0) for rank in range(2)]
    waiting: dict[tuple[int, int], list[bytes]] = {}
    for source, tag, message, receive_one in steps:
        both[source].send(message, 1 - source, tag)
        queue = waiting.setdefault((source, tag), [])
        queue.append(message)
        if receive_one:
            assert both[1 - source].receive(source, tag) == queue.pop(0)
    for (source, tag), queue in waiting.items():
        assert [both[1 - source].receive(source, tag) for _ in queue] == queue
    assert store.num_keys() == 0


def exchange(context: Context, of: int) -> list[bytes]:
    group = context.group(of)
    messages = Messages(store_of(group), next_name(group), context.rank, of, 30.0)
    messages.meet("here")
    others = [peer for peer in range(of) if peer != context.rank]
    for peer in others:
        messages.send(bytes([context.rank, peer]), peer, 0)
    got = [messages.receive(peer, 0) for peer in others]
    messages.meet("done")
    return got


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_exchange_messages_again_and_again(world: RankWorld, ranks: int) -> None:
    for _ in range(2):
        got = world.run(exchange, ranks, of=ranks)
        assert got == [[bytes([peer, rank]) for peer in range(ranks) if peer != rank] for rank in range(ranks)]


def wait_in_vain(context: Context, step: str) -> EPTimeoutError | None:
    group = context.group(3)
    messages = Messages(store_of(group), next_name(group), context.rank, 3, 0.5)
    if context.rank == 1:
        return None
    with pytest.raises(EPTimeoutError) as raised:
        messages.meet(step) if step else messages.receive(1, 0)
    return raised.value


@pytest.mark.parametrize("step", ["here", ""])
def test_a_rank_that_does_not_come_is_named(world: RankWorld, step: str) -> None:
    for rank, error in enumerate(world.run(wait_in_vain, 3, step=step)):
        if rank != 1:
            assert error is not None
            assert (error.phase, error.rank, error.missing) == ("construction", rank, [1])


def test_a_wait_that_is_given_up_ends() -> None:
    messages = Messages(dist.HashStore(), "talk", 0, 2, 3600.0)
    threading.Timer(0.1, messages.give_up).start()
    with pytest.raises(EPTimeoutError, match="rank 1"):
        messages.receive(1, 0)


def test_a_store_that_fails_is_said_to_have() -> None:
    host = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    guest = dist.TCPStore("127.0.0.1", host.port, is_master=False, timeout=timedelta(seconds=5))
    messages = Messages(guest, "talk", 0, 2, 30.0)
    del host
    with pytest.raises(EPTimeoutError, match="rank 1: the process group's store failed: "):
        messages.receive(1, 0)
