/* An extension that uses every function and macro of refbuf.h, as C and, through
 * torture.cpp, as C++. It lets Python drive them one at a time, and checks in
 * place what only C can see: how often an argument is evaluated, and what a
 * variable holds afterwards.
 *
 * It does not call refbuf_import() when it is loaded but in connect(), so that
 * its macros can be watched before it as well.
 */
#include <Python.h>
#include <refbuf.h>

#include "torture.h"

#ifndef TORTURE_MODULE
#  define TORTURE_MODULE torture_c
#endif
#define TORTURE_JOIN(a, b) a##b
#define TORTURE_INIT(name) TORTURE_JOIN(PyInit_, name)
#define TORTURE_STRING(name) #name
#define TORTURE_NAME(name) TORTURE_STRING(name)

/* Ends the calling function with an AssertionError, where `condition` is false. */
#define CHECK(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            PyErr_Format(PyExc_AssertionError, "%s:%d: %s", __FILE__, __LINE__, #condition);   \
            return NULL;                                                                       \
        }                                                                                      \
    } while (0)

/* -- every way to take a reference, and to drop one ------------------------ */

static void by_INCREF(PyObject *op) { RefBuf_INCREF(op); }
static void by_XINCREF(PyObject *op) { RefBuf_XINCREF(op); }
static void by_IncRef(PyObject *op) { RefBuf_IncRef(op); }
static void by_XIncRef(PyObject *op) { RefBuf_XIncRef(op); }
static void by_NewRef(PyObject *op) { (void)RefBuf_NewRef(op); }
static void by_XNewRef(PyObject *op) { (void)RefBuf_XNewRef(op); }
static void by_INCREF_of_CPython(PyObject *op) { Py_INCREF(op); }

static void by_DECREF(PyObject *op) { RefBuf_DECREF(op); }
static void by_XDECREF(PyObject *op) { RefBuf_XDECREF(op); }
static void by_DecRef(PyObject *op) { RefBuf_DecRef(op); }
static void by_XDecRef(PyObject *op) { RefBuf_XDecRef(op); }
static void by_CLEAR(PyObject *op) { RefBuf_CLEAR(op); }
static void by_SETREF(PyObject *op) { RefBuf_SETREF(op, NULL); }
static void by_XSETREF(PyObject *op) { RefBuf_XSETREF(op, NULL); }
static void by_DECREF_of_CPython(PyObject *op) { Py_DECREF(op); }

typedef struct Way {
    const char *name;
    void (*apply)(PyObject *);
} Way;

static const Way acquirers[] = {
    {"RefBuf_INCREF", by_INCREF},
    {"RefBuf_XINCREF", by_XINCREF},
    {"RefBuf_IncRef", by_IncRef},
    {"RefBuf_XIncRef", by_XIncRef},
    {"RefBuf_NewRef", by_NewRef},
    {"RefBuf_XNewRef", by_XNewRef},
    {"RefBuf_INCREF in another unit", torture_unit_incref},
    {"Py_INCREF", by_INCREF_of_CPython},
    {NULL, NULL},
};

static const Way releasers[] = {
    {"RefBuf_DECREF", by_DECREF},
    {"RefBuf_XDECREF", by_XDECREF},
    {"RefBuf_DecRef", by_DecRef},
    {"RefBuf_XDecRef", by_XDecRef},
    {"RefBuf_CLEAR", by_CLEAR},
    {"RefBuf_SETREF", by_SETREF},
    {"RefBuf_XSETREF", by_XSETREF},
    {"RefBuf_DECREF in another unit", torture_unit_decref},
    {"Py_DECREF", by_DECREF_of_CPython},
    {NULL, NULL},
};

static PyObject *names_of(const Way *way)
{
    PyObject *names = PyList_New(0);
    for (; names != NULL && way->name != NULL; way++) {
        PyObject *name = PyUnicode_FromString(way->name);
        if (name == NULL || PyList_Append(names, name) < 0) {
            Py_CLEAR(names);
        }
        Py_XDECREF(name);
    }
    return names;
}

