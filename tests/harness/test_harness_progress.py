"""What ranks say of their steps is read back whole, whatever else a full disk left in between."""

import tempfile
from pathlib import Path

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from harness import progress
from harness.progress import Progress

TEXT = st.text(max_size=8)
STEPS = st.builds(
    Progress,
    at_s=st.floats(0, 2e9),
    rank=st.just(0),
    pid=st.integers(1, 2**22),
    run_id=TEXT,
    step=TEXT,
    outcome=TEXT,
    error=TEXT,
)
ONE = Progress(at_s=1.0, rank=0, pid=1, run_id="r", step="warm up")


def line_of(step):
    return msgspec.json.encode(step)


TORN = st.builds(lambda step, share: line_of(step)[: int(share * len(line_of(step)))], STEPS, st.floats(0, 0.99))
GARBAGE = st.one_of(TORN, st.binary(max_size=40), st.just(b"\0" * 16), st.builds(bytes.__add__, TORN, TORN))
LINES = st.lists(st.one_of(STEPS, GARBAGE.filter(lambda data: b"\n" not in data)))


@given(LINES, GARBAGE.filter(lambda data: b"\n" not in data), st.integers(0))
@example([ONE, b'{"at_s":1.0,"ra{"at_s":1.0}', ONE, b'"\xff', ONE, b""], b"{", 5)
def test_garbage_between_steps_is_skipped_and_every_step_is_kept(lines, last, cut):
    data = b"".join((line_of(one) if isinstance(one, Progress) else one) + b"\n" for one in lines) + last
    steps = [one for one in lines if isinstance(one, Progress)]
    with tempfile.TemporaryDirectory() as name:
        folder, first = Path(name), cut % (len(data) + 1)
        file = folder / "progress-rank0.jsonl"
        file.write_bytes(data[:first])
        before, offset = progress.read_new(folder, 0, 0)
        file.write_bytes(data)
        after, end = progress.read_new(folder, 0, offset)
        assert before + after == progress.read(folder, 0) == steps
        assert end == len(data) - len(last)


def test_steps_that_follow_a_torn_one_are_read(tmp_path):
    progress.append(tmp_path, 0, "r", "dispatch")
    file = tmp_path / "progress-rank0.jsonl"
    file.write_bytes(file.read_bytes() + file.read_bytes()[:20])
    for step in ("glued", "combine", progress.RECORDED):
        progress.append(tmp_path, 0, "r", step)
    assert [entry.step for entry in progress.read(tmp_path, 0)] == ["dispatch", "combine", progress.RECORDED]
    assert progress.read(tmp_path, 1) == []
