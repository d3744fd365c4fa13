/* Many references at once, on builds with a GIL, where a held GIL is all that a
 * count needs. Of immortal objects (3.12 and later) nothing is counted. */
#include <Python.h>

#ifndef Py_GIL_DISABLED

#  if PY_VERSION_HEX >= 0x030C0000
#    define IS_IMMORTAL(op) _Py_IsImmortal(op)
#  else
#    define IS_IMMORTAL(op) 0
#  endif

void refbuf_count_many(PyObject *op, Py_ssize_t n);
void refbuf_release_many(PyObject *op, Py_ssize_t n);

void refbuf_count_many(PyObject *op, Py_ssize_t n)
{
    if (!IS_IMMORTAL(op)) {
        Py_SET_REFCNT(op, Py_REFCNT(op) + n);
    }
}

void refbuf_release_many(PyObject *op, Py_ssize_t n)
{
    if (n > 0 && !IS_IMMORTAL(op)) {
        Py_SET_REFCNT(op, Py_REFCNT(op) - (n - 1));
        Py_DECREF(op);
    }
}

#else
typedef int refbuf_nothing_here;
#endif
