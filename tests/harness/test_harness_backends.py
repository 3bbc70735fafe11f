"""Backends are plugins: found by entry point, listed without importing them, refused in a sentence."""

import os
import subprocess
import sys

import pytest

from harness import backends
from harness.errors import BackendError


def test_the_two_that_come_with_epwatch_are_known():
    assert {"ep_core", "torch"} <= set(backends.names())
    assert backends.load("torch").name == "torch"
    assert backends.availability("torch") is None


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(BackendError, match="backend 'deepep' is not known; known are ep_core, torch"):
        backends.load("deepep")
    assert "is not known" in backends.availability("deepep")


def install(folder, name, value):
    """A distribution that registers a backend, as pip would leave it."""
    info = folder / f"plugin_{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-{name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[epwatch.backends]\n{name} = {value}\n")


def test_a_plugin_of_another_distribution_is_found(tmp_path, monkeypatch):
    install(tmp_path, "mylib", "my_lib_backend:MyBackend")
    (tmp_path / "my_lib_backend.py").write_text("class MyBackend:\n    name = 'mylib'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "mylib" in backends.names()
    assert backends.load("mylib").name == "mylib"


@pytest.mark.parametrize("value", ["no_such_module_here:Backend", "harness.case:NoSuchBackend"])
def test_a_plugin_that_cannot_be_loaded_is_named_with_the_reason(tmp_path, monkeypatch, value):
    install(tmp_path, "broken", value)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        BackendError, match=r"backend 'broken' .* cannot be loaded: .*(no_such_module_here|NoSuchBackend)"
    ):
        backends.load("broken")


def test_one_name_registered_for_two_things_is_refused(tmp_path, monkeypatch):
    install(tmp_path, "torch", "elsewhere:TorchBackend")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match="'torch' is registered twice"):
        backends.names()


def test_nothing_of_what_plans_and_histories_use_imports_torch():
    program = (
        "import sys; import harness.case, harness.record, harness.job, harness.errors, harness.launch, harness.suites,"
        " harness.overrides, harness.environment, harness.backends, harness.world; harness.backends.names();"
        " found = {'torch', 'numpy'} & set(sys.modules); sys.exit(f'imported {found}' if found else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
