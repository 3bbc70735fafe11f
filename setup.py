"""Builds the extensions of `ep_core` with CMake; all other metadata is in pyproject.toml.

`EP_CORE_CMAKE_ARGS` adds arguments to the configure step (for example `-DEP_CORE_SANITIZE=address`). `EP_CORE_MSCCLPP`
names a folder with MSCCL++'s `include/` and `lib/`, where the Python package mscclpp is not installed.
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


def tool(name: str) -> str:
    """The build tool `name`: beside this interpreter, in the build environment, or on PATH."""
    search = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=search)
    if found is None:
        raise SystemExit(f"cannot build ep_core: {name} is not installed; pip install {name}")
    return found


class CMakeBuild(build_ext):
    """Lets CMake build all extensions at once, into the place where setuptools expects them."""

    def build_extensions(self) -> None:
        """Configure and build; an optional extension is built where CMake finds what it needs."""
        output = Path(self.get_ext_fullpath(self.extensions[0].name)).resolve().parent
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

    def copy_extensions_to_source(self) -> None:
        """Put what was built beside the sources; what an earlier build left of an optional extension goes."""
        for extension in self.extensions:
            if extension.optional:
                (ROOT / self.get_ext_filename(extension.name)).unlink(missing_ok=True)
        super().copy_extensions_to_source()


setup(
    ext_modules=[
        Extension("ep_core._host", sources=[]),
        Extension("ep_core._cuda", sources=[], optional=True),
        Extension("ep_core._mscclpp", sources=[], optional=True),
    ],
    cmdclass={"build_ext": CMakeBuild},
)
