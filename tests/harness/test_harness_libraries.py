"""Loaded libraries are found in the process itself, and say themselves which version they are."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import libraries

MAPS = """\
55d0-55d1 r--p 00000000 fd:01 1 /usr/bin/python3.12
7f00-7f01 r--p 00000000 fd:01 2 /usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05
7f02-7f03 r-xp 00000000 fd:01 2 /usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05
7f04-7f05 r-xp 00000000 fd:01 3 /opt/my libs/nvidia/lib/libcudart.so.13
7f06-7f07 r-xp 00000000 fd:01 4 /tmp/libnccl.so.2 (deleted)
7f08-7f09 r-xp 00000000 fd:01 5 /opt/libcudart_static_helper.so.1
7f0a-7f0b rw-p 00000000 00:00 0 [heap]
7f0c-7f0d rw-p 00000000 00:00 0
"""


def test_known_libraries_are_found_once_by_their_names():
    assert libraries.mapped(MAPS) == {
        "libcuda": "/usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05",
        "libcudart": "/opt/my libs/nvidia/lib/libcudart.so.13",
        "libnccl": "/tmp/libnccl.so.2",
    }


@given(st.sampled_from(sorted(libraries.KNOWN)), st.lists(st.integers(0, 999), max_size=4))
def test_the_version_at_the_end_of_a_name(name, parts):
    version = ".".join(map(str, parts))
    assert libraries.version_in(f"{name}.so{'.' if parts else ''}{version}") == version


@pytest.mark.parametrize("name", ["libnccl.a", "nccl.so.2", "libnccl.so.2.bak", ""])
def test_what_is_no_library_has_no_version(name):
    assert libraries.version_in(name) == ""


SOURCES = {
    "libnccl.so.2": "int ncclGetVersion(int* v) { *v = 22803; return 0; }",
    "libcudart.so.13.0.96": "int cudaRuntimeGetVersion(int* v) { *v = 13000; return 0; }",
    "libcuda.so.580.95.05": "int cuDriverGetVersion(int* v) { *v = 13010; return 0; }",
    "libnvshmem_host.so.3": "void nvshmemx_vendor_get_version_info(int* a, int* b, int* c) { *a = 3; *b = 4; *c = 5; }",
    "libmscclpp.so.0.8.0": "int nothing;",
}
PROGRAM = """
import ctypes, json, sys
from harness import libraries
for path in sys.argv[1:]:
    ctypes.CDLL(path)
paths = libraries.loaded()
print(json.dumps([libraries.versions(paths), libraries.file_names(paths.values())]))
"""


def test_what_a_process_has_loaded_says_its_version_itself(tmp_path):
    paths = []
    for name, source in SOURCES.items():
        (tmp_path / "library.c").write_text(source)
        paths.append(str(tmp_path / name))
        subprocess.run(["cc", "-shared", "-fPIC", "-o", paths[-1], str(tmp_path / "library.c")], check=True)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *paths], capture_output=True, text=True, timeout=60, check=True
    )
    versions, names = json.loads(done.stdout)
    assert versions == {
        "cuda": "13.0.96",
        "cuda_driver": "13.1",
        "driver": "580.95.05",
        "mscclpp": "0.8.0",
        "nccl": "2.28.3",
        "nvshmem": "3.4.5",
    }
    assert names == ", ".join(sorted(SOURCES))


def test_a_library_without_its_version_call_is_known_by_its_file(tmp_path):
    (tmp_path / "library.c").write_text("int nothing;")
    path = str(tmp_path / "libnccl.so.2.29.1")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, str(tmp_path / "library.c")], check=True)
    done = subprocess.run([sys.executable, "-c", PROGRAM, path], capture_output=True, text=True, timeout=60, check=True)
    assert '"nccl": "2.29.1"' in done.stdout
