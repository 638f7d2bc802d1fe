cdef extern from "shapes.h":
    int require_1d(const char *op, const char *argument, const Py_ssize_t *shape, Py_ssize_t n) except -1
    int require_2d(const char *op, const char *argument, const Py_ssize_t *shape, Py_ssize_t rows,
                   Py_ssize_t columns) except -1
    int require_range(const char *op, const char *argument, const int *index, Py_ssize_t n, int lowest,
                      Py_ssize_t end) except -1
