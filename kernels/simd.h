/* Which instruction set runs, and how one source body is compiled for each of them.
 *
 * A kernel's inner functions are written once, in a body header, with the vector type of vec.h:
 *
 *     #define SIMD_BODY "rms_norm_body.h"      // defines static functions named FN(something)
 *     #include "simd_foreach.h"                // compiles something_scalar; _avx2, _avx512 on x86; _neon on AArch64
 *     ...  DISPATCH(something)(arguments)      // calls the variant for this machine
 *
 * LORAFAST_ISA=scalar|avx2|avxvnni|avx512|amx|neon|dotprod|i8mm forces one. It is looked up at every call of an op
 * (some 50 ns), so that a test can compare variants within one process. lorafast.kernels refuses a name that this
 * machine cannot run.
 */
#ifndef LORAFAST_SIMD_H
#define LORAFAST_SIMD_H

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#define SIMD_X86 1
#include <immintrin.h>
#elif defined(__aarch64__)
#define SIMD_NEON 1
#include <arm_neon.h>
#endif

/* What GCC and clang call by different names.
 * SHUFFLE: elements of a and b, numbered through, by constant indices; mask_type has as many integers of the same size.
 * SIMD_NO_OVERLAP before a loop: no turn of it reads what another one writes.
 * SIMD_TARGET("instruction sets, as after -m") .. SIMD_TARGET_END: functions between them are compiled for these. */
#define SIMD_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define SHUFFLE(mask_type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define SIMD_NO_OVERLAP SIMD_PRAGMA(clang loop vectorize(assume_safety))
#define SIMD_TARGET(names) SIMD_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define SIMD_TARGET_END SIMD_PRAGMA(clang attribute pop)
#else
#define SHUFFLE(mask_type, a, b, ...) __builtin_shuffle(a, b, (mask_type){__VA_ARGS__})
#define SIMD_NO_OVERLAP SIMD_PRAGMA(GCC ivdep)
#if SIMD_X86
#define SIMD_TARGET(names) SIMD_PRAGMA(GCC push_options) SIMD_PRAGMA(GCC target(names, "prefer-vector-width=512"))
#else
#define SIMD_TARGET(names) SIMD_PRAGMA(GCC push_options) SIMD_PRAGMA(GCC target(names))
#endif
#define SIMD_TARGET_END SIMD_PRAGMA(GCC pop_options)
#endif

/* What the AVX-512 variants need, and AMX's. tests/native/avx512_in_c.h defines them otherwise. */
#ifndef SIMD_AVX512
#define SIMD_AVX512 "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#define SIMD_AVX512_BF16 "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16"
#endif

/* What products of bytes need on AArch64. */
#ifdef __clang__
#define SIMD_DOTPROD "dotprod"
#define SIMD_I8MM "i8mm"
#else
#define SIMD_DOTPROD "arch=armv8.2-a+dotprod"
#define SIMD_I8MM "arch=armv8.2-a+i8mm"
#endif

/* Ordered: the better ones have larger numbers. A machine that runs one runs all below it, but for AVX-VNNI (AVX2 with
 * products of bytes), which some have without AVX-512 and some not with it. */
enum {
    ISA_SCALAR = 0,
    ISA_AVX2 = 1, ISA_AVXVNNI = 2, ISA_AVX512 = 3, ISA_AMX = 4,
    ISA_NEON = 1, ISA_DOTPROD = 2, ISA_I8MM = 3
};

#if SIMD_X86 && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
/* Tile registers are large, so Linux wants a process to ask before it uses them:
 * arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA). */
static inline int simd_request_tiles(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }
#else
static inline int simd_request_tiles(void) { return 0; }
#endif

