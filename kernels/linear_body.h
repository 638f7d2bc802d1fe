/* Everything of linear.pyx that is compiled once for each instruction set. */
#include "unpack_body.h"
#include "gemm_common_body.h"
#include "gemm_f32_body.h"
#include "gemm_i16_body.h"
#include "gemv_body.h"

/* The core for at most GEMV_TOKENS tokens, forward only; and that for a weight type. */
static const gemm_core *FN(core_for_few)(void) { return &FN(gemv_core); }
static const gemm_core *FN(core_for)(int type) {
    if (ggml_is_float(type)) return &FN(f32_core);
    return ggml_formats[type].q_max <= 2048 ? &FN(i16_core) : &FN(i16_wide_core);
}
