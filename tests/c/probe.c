/* The smallest extension there is: it imports refbuf, or fails to. */
#include <Python.h>
#include <refbuf.h>

static int probe_exec(PyObject *Py_UNUSED(module))
{
    return refbuf_import();
}

static PyModuleDef_Slot probe_slots[] = {
    {Py_mod_exec, (void *)probe_exec},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef probe_definition = {
    PyModuleDef_HEAD_INIT, "probe", NULL, 0, NULL, probe_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_probe(void)
{
    return PyModuleDef_Init(&probe_definition);
}
