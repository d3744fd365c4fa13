/* The second translation unit of the torture modules: it never calls
 * refbuf_import(), and is served by the other unit's call. */
#include <Python.h>
#include <refbuf.h>

#include "torture.h"

void torture_unit_incref(PyObject *op)
{
    RefBuf_INCREF(op);
}

void torture_unit_decref(PyObject *op)
{
    RefBuf_DECREF(op);
}

void *torture_unit_import_state(void)
{
    return &refbuf_imported;
}
