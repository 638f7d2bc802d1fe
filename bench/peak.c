/* What a core and the memory can do at most, for machine.py: fixed streams of instructions whose operands stay in
 * registers, and plain passes over memory.
 *
 * The streams are written in assembly with registers by name, because what a compiler makes of an array of accumulators
 * may spill, and because no compiler flags are needed then. Each has enough accumulators to hide its latency.
 * An operation is a multiplication or an addition: a fused multiply-add of n lanes counts 2n.
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    const char *name;
    double operations;              /* an iteration */
    int (*runs_here)(void);
    void (*run)(long iterations);
} stream;

static int always(void) { return 1; }

/* Operands: 1 as bfloat16, about 1 as float32, 16256 as int16 (x86). Zeros would let the multipliers rest. */
#define ONES_8 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80
#define ONES_32 ONES_8, ONES_8, ONES_8, ONES_8

#define ZERO_TO_ELEVEN(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

#if defined(__x86_64__)

#define LOOP(load, body)                                                                          \
    static const int16_t values[32] = {ONES_32};                                                  \
    __asm__ volatile(load "1:\n" body "dec %0\n jnz 1b\n" : "+r"(iterations) : "r"(values)        \
                     : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",      \
                       "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15")

/* No fused multiply-add before AVX2: multiply into one of four registers, add into one of eight. */
static void f32_sse2(long iterations) {
#define MULTIPLY_ADD(a, t) "movaps %%xmm14, %%xmm" #t "\n mulps %%xmm15, %%xmm" #t "\n addps %%xmm" #t ", %%xmm" #a "\n"
    LOOP("movups (%1), %%xmm14\n movups (%1), %%xmm15\n",
         MULTIPLY_ADD(0, 8) MULTIPLY_ADD(1, 9) MULTIPLY_ADD(2, 10) MULTIPLY_ADD(3, 11)
         MULTIPLY_ADD(4, 8) MULTIPLY_ADD(5, 9) MULTIPLY_ADD(6, 10) MULTIPLY_ADD(7, 11));
}

static void f32_avx2(long iterations) {
#define FMA(a) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #a "\n"
    LOOP("vmovups (%1), %%ymm14\n vmovups (%1), %%ymm15\n", ZERO_TO_ELEVEN(FMA));
    __asm__ volatile("vzeroupper");
#undef FMA
}

static void f32_avx512(long iterations) {
#define FMA(a) "vfmadd231ps %%zmm14, %%zmm15, %%zmm" #a "\n"
    LOOP("vmovups (%1), %%zmm14\n vmovups (%1), %%zmm15\n", ZERO_TO_ELEVEN(FMA));
    __asm__ volatile("vzeroupper");
#undef FMA
}

/* 16 products of int16 summed in pairs to 8 int32, and the addition to one of 8 accumulators. */
static void i16_avx2(long iterations) {
#define MULTIPLY_ADD_ADD(a, t) "vpmaddwd %%ymm14, %%ymm15, %%ymm" #t "\n vpaddd %%ymm" #t ", %%ymm" #a ", %%ymm" #a "\n"
    LOOP("vmovups (%1), %%ymm14\n vmovups (%1), %%ymm15\n",
         MULTIPLY_ADD_ADD(0, 8) MULTIPLY_ADD_ADD(1, 9) MULTIPLY_ADD_ADD(2, 10) MULTIPLY_ADD_ADD(3, 11)
         MULTIPLY_ADD_ADD(4, 8) MULTIPLY_ADD_ADD(5, 9) MULTIPLY_ADD_ADD(6, 10) MULTIPLY_ADD_ADD(7, 11));
    __asm__ volatile("vzeroupper");
#undef MULTIPLY_ADD_ADD
}

static void i16_avx512(long iterations) {
#define MULTIPLY_ADD_ADD(a, t) "vpmaddwd %%zmm14, %%zmm15, %%zmm" #t "\n vpaddd %%zmm" #t ", %%zmm" #a ", %%zmm" #a "\n"
    LOOP("vmovups (%1), %%zmm14\n vmovups (%1), %%zmm15\n",
         MULTIPLY_ADD_ADD(0, 8) MULTIPLY_ADD_ADD(1, 9) MULTIPLY_ADD_ADD(2, 10) MULTIPLY_ADD_ADD(3, 11)
         MULTIPLY_ADD_ADD(4, 8) MULTIPLY_ADD_ADD(5, 9) MULTIPLY_ADD_ADD(6, 10) MULTIPLY_ADD_ADD(7, 11));
    __asm__ volatile("vzeroupper");
#undef MULTIPLY_ADD_ADD
}

static void i16_vnni(long iterations) {
#define DOT_PRODUCT(a) "vpdpwssd %%zmm14, %%zmm15, %%zmm" #a "\n"
    LOOP("vmovups (%1), %%zmm14\n vmovups (%1), %%zmm15\n", ZERO_TO_ELEVEN(DOT_PRODUCT));
    __asm__ volatile("vzeroupper");
}

/* Four 16 × 16 accumulators, each += a 16 × 32 tile times a 32 × 16 tile of bfloat16. */
static void bf16_amx(long iterations) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes_a_row[16];
        uint8_t rows[16];
    } config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int tile = 0; tile < 8; tile++) config.bytes_a_row[tile] = 64, config.rows[tile] = 16;
    static const int16_t row[32] = {ONES_32};           /* read sixteen times, at a stride of 0 */
    __asm__ volatile("ldtilecfg %0\n tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3\n"
                     "tileloadd (%1,%2), %%tmm4\n tileloadd (%1,%2), %%tmm5\n"
                     "tileloadd (%1,%2), %%tmm6\n tileloadd (%1,%2), %%tmm7\n"
                     :: "m"(config), "r"(row), "r"(0L), "m"(row));
    __asm__ volatile("1:\n"
                     "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
                     "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n tdpbf16ps %%tmm7, %%tmm5, %%tmm3\n"
                     "dec %0\n jnz 1b\n" : "+r"(iterations) :: "cc");
    __asm__ volatile("tilerelease");
}

