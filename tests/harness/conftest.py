"""Fixtures of the harness' tests."""

import plugin_backends
import pytest


@pytest.fixture
def faulty(tmp_path_factory, monkeypatch):
    """Puts the faulty backends where the ranks find them."""
    folder = tmp_path_factory.mktemp("plugins")
    plugin_backends.install(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder
