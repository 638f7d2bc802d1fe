"""Token embedding: rows of the stored matrix, unpacked to float32. The matrix is frozen, so there is no backward."""
from cython.parallel cimport prange

from parallel cimport threads_for
from shapes cimport require_2d, require_range

ctypedef void (*unpack_to_f32_type)(int type, const void *row, int k0, int n, float *out) noexcept nogil

cdef extern from *:
    """
    #include "simd.h"
    #define SIMD_BODY "unpack_body.h"
    #include "simd_foreach.h"
    """
    ctypedef struct ggml_format:
        int block_size
        int type_size
    const ggml_format ggml_formats[]
    int ggml_is_known(int type) nogil
    unpack_to_f32_type unpack_to_f32 "DISPATCH(unpack_to_f32)"


cdef int require_known(const char *op, int type) except -1:
    if not ggml_is_known(type):
        raise ValueError(f"{op.decode()}: type {type} is not a trainable ggml type")
    return 0


cdef Py_ssize_t row_bytes(const char *op, int type, Py_ssize_t n) except -1:
    """Bytes of a stored row of n values."""
    require_known(op, type)
    if n % ggml_formats[type].block_size:
        raise ValueError(f"{op.decode()}: rows of {n} values, wanted a multiple of the block size "
                         f"{ggml_formats[type].block_size} of type {type}")
    return n // ggml_formats[type].block_size * ggml_formats[type].type_size


def embedding_forward(float[:, ::1] y not None, const int[::1] tokens not None,
                      const unsigned char[:, ::1] weight not None, int type, int n_threads):
    """y[t] = W[tokens[t]].

    y       float32 (T, C), OUT
    tokens  int32 (T,), each in 0 .. V - 1
    weight  uint8 (V, bytes per row), W as stored in the file
    type    number of W's ggml type, a trainable one
    Raises ValueError for a shape, type or token that does not fit. Twin: lorafast.reference.embedding.
    """
    cdef Py_ssize_t T = tokens.shape[0], C = y.shape[1], t
    require_2d("embedding_forward", "y", y.shape, T, C)
    require_2d("embedding_forward", "weight", weight.shape, weight.shape[0], row_bytes("embedding_forward", type, C))
    if T == 0 or C == 0:
        return
    require_range("embedding_forward", "tokens", &tokens[0], T, 0, weight.shape[0])
    cdef unpack_to_f32_type unpack = unpack_to_f32
    for t in prange(T, nogil=True, num_threads=threads_for(T * C, n_threads), schedule="static"):
        unpack(type, &weight[tokens[t], 0], 0, C, &y[t, 0])


def dequantize_rows(float[:, ::1] out not None, const unsigned char[:, ::1] data not None, int type, int n_threads,
                    Py_ssize_t k0=0):
    """out[i] = the values k0 .. k0 + n - 1 of row i of data, unpacked.

    out     float32 (rows, n), OUT
    data    uint8 (rows, bytes per row), as stored in the file
    type    number of a trainable ggml type
    Raises ValueError for a shape or type that does not fit. Twin: lorafast.reference.embedding.
    """
    cdef Py_ssize_t rows = data.shape[0], n = out.shape[1], i
    require_known("dequantize_rows", type)
    require_2d("dequantize_rows", "out", out.shape, rows, n)
    cdef Py_ssize_t K = data.shape[1] // ggml_formats[type].type_size * ggml_formats[type].block_size
    if data.shape[1] % ggml_formats[type].type_size or k0 < 0 or k0 + n > K:
        raise ValueError(f"dequantize_rows: data has rows of {data.shape[1]} bytes ({K} values), "
                         f"wanted {ggml_formats[type].type_size} bytes a block and values {k0} to {k0 + n - 1}")
    if rows == 0 or n == 0:
        return
    cdef unpack_to_f32_type unpack = unpack_to_f32
    for i in prange(rows, nogil=True, num_threads=threads_for(rows * n, n_threads), schedule="static"):
        unpack(type, &data[i, 0], k0, n, &out[i, 0])
