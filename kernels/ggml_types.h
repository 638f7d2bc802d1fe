/* The ggml types that lorafast computes with. Made from lorafast/gguf/types.py by make_tables.py; change it there. */
#ifndef LORAFAST_GGML_TYPES_H
#define LORAFAST_GGML_TYPES_H

/* Their numbers in GGUF. */
enum {
    GGML_F32 = 0,
    GGML_F16 = 1,
    GGML_Q4_0 = 2,
    GGML_Q4_1 = 3,
    GGML_Q5_0 = 6,
    GGML_Q5_1 = 7,
    GGML_Q8_0 = 8,
    GGML_Q2_K = 10,
    GGML_Q3_K = 11,
    GGML_Q4_K = 12,
    GGML_Q5_K = 13,
    GGML_Q6_K = 14,
    GGML_IQ2_XXS = 16,
    GGML_IQ2_XS = 17,
    GGML_IQ3_XXS = 18,
    GGML_IQ1_S = 19,
    GGML_IQ4_NL = 20,
    GGML_IQ3_S = 21,
    GGML_IQ2_S = 22,
    GGML_IQ4_XS = 23,
    GGML_IQ1_M = 29,
    GGML_BF16 = 30,
    GGML_TQ1_0 = 34,
    GGML_TQ2_0 = 35,
    GGML_MXFP4 = 39,
    GGML_NVFP4 = 40,
    GGML_N_TYPES = 41
};

/* What the columns mean is said in lorafast/gguf/types.py; block_size is 0 for a type that is not computed with. */
typedef struct { int block_size, type_size, q_max, scale_every, min_every, fits_int8, is_4_bit; } ggml_format;

static const ggml_format ggml_formats[GGML_N_TYPES] = {
    /*               block bytes q_max scale   min  int8 4 bit */
    [GGML_F32]     = {    1,    4,    0,   32,    0,    0,    0 },
    [GGML_F16]     = {    1,    2,    0,   32,    0,    0,    0 },
    [GGML_Q4_0]    = {   32,   18,    8,   32,    0,    1,    1 },
    [GGML_Q4_1]    = {   32,   20,   15,   32,   32,    1,    1 },
    [GGML_Q5_0]    = {   32,   22,   16,   32,    0,    1,    0 },
    [GGML_Q5_1]    = {   32,   24,   31,   32,   32,    1,    0 },
    [GGML_Q8_0]    = {   32,   34,  128,   32,    0,    1,    0 },
    [GGML_Q2_K]    = {  256,   84,   45,  256,   16,    1,    0 },
    [GGML_Q3_K]    = {  256,  110,  128,  256,    0,    0,    0 },
    [GGML_Q4_K]    = {  256,  144,   15,   32,   32,    1,    1 },
    [GGML_Q5_K]    = {  256,  176,   31,   32,   32,    1,    0 },
    [GGML_Q6_K]    = {  256,  210, 4096,  256,    0,    0,    0 },
    [GGML_IQ2_XXS] = {  256,   66,   43,   32,    0,    1,    0 },
    [GGML_IQ2_XS]  = {  256,   74, 1333,  256,    0,    0,    0 },
    [GGML_IQ3_XXS] = {  256,   98,   62,   32,    0,    1,    0 },
    [GGML_IQ1_S]   = {  256,   50,    9,   32,    0,    1,    0 },
    [GGML_IQ4_NL]  = {   32,   18,  127,   32,    0,    1,    1 },
    [GGML_IQ3_S]   = {  256,  110,   15,   32,    0,    1,    0 },
    [GGML_IQ2_S]   = {  256,   82, 1333,  256,    0,    0,    0 },
    [GGML_IQ4_XS]  = {  256,  136,  127,   32,    0,    1,    1 },
    [GGML_IQ1_M]   = {  256,   56,  135,  256,    0,    0,    0 },
    [GGML_BF16]    = {    1,    2,    0,   32,    0,    0,    0 },
    [GGML_TQ1_0]   = {  256,   54,    1,  256,    0,    1,    0 },
    [GGML_TQ2_0]   = {  256,   66,    2,  256,    0,    1,    0 },
    [GGML_MXFP4]   = {   32,   17,   12,   32,    0,    1,    0 },
    [GGML_NVFP4]   = {   64,   36,    0,   32,    0,    0,    0 },
};

/* X(name, name of its struct and unpacker, bytes of a block) for each type that is stored in blocks. */
#define GGML_BLOCK_TYPES(X) \
    X(Q4_0, q4_0, 18) \
    X(Q4_1, q4_1, 20) \
    X(Q5_0, q5_0, 22) \
    X(Q5_1, q5_1, 24) \
    X(Q8_0, q8_0, 34) \
    X(Q2_K, q2_K, 84) \
    X(Q3_K, q3_K, 110) \
    X(Q4_K, q4_K, 144) \
    X(Q5_K, q5_K, 176) \
    X(Q6_K, q6_K, 210) \
    X(IQ2_XXS, iq2_xxs, 66) \
    X(IQ2_XS, iq2_xs, 74) \
    X(IQ3_XXS, iq3_xxs, 98) \
    X(IQ1_S, iq1_s, 50) \
    X(IQ4_NL, iq4_nl, 18) \
    X(IQ3_S, iq3_s, 110) \
    X(IQ2_S, iq2_s, 82) \
    X(IQ4_XS, iq4_xs, 136) \
    X(IQ1_M, iq1_m, 56) \
    X(TQ1_0, tq1_0, 54) \
    X(TQ2_0, tq2_0, 66) \
    X(MXFP4, mxfp4, 17) \
    X(NVFP4, nvfp4, 36)

/* The same for each type that is unpacked to integers and scales. */
#define GGML_INTEGER_TYPES(X) \
    X(Q4_0, q4_0, 18) \
    X(Q4_1, q4_1, 20) \
    X(Q5_0, q5_0, 22) \
    X(Q5_1, q5_1, 24) \
    X(Q8_0, q8_0, 34) \
    X(Q2_K, q2_K, 84) \
    X(Q3_K, q3_K, 110) \
    X(Q4_K, q4_K, 144) \
    X(Q5_K, q5_K, 176) \
    X(Q6_K, q6_K, 210) \
    X(IQ2_XXS, iq2_xxs, 66) \
    X(IQ2_XS, iq2_xs, 74) \
    X(IQ3_XXS, iq3_xxs, 98) \
    X(IQ1_S, iq1_s, 50) \
    X(IQ4_NL, iq4_nl, 18) \
    X(IQ3_S, iq3_s, 110) \
    X(IQ2_S, iq2_s, 82) \
    X(IQ4_XS, iq4_xs, 136) \
    X(IQ1_M, iq1_m, 56) \
    X(TQ1_0, tq1_0, 54) \
    X(TQ2_0, tq2_0, 66) \
    X(MXFP4, mxfp4, 17)

#endif
