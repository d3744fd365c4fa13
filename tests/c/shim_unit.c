/* The second translation unit of the shim's torture modules: it has no module
 * initialization, and is served by the other's. */
#include <Python.h>

#include "shim_torture.h"

static void (*volatile const in_a_table[])(PyObject *) = {Py_INCREF, Py_DecRef};

int shim_unit_both(PyObject *op)
{
    PyObject *variable = (Py_INCREF(op), op);
    Py_XINCREF(op);
    Py_IncRef(op);
    in_a_table[0](op);
    if (Py_NewRef(op) != op || Py_XNewRef(op) != op) {
        return __LINE__;
    }
    Py_CLEAR(variable);
    Py_DECREF(op);
    Py_XDECREF(op);
    Py_DecRef(op);
    in_a_table[1](op);
    (Py_DECREF)(op);
    variable = Py_NewRef(op);
    Py_CLEAR(variable);
    return variable == NULL ? 0 : __LINE__;
}

int shim_unit_call(void (*count)(PyObject *), PyObject *op)
{
    count(op);
    return 0;
}
