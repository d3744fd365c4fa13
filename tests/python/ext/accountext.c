/* References without the interpreter, for tests in Python: accounts by their
 * addresses, counted by threads that have let go of the interpreter or never had
 * it. The caller sees to it that it gives up no reference that it has not taken.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <refbuf.h>

#include <pthread.h>
#include <unistd.h>

/* References that churn() may hold at once. */
#define HELD 512

/* Set by stay_detached(): threads that have let go of the interpreter do not come back.
 * In 3.13, one that does so while the interpreter goes away may run with a thread state
 * that has been freed (python/cpython issue 124878; 3.14 counts who uses one). */
static int staying;
/* How many do. */
static Py_ssize_t stayed;

static void come_back(void)
{
    if (__atomic_load_n(&staying, __ATOMIC_ACQUIRE)) {
        __atomic_fetch_add(&stayed, 1, __ATOMIC_RELEASE);
    }
    while (__atomic_load_n(&staying, __ATOMIC_ACQUIRE)) {
        usleep(1000);
    }
}

/* stay_detached() -> how many do so far; for good */
static PyObject *stay_detached(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    __atomic_store_n(&staying, 1, __ATOMIC_RELEASE);
    return PyLong_FromSsize_t(__atomic_load_n(&stayed, __ATOMIC_ACQUIRE));
}

static int parse(PyObject *args, RefBuf_Account **account, Py_ssize_t *times)
{
    Py_ssize_t address;
    *times = 1;
    if (!PyArg_ParseTuple(args, "n|n", &address, times)) {
        return -1;
    }
    *account = (RefBuf_Account *)address;
    return 0;
}

/* enroll(object) -> account */
static PyObject *enroll(PyObject *Py_UNUSED(module), PyObject *op)
{
    RefBuf_Account *account = RefBuf_Enroll(op);
    return account == NULL ? NULL : PyLong_FromVoidPtr(account);
}

/* A function (account, times=1) that does `statement` so often, detached. */
#define DETACHED(name, statement)                                      \
    static PyObject *name(PyObject *Py_UNUSED(module), PyObject *args) \
    {                                                                  \
        RefBuf_Account *account;                                       \
        Py_ssize_t times;                                              \
        if (parse(args, &account, &times) < 0) {                       \
            return NULL;                                               \
        }                                                              \
        Py_BEGIN_ALLOW_THREADS                                         \
        for (Py_ssize_t i = 0; i < times; i++) {                       \
            statement;                                                 \
        }                                                              \
        come_back();                                                   \
        Py_END_ALLOW_THREADS                                           \
        Py_RETURN_NONE;                                                \
    }

DETACHED(incref, RefBuf_AccountIncRef(account))
DETACHED(decref, RefBuf_AccountDecRef(account))
DETACHED(incref_call, refbuf_imported.api->AccountIncRef(account))
DETACHED(decref_call, refbuf_imported.api->AccountDecRef(account))
DETACHED(touch, RefBuf_AccountIncRef(account); RefBuf_AccountDecRef(account))

/* touch_by_turns(account, times): attached and detached in turn. */
static PyObject *touch_by_turns(PyObject *Py_UNUSED(module), PyObject *args)
{
    RefBuf_Account *account;
    Py_ssize_t times;
    if (parse(args, &account, &times) < 0) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < times; i++) {
        RefBuf_AccountIncRef(account);
        PyObject *object = RefBuf_NewRef(RefBuf_AccountObject(account));
        Py_BEGIN_ALLOW_THREADS
        RefBuf_AccountIncRef(account);
        RefBuf_AccountDecRef(account);
        come_back();
        Py_END_ALLOW_THREADS
        RefBuf_DECREF(object);
        RefBuf_AccountDecRef(account);
    }
    Py_RETURN_NONE;
}

/* decref_attached(account) */
static PyObject *decref_attached(PyObject *Py_UNUSED(module), PyObject *args)
{
    RefBuf_Account *account;
    Py_ssize_t times;
    if (parse(args, &account, &times) < 0) {
        return NULL;
    }
    RefBuf_AccountDecRef(account);
    Py_RETURN_NONE;
}

static PyObject *release(PyObject *Py_UNUSED(module), PyObject *args)
{
    RefBuf_Account *account;
    Py_ssize_t times;
    if (parse(args, &account, &times) < 0) {
        return NULL;
    }
    RefBuf_AccountRelease(account);
    Py_RETURN_NONE;
}

static PyObject *object(PyObject *Py_UNUSED(module), PyObject *args)
{
    RefBuf_Account *account;
    Py_ssize_t times;
    if (parse(args, &account, &times) < 0) {
        return NULL;
    }
    return Py_NewRef(RefBuf_AccountObject(account));
}

static PyObject *withdraw(PyObject *Py_UNUSED(module), PyObject *args)
{
    RefBuf_Account *account;
    Py_ssize_t times;
    if (parse(args, &account, &times) < 0) {
        return NULL;
    }
    return RefBuf_AccountWithdraw(account);
}

/* -- random operations ------------------------------------------------------- */

/* xorshift64*. */
static size_t below(uint64_t *state, size_t bound)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (size_t)((((*state * 0x2545F4914F6CDD1Du) >> 32) * bound) >> 32);
}

