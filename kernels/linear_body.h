/* Everything of linear.pyx that is compiled once for each instruction set. */
#include "unpack_body.h"
#include "gemm_common_body.h"
#include "gemm_f32_body.h"
