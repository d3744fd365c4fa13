/* The header's macros and functions, one by one, for tests in Python.
 *
 * Objects are named by their address, as id() gives it, so that the
 * interpreter's own references to arguments do not blur what is counted. The
 * caller sees to it that the address is that of a live object, and that it
 * drops no reference that it has not taken.
 *
 * Compiled several times under different names: COUNTEXT_NAME. With
 * COUNTEXT_TOLERANT the module goes on where refbuf cannot be imported, as an
 * extension may for which refbuf is optional.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <refbuf.h>

#define STRINGIFY(text) #text
#define QUOTED(name) STRINGIFY(name)
#define INIT(name) PASTE(PyInit_, name)
#define PASTE(a, b) a##b

/* References that churn() may hold at once. */
#define HELD 512

static int parse(PyObject *args, PyObject **op, Py_ssize_t *times)
{
    Py_ssize_t address;
    *times = 1;
    if (!PyArg_ParseTuple(args, "n|n", &address, times)) {
        return -1;
    }
    *op = (PyObject *)address;
    return 0;
}

/* A function (address, times=1) that does `statement` so many times on `op`. */
#define REPEATED(name, statement)                                   \
    static PyObject *name(PyObject *Py_UNUSED(module), PyObject *args) \
    {                                                               \
        PyObject *op;                                               \
        Py_ssize_t times;                                           \
        if (parse(args, &op, &times) < 0) {                         \
            return NULL;                                            \
        }                                                           \
        for (Py_ssize_t i = 0; i < times; i++) {                    \
            statement;                                              \
        }                                                           \
        Py_RETURN_NONE;                                             \
    }

REPEATED(incref, RefBuf_INCREF(op))
REPEATED(decref, RefBuf_DECREF(op))
REPEATED(xincref, RefBuf_XINCREF(op))
REPEATED(xdecref, RefBuf_XDECREF(op))
REPEATED(incref_call, RefBuf_IncRef(op))
REPEATED(decref_call, RefBuf_DecRef(op))
REPEATED(xincref_call, RefBuf_XIncRef(op))
REPEATED(xdecref_call, RefBuf_XDecRef(op))
REPEATED(touch, RefBuf_INCREF(op); RefBuf_DECREF(op))
REPEATED(stock_incref, Py_INCREF(op))
REPEATED(stock_decref, Py_DECREF(op))

/* A function (address) -> int or object. */
#define OF_ONE(name, expression)                                    \
    static PyObject *name(PyObject *Py_UNUSED(module), PyObject *args) \
    {                                                               \
        PyObject *op;                                               \
        Py_ssize_t times;                                           \
        if (parse(args, &op, &times) < 0) {                         \
            return NULL;                                            \
        }                                                           \
        return expression;                                          \
    }

OF_ONE(count, PyLong_FromSsize_t(RefBuf_RefCount(op)))
OF_ONE(stock_count, PyLong_FromSsize_t(Py_REFCNT(op)))
OF_ONE(new_ref, RefBuf_NewRef(op))
OF_ONE(xnew_ref, RefBuf_XNewRef(op))

/* pair(address, slots): which pair of slots of a table of that size the object maps
 * to, by the header's own hash; 0 where there are no tables. */
static PyObject *pair(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_ssize_t address, slots;
    if (!PyArg_ParseTuple(args, "nn", &address, &slots)) {
        return NULL;
    }
#if REFBUF_INLINE
    static RefBuf_Slot table[1024];
    RefBuf_Buffer buffer;
    memset(&buffer, 0, sizeof buffer);
    buffer.byte_mask = (uintptr_t)(slots - 2) * sizeof(RefBuf_Slot);
    buffer.slots = table;
    return PyLong_FromSsize_t((refbuf_slot(&buffer, (uintptr_t)address) - table) / 2);
#else
    return PyLong_FromLong(0);
#endif
}

/* Increments that another object's credits may have to make room for. Returns
 * by how much `log`, a list, has grown meanwhile: an increment runs no code. */
static PyObject *incref_watching(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_ssize_t address, times;
    PyObject *log;
    if (!PyArg_ParseTuple(args, "nnO!", &address, &times, &PyList_Type, &log)) {
        return NULL;
    }
    Py_ssize_t before = PyList_GET_SIZE(log);
    for (Py_ssize_t i = 0; i < times; i++) {
        RefBuf_INCREF((PyObject *)address);
    }
    return PyLong_FromSsize_t(PyList_GET_SIZE(log) - before);
}

/* xorshift64*. */
static size_t below(uint64_t *state, size_t bound)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (size_t)((((*state * 0x2545F4914F6CDD1Du) >> 32) * bound) >> 32);
}

/* churn(addresses, operations, seed): takes and drops references to the objects
 * at random, inline and by call, and drops all it holds in the end. */
