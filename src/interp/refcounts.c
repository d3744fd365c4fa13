/* Many references at once, on builds with a GIL, where a held GIL is all that a
 * count needs. Of immortal objects (3.12 and later) nothing is counted. */
#include <Python.h>

#ifndef Py_GIL_DISABLED

#  if PY_VERSION_HEX >= 0x030C0000
#    define IS_IMMORTAL(op) _Py_IsImmortal(op)
#  else
#    define IS_IMMORTAL(op) 0
#  endif

int refbuf_is_immortal(PyObject *op);
void refbuf_count_many(PyObject *op, Py_ssize_t n);
Py_ssize_t refbuf_take_many(PyObject *op, Py_ssize_t n);

int refbuf_is_immortal(PyObject *op)
{
    (void)op;
    return IS_IMMORTAL(op);
}

void refbuf_count_many(PyObject *op, Py_ssize_t n)
{
    if (!IS_IMMORTAL(op)) {
        Py_SET_REFCNT(op, Py_REFCNT(op) + n);
    }
}

/* Leaves one: the last is for Py_DECREF. Returns how many are left to it. */
Py_ssize_t refbuf_take_many(PyObject *op, Py_ssize_t n)
{
    if (IS_IMMORTAL(op)) {
        return 0;
    }
    Py_ssize_t count = Py_REFCNT(op);
    Py_ssize_t taken = n < count ? n : count - 1;
    Py_SET_REFCNT(op, count - taken);
    return n - taken;
}

#else
typedef int refbuf_nothing_here;
#endif
