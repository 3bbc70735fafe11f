"""Builds the extensions `ep_core._host` and, where nvcc is found, `ep_core._cuda`; other metadata is in pyproject.toml.

`EP_CORE_CMAKE_ARGS` adds arguments to the configure step (for example `-DEP_CORE_SANITIZE=address`).
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
HOST = "ep_core._host"


def tool(name: str) -> str:
    """The build tool `name`: beside this interpreter, in the build environment, or on PATH."""
    search = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=search)
    if found is None:
        raise SystemExit(f"cannot build ep_core: {name} is not installed; pip install {name}")
    return found


class CMakeBuild(build_ext):
    """Lets CMake build the extensions, all at once, into the place where setuptools expects them."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build everything when it is the host engine's turn; the others come with it, or not at all."""
        if ext.name != HOST:
            return
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        work = Path(self.build_temp).resolve() / f"cmake-{sysconfig.get_config_var('SOABI')}"
        work.mkdir(parents=True, exist_ok=True)
        cmake = tool("cmake")
        configure = [
            cmake,
            f"-S{ROOT}",
            f"-B{work}",
            "-GNinja",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DEP_CORE_OUTPUT_DIR={output}",
            *shlex.split(os.environ.get("EP_CORE_CMAKE_ARGS", "")),
        ]
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(work)], check=True)


setup(
    ext_modules=[Extension(HOST, sources=[]), Extension("ep_core._cuda", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