static PyObject *churn(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *addresses, *held[HELD];
    Py_ssize_t operations;
    unsigned long long seed;
    if (!PyArg_ParseTuple(args, "O!nK", &PyTuple_Type, &addresses, &operations, &seed)) {
        return NULL;
    }
    uint64_t state = (uint64_t)seed * 2 + 1;
    size_t holding = 0, objects = (size_t)PyTuple_GET_SIZE(addresses);
    for (Py_ssize_t i = 0; i < operations && objects > 0; i++) {
        int by_call = below(&state, 4) == 0;
        if (holding == 0 || (holding < HELD && below(&state, 2) == 0)) {
            PyObject *address = PyTuple_GET_ITEM(addresses, (Py_ssize_t)below(&state, objects));
            PyObject *op = (PyObject *)PyLong_AsVoidPtr(address);
            if (by_call) {
                RefBuf_IncRef(op);
            }
            else {
                RefBuf_INCREF(op);
            }
            held[holding++] = op;
        }
        else {
            size_t at = below(&state, holding);
            PyObject *op = held[at];
            held[at] = held[--holding];
            if (by_call) {
                RefBuf_DecRef(op);
            }
            else {
                RefBuf_DECREF(op);
            }
        }
    }
    while (holding > 0) {
        RefBuf_DECREF(held[--holding]);
    }
    Py_RETURN_NONE;
}

/* What is documented as harmless for NULL. */
static PyObject *count_null(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    PyObject *nothing = NULL;
    RefBuf_XINCREF(nothing);
    RefBuf_XDECREF(nothing);
    RefBuf_XIncRef(nothing);
    RefBuf_XDecRef(nothing);
    RefBuf_CLEAR(nothing);
    RefBuf_XSETREF(nothing, NULL);
    return PyBool_FromLong(RefBuf_XNewRef(nothing) == NULL && nothing == NULL);
}

/* replace(first, second): CLEAR, SETREF and XSETREF on variables that hold
 * references to the two. Returns how often the arguments were evaluated, and
 * what the last variable holds: (clears, sets, xsets, second). */
static PyObject *replace(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *first, *second, *cells[3];
    if (!PyArg_ParseTuple(args, "OO", &first, &second)) {
        return NULL;
    }
    for (int i = 0; i < 3; i++) {
        cells[i] = RefBuf_NewRef(first);
    }
    int clears = 0, sets = 1, xsets = 2;
    RefBuf_CLEAR(cells[clears++]);
    RefBuf_SETREF(cells[sets++], RefBuf_NewRef(second));
    RefBuf_XSETREF(cells[xsets++], RefBuf_NewRef(second));
    RefBuf_XSETREF(cells[0], NULL);
    RefBuf_CLEAR(cells[1]);
    return Py_BuildValue("iiiN", clears, sets - 1, xsets - 2, cells[2]);
}

static PyObject *flush(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    RefBuf_Flush();
    Py_RETURN_NONE;
}

static PyObject *flush_all(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    RefBuf_FlushAll();
    Py_RETURN_NONE;
}

static PyObject *stats(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    RefBuf_Stats sums;
    RefBuf_GetStats(&sums);
    return Py_BuildValue("{sKsKsKsK}", "hits", (unsigned long long)sums.hits,
                         "credits", (unsigned long long)sums.credits,
                         "slots", (unsigned long long)sums.slots,
                         "buffer_bytes", (unsigned long long)sums.buffer_bytes);
}

/* Whether the inline path may use this thread's buffer. */
static PyObject *is_inline(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    int open = 0;
#if REFBUF_INLINE
    intptr_t distance = REFBUF_DISTANCE(refbuf_imported.tls_offset);
    if (distance != 0) {
        RefBuf_Buffer *buffer = refbuf_buffer(refbuf_thread_pointer(), distance);
        open = __atomic_load_n(&buffer->attention, __ATOMIC_RELAXED) == 0;
    }
#endif
    return PyBool_FromLong(open);
}

static PyMethodDef methods[] = {
    {"incref", incref, METH_VARARGS, NULL},
    {"decref", decref, METH_VARARGS, NULL},
    {"xincref", xincref, METH_VARARGS, NULL},
    {"xdecref", xdecref, METH_VARARGS, NULL},
    {"incref_call", incref_call, METH_VARARGS, NULL},
    {"decref_call", decref_call, METH_VARARGS, NULL},
    {"xincref_call", xincref_call, METH_VARARGS, NULL},
    {"xdecref_call", xdecref_call, METH_VARARGS, NULL},
    {"touch", touch, METH_VARARGS, NULL},
    {"stock_incref", stock_incref, METH_VARARGS, NULL},
    {"stock_decref", stock_decref, METH_VARARGS, NULL},
    {"is_inline", is_inline, METH_NOARGS, NULL},
    {"count", count, METH_VARARGS, NULL},
    {"stock_count", stock_count, METH_VARARGS, NULL},
    {"new_ref", new_ref, METH_VARARGS, NULL},
    {"xnew_ref", xnew_ref, METH_VARARGS, NULL},
    {"pair", pair, METH_VARARGS, NULL},
    {"incref_watching", incref_watching, METH_VARARGS, NULL},
    {"churn", churn, METH_VARARGS, NULL},
    {"count_null", count_null, METH_NOARGS, NULL},
    {"replace", replace, METH_VARARGS, NULL},
    {"flush", flush, METH_NOARGS, NULL},
    {"flush_all", flush_all, METH_NOARGS, NULL},
    {"stats", stats, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int start(PyObject *module)
{
    if (refbuf_import() < 0) {
#ifdef COUNTEXT_TOLERANT
        PyErr_Clear();
        return PyModule_AddIntConstant(module, "refused", 1);
#else
        return -1;
#endif
    }
    return PyModule_AddIntConstant(module, "refused", 0);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)start},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = QUOTED(COUNTEXT_NAME),
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC INIT(COUNTEXT_NAME)(void);
PyMODINIT_FUNC INIT(COUNTEXT_NAME)(void)
{
    return PyModuleDef_Init(&definition);
}
