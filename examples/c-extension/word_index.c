/* WordIndex, as Python sees it. Everything here is attached to the interpreter,
 * but for what stands between Py_BEGIN_ALLOW_THREADS and Py_END_ALLOW_THREADS.
 *
 * Of refbuf it needs the functions by which references come and go:
 *
 *     RefBuf_Enroll             an object is added
 *     RefBuf_AccountRelease     it could not be
 *     RefBuf_AccountWithdraw    an object was found: here it is
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <refbuf.h>

#include "engine.h"

#include <errno.h>
#include <string.h>

#define MOST_THREADS 256
#define MOST_KEPT 65536

typedef struct WordIndex {
    PyObject_HEAD
    Engine *engine;
} WordIndex;

static Engine *engine_of(PyObject *self)
{
    return ((WordIndex *)self)->engine;
}

/* Py_IsFinalizing() in 3.13, and the same before. */
static int is_finalizing(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsFinalizing();
#else
    return _Py_IsFinalizing();
#endif
}

/* -- errors ---------------------------------------------------------------- */

/* Call it when no more Python code will run before the engine is used: that code
 * might fork. */
static int require_threads(PyObject *self)
{
    if (engine_is_here(engine_of(self))) {
        return 0;
    }
    PyErr_SetString(PyExc_RuntimeError,
                    "the threads of this WordIndex are in the parent process, from which this one was"
                    " forked: make another WordIndex here");
    return -1;
}

static PyObject *raise_outcome(Outcome outcome)
{
    if (outcome == NO_MEMORY) {
        return PyErr_NoMemory();
    }
    PyErr_SetString(PyExc_RuntimeError, "this WordIndex is closed");
    return NULL;
}

/* A whole number of 1 to `most`; absent, `*value` stays as it is. */
static int parse_count(PyObject *object, const char *name, Py_ssize_t most, size_t *value)
{
    if (object == NULL) {
        return 0;
    }
    /* Without an exception to raise, it clips. */
    Py_ssize_t number = PyNumber_AsSsize_t(object, NULL);
    if (number == -1 && PyErr_Occurred()) {
        return -1;
    }
    if (number < 1 || number > most) {
        PyErr_Format(PyExc_ValueError, "%s is a whole number from 1 to %zd, not %R", name, most, object);
        return -1;
    }
    *value = (size_t)number;
    return 0;
}

/* -- beginning and end ----------------------------------------------------- */

static PyObject *index_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"threads", "keep", NULL};
    PyObject *threads_given = NULL, *keep_given = NULL;
    size_t threads = 4, keep = 100, started;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:WordIndex", names, &threads_given, &keep_given) ||
        parse_count(threads_given, "threads", MOST_THREADS, &threads) < 0 ||
        parse_count(keep_given, "keep", MOST_KEPT, &keep) < 0) {
        return NULL;
    }
    WordIndex *self = (WordIndex *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    Engine *engine;
    int error;
    Py_BEGIN_ALLOW_THREADS
    engine = engine_new(threads, keep, &started);
    error = errno;
    Py_END_ALLOW_THREADS
    self->engine = engine;
    if (engine == NULL) {
        Py_DECREF(self);
        if (error == ENOMEM) {
            return PyErr_NoMemory();
        }
        return PyErr_Format(PyExc_RuntimeError,
                            "the system gave WordIndex %zu threads of the %zu that it asked for: %s", started,
                            threads, strerror(error));
    }
    return (PyObject *)self;
}

/* Whether the engine may be freed: its threads have ended. They have not where
 * waiting for them could be for ever: while the interpreter goes away, one of them
 * may need it for a reference that refbuf has not put by. They are told to end, and
 * use nothing but the engine's own memory until they have, or the process has. */
static int end_threads(Engine *engine)
{
    if (!engine_is_here(engine)) {
        return 0;
    }
    if (is_finalizing()) {
        engine_tell_to_end(engine);
        return 0;
    }
    Py_BEGIN_ALLOW_THREADS
    engine_close(engine);
    Py_END_ALLOW_THREADS
    return 1;
}

