cdef extern from "parallel.h" nogil:
    int threads_for(Py_ssize_t work, int n_threads)