static PyObject *apply(const Way *way, PyObject *args)
{
    const char *name;
    PyObject *op;
    Py_ssize_t times;
    if (!PyArg_ParseTuple(args, "sOn", &name, &op, &times)) {
        return NULL;
    }
    for (; way->name != NULL; way++) {
        if (strcmp(way->name, name) == 0) {
            for (Py_ssize_t done = 0; done < times; done++) {
                way->apply(op);
            }
            Py_RETURN_NONE;
        }
    }
    PyErr_Format(PyExc_ValueError, "there is no way called %s", name);
    return NULL;
}

static PyObject *acquirer_names(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args))
{
    return names_of(acquirers);
}

static PyObject *releaser_names(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args))
{
    return names_of(releasers);
}

static PyObject *acquire(PyObject *Py_UNUSED(self), PyObject *args)
{
    return apply(acquirers, args);
}

static PyObject *release(PyObject *Py_UNUSED(self), PyObject *args)
{
    return apply(releasers, args);
}

/* -- the import state ------------------------------------------------------- */

static PyObject *connect(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args))
{
    if (refbuf_import() < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* (connected, address of the state here, address of the state in the unit) */
static PyObject *import_state(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args))
{
    return Py_BuildValue("iNN", refbuf_imported.api != NULL, PyLong_FromVoidPtr(&refbuf_imported),
                         PyLong_FromVoidPtr(torture_unit_import_state()));
}

/* -- the functions ----------------------------------------------------------- */

static PyObject *refcount(PyObject *Py_UNUSED(self), PyObject *op)
{
    return PyLong_FromSsize_t(RefBuf_RefCount(op));
}

static PyObject *flush(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args))
{
    RefBuf_Flush();
    Py_RETURN_NONE;
}

static PyObject *flush_all(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args))
{
    RefBuf_FlushAll();
    Py_RETURN_NONE;
}

static PyObject *stats(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args))
{
    RefBuf_Stats all;
    memset(&all, 0xFF, sizeof all);
    RefBuf_GetStats(&all);
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K}", "hits", (unsigned long long)all.hits, "misses",
                         (unsigned long long)all.misses, "atomics", (unsigned long long)all.atomics,
                         "credits", (unsigned long long)all.credits, "slots", (unsigned long long)all.slots);
}

/* -- arguments ---------------------------------------------------------------- */

/* Of a list of eight references to one object: each macro is given an argument
 * with a side effect, which must happen once. The counts are back at the end. */
static PyObject *evaluates_once(PyObject *Py_UNUSED(self), PyObject *op)
{
    enum { COUNT = 8 };
    PyObject *items[COUNT];
    PyObject **cursor = items;
    const Py_ssize_t before = RefBuf_RefCount(op);
    for (int index = 0; index < COUNT; index++) {
        items[index] = op;
    }

    RefBuf_INCREF(*cursor++);
    CHECK(cursor == items + 1);
    RefBuf_XINCREF(*cursor++);
    CHECK(cursor == items + 2);
    CHECK(RefBuf_NewRef(*cursor++) == op && cursor == items + 3);
    CHECK(RefBuf_XNewRef(*cursor++) == op && cursor == items + 4);
    RefBuf_IncRef(*cursor++);
    RefBuf_XIncRef(*cursor++);
    CHECK(cursor == items + 6);
    CHECK(RefBuf_RefCount(op) == before + 6);

    RefBuf_DecRef(*--cursor);
    RefBuf_XDecRef(*--cursor);
    CHECK(cursor == items + 4);
    RefBuf_DECREF(*--cursor);
    CHECK(cursor == items + 3);
    RefBuf_XDECREF(*--cursor);
    CHECK(cursor == items + 2);
    RefBuf_CLEAR(*--cursor);
    CHECK(cursor == items + 1 && *cursor == NULL);
    CHECK(RefBuf_RefCount(op) == before + 1);

    /* Both arguments of the two: the variable and the new value. */
    PyObject *values[2] = {RefBuf_NewRef(op), NULL};
    PyObject **value = values;
    RefBuf_SETREF(*--cursor, *value++);
    CHECK(cursor == items && value == values + 1 && items[0] == op);
    CHECK(RefBuf_RefCount(op) == before + 1);
    RefBuf_XSETREF(*cursor++, *value++);
    CHECK(cursor == items + 1 && value == values + 2 && items[0] == NULL);
    CHECK(RefBuf_RefCount(op) == before);

    /* The variable first, in the order of CPython's since 3.12. */
    Py_ssize_t index = 0;
    RefBuf_XSETREF(items[index++], index == 1 ? RefBuf_NewRef(op) : NULL);
    CHECK(index == 1 && items[0] == op && RefBuf_RefCount(op) == before + 1);
    RefBuf_CLEAR(items[0]);
    CHECK(RefBuf_RefCount(op) == before);
    Py_RETURN_NONE;
}

