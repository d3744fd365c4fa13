/* A library that is no module: what it counts, Python calls it for by ctypes. Compiled
 * with the shim, it is found by refbuf in no module's initialization. */
#include <Python.h>

void library_take(PyObject *op, int times);
void library_drop(PyObject *op, int times);
int library_count(PyObject *op, int times);
int library_count_behind_others(PyObject *op, int times);

void library_take(PyObject *op, int times)
{
    int done;
    for (done = 0; done < times; done++) {
        Py_INCREF(op);
    }
}

void library_drop(PyObject *op, int times)
{
    int done;
    for (done = 0; done < times; done++) {
        Py_DECREF(op);
    }
}

/* Takes and drops `times` references. */
int library_count(PyObject *op, int times)
{
    library_take(op, times);
    library_drop(op, times);
    return times;
}

static int nothing(void *unused)
{
    (void)unused;
    return 0;
}

/* The same, with no room for one more pending call; returns how many wait. */
int library_count_behind_others(PyObject *op, int times)
{
    int waiting = 0;
    while (waiting < 1000000 && Py_AddPendingCall(nothing, NULL) == 0) {
        waiting++;
    }
    library_count(op, times);
    return waiting;
}
