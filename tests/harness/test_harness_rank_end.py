"""Ranks say how they ended, whatever ended them but a signal, and the one that failed is blamed, not its peers."""

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_jobs import TORCH_LL, but, records, spec_of

from harness import rank_end
from harness.launch import run_job
from harness.rank_end import RankEnd


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("cannot say")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("no room"), "ValueError", "no room"),
        (ValueError(), "ValueError", "ValueError"),
        (SystemExit(0), "SystemExit", "left with exit code 0"),
        (SystemExit(None), "SystemExit", "left with exit code 0"),
        (SystemExit(3), "SystemExit", "left with exit code 3"),
        (SystemExit("WorldError: no peers"), "SystemExit", "WorldError: no peers"),
        (GeneratorExit("gone"), "GeneratorExit", "gone"),
        (Speechless(), "Speechless", "no message: RuntimeError while it was made"),
    ],
)
def test_whatever_ends_a_rank_is_written_down_and_goes_on(tmp_path, error, kind, message):
    with pytest.raises(type(error)), rank_end.told(tmp_path, 1):
        raise error
    end = rank_end.read(tmp_path, 1)
    assert (end.rank, end.pid, end.outcome, end.kind, end.message) == (1, os.getpid(), "error", kind, message)
    assert "test_harness_rank_end.py" in end.trace
    assert [path.name for path in tmp_path.iterdir()] == ["end-rank1.json"]


def test_a_rank_that_is_done_says_so_and_its_earlier_attempt_is_forgotten(tmp_path):
    with pytest.raises(ValueError, match="first"), rank_end.told(tmp_path, 0):
        raise ValueError("first attempt")
    with rank_end.told(tmp_path, 0):
        assert rank_end.read(tmp_path, 0) is None
    assert rank_end.read(tmp_path, 0).outcome == "done"


def test_an_interrupt_is_a_signal_and_a_torn_file_is_none(tmp_path):
    with pytest.raises(KeyboardInterrupt), rank_end.told(tmp_path, 0):
        raise KeyboardInterrupt
    assert rank_end.read_all(tmp_path, 4) == []
    rank_end.path_of(tmp_path, 2).write_text('{"rank": 2')
    assert rank_end.read_all(tmp_path, 4) == []


def test_a_folder_that_is_gone_hides_nothing(tmp_path):
    with pytest.raises(ValueError, match="the cause"), rank_end.told(tmp_path / "gone", 0):
        raise ValueError("the cause")


LOST = (
    "[/pytorch/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:21034",
    "Socket Timeout",
    "rank 0 of 2 could not join its peers at n1:20000 (srun): The client socket has timed out",
)
GENUINE = ("division by zero", "left with exit code 0", "rank 1: row 3 is not what was sent")


def an_end(rank, message, second):
    outcome = "error" if message else "done"
    ended_at = f"2026-11-23T02:00:{second:02d}.000Z"
    return RankEnd(rank=rank, host="a", pid=1, outcome=outcome, kind="E", message=message, ended_at=ended_at)


ends = st.lists(st.tuples(st.sampled_from(("", *LOST, *GENUINE)), st.integers(0, 59)), max_size=6).map(
    lambda pairs: [an_end(rank, message, second) for rank, (message, second) in enumerate(pairs)]
)


@given(ends)
def test_a_lost_peer_is_blamed_only_when_nothing_else_went_wrong(found):
    blamed = rank_end.to_blame(found)
    errors = [end for end in found if end.outcome == "error"]
    genuine = [end for end in errors if end.message in GENUINE]
    if not errors:
        assert blamed is None
        return
    assert blamed in (genuine or errors)
    assert all(blamed.ended_at <= end.ended_at for end in genuine or errors)


def test_the_order_of_ranks_decides_nothing():
    made = [an_end(0, LOST[0], 1), an_end(1, GENUINE[0], 2), an_end(2, "", 0)]
    assert {rank_end.to_blame(order).rank for order in itertools.permutations(made)} == {1}


ESCAPED = {
    "escapes-on-one-rank": ("_Unpicklable", "rank 1 failed: the link is down, at 'check dispatch before'"),
    "leaves-on-one-rank": ("SystemExit", "rank 1 failed: left with exit code 0, at 'check dispatch before'"),
    "drops-dead": ("RankFailed", "rank 1 failed: exit code 4, at 'check dispatch before'"),
}


@pytest.mark.parametrize("backend", ESCAPED)
@pytest.mark.usefixtures("faulty")
def test_the_rank_that_failed_is_blamed_and_not_the_one_that_lost_it(tmp_path, backend):
    spec = spec_of(tmp_path, [but(TORCH_LL, backend=backend)], op_deadline_s=60.0)
    run_job(spec)
    (made,) = records(spec)
    assert (made.outcome, made.failure.rank) == ("failed", 1)
    assert (made.failure.kind, made.failure.message) == ESCAPED[backend]
    first, second = (rank_end.read(tmp_path / "log", rank) for rank in range(2))
    assert first is None or first.outcome == "error"
    assert (second is None) == (backend == "drops-dead")


@pytest.mark.usefixtures("faulty")
def test_ranks_that_all_leave_with_code_zero_have_failed(tmp_path):
    spec = spec_of(tmp_path, [but(TORCH_LL, backend="leaves-on-every-rank"), TORCH_LL])
    outcome = run_job(spec)
    left, waiting = records(spec)
    assert outcome.exit_code == 0
    assert left.failure.message.endswith("failed: left with exit code 0, at 'setup'")
    assert waiting.failure.message.startswith("the job ended before this run began: rank ")
    assert "plugin_backends.py" in left.failure.log_tail


@pytest.mark.usefixtures("faulty")
def test_an_exception_that_cannot_be_sent_fails_its_run_and_no_other(tmp_path):
    spec = spec_of(tmp_path, [but(TORCH_LL, backend="cannot-be-sent"), TORCH_LL])
    outcome = run_job(spec)
    failed, after = records(spec)
    assert outcome.exit_code == 0
    assert (failed.failure.kind, failed.failure.rank) == ("ValueError", 1)
    assert failed.failure.message == "no room for the handle"
    assert after.outcome == "ok"
    assert [end.outcome for end in rank_end.read_all(tmp_path / "log", 2)] == ["done", "done"]
