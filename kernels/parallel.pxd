cdef extern from "parallel.h" nogil:
    int threads_for(Py_ssize_t work, int n_threads)
    int threads_for_rows(Py_ssize_t rows, Py_ssize_t work_per_row, int n_threads)
