/* Everything of linear.pyx that is compiled once for each instruction set. */
#include "unpack_body.h"
#include "gemm_common_body.h"
#include "gemm_f32_body.h"
#include "gemm_i16_body.h"
#include "gemm_i8_body.h"
#include "gemv_body.h"
#include "gemv_4bit_body.h"

/* The core for at most GEMV_TOKENS tokens, forward only; and what takes any number (precision: see linear.h). */
static const gemm_core *FN(core_for_few)(int type, int precision) {
    const int in_integers = precision != PRECISION_FLOAT32 && ggml_formats[type].is_4_bit;
    return in_integers ? &FN(gemv_4bit_core) : &FN(gemv_core);
}
static const gemm_core *FN(core_for)(int type, int precision) {
    if (precision == PRECISION_FLOAT32 || ggml_is_float(type)) return &FN(f32_core);
    const gemm_core *in_int8 = precision == PRECISION_INT8 ? FN(i8_core_for)(type) : NULL;
    if (in_int8) return in_int8;
    return ggml_formats[type].q_max <= 2048 ? &FN(i16_core) : &FN(i16_wide_core);
}