typedef struct Work {
    RefBuf_Account **accounts;
    size_t count;
    Py_ssize_t operations;
    uint64_t state;
} Work;

/* Takes and drops references at random, inline and by call; drops all in the end.
 * Knows nothing of Python. */
static void *run(void *argument)
{
    Work *work = (Work *)argument;
    RefBuf_Account *held[HELD];
    size_t holding = 0;
    for (Py_ssize_t i = 0; i < work->operations && work->count > 0; i++) {
        int by_call = below(&work->state, 4) == 0;
        if (holding == 0 || (holding < HELD && below(&work->state, 2) == 0)) {
            RefBuf_Account *account = work->accounts[below(&work->state, work->count)];
            if (by_call) {
                refbuf_imported.api->AccountIncRef(account);
            }
            else {
                RefBuf_AccountIncRef(account);
            }
            held[holding++] = account;
        }
        else {
            size_t at = below(&work->state, holding);
            RefBuf_Account *account = held[at];
            held[at] = held[--holding];
            if (by_call) {
                refbuf_imported.api->AccountDecRef(account);
            }
            else {
                RefBuf_AccountDecRef(account);
            }
        }
    }
    while (holding > 0) {
        RefBuf_AccountDecRef(held[--holding]);
    }
    return NULL;
}

/* In `threads` threads that never were attached; in this one, detached, if 0.
 * Returns how many there were. */
static int run_detached(const Work *work, int threads)
{
    pthread_t running[64];
    Work shares[64];
    int started = 0;
    Py_BEGIN_ALLOW_THREADS
    for (; started < threads && started < 64; started++) {
        shares[started] = *work;
        shares[started].state += 2 * (uint64_t)started;
        if (pthread_create(&running[started], NULL, run, &shares[started]) != 0) {
            break;
        }
    }
    for (int i = 0; i < started; i++) {
        pthread_join(running[i], NULL);
    }
    if (threads == 0) {
        shares[0] = *work;
        run(&shares[0]);
    }
    come_back();
    Py_END_ALLOW_THREADS
    return started;
}

/* churn(accounts, operations, seed, threads=0) */
static PyObject *churn(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *accounts;
    Work work = {NULL, 0, 0, 0};
    unsigned long long seed;
    int threads = 0;
    if (!PyArg_ParseTuple(args, "O!nK|i", &PyTuple_Type, &accounts, &work.operations, &seed, &threads)) {
        return NULL;
    }
    work.count = (size_t)PyTuple_GET_SIZE(accounts);
    work.state = (uint64_t)seed * 2 + 1;
    work.accounts = PyMem_Calloc(work.count + 1, sizeof *work.accounts);
    if (work.accounts == NULL) {
        return PyErr_NoMemory();
    }
    for (size_t i = 0; i < work.count; i++) {
        work.accounts[i] = PyLong_AsVoidPtr(PyTuple_GET_ITEM(accounts, (Py_ssize_t)i));
    }
    int started = run_detached(&work, threads);
    PyMem_Free(work.accounts);
    if (started < threads) {
        PyErr_SetString(PyExc_RuntimeError, "not all threads could be started");
        return NULL;
    }
    Py_RETURN_NONE;
}

/* -- threads that last --------------------------------------------------------- */

static void *run_for_ever(void *account)
{
    for (;;) {
        RefBuf_AccountIncRef((RefBuf_Account *)account);
        RefBuf_AccountDecRef((RefBuf_Account *)account);
    }
    return NULL;
}

/* churn_for_ever(account): a thread that never is attached counts until the
 * process ends. Takes over the caller's reference. */
static PyObject *churn_for_ever(PyObject *Py_UNUSED(module), PyObject *args)
{
    RefBuf_Account *account;
    Py_ssize_t times;
    pthread_t thread;
    if (parse(args, &account, &times) < 0) {
        return NULL;
    }
    if (pthread_create(&thread, NULL, run_for_ever, account) != 0) {
        PyErr_SetString(PyExc_RuntimeError, "the thread could not be started");
        return NULL;
    }
    pthread_detach(thread);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"stay_detached", stay_detached, METH_NOARGS, NULL},
    {"enroll", enroll, METH_O, NULL},
    {"incref", incref, METH_VARARGS, NULL},
    {"decref", decref, METH_VARARGS, NULL},
    {"incref_call", incref_call, METH_VARARGS, NULL},
    {"decref_call", decref_call, METH_VARARGS, NULL},
    {"touch", touch, METH_VARARGS, NULL},
    {"touch_by_turns", touch_by_turns, METH_VARARGS, NULL},
    {"decref_attached", decref_attached, METH_VARARGS, NULL},
    {"release", release, METH_VARARGS, NULL},
    {"object", object, METH_VARARGS, NULL},
    {"withdraw", withdraw, METH_VARARGS, NULL},
    {"churn", churn, METH_VARARGS, NULL},
    {"churn_for_ever", churn_for_ever, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int start(PyObject *Py_UNUSED(module))
{
    return refbuf_import();
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)start},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "accountext",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit_accountext(void);
PyMODINIT_FUNC PyInit_accountext(void)
{
    return PyModuleDef_Init(&definition);
}
