/* codebook: a table of objects, and byte strings that say which of them are meant.
 *
 *     book = codebook.Codebook(values)
 *     book.decode(b"\0\2\2")      [values[0], values[2], values[2]]
 *     book.find(b"\0\2\2", value) the first place of a value, or -1
 *
 * All threads that decode with one table count references to the same few objects. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

typedef struct {
    PyObject_HEAD
    PyObject *values; /* a tuple, which never changes: no lock is needed */
} Codebook;

static PyObject *codebook_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"values", NULL};
    PyObject *given;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O", names, &given)) {
        return NULL;
    }
    PyObject *values = PySequence_Tuple(given);
    if (values == NULL) {
        return NULL;
    }
    Codebook *self = (Codebook *)type->tp_alloc(type, 0);
    if (self == NULL) {
        Py_DECREF(values);
        return NULL;
    }
    self->values = values;
    return (PyObject *)self;
}

static int codebook_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(((Codebook *)op)->values);
    return 0;
}

static int codebook_clear(PyObject *op)
{
    Py_CLEAR(((Codebook *)op)->values);
    return 0;
}

static void codebook_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    codebook_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
}

/* A new reference to the value of a code. */
static PyObject *value_of(Codebook *self, unsigned char code)
{
    if (code >= PyTuple_GET_SIZE(self->values)) {
        PyErr_Format(PyExc_IndexError, "code %d is not in the table", code);
        return NULL;
    }
    PyObject *value = PyTuple_GET_ITEM(self->values, code);
    Py_INCREF(value);
    return value;
}

static PyObject *codebook_decode(PyObject *self, PyObject *args)
{
    const char *codes;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(args, "y#:decode", &codes, &length)) {
        return NULL;
    }
    PyObject *list = PyList_New(length);
    if (list == NULL) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < length; i++) {
        PyObject *value = value_of((Codebook *)self, (unsigned char)codes[i]);
        if (value == NULL) {
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, i, value);
    }
    return list;
}

static PyObject *codebook_find(PyObject *self, PyObject *args)
{
    const char *codes;
    Py_ssize_t length;
    PyObject *wanted;
    if (!PyArg_ParseTuple(args, "y#O:find", &codes, &length, &wanted)) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < length; i++) {
        PyObject *value = value_of((Codebook *)self, (unsigned char)codes[i]);
        if (value == NULL) {
            return NULL;
        }
        int equal = PyObject_RichCompareBool(value, wanted, Py_EQ); /* may run anything */
        Py_DECREF(value);
        if (equal != 0) {
            return equal < 0 ? NULL : PyLong_FromSsize_t(i);
        }
    }
    return PyLong_FromLong(-1);
}

static PyMethodDef codebook_methods[] = {
    {"decode", codebook_decode, METH_VARARGS, "The values of the codes, as a list."},
    {"find", codebook_find, METH_VARARGS, "The first place of a value among the codes', or -1."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot codebook_slots[] = {
    {Py_tp_doc, "A table of values, for codes from 0 to 255."},
    {Py_tp_new, (void *)codebook_new},
    {Py_tp_dealloc, (void *)codebook_dealloc},
    {Py_tp_traverse, (void *)codebook_traverse},
    {Py_tp_clear, (void *)codebook_clear},
    {Py_tp_methods, codebook_methods},
    {0, NULL},
};

static PyType_Spec codebook_spec = {
    .name = "codebook.Codebook",
    .basicsize = sizeof(Codebook),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = codebook_slots,
};

static int module_exec(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &codebook_spec, NULL);
    if (type == NULL) {
        return -1;
    }
    int failed = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return failed;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)module_exec},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "codebook",
    .m_doc = "Byte strings that stand for lists of shared values.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit_codebook(void)
{
    return PyModuleDef_Init(&module_def);
}