#define RUNS(isa, ...) static int has_##isa(void) { __builtin_cpu_init(); return __VA_ARGS__; }
RUNS(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
RUNS(avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
RUNS(vnni, has_avx512() && __builtin_cpu_supports("avx512vnni"))

#ifdef __linux__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
/* CPUID says that the core has AMX-BF16 and AMX-TILE; the second is Linux's permission, asked for once a process. */
static int has_amx(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1)
        && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}
#else
static int has_amx(void) { return 0; }
#endif

static const stream streams[] = {
    {"f32 sse2", 8 * 8, always, f32_sse2},
    {"f32 avx2", 12 * 16, has_avx2, f32_avx2},
    {"f32 avx512", 12 * 32, has_avx512, f32_avx512},
    {"int16 avx2", 8 * 32, has_avx2, i16_avx2},
    {"int16 avx512", 8 * 64, has_avx512, i16_avx512},
    {"int16 vnni", 12 * 64, has_vnni, i16_vnni},
    {"bf16 amx", 4 * 16 * 16 * 32 * 2, has_amx, bf16_amx},
};

#elif defined(__aarch64__)

#define LOOP(body)                                                                                \
    __asm__ volatile("movi v16.8h, #0x3f, lsl #8\n movi v17.8h, #0x3f, lsl #8\n"                  \
                     "1:\n" body "subs %0, %0, #1\n b.ne 1b\n" : "+r"(iterations)                 \
                     :: "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10",  \
                        "v11", "v16", "v17")

static void f32_neon(long iterations) {
#define FMA(a) "fmla v" #a ".4s, v16.4s, v17.4s\n"
    LOOP(ZERO_TO_ELEVEN(FMA));
}

static void i16_neon(long iterations) {
#define MULTIPLY_ADD_LONG(a) "smlal v" #a ".4s, v16.4h, v17.4h\n smlal2 v" #a ".4s, v16.8h, v17.8h\n"
    LOOP(ZERO_TO_ELEVEN(MULTIPLY_ADD_LONG));
}

static const stream streams[] = {
    {"f32 neon", 12 * 8, always, f32_neon},
    {"int16 neon", 12 * 16, always, i16_neon},
};

#else
#error "bench/peak.c knows x86-64 and AArch64"
#endif

int n_streams(void) { return sizeof streams / sizeof *streams; }
const char *stream_name(int i) { return streams[i].name; }
double stream_operations(int i) { return streams[i].operations; }
int stream_runs_here(int i) { return streams[i].runs_here(); }
void stream_run(int i, long iterations) { streams[i].run(iterations); }

/* Memory. n is a multiple of 64 bytes; several loads are under way at a time. */
typedef uint64_t u64x8 __attribute__((vector_size(64), aligned(8), may_alias));

uint64_t memory_read(const void *from, size_t n) {
    const u64x8 *p = from;
    u64x8 sum = {0};
    for (size_t i = 0; i < n / 64; i++) sum += p[i];
    return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

/* to = 1.5 from, both n bytes: what an elementwise op can reach at most whose result goes to another array. */
void memory_scale(float *restrict to, const float *restrict from, size_t n) {
    for (size_t i = 0; i < n / sizeof(float); i++) to[i] = 1.5f * from[i];
}

/* a = -a, n bytes: the same for an op that works in place. */
void memory_update(float *a, size_t n) {
    for (size_t i = 0; i < n / sizeof(float); i++) a[i] = -a[i];
}
