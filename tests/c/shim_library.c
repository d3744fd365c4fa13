/* A library that is no module: what it counts, Python calls it for by ctypes. Compiled
 * with the shim, it is found by refbuf in no module's initialization. */
#include <Python.h>

int library_count(PyObject *op, int times);

/* Takes and drops `times` references. */
int library_count(PyObject *op, int times)
{
    int done;
    for (done = 0; done < times; done++) {
        Py_INCREF(op);
    }
    for (done = 0; done < times; done++) {
        Py_DECREF(op);
    }
    return times;
}
