/* Runs every check for every instruction set of this machine. Ends with a line "N passed, M failed", and with status 1
 * where M > 0. */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "simd.h"

static int passed, failed;
static uint32_t seed;
/* An array between two pages that must not be touched: what is read or written beyond its end (or, in every second pass,
 * before its beginning) ends the check. A sanitizer watches its own memory to the byte. */
#ifdef __SANITIZE_ADDRESS__
#define HAS_GUARDS 0
#else
#define HAS_GUARDS 1
#endif
static struct { void *memory; size_t size; } taken[1 << 14];
static int n_taken, at_begin;

/* The generator of Numerical Recipes; its lowest bits hardly vary. */
uint32_t random_bits(void) { return seed = seed * 1664525 + 1013904223; }

static void *take_guarded(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = (bytes + page - 1) / page * page;
    uint8_t *memory = mmap(NULL, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || (inner && mprotect(memory + page, inner, PROT_READ | PROT_WRITE))) return NULL;
    taken[n_taken].memory = memory, taken[n_taken].size = inner + 2 * page;
    return memory + page + (at_begin ? 0 : inner - bytes);
}

void *take(size_t bytes) {
    void *p = NULL;
    if (n_taken < (int)(sizeof taken / sizeof *taken))
        p = HAS_GUARDS ? take_guarded(bytes) : (taken[n_taken].memory = malloc(bytes ? bytes : 1));
    if (!p) {
        fprintf(stderr, "check_kernels: no memory\n");
        exit(2);
    }
    n_taken++;
    return memset(p, 0xff, bytes);
}

static void give_back_all(void) {
    while (n_taken) {
        n_taken--;
        if (HAS_GUARDS) munmap(taken[n_taken].memory, taken[n_taken].size);
        else free(taken[n_taken].memory);
    }
}

float *take_random(ptrdiff_t n) {
    float *p = take_floats(n);
    for (ptrdiff_t i = 0; i < n; i++) p[i] = random_float();
    return p;
}
double *take_zeros(ptrdiff_t n) { return memset(take(sizeof(double) * n), 0, sizeof(double) * n); }
float *take_gradient(ptrdiff_t n, double **exact) {
    float *p = take_random(n);
    *exact = take_zeros(n);
    for (ptrdiff_t i = 0; i < n; i++) (*exact)[i] = p[i];
    return p;
}

void expect(const char *what, const float *got, const double *exact, ptrdiff_t n, double limit) {
    double error = 0, size = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        error += (got[i] - exact[i]) * (got[i] - exact[i]);
        size += exact[i] * exact[i];
    }
    const double nmse = size > 0 ? error / size : error;
    const int good = nmse <= limit;                     /* false for NaN */
    printf("%-6s %-6s %-42s NMSE %8.1e, limit %8.1e\n", good ? "ok" : "FAILED", simd_isa_name(simd_isa()), what, nmse,
           limit);
    *(good ? &passed : &failed) += 1;
}

void expect_named(const char *op, const char *result, const float *got, const double *exact, ptrdiff_t n, double limit) {
    char what[64];
    snprintf(what, sizeof what, "%s %s", op, result);
    expect(what, got, exact, n, limit);
}

void expect_bits(const char *what, const float *got, const float *wanted, ptrdiff_t n) {
    const int good = !memcmp(got, wanted, sizeof(float) * n);
    printf("%-6s %-6s %-42s the same bits\n", good ? "ok" : "FAILED", simd_isa_name(simd_isa()), what);
    *(good ? &passed : &failed) += 1;
}

int main(void) {
    void (*const checks[])(void) = {
        check_unpack, check_linear, check_lora, check_dora, check_attention, check_rms_norm,
        check_layer_norm, check_rope, check_short_conv, check_delta_net, check_activation, check_cross_entropy,
        check_adam,
    };
    for (int isa = ISA_SCALAR; isa <= simd_best_isa(); isa++) {
        if (!simd_runs(isa)) continue;
        setenv("LORAFAST_ISA", simd_isa_name(isa), 1);
        for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
            for (at_begin = 0; at_begin <= HAS_GUARDS; at_begin++) {
                seed = i;
                checks[i]();
                give_back_all();
            }
        }
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
