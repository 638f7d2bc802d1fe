/* What the checks in this folder share. Each check_<op>.c includes a kernel's headers as <op>.pyx does, calls it on
 * random numbers, in small and odd sizes, and compares with plain loops in double precision. check_kernels.c runs them
 * all for every instruction set. */
#ifndef CHECK_H
#define CHECK_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "gemm.h"

void check_activation(void);
void check_adam(void);
void check_attention(void);
void check_cross_entropy(void);
void check_delta_net(void);
void check_dora(void);
void check_layer_norm(void);
void check_linear(void);
void check_lora(void);
void check_rms_norm(void);
void check_rope(void);
void check_short_conv(void);
void check_unpack(void);

/* Prints the normalised mean squared error, sum (got - exact)^2 / sum exact^2, and counts a failure where it is above
 * the limit. Rounding one result to float32 costs 1e-15. */
void expect(const char *what, const float *got, const double *exact, ptrdiff_t n, double limit);
/* The same under the name "op result". */
void expect_named(const char *op, const char *result, const float *got, const double *exact, ptrdiff_t n, double limit);

/* Checks that results are the same to the bit, as they must be for any number of threads. */
void expect_bits(const char *what, const float *got, const float *wanted, ptrdiff_t n);

/* Memory until the end of the check, between pages that must not be touched: bytes that spell NaN, random floats between
 * -1 and 1, or doubles that are 0. */
void *take(size_t bytes);
float *take_random(ptrdiff_t n);
double *take_zeros(ptrdiff_t n);
static inline float *take_floats(ptrdiff_t n) { return take(sizeof(float) * n); }
/* Random floats, for a gradient that is to be added to, and the same in *exact. */
float *take_gradient(ptrdiff_t n, double **exact);

uint32_t random_bits(void);
static inline float random_float(void) { return (float)(random_bits() >> 8) * 0x1p-23f - 1; }

/* Rows of K random values of a ggml type, and value k of such a row by the format's definition. */
uint8_t *take_blocks(int type, ptrdiff_t rows, ptrdiff_t K);
double block_value(int type, const uint8_t *row, ptrdiff_t k);
extern const char *const type_names[];

#endif
