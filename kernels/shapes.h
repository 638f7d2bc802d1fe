/* Checks of array shapes at the door of an op, in C so that a call on one row stays cheap. They return 0, or -1 with a
 * ValueError set: "op: argument has shape ..., wanted ...". */
#ifndef LORAFAST_SHAPES_H
#define LORAFAST_SHAPES_H

#include <Python.h>

static inline int require_1d(const char *op, const char *argument, const Py_ssize_t *shape, Py_ssize_t n) {
    if (shape[0] == n) return 0;
    PyErr_Format(PyExc_ValueError, "%s: %s has shape (%zd,), wanted (%zd,)", op, argument, shape[0], n);
    return -1;
}

static inline int require_2d(const char *op, const char *argument, const Py_ssize_t *shape, Py_ssize_t rows,
                             Py_ssize_t columns) {
    if (shape[0] == rows && shape[1] == columns) return 0;
    PyErr_Format(PyExc_ValueError, "%s: %s has shape (%zd, %zd), wanted (%zd, %zd)", op, argument, shape[0], shape[1],
                 rows, columns);
    return -1;
}

/* Every index in lowest .. end - 1. */
static inline int require_range(const char *op, const char *argument, const int *index, Py_ssize_t n, int lowest,
                                Py_ssize_t end) {
    for (Py_ssize_t i = 0; i < n; i++)
        if (index[i] < lowest || index[i] >= end) {
            PyErr_Format(PyExc_ValueError, "%s: %s[%zd] is %d, wanted %d to %zd", op, argument, i, index[i], lowest,
                         end - 1);
            return -1;
        }
    return 0;
}

#endif