#if SIMD_X86
#include <cpuid.h>
static inline int simd_cpu_has_amx(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    return (d >> 22 & 1) && (d >> 24 & 1);      /* AMX-BF16, AMX-TILE */
}
static inline int simd_cpu_has_avxvnni(void) {
#ifdef SIMD_AVXVNNI_IN_C
    return 1;
#endif
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
static inline int simd_cpu_has_f16c(void) {                     /* clang's __builtin_cpu_supports doesn't know it */
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
#endif

#if SIMD_NEON && defined(__linux__)
#include <sys/auxv.h>
static inline int simd_cpu_has_dotprod(void) { return getauxval(AT_HWCAP) >> 20 & 1; }      /* HWCAP_ASIMDDP */
static inline int simd_cpu_has_i8mm(void) { return getauxval(AT_HWCAP2) >> 13 & 1; }        /* HWCAP2_I8MM */
#elif SIMD_NEON                                                                 /* as the compiler was told */
#ifdef __ARM_FEATURE_DOTPROD
static inline int simd_cpu_has_dotprod(void) { return 1; }
#else
static inline int simd_cpu_has_dotprod(void) { return 0; }
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
static inline int simd_cpu_has_i8mm(void) { return 1; }
#else
static inline int simd_cpu_has_i8mm(void) { return 0; }
#endif
#endif

/* The best instruction set of this machine; found once. */
static inline int simd_best_isa(void) {
    static int best = -1;
    if (best >= 0) return best;
    int isa = ISA_SCALAR;
#if SIMD_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && simd_cpu_has_f16c()) {
        isa = simd_cpu_has_avxvnni() ? ISA_AVXVNNI : ISA_AVX2;
#ifdef SIMD_AVX512_IN_C
        return best = ISA_AMX;
#endif
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512vnni")) {
            isa = ISA_AVX512;
            if (__builtin_cpu_supports("avx512bf16") && simd_cpu_has_amx() && simd_request_tiles()) isa = ISA_AMX;
        }
    }
#elif SIMD_NEON
    isa = !simd_cpu_has_dotprod() ? ISA_NEON : simd_cpu_has_i8mm() ? ISA_I8MM : ISA_DOTPROD;
#endif
    return best = isa;
}

/* LORAFAST_ISA as a number, or -1 for a name that does not exist on this architecture. */
static inline int simd_parse_isa(const char *name) {
    if (!strcmp(name, "scalar")) return ISA_SCALAR;
#if SIMD_X86
    if (!strcmp(name, "avx2")) return ISA_AVX2;
    if (!strcmp(name, "avxvnni")) return ISA_AVXVNNI;
    if (!strcmp(name, "avx512")) return ISA_AVX512;
    if (!strcmp(name, "amx")) return ISA_AMX;
#elif SIMD_NEON
    if (!strcmp(name, "neon")) return ISA_NEON;
    if (!strcmp(name, "dotprod")) return ISA_DOTPROD;
    if (!strcmp(name, "i8mm")) return ISA_I8MM;
#endif
    return -1;
}

/* Whether this machine runs an instruction set. */
static inline int simd_runs(int isa) {
#if SIMD_X86
    if (isa == ISA_AVXVNNI) return simd_best_isa() >= isa && simd_cpu_has_avxvnni();
#endif
    return isa >= 0 && isa <= simd_best_isa();
}

static inline int simd_isa(void) {
    const int best = simd_best_isa();
    const char *forced = getenv("LORAFAST_ISA");
    if (!forced || !*forced) return best;
    const int isa = simd_parse_isa(forced);
    return simd_runs(isa) ? isa : best;
}

static inline const char *simd_isa_name(int isa) {
#if SIMD_NEON
    return (const char *const[]){"scalar", "neon", "dotprod", "i8mm"}[isa];
#else
    return (const char *const[]){"scalar", "avx2", "avxvnni", "avx512", "amx"}[isa];
#endif
}

/* FN(name) inside a body header: the name with the suffix of the instruction set being compiled. */
#define SIMD_PASTE_(name, suffix) name##_##suffix
#define SIMD_PASTE(name, suffix) SIMD_PASTE_(name, suffix)
#define FN(name) SIMD_PASTE(name, SIMD_SUFFIX)

/* DISPATCH(name): the variant of a function compiled by simd_foreach.h for the running machine. AMX, AVX-VNNI and
 * NEON's products of bytes are for matrix products alone; everything else is the variant below. */
#if SIMD_X86
#define DISPATCH(name) (simd_isa() >= ISA_AVX512 ? name##_avx512 : simd_isa() >= ISA_AVX2 ? name##_avx2 : name##_scalar)
#elif SIMD_NEON
#define DISPATCH(name) (simd_isa() >= ISA_NEON ? name##_neon : name##_scalar)
#else
#define DISPATCH(name) (name##_scalar)
#endif

#endif
