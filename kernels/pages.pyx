"""Pages of a mapped file: into memory, out of it, and a clear end where the file was cut short behind the mapping.

Not an op: `lorafast/network/model_files.py` drives it. All of it runs without the GIL, so that reading goes on beside
computing.
"""
import os

from libc.stdint cimport uint8_t

cdef extern from "pages.h" nogil:
    int pages_populate(const uint8_t *p, size_t bytes)
    int pages_let_go(const uint8_t *p, size_t bytes)
    int pages_on_bus_error(const char *message)


def populate(const uint8_t[::1] data not None):
    """Brings the pages that hold `data`, a part of a mapped file, into memory and into the page table.

    Raises OSError when they cannot be read; EFAULT means that the file has become shorter than its mapping.
    """
    cdef int error = 0
    cdef size_t n = data.shape[0]
    if n:
        with nogil:
            error = pages_populate(&data[0], n)
    if error:
        raise OSError(error, os.strerror(error))


def let_go(const uint8_t[::1] data not None):
    """Takes the pages that lie within `data` out of the page table. The data stays valid: reading maps them again."""
    cdef int error = 0
    cdef size_t n = data.shape[0]
    if n:
        with nogil:
            error = pages_let_go(&data[0], n)
    if error:
        raise OSError(error, os.strerror(error))


def on_bus_error(bytes message not None):
    """Makes a mapped page that cannot be read end the process with `message` (at most 511 bytes) and status 1."""
    cdef int error = pages_on_bus_error(message)
    if error:
        raise OSError(error, os.strerror(error))
