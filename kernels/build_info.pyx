"""How the kernels were built and what runs: instruction set, OpenMP, compiler."""
cdef extern from "simd.h" nogil:
    int simd_isa()
    int simd_best_isa()
    bint simd_runs(int isa)
    int simd_parse_isa(const char *name)
    const char *simd_isa_name(int isa)

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define BUILT_WITH_OPENMP 1
    #else
    #define BUILT_WITH_OPENMP 0
    #endif
    """
    const int BUILT_WITH_OPENMP
    const char *COMPILER "__VERSION__"


def isa() -> str:
    """Name of the instruction set in use: scalar, avx2, avxvnni, avx512, amx, neon, dotprod or i8mm."""
    return simd_isa_name(simd_isa()).decode()


def best_isa() -> str:
    """Name of the best instruction set that this machine runs."""
    return simd_isa_name(simd_best_isa()).decode()


def available_isas() -> list[str]:
    """Every instruction set that this machine runs, slowest first."""
    return [simd_isa_name(i).decode() for i in range(simd_best_isa() + 1) if simd_runs(i)]


def openmp() -> bool:
    """True when the kernels were built with OpenMP."""
    return bool(BUILT_WITH_OPENMP)


def compiler() -> str:
    """Version text of the C compiler."""
    return COMPILER.decode()
