"""What is said of the ranks' GPUs, and that nothing is said, without an error, where there is no driver or package."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import environment, gpus, nvml
from harness.gpus import Gpu, Look

A, B = (Gpu(index=at, name="NVIDIA H100 80GB HBM3", uuid=f"GPU-{at}") for at in range(2))


def test_gpus_are_numbered_by_their_first_rank():
    assert gpus.distinct([B, A, B, None, A]) == gpus.distinct([B, A, B]) == [B, A]
    assert gpus.ranks_of([B, A, B, None, A]) == [[0, 2], [1, 4]]
    assert gpus.sharing_notes([B, A, B]) == [
        "gpu0 is shared by ranks 0, 2: their kernels do not run as they would alone"
    ]
    assert gpus.sharing_notes([A, B]) == []


@given(st.lists(st.sampled_from([A, B, None, Gpu(index=0, name="x", uuid="GPU-x")])))
def test_every_rank_with_a_gpu_is_on_one_of_the_distinct(gpu_of_rank):
    shared = zip(gpus.distinct(gpu_of_rank), gpus.ranks_of(gpu_of_rank), strict=True)
    assert sorted((rank, gpu.uuid) for gpu, ranks in shared for rank in ranks) == [
        (rank, gpu.uuid) for rank, gpu in enumerate(gpu_of_rank) if gpu is not None
    ]


def test_a_look_is_told_once_for_each_gpu():
    looks = [
        Look({"ecc": "on", "power_limit_w": "700"}, {"power_w": 90.0}, ("the power limit",)),
        Look({"ecc": "on", "power_limit_w": "650"}, {"power_w": 95.0}),
    ]
    assert gpus.one_each([A, B, A, B], [*looks, Look(), Look()]) == looks
    assert gpus.facts(looks) == {"gpu_ecc": "on", "gpu_power_limit_w": "700, 650"}
    assert gpus.facts([*looks, Look()])["gpu_ecc"] == "on, on, unknown"
    assert gpus.conditions(looks, "before") == {"gpu0_power_w_before": 90.0, "gpu1_power_w_before": 95.0}
    assert gpus.held_down_notes(looks, "after") == ["gpu0, after: clocks held down by the power limit"]


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (0, ()),
        (1, ()),
        (0x4, ("the power limit",)),
        (0x61, ("temperature, in software", "temperature, in hardware")),
        (0x1002, ("the application's clock setting", "reason 0x1000")),
    ],
)
def test_reasons_are_words_and_idleness_is_none(reasons, words):
    assert nvml.in_words(reasons) == words


@given(st.integers(0, 2**20))
def test_every_reason_but_idleness_has_its_word(reasons):
    assert len(nvml.in_words(reasons)) == (reasons & ~1).bit_count()


def test_the_platform_of_a_gpu_run_names_the_gpus_that_its_ranks_have():
    assert environment.platform("lab", "cuda", 1, used=[A]).key == "lab/NVIDIA H100 80GB HBM3/x1/one-gpu"
    assert environment.platform("lab", "cuda", 2, used=[A, B]).key == "lab/NVIDIA H100 80GB HBM3/x2/network"
    assert environment.platform("lab", "cuda", 1, used=[]).key == "lab/unknown GPU/x0/unknown"
    assert gpus.model("Weird/Name  3") == "Weird-Name 3"


PROGRAM = """
import sys
sys.modules["pynvml"] = None
from harness import environment, nvml
from harness.gpus import Gpu, Look
gpus = [Gpu(index=at, name="NVIDIA H100", uuid=f"GPU-{at}") for at in range(2)]
assert nvml.look(gpus[0]) == Look() == nvml.look(None)
assert nvml.installed() == [] and nvml.versions() == {}
assert nvml.interconnect(gpus) == "unknown" and nvml.interconnect(gpus[:1]) == "one-gpu"
assert environment.platform("lab", "cuda", 1, used=gpus).key == "lab/NVIDIA H100/x2/unknown"
assert environment.capture({}, [Look()]).topology["gpu_libraries"] == ""
assert environment.platform("lab", "cuda", 1).device_model == "unknown GPU"
assert "torch" not in sys.modules
"""


def test_without_the_package_everything_of_nvml_is_left_out():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_an_older_package_of_the_same_name_counts_as_none(tmp_path):
    (tmp_path / "pynvml.py").write_text("class NVMLError(Exception): ...\ndef nvmlInit(): ...\nNVML_CLOCK_SM = 1\n")
    program = PROGRAM.replace('sys.modules["pynvml"] = None', f"sys.path.insert(0, {str(tmp_path)!r})")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_gpu_that_the_driver_does_not_know_is_left_out():
    assert nvml.look(A) == Look()
    assert nvml.look(None) == Look()