static void index_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Engine *engine = engine_of(self);
    if (engine != NULL && end_threads(engine)) {
        engine_free(engine);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(close_doc,
             "close($self, /)\n--\n\n"
             "Drops all references, ends the threads, and waits until they have. What is\n"
             "waiting to be added is not; whoever waits for an answer gets a RuntimeError.");

static PyObject *index_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    end_threads(engine_of(self));
    Py_RETURN_NONE;
}

static PyObject *index_enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return Py_NewRef(self);
}

static PyObject *index_exit(PyObject *self, PyObject *Py_UNUSED(args))
{
    return index_close(self, NULL);
}

/* -- adding ---------------------------------------------------------------- */

PyDoc_STRVAR(add_doc,
             "add($self, text, object, /)\n--\n\n"
             "Has the object indexed under each word of the text, which is bytes; words are what\n"
             "white space separates. Does not wait for it. Returns the addition's number: the\n"
             "higher, the newer.");

static PyObject *index_add(PyObject *self, PyObject *args)
{
    Py_buffer text;
    PyObject *object;
    if (!PyArg_ParseTuple(args, "y*O:add", &text, &object)) {
        return NULL;
    }
    RefBuf_Account *account = require_threads(self) < 0 ? NULL : RefBuf_Enroll(object);
    if (account == NULL) {
        PyBuffer_Release(&text);
        return NULL;
    }
    uint64_t number;
    Outcome outcome = engine_add(engine_of(self), text.buf, (size_t)text.len, account, &number);
    PyBuffer_Release(&text);
    if (outcome != DONE) {
        RefBuf_AccountRelease(account); /* may run any code, so before there is an exception */
        return raise_outcome(outcome);
    }
    /* The reference is the engine's now. */
    return PyLong_FromUnsignedLongLong(number);
}

PyDoc_STRVAR(join_doc,
             "join($self, /)\n--\n\n"
             "Waits until nothing is waiting to be added.");

static PyObject *index_join(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    for (;;) {
        if (require_threads(self) < 0) {
            return NULL;
        }
        Outcome outcome;
        Py_BEGIN_ALLOW_THREADS
        outcome = engine_settle(engine_of(self));
        Py_END_ALLOW_THREADS
        if (outcome == DONE) {
            Py_RETURN_NONE;
        }
        if (outcome != NOT_YET) {
            return raise_outcome(outcome);
        }
        if (PyErr_CheckSignals() < 0) {
            return NULL;
        }
    }
}

/* -- searching ------------------------------------------------------------- */

/* NULL and an exception if something is no query. */
static Batch *parse_queries(PyObject *queries, size_t best)
{
    if (PyUnicode_Check(queries) || PyObject_CheckBuffer(queries)) {
        PyErr_Format(PyExc_TypeError, "search() takes several queries, such as [b'one', b'or two'], not %.200s",
                     Py_TYPE(queries)->tp_name);
        return NULL;
    }
    /* A copy that nobody else changes. */
    PyObject *texts = PySequence_Tuple(queries);
    if (texts == NULL) {
        return NULL;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(texts);
    Batch *batch = batch_new((size_t)count, best);
    if (batch == NULL) {
        PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < count && batch != NULL; i++) {
        Py_buffer text;
        Outcome outcome = NO_MEMORY;
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(texts, i), &text, PyBUF_SIMPLE) == 0) {
            outcome = batch_query(batch, (size_t)i, text.buf, (size_t)text.len);
            PyBuffer_Release(&text);
            if (outcome != DONE) {
                PyErr_NoMemory();
            }
        }
        if (outcome != DONE) {
            batch_free(batch);
            batch = NULL;
        }
    }
    Py_DECREF(texts);
    return batch;
}

/* The batch may be freed if DONE, CLOSED or NO_MEMORY; if NOT_YET, an exception is
 * set, and somebody else frees it. */
