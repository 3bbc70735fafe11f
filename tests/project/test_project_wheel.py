"""An installed wheel is as good as a checkout: built once, unpacked elsewhere, used from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("ep_core", "harness", "regress_db", "jobs")
CASE = "ep_core/ll/cpu/r2n1/t8/h64/k2/e4/bf16/exact/uniform@0/phased"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel, without its dependencies, which come from the environment of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], check=True, timeout=500, cwd=folder)
    (wheel,) = folder.glob("epwatch-*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True, timeout=120, cwd=folder
    )
    return folder / "site"


def run(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python that finds the wheel's rooms before the checkout's."""
    environment = {**os.environ, "PYTHONPATH": str(site), "XDG_DATA_HOME": str(folder / "data")}
    environment.pop("EPWATCH_DB", None)
    return subprocess.run(
        [sys.executable, "-P", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_rooms_come_from_the_wheel(site: Path, tmp_path: Path) -> None:
    code = f"import {', '.join(ROOMS)}; print(*(m.__file__ for m in ({', '.join(ROOMS)})), sep='\\n')"
    done = run(site, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert [Path(line).parents[1] for line in done.stdout.split()] == [site] * len(ROOMS)


def test_a_run_from_the_wheel_is_measured_and_kept(site: Path, tmp_path: Path) -> None:
    measured = run(site, tmp_path, "-m", "jobs", "run", CASE, "--iters", "5", "--warmup", "1")
    assert measured.returncode == 0, measured.stdout + measured.stderr
    listed = run(site, tmp_path, "-m", "jobs", "runs", "--json")
    assert CASE in listed.stdout, listed.stderr


def test_the_extension_of_the_wheel_says_what_it_can(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "-m", "ep_core")
    assert done.returncode == 0, done.stderr
    assert "host" in done.stdout
