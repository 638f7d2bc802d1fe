"""Builds the kernels: an extension module for each kernels/*.pyx, in lorafast/kernels. All else is in pyproject.toml.

LORAFAST_NO_OPENMP=1   build without OpenMP (single-threaded); otherwise a compiler without it is an error
LORAFAST_ONLY=a,b      build only these kernels
LORAFAST_SANITIZE=address,undefined   build for these sanitizers of the compiler (tests/sanitize.sh); with `thread`
                       however little work there is, it is dealt out to threads
"""
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MSVC = sys.platform == "win32"
if MSVC:
    sys.exit("lorafast's kernels use GCC vector extensions: build under Linux, macOS (GCC) or WSL")

openmp = [] if os.environ.get("LORAFAST_NO_OPENMP") else ["-fopenmp"]
compile_args = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-Wno-unused-function", *openmp]
sanitize = []
if sanitizers := os.environ.get("LORAFAST_SANITIZE"):
    # Not optimised: that takes the compiler four times as long, with all that the sanitizers add.
    sanitize = [f"-fsanitize={sanitizers}"]
    own = "-DPARALLEL_MIN_WORK=1" if sanitizers == "thread" else "-fno-sanitize-recover=all"
    compile_args += ["-g1", "-O0", *sanitize, own]

OPENMP_PROGRAM = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


class BuildKernels(build_ext):
    """build_ext, which first makes sure that the compiler has OpenMP."""

    def run(self) -> None:
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "openmp.c")
            source.write_text(OPENMP_PROGRAM)
            command = [*compiler, *openmp, str(source), "-o", str(Path(folder, "openmp"))]
            if openmp and subprocess.run(command, capture_output=True).returncode:
                sys.exit(f"lorafast: {compiler[0]} cannot build with OpenMP (-fopenmp): install GCC, or libomp for "
                         "clang, or set LORAFAST_NO_OPENMP=1 to build kernels that use one thread")
        super().run()


# Sizes are checked once, at the top of each op (shapes.h): not again at each element.
DIRECTIVES = {"language_level": 3, "boundscheck": False, "wraparound": False, "cdivision": True}


def headers_of(source: Path, seen: set[Path]) -> set[Path]:
    """`seen` and what `source` names of kernels/, in includes and in cimports: a change of one of them rebuilds it."""
    for header, module in re.findall(r'"(\w+\.h)"|^from (\w+) cimport', source.read_text(), re.MULTILINE):
        path = source.with_name(header or f"{module}.pxd")
        if path.is_file() and path not in seen:
            seen |= headers_of(path, seen | {path})
    return seen


root = Path(__file__).parent
only = [name for name in os.environ.get("LORAFAST_ONLY", "").split(",") if name]
extensions = [
    Extension(
        f"lorafast.kernels.{source.stem}",
        [str(source.relative_to(root))],
        depends=sorted(str(header.relative_to(root)) for header in headers_of(source, set())),
        include_dirs=["kernels"],
        extra_compile_args=compile_args,
        extra_link_args=[*openmp, *sanitize],
    )
    for source in sorted(root.glob("kernels/*.pyx"))
    if not only or source.stem in only
]

setup(
    ext_modules=cythonize(extensions, build_dir="build/cython", quiet=True, compiler_directives=DIRECTIVES),
    cmdclass={"build_ext": BuildKernels},
    options={"build_ext": {"parallel": os.cpu_count()}},
)
