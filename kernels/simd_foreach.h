/* Compiles the header named by SIMD_BODY once for each instruction set of this architecture; see simd.h.
 * No include guard: it is included once per body. */

#define SIMD_SUFFIX scalar
#define VF_WIDTH 4
#include "vec.h"
#include SIMD_BODY
#undef SIMD_SUFFIX
#undef VF_WIDTH

#if SIMD_X86

SIMD_TARGET("avx2,fma,f16c")
#define SIMD_SUFFIX avx2
#define VF_WIDTH 8
#define SIMD_IS_AVX2 1
#include "vec.h"
#include SIMD_BODY
#undef SIMD_SUFFIX
#undef VF_WIDTH
#undef SIMD_IS_AVX2
SIMD_TARGET_END

SIMD_TARGET(SIMD_AVX512)
#define SIMD_SUFFIX avx512
#define VF_WIDTH 16
#define SIMD_IS_AVX512 1
#include "vec.h"
#include SIMD_BODY
#undef SIMD_SUFFIX
#undef VF_WIDTH
#undef SIMD_IS_AVX512
SIMD_TARGET_END

#elif SIMD_NEON

#define SIMD_SUFFIX neon
#define VF_WIDTH 4
#define SIMD_IS_NEON 1
#include "vec.h"
#include SIMD_BODY
#undef SIMD_SUFFIX
#undef VF_WIDTH
#undef SIMD_IS_NEON

#endif

#undef SIMD_BODY
