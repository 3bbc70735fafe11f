"""benchmarks/cuda_engine.py where there is no GPU: on the host engine for real, and its text of made-up documents."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import cuda_engine
import cuda_engine_plan
import cuda_engine_table
import cuda_limits
import cuda_peers
import mps

from harness import gpus, oracle
from harness.case import Case
from harness.errors import BackendError
from harness.record import PlannedRun, new_run_id

PROGRAM = Path(cuda_engine.__file__)
SMALL = (
    *("--device", "cpu", "--tokens", "9", "--ht-tokens", "17", "--hidden", "256", "--topk", "3", "--experts", "8"),
    *("--iters", "3", "--warmup", "1", "--rounds", "2", "--ht-rounds", "2"),
)


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, PROGRAM, *words], capture_output=True, text=True, timeout=150, check=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A run on the host engine with its peers, and the document it left in a folder."""
    folder = tmp_path_factory.mktemp("results")
    done = bench(*SMALL, "--json", str(folder))
    (left,) = folder.iterdir()
    return done, left


def test_every_contender_is_measured_beside_its_peers(
    measured: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, left = measured
    assert done.returncode == 0, done.stderr
    document = json.loads(left.read_bytes())
    assert [(one["mode"], one["protocol"]) for one in document["blocks"]] == [
        (mode, protocol) for mode in ("ll", "ht") for protocol in ("phased", "paired")
    ]
    names = [one["name"] for one in document["blocks"][0]["contenders"]]
    assert names == [
        *(
            "ep_core, exact",
            "ep_core, local_reduce",
            "torch",
            "ep_core, fp8, local_reduce",
            "torch, fp8",
            "ep_core, no tokens",
        ),
    ]
    assert [one["name"] for one in document["blocks"][2]["contenders"]] == ["ep_core", "torch", "torch-agrs"]
    for block in document["blocks"]:
        for one in block["contenders"]:
            assert (one["outcome"], one["why"], len(one["rounds"])) == ("ok", "", 2)
            assert all(
                [len(rank) for rank in found["samples_us"][phase]] == [3, 3]
                for found in one["rounds"]
                for phase in ("dispatch", "combine")
            )
    assert {"deep_ep", "mscclpp.ext.ep"} == set(document["absent"])
    assert set(document["limits"]["samples_us"]) == {cuda_engine_plan.COPY, cuda_engine_plan.FILL}
    assert document["environment"]["code"]["commit"][:7] in left.name
    assert "deep_ep: deep_ep cannot be imported" in done.stdout
    assert "peer's time / ours" in done.stdout


def test_a_document_is_shown_as_its_run_showed_it(measured: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, left = measured
    again = bench("--from", str(left))
    assert again.returncode == 0
    assert again.stdout.strip() == done.stdout.partition("\nall samples:")[0].strip()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--from", "nowhere"], "cannot read nowhere: No such file or directory"),
        (["--device", "cpu", "--protocols", "graph"], "protocol 'graph' needs a GPU"),
        (["--device", "cpu", "--experts", "9"], "9 experts cannot be divided among 2 ranks"),
        (["--device", "cpu", "--mps"], "--mps is for device cuda"),
        (["--device", "cpu", "--iters", "1"], "--iters from 2 on"),
        (["--device", "cpu", "--ht-sms", "0", "7"], "even numbers from 0 on for --ht-sms"),
        (["--device", "cpu", "--json", "nowhere/x.json"], "--json: there is no folder nowhere"),
        (["--device", "cpu", "--json", "/proc/x.json"], "--json: cannot write /proc/x.json: "),
        (["--device", "cpu", "--deadline", "nan"], "positive numbers of seconds for --deadline and --hang"),
        (["--device", "cpu", "--hang", "inf"], "positive numbers of seconds for --deadline and --hang"),
        (["--from", "nowhere", "--json", "x.json"], "leave one of them out"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert cuda_engine.main(words) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"program": "cuda_engine.py", "version": 99}'])
def test_a_file_that_is_no_document_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "file").write_text(text)
    assert cuda_engine.main(["--from", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith(f"cuda_engine.py: {tmp_path / 'file'} ")


@settings(deadline=None)
@given(st.data())
def test_a_document_that_is_damaged_anywhere_is_shown_or_refused_in_one_sentence(
    measured: tuple[subprocess.CompletedProcess[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    damaged = at = json.loads(measured[1].read_bytes())
    key = data.draw(st.sampled_from(sorted(at)))
    while isinstance(at[key], (dict, list)) and at[key] and data.draw(st.booleans()):
        at = at[key]
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
    if data.draw(st.booleans()):
        del at[key]
    else:
        at[key] = data.draw(st.sampled_from([None, "x", 3, -1.5, [], {}]))
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_text(json.dumps(damaged))
    said, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(told):
        code = cuda_engine.main(["--from", str(path)])
    assert code in (0, 2, 3)
    assert said.getvalue().count("\n") == (1 if code == 2 else 0)
    assert bool(told.getvalue()) == (code != 2)


@pytest.mark.parametrize(("text", "sentence"), [("abc", "EP_LL_SMS: wanted a number of processors"), ("", "")])
def test_a_variable_without_sense_hinders_measuring_and_nothing_else(
    measured: tuple[subprocess.CompletedProcess[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    sentence: str,
) -> None:
    monkeypatch.setenv("EP_LL_SMS", text)
    assert cuda_engine.main(["--from", str(measured[1])]) == 0
    assert cuda_engine.main(["--device", "cpu", "--json", "nowhere/x.json"]) == 2
    assert (sentence or "there is no folder nowhere") in capsys.readouterr().err


def test_what_was_measured_before_an_interruption_is_shown_and_kept(tmp_path: Path) -> None:
    words = [*SMALL, "--protocols", "phased", "--ht-rounds", "1000000", "--json", str(tmp_path / "kept.json")]
    process = subprocess.Popen(
        [sys.executable, PROGRAM, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    give_up = time.monotonic() + 100
    while not list(tmp_path.glob("epwatch-bench-*/found.json")) and time.monotonic() < give_up:
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    told, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "NOT COMPLETE: it was interrupted" in told
    assert [block["mode"] for block in json.loads((tmp_path / "kept.json").read_text())["blocks"]] == ["ll"]
    assert not list(tmp_path.glob("epwatch-bench-*"))


@pytest.mark.skipif(gpus.obstacle() is None, reason="there is a GPU here")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda_engine.main([]) == 2
    assert "the CUDA engine cannot be measured here: torch" in capsys.readouterr().err
    assert cuda_engine.main(["--if-gpu"]) == 0
    assert "is not measured here" in capsys.readouterr().out


def test_a_hang_ends_and_leaves_nothing_behind() -> None:
    done = bench(*SMALL, "--hang", "0.2")
    assert done.returncode == 2
    assert "nothing was measured: hung: no rank has begun a step for 0.2 s" in done.stderr


@pytest.mark.slow
def test_the_deadline_ends_what_goes_on_for_ever() -> None:
    done = bench(*SMALL, "--modes", "ll", "--protocols", "paired", "--rounds", "1000000", "--deadline", "12")
    assert done.returncode == 2
    assert "cuda_engine.py: nothing was measured: " in done.stderr
    assert "the job was killed at its deadline of 12 s" in done.stderr


@pytest.mark.slow
def test_wrong_and_broken_contenders_are_shown_as_such_and_the_others_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    options = cuda_engine.arguments([*SMALL, "--protocols", "phased", "--peers"])
    planned, settings = cuda_engine._checked(options)
    for block in planned:
        case = block.contenders[0].run.case
        for name in ("Right", "Wrong", "Broken"):
            planned_run = PlannedRun(run_id=new_run_id(), case=case)
            block.contenders.insert(
                1,
                cuda_engine_plan.Contender(
                    name=name.lower(), run=planned_run, backend=f"benchmark_peers:{name}", peer="deep_ep"
                ),
            )
    document = cuda_engine._measured(options, planned, settings)
    assert document["ended"] == ""
    for block in document["blocks"]:
        outcomes = {one["name"]: one["outcome"] for one in block["contenders"]}
        assert outcomes.pop("wrong") == "wrong"
        assert outcomes.pop("broken") == "failed"
        assert set(outcomes.values()) == {"ok"}
        assert not any(one["rounds"] for one in block["contenders"] if one["outcome"] != "ok")
    assert cuda_engine_table.complete(document)
    text = cuda_engine_table.text(document)
    assert "WRONG" in text
    assert "wrong: wrong, phased: check combine before: combine is wrong in" in text
    assert "failed: broken, phased: check combine before: it cannot combine" in text


def test_on_gpus_every_protocol_and_number_of_sms_has_its_contenders() -> None:
    case = Case(backend="ep_core", mode="ll", device="cuda", ranks=2, tokens=8, hidden=128, topk=2, experts=4)
    names = {"modes": ["ht", "ll"], "protocols": [*cuda_engine_plan.PROTOCOLS], "peers": [*cuda_engine_plan.PEERS]}
    made = cuda_engine_plan.blocks(case, 64, [0, 20, 20], names, fp8=True)
    assert [(one.mode, one.protocol) for one in made] == [
        (mode, protocol) for mode in ("ll", "ht") for protocol in ("phased", "paired", "graph", "kernel")
    ]
    by_block = {(one.mode, one.protocol): {each.name for each in one.contenders} for one in made}
    ours = {"ep_core, exact", "ep_core, local_reduce", "ep_core, fp8, local_reduce", "ep_core, no tokens"}
    theirs = {"deep_ep", "deep_ep, fp8", "mscclpp.ext.ep", "mscclpp.ext.ep, fp8"}
    assert by_block["ll", "graph"] == ours | theirs
    assert by_block["ll", "paired"] == ours | theirs | {"torch", "torch, fp8"}
    assert by_block["ht", "kernel"] == {"ep_core, all SMs", "ep_core, 20 SMs", "deep_ep"}
    for block in made:
        for one in block.contenders:
            one.run.case.validate()
            assert (one.run.case.mode, one.run.case.protocol) == (block.mode, block.protocol)


def contender(name: str, peer: str, values: list[float], outcome: str = "ok") -> dict[str, Any]:
    samples = [[[9.0, value, value], [9.0, value / 2, value / 2]] for value in values]
    return {
        "name": name,
        "peer": peer,
        "case": "ep_core/ll/cuda/r2n1/t8/h128/k2/e4/bf16/exact/uniform@0/graph",
        "outcome": outcome,
        "why": "" if outcome == "ok" else "it was so",
        "rounds": [
            {"samples_us": {"dispatch": one, "combine": one}, "figures": {"pair_slowest_p50_us": one[0][1] * 2}}
            for one in samples
        ],
        "link_bytes": {"dispatch": 1000.0, "combine": 2000.0},
        "memory_bytes": {"dispatch": 1000.0, "combine": 1000.0},
    }


def on_gpus(document: dict[str, Any], ranks_of_gpu: list[list[int]], mps_words: str) -> dict[str, Any]:
    """The document as of a run on GPUs."""
    made = copy.deepcopy(document)
    made["gpus"] = [{"name": "NVIDIA H100 80GB HBM3", "sms": 132} for _ in ranks_of_gpu]
    made["ranks_of_gpu"], made["sms_per_rank"] = ranks_of_gpu, 66
    made["conditions"] |= {"gpu0_sm_clock_mhz_before": 345.0, "gpu0_sm_clock_mhz_after": 1980.0}
    made["settings"]["mps"] = mps_words
    made["limits"] = {
        "bytes_moved": {"put": 1000, cuda_engine_plan.COPY: 3000, cuda_engine_plan.FILL: 2000},
        "samples_us": {
            name: [[9.0, 10.0], [9.0, 10.0]] for name in ("put", cuda_engine_plan.COPY, cuda_engine_plan.FILL)
        },
        "missing": {"empty kernel": "nvcc is not installed"},
    }
    contenders = [contender("ours", "", [12.0, 20.0, 14.0]), contender("theirs", "theirs", [24.0, 30.0, 56.0])]
    made["blocks"] = [{"mode": "ll", "protocol": "graph", "contenders": contenders}]
    return made


@pytest.fixture
def document(measured: tuple[subprocess.CompletedProcess[str], Path]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(measured[1].read_bytes())
    return found


def test_times_stand_beside_limits_and_peers(document: dict[str, Any]) -> None:
    text = cuda_engine_table.text(on_gpus(document, [[0], [1]], "no MPS"))
    lines = [line.split() for line in text.splitlines()]
    # The slowest rank's median, median of rounds; bytes over bytes per µs; against the larger of the two.
    assert ["dispatch", "ours", "14.00", "10.00", "5.00", "1.40"] in lines
    assert ["combine", "theirs", "30.00", "20.00", "3.33", "1.50"] in lines
    assert ["pair", "ours", "28.00"] in lines
    # Ratios within each round, 2, 1.5 and 4; their median.
    assert ["dispatch", "ours", "theirs", "2.00"] in lines
    assert "gpu1: NVIDIA H100 80GB HBM3, 132 SMs, rank 1" in text
    assert "345 MHz before, 1980 MHz after" in text
    assert "not measured: empty kernel: nvcc is not installed" in text
    assert "SHARE" not in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("MPS, private to this run", "The ranks run side by side, under MPS."),
        ("no MPS", "WITHOUT MPS they take turns on it"),
    ],
)
def test_one_gpu_for_all_ranks_is_told_plainly(document: dict[str, Any], words: str, sentence: str) -> None:
    made = on_gpus(document, [[0, 1]], words)
    text = cuda_engine_table.text(made)
    assert "THE 2 RANKS SHARE 1 GPU: no row crosses NVLink." in text
    assert sentence in text
    assert "put (same GPU)" in text
    assert cuda_engine.file_name(made).startswith("1x-nvidia-h100-80gb-hbm3-")


def test_what_of_ours_has_no_time_makes_the_run_incomplete(document: dict[str, Any]) -> None:
    made = on_gpus(document, [[0], [1]], "no MPS")
    assert cuda_engine_table.complete(made)
    peers_only = copy.deepcopy(made)
    peers_only["blocks"][0]["contenders"][1] |= {"outcome": "wrong", "why": "so", "rounds": []}
    assert cuda_engine_table.complete(peers_only)
    made["blocks"][0]["contenders"][0] |= {"outcome": "hung", "why": "so", "rounds": []}
    assert not cuda_engine_table.complete(made)
    assert "HUNG" in cuda_engine_table.text(made)
    assert not cuda_engine_table.complete({**peers_only, "ended": "out of time"})


@given(st.integers(0, 2**32), st.sampled_from([0.5, 1.0, -1.0, 4.0]))
def test_rounding_counts_as_right_and_nothing_else(seed: int, off: float) -> None:
    case = Case(backend="x", mode="ll", ranks=2, tokens=3, hidden=128, topk=2, experts=4, seed=seed % 1000)
    wanted = oracle.expected_combine(case, 1)
    near = torch.nextafter(wanted, torch.full_like(wanted, torch.inf))
    assert torch.equal(cuda_peers.within_rounding(case, 1, near), wanted)
    # Far beyond what any term of the token could lose by rounding.
    far = wanted.clone()
    far[1, 7] += off * 2.0**12
    spoilt = cuda_peers.within_rounding(case, 1, far)
    assert torch.equal(spoilt, far)
    far[2, 5] = torch.nan
    assert torch.isnan(cuda_peers.within_rounding(case, 1, far)[2, 5])


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_the_limits_kernels_build_and_say_what_cuda_says(tmp_path: Path) -> None:
    cuda_limits.build(tmp_path, "sm_90")
    kernels = cuda_limits.Kernels(tmp_path)
    if gpus.obstacle() is None:
        assert len(kernels.allocate(1 << 20)[0]) == 64
    else:
        with pytest.raises(BackendError, match=r"limit_allocate: .*CUDA"):
            kernels.allocate(1 << 20)
    with pytest.raises(BackendError, match=r"nvcc cannot build cuda_limits.cu: "):
        cuda_limits.build(tmp_path, "sm_1")


def test_a_daemon_that_is_not_installed_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(mps.MpsError, match="nvidia-cuda-mps-control is not installed"), mps.daemon():
        pass
    assert mps.in_words({mps.PIPES: str(tmp_path)}) == "no MPS"
    (tmp_path / "control").touch()
    assert mps.in_words({mps.PIPES: str(tmp_path)}) == "MPS"


def test_a_daemon_that_does_not_start_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / mps.CONTROL
    program.write_text("#!/bin/sh\necho no device\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(mps.MpsError, match="does not start: no device"), mps.daemon():
        pass
