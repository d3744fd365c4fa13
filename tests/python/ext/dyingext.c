/* Objects whose deallocation runs a function with their address, in the ways that
 * extensions have.
 *
 * freed(function)       frees the object whatever the function leaves, as Cython's
 *                       __dealloc__ does; not collected
 * collected(function)   the same, for an object that the collector knows: it is told first
 * finalized(function)   has tp_finalize, and is not collected; freed unless references are left
 * old(function)         has tp_del, the finalizer of before PEP 442
 *
 * left() returns how many references the last object had when it was freed; -1 where there was
 * none since forget(). Where it had any, it is not freed, so that who holds them does no harm.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

typedef struct {
    PyObject_HEAD
    PyObject *function;
} Dying;

static Py_ssize_t left_over = -1;

static void call(PyObject *self)
{
    PyObject *result = PyObject_CallFunction(((Dying *)self)->function, "n", (Py_ssize_t)self);
    if (result == NULL) {
        PyErr_WriteUnraisable(NULL);
    }
    Py_XDECREF(result);
}

static void finish(PyObject *self)
{
    Py_SET_REFCNT(self, Py_REFCNT(self) + 1);
    call(self);
    Py_SET_REFCNT(self, Py_REFCNT(self) - 1);
    left_over = Py_REFCNT(self);
    if (left_over == 0) {
        Py_CLEAR(((Dying *)self)->function);
        Py_TYPE(self)->tp_free(self);
    }
}

static void finish_collected(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    finish(self);
}

static int traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((Dying *)self)->function);
    return 0;
}

static void finish_finalized(PyObject *self)
{
    if (PyObject_CallFinalizerFromDealloc(self) == 0) {
        Py_CLEAR(((Dying *)self)->function);
        Py_TYPE(self)->tp_free(self);
    }
}

static void free_only(PyObject *self)
{
    Py_CLEAR(((Dying *)self)->function);
    Py_TYPE(self)->tp_free(self);
}

static PyTypeObject Freed = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "dyingext.Freed",
    .tp_basicsize = sizeof(Dying),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = finish,
};

static PyTypeObject Collected = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "dyingext.Collected",
    .tp_basicsize = sizeof(Dying),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_dealloc = finish_collected,
    .tp_traverse = traverse,
};

static PyTypeObject Finalized = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "dyingext.Finalized",
    .tp_basicsize = sizeof(Dying),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = finish_finalized,
    .tp_finalize = call,
};

static PyTypeObject Old = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "dyingext.Old",
    .tp_basicsize = sizeof(Dying),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = free_only,
    .tp_del = call,
};

static PyObject *fill(PyObject *self, PyObject *function)
{
    if (self != NULL) {
        ((Dying *)self)->function = Py_NewRef(function);
    }
    return self;
}

static PyObject *freed(PyObject *Py_UNUSED(module), PyObject *function)
{
    return fill((PyObject *)PyObject_New(Dying, &Freed), function);
}

static PyObject *collected(PyObject *Py_UNUSED(module), PyObject *function)
{
    PyObject *self = fill((PyObject *)PyObject_GC_New(Dying, &Collected), function);
    if (self != NULL) {
        PyObject_GC_Track(self);
    }
    return self;
}

static PyObject *finalized(PyObject *Py_UNUSED(module), PyObject *function)
{
    return fill((PyObject *)PyObject_New(Dying, &Finalized), function);
}

static PyObject *old(PyObject *Py_UNUSED(module), PyObject *function)
{
    return fill((PyObject *)PyObject_New(Dying, &Old), function);
}

static PyObject *left(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromSsize_t(left_over);
}

static PyObject *forget(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    left_over = -1;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"freed", freed, METH_O, NULL},
    {"collected", collected, METH_O, NULL},
    {"finalized", finalized, METH_O, NULL},
    {"old", old, METH_O, NULL},
    {"left", left, METH_NOARGS, NULL},
    {"forget", forget, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int start(PyObject *Py_UNUSED(module))
{
    PyTypeObject *types[] = {&Freed, &Collected, &Finalized, &Old};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (PyType_Ready(types[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)start},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "dyingext",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit_dyingext(void);
PyMODINIT_FUNC PyInit_dyingext(void)
{
    return PyModuleDef_Init(&definition);
}