/* NULL where it is allowed, in and out. */
static PyObject *accepts_null(PyObject *Py_UNUSED(self), PyObject *op)
{
    const Py_ssize_t before = RefBuf_RefCount(op);
    PyObject *variable = NULL;
    RefBuf_XINCREF(variable);
    RefBuf_XDECREF(variable);
    RefBuf_XIncRef(NULL);
    RefBuf_XDecRef(NULL);
    CHECK(RefBuf_XNewRef(NULL) == NULL);
    RefBuf_CLEAR(variable);
    CHECK(variable == NULL);
    RefBuf_XSETREF(variable, NULL);
    CHECK(variable == NULL);
    RefBuf_XSETREF(variable, RefBuf_NewRef(op));
    CHECK(variable == op && RefBuf_RefCount(op) == before + 1);
    RefBuf_XSETREF(variable, NULL);
    CHECK(variable == NULL && RefBuf_RefCount(op) == before);
    Py_RETURN_NONE;
}

/* Never written: this is not. */
static PyObject *const read_only = NULL;

/* As CPython's, CLEAR only looks at a variable that is empty: another thread may be about to
 * fill it, or it may lie where nothing can be written. */
static PyObject *clear_writes_nothing_for_nothing(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(unused))
{
    /* The compiler must not know where it points. */
    PyObject **volatile hidden = (PyObject **)(uintptr_t)&read_only;
    PyObject **variable = hidden;
    RefBuf_CLEAR(*variable);
    Py_RETURN_NONE;
}

typedef struct Holder {
    int padding;
    PyListObject *list;
    PyTypeObject *type;
} Holder;

/* Pointers to CPython's other structs, as CPython's macros take them. */
static PyObject *accepts_any_object_type(PyObject *Py_UNUSED(self), PyObject *op)
{
    CHECK(PyList_Check(op));
    Holder holders[2] = {{1, NULL, NULL}, {2, NULL, NULL}};
    Holder *holder = holders + 1;
    const Py_ssize_t before = RefBuf_RefCount(op);
    PyListObject *list = (PyListObject *)op;
    RefBuf_INCREF(list);
    RefBuf_XSETREF(holder->list, list);
    RefBuf_XSETREF(holder->type, (PyTypeObject *)RefBuf_NewRef((PyObject *)Py_TYPE(list)));
    CHECK(holder->list == list && holder->type == &PyList_Type);
    CHECK(RefBuf_RefCount(op) == before + 1);
    RefBuf_SETREF(holder->list, (PyListObject *)RefBuf_NewRef(op));
    RefBuf_CLEAR(holder->type);
    RefBuf_CLEAR((holders + 1)->list);
    CHECK(holder->padding == 2 && holder->list == NULL && holder->type == NULL);
    CHECK(holders[0].padding == 1);
    CHECK(RefBuf_RefCount(op) == before);
    RefBuf_XINCREF(list);
    RefBuf_XDECREF(list);
    Py_RETURN_NONE;
}

/* Macros are one statement each. */
static PyObject *is_one_statement(PyObject *Py_UNUSED(self), PyObject *op)
{
    const Py_ssize_t before = RefBuf_RefCount(op);
    PyObject *variable = op;
    if (before > 0)
        RefBuf_INCREF(variable);
    else
        RefBuf_DECREF(variable);
    for (int round = 0; round < 3; round++)
        RefBuf_XINCREF(variable);
    if (before == 0)
        RefBuf_XDECREF(variable);
    else
        RefBuf_CLEAR(variable);
    CHECK(variable == NULL && RefBuf_RefCount(op) == before + 3);
    for (int round = 0; round < 3; round++)
        RefBuf_DECREF(op);
    CHECK(RefBuf_RefCount(op) == before);
    Py_RETURN_NONE;
}

/* -- a variable that finalizers look at --------------------------------------- */

static PyObject *shared_slot;

static PyObject *slot_get(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args))
{
    return RefBuf_NewRef(shared_slot != NULL ? shared_slot : Py_None);
}