static Outcome wait_for(Engine *engine, Batch *batch)
{
    Outcome outcome;
    for (;;) {
        Py_BEGIN_ALLOW_THREADS
        outcome = engine_wait(engine, batch);
        Py_END_ALLOW_THREADS
        if (outcome == DONE) {
            return batch->outcome;
        }
        int interrupted = PyErr_CheckSignals() < 0;
        if (!engine_is_here(engine)) {
            /* A signal's handler has forked, and this is the child. */
            if (!interrupted) {
                PyErr_SetString(PyExc_RuntimeError, "the process was forked by the handler of a signal meanwhile");
            }
            return NOT_YET;
        }
        if (interrupted) {
            engine_abandon(engine, batch);
            return NOT_YET;
        }
    }
}

/* The answers' references become the lists'. What an error leaves is the batch's. */
static PyObject *take_lists(Batch *batch)
{
    PyObject *lists = PyList_New((Py_ssize_t)batch->count);
    for (size_t i = 0; lists != NULL && i < batch->count; i++) {
        Matches *matches = &batch->answers[i];
        PyObject *list = PyList_New((Py_ssize_t)matches->count);
        if (list == NULL) {
            Py_CLEAR(lists);
            break;
        }
        for (size_t j = 0; j < matches->count; j++) {
            PyList_SET_ITEM(list, (Py_ssize_t)j, RefBuf_AccountWithdraw(matches->items[j].account));
            matches->items[j].account = NULL;
        }
        PyList_SET_ITEM(lists, (Py_ssize_t)i, list);
    }
    return lists;
}

PyDoc_STRVAR(search_doc,
             "search($self, queries, best=10)\n--\n\n"
             "For each query, which is bytes, a list of the objects that have its words: those\n"
             "that have more of them first, and then the newest. At most so many.");

static PyObject *index_search(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"queries", "best", NULL};
    PyObject *queries, *best_given = NULL;
    size_t best = 10;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:search", names, &queries, &best_given) ||
        parse_count(best_given, "best", PY_SSIZE_T_MAX, &best) < 0) {
        return NULL;
    }
    Batch *batch = parse_queries(queries, best);
    if (batch == NULL) {
        return NULL;
    }
    if (require_threads(self) < 0) {
        batch_free(batch);
        return NULL;
    }
    Outcome outcome = engine_ask(engine_of(self), batch);
    if (outcome == DONE) {
        outcome = wait_for(engine_of(self), batch);
    }
    if (outcome == NOT_YET) {
        return NULL;
    }
    PyObject *lists = outcome == DONE ? take_lists(batch) : raise_outcome(outcome);
    batch_free(batch);
    return lists;
}

/* -- type and module ------------------------------------------------------- */

static PyMethodDef index_methods[] = {
    {"add", index_add, METH_VARARGS, add_doc},
    {"join", index_join, METH_NOARGS, join_doc},
    {"search", (PyCFunction)(void (*)(void))index_search, METH_VARARGS | METH_KEYWORDS, search_doc},
    {"close", index_close, METH_NOARGS, close_doc},
    {"__enter__", index_enter, METH_NOARGS, NULL},
    {"__exit__", index_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(index_doc,
             "WordIndex(threads=4, keep=100)\n--\n\n"
             "The newest objects for each word, kept and searched by native threads.\n\n"
             "A word keeps so many objects; older ones are dropped. Objects are never compared,\n"
             "hashed or called. The collector does not see what an index refers to.");

/* Not a container to the collector: it could not look into the engine anyway. */
static PyType_Slot index_slots[] = {
    {Py_tp_doc, (void *)index_doc},
    {Py_tp_new, (void *)index_new},
    {Py_tp_dealloc, (void *)index_dealloc},
    {Py_tp_methods, (void *)index_methods},
    {0, NULL},
};

static PyType_Spec index_spec = {
    .name = "word_index.WordIndex",
    .basicsize = sizeof(WordIndex),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = index_slots,
};

static int module_exec(PyObject *module)
{
    if (refbuf_import() < 0) {
        return -1;
    }
    PyObject *type = PyType_FromModuleAndSpec(module, &index_spec, NULL);
    if (type == NULL) {
        return -1;
    }
    int status = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return status;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)module_exec},
#ifdef Py_mod_multiple_interpreters
    /* Nor is refbuf. */
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "word_index",
    .m_doc = "An example of refbuf's C API: native threads that never are attached keep references to objects.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit_word_index(void)
{
    return PyModuleDef_Init(&definition);
}
