"""The process in which bench_kernels.py runs OpenBLAS: sgemm on weights that are already float32, through NumPy.

    OPENBLAS_NUM_THREADS=N python bench/peers/openblas.py

The library is the one inside NumPy's wheels; `about` says which, and which of its kernels it chose for this machine.
"""
from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from timing import stopwatch
from worker import serve


class Product:
    """y = x Wᵀ and dx = dy W; NumPy hands both to sgemm without a copy."""

    def prepare(self, T: int, N: int, K: int) -> None:
        rng = np.random.default_rng(0)
        self.x, self.dy, self.W = (rng.standard_normal(shape, dtype=np.float32) for shape in ((T, K), (T, N), (N, K)))
        self.y, self.dx = np.empty((T, N), np.float32), np.empty((T, K), np.float32)
        self.forward = stopwatch(lambda: np.matmul(self.x, self.W.T, out=self.y))
        self.backward = stopwatch(lambda: np.matmul(self.dy, self.W, out=self.dx))


def about() -> dict[str, str]:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    library = re.search(r"\S*/\S*openblas\S*\.so\S*", Path("/proc/self/maps").read_text())
    kernels = "unknown"
    if library:
        for prefix, suffix in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
            function = getattr(ctypes.CDLL(library[0]), f"{prefix}openblas_get_corename{suffix}", None)
            if function:
                function.restype = ctypes.c_char_p
                kernels = function().decode()
                break
    return {"library": f"{blas['name']} {blas['version']}", "kernels": kernels}


def main() -> None:
    product = Product()
    serve(about(), {"prepare": product.prepare, "forward": lambda: product.forward(),
                    "backward": lambda: product.backward()})


if __name__ == "__main__":
    main()