static PyObject *slot_set(PyObject *Py_UNUSED(self), PyObject *op)
{
    if (shared_slot != NULL) {
        RefBuf_SETREF(shared_slot, RefBuf_NewRef(op));
    }
    else {
        RefBuf_XSETREF(shared_slot, RefBuf_NewRef(op));
    }
    Py_RETURN_NONE;
}

static PyObject *slot_clear(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args))
{
    RefBuf_CLEAR(shared_slot);
    Py_RETURN_NONE;
}

/* -- references without an owner ----------------------------------------------- */

/* A new reference, as a number that any thread may give to any module's drop(). */
static PyObject *make(PyObject *Py_UNUSED(self), PyObject *op)
{
    RefBuf_INCREF(op);
    return PyLong_FromVoidPtr(op);
}

static PyObject *drop(PyObject *Py_UNUSED(self), PyObject *number)
{
    PyObject *op = (PyObject *)PyLong_AsVoidPtr(number);
    if (op == NULL) {
        return NULL;
    }
    RefBuf_DECREF(op);
    Py_RETURN_NONE;
}

/* Takes and drops references to the objects of a list, in a pseudo-random order,
 * `steps` times; drops what it still holds at the end. */
static PyObject *churn(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *list;
    unsigned long seed;
    Py_ssize_t steps;
    if (!PyArg_ParseTuple(args, "O!kn", &PyList_Type, &list, &seed, &steps)) {
        return NULL;
    }
    const Py_ssize_t count = PyList_GET_SIZE(list);
    unsigned *held = (unsigned *)PyMem_Calloc((size_t)count + 1, sizeof *held);
    if (held == NULL) {
        return PyErr_NoMemory();
    }
    uint64_t state = seed * 2 + 1;
    for (Py_ssize_t step = 0; step < steps && count > 0; step++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const Py_ssize_t index = (Py_ssize_t)((state >> 33) % (uint64_t)count);
        PyObject *op = PyList_GET_ITEM(list, index);
        if (held[index] > 0 && (state >> 32 & 1) != 0) {
            held[index]--;
            RefBuf_DECREF(op);
        }
        else {
            held[index]++;
            RefBuf_INCREF(op);
        }
    }
    for (Py_ssize_t index = 0; index < count; index++) {
        for (; held[index] > 0; held[index]--) {
            RefBuf_DECREF(PyList_GET_ITEM(list, index));
        }
    }
    PyMem_Free(held);
    Py_RETURN_NONE;
}

/* -- the module ------------------------------------------------------------------ */

#ifndef TORTURE_MORE_METHODS
#  define TORTURE_MORE_METHODS
#endif

static PyMethodDef methods[] = {
    {"acquirer_names", acquirer_names, METH_NOARGS, NULL},
    {"releaser_names", releaser_names, METH_NOARGS, NULL},
    {"acquire", acquire, METH_VARARGS, NULL},
    {"release", release, METH_VARARGS, NULL},
    {"connect", connect, METH_NOARGS, NULL},
    {"import_state", import_state, METH_NOARGS, NULL},
    {"refcount", refcount, METH_O, NULL},
    {"flush", flush, METH_NOARGS, NULL},
    {"flush_all", flush_all, METH_NOARGS, NULL},
    {"stats", stats, METH_NOARGS, NULL},
    {"evaluates_once", evaluates_once, METH_O, NULL},
    {"accepts_null", accepts_null, METH_O, NULL},
    {"clear_writes_nothing_for_nothing", clear_writes_nothing_for_nothing, METH_NOARGS, NULL},
    {"accepts_any_object_type", accepts_any_object_type, METH_O, NULL},
    {"is_one_statement", is_one_statement, METH_O, NULL},
    {"slot_get", slot_get, METH_NOARGS, NULL},
    {"slot_set", slot_set, METH_O, NULL},
    {"slot_clear", slot_clear, METH_NOARGS, NULL},
    {"make", make, METH_O, NULL},
    {"drop", drop, METH_O, NULL},
    {"churn", churn, METH_VARARGS, NULL},
    TORTURE_MORE_METHODS
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, TORTURE_NAME(TORTURE_MODULE), NULL, 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC TORTURE_INIT(TORTURE_MODULE)(void)
{
    return PyModuleDef_Init(&definition);
}
