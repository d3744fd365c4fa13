/* refbuf.h: buffered reference counts for C and C++ extensions.
 *
 *     #include <Python.h>
 *     #include <refbuf.h>
 *
 *     PyMODINIT_FUNC PyInit_mine(void) {
 *         if (refbuf_import() < 0) { return NULL; }
 *         ...
 *     }
 *
 *     RefBuf_INCREF(object);  ...  RefBuf_DECREF(object);
 *
 * Semantics are those of the CPython macros with the same ending. On builds of
 * CPython with a GIL the macros are CPython's own.
 *
 * Each thread has a buffer: a table of *credits*, references that
 * this thread has already counted on an object. A hit spends one (increment) or
 * takes one back (decrement) with plain stores to the thread's own memory.
 * Everything else is out of line. This header is the one source of the layouts
 * that C and Rust share: the crate's build script reads it.
 *
 * refbuf_import() is called once for each extension module; its result serves
 * all translation units of that module. Before it, or where it failed, the
 * macros count as CPython does.
 */

/* Outside of the guard: it may be the shim's, which includes this file. */
#include <Python.h>

#ifndef REFBUF_H
#define REFBUF_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "refbuf_table.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Changes with any layout or meaning below. */
#define REFBUF_ABI_VERSION 2u

/* Whether the macros may count otherwise than CPython: free-threaded, and no
 * reference totals kept by the interpreter, which buffering would falsify. With the
 * limited API, by the functions alone. */
#if (defined(Py_GIL_DISABLED) || defined(Py_TARGET_ABI3T)) && !defined(Py_REF_DEBUG)
#  define REFBUF_COUNTS 1
#else
#  define REFBUF_COUNTS 0
#endif

/* Whether attached threads buffer here, and the header knows an object's fields. */
#if REFBUF_COUNTS && !defined(Py_LIMITED_API)
#  define REFBUF_BUFFERED 1
#else
#  define REFBUF_BUFFERED 0
#endif

/* Whether counting an object has an inline path. CPython's thread id is the
 * thread pointer where the table has one. */
#define REFBUF_INLINE (REFBUF_BUFFERED && REFBUF_TABLE_INLINE)

/* -- layouts -------------------------------------------------------------- */

/* References to one object for threads that must not touch it. Opaque. */
typedef struct RefBuf_Account RefBuf_Account;

/* Sums over all buffers, of objects and of accounts, past and present. Exact when
 * no thread is counting. */
typedef struct RefBuf_Stats {
    uint64_t hits;         /* increments and decrements served by a slot */
    uint64_t misses;       /* left to CPython's own path */
    uint64_t acquires;     /* batches of credits counted on an object */
    uint64_t take_ins;     /* references taken in by a decrement that acquired none */
    uint64_t evictions;    /* residents that made room for another object */
    uint64_t settles;      /* slots whose credits went back to the object */
    uint64_t parked;       /* releases put off to a safe point */
    uint64_t atomics;      /* atomic operations on objects' counts */
    uint64_t credits;      /* held at the moment, in all buffers */
    uint64_t threads;      /* buffers in use at the moment */
    uint64_t orphans;      /* buffers of ended threads, not yet settled */
    uint64_t beats;        /* of the heartbeat */
    uint64_t slots;        /* of each buffer of objects */
    uint64_t buffer_bytes; /* memory of each, all included */
    uint64_t accounts;     /* open at the moment */
    uint64_t account_slots;        /* of each buffer of accounts */
    uint64_t account_buffer_bytes; /* memory of each, all included */
} RefBuf_Stats;

typedef struct RefBuf_API {
    uint32_t abi_version; /* REFBUF_ABI_VERSION */
    uint32_t size;        /* sizeof(RefBuf_API) */
    uint32_t buffered;    /* REFBUF_BUFFERED of the build of refbuf */
    uint32_t reserved;
    /* From the thread pointer to the thread's RefBuf_Buffer *, of objects and of
     * accounts; 0 where only the functions may be used. */
    intptr_t tls_offset;
    intptr_t account_tls_offset;
    void (*IncRef)(PyObject *);
    void (*DecRef)(PyObject *);
    /* What the inline path could not serve: a foreign object, no hit. */
    void (*IncRefMissed)(PyObject *);
    void (*DecRefMissed)(PyObject *);
    Py_ssize_t (*RefCount)(PyObject *);
    void (*Flush)(void);
    void (*FlushAll)(void);
    void (*GetStats)(RefBuf_Stats *);
    RefBuf_Account *(*Enroll)(PyObject *);
    void (*AccountIncRef)(RefBuf_Account *);
    void (*AccountDecRef)(RefBuf_Account *);
    /* What the inline path could not serve: no hit, or (aside) not looked. */
    void (*AccountIncRefMissed)(RefBuf_Account *, int aside);
    void (*AccountDecRefMissed)(RefBuf_Account *, int aside);
    void (*AccountRelease)(RefBuf_Account *);
    PyObject *(*AccountObject)(RefBuf_Account *);
    PyObject *(*AccountWithdraw)(RefBuf_Account *);
} RefBuf_API;

/* -- reaching refbuf ------------------------------------------------------ */

#define REFBUF_CAPSULE "refbuf._C_API"

/* What a decrement does where refbuf has not been reached: the shim asks for it. An
 * increment does nothing of the kind: it waits for nobody, not for a lock either. */
#ifndef REFBUF_UNREACHED
#  define REFBUF_UNREACHED() ((void)0)
#endif

/* What an extension knows of refbuf after refbuf_import(). */
typedef struct RefBuf_Import {
    const RefBuf_API *api;
    intptr_t tls_offset;
    intptr_t account_tls_offset;
} RefBuf_Import;

/* Other threads may count while it becomes known. A distance is looked at by each count,
 * so what costs something comes after it, in refbuf_api. */
#if defined(__GNUC__)
#  define REFBUF_PUBLISH(place, value) __atomic_store_n(&(place), (value), __ATOMIC_RELEASE)
#  define REFBUF_DISTANCE(place) __atomic_load_n(&(place), __ATOMIC_RELAXED)
#else
#  define REFBUF_PUBLISH(place, value) ((place) = (value))
#  define REFBUF_DISTANCE(place) (place)
#endif

#ifdef REFBUF_BUILDING
extern RefBuf_Import refbuf_imported;
#else
/* One for all translation units of a module (weak), none shared between
 * modules (hidden). */
#  if defined(__GNUC__)
__attribute__((weak, visibility("hidden"))) RefBuf_Import refbuf_imported
#    ifdef __cplusplus
    = {NULL, 0, 0}
#    endif
    ;
#  else
static RefBuf_Import refbuf_imported;
#  endif
#endif

/* The functions, NULL where refbuf has not been reached. Behind a distance that was seen,
 * never NULL: the fence is for that. */
static inline const RefBuf_API *refbuf_api(void)
{
#if defined(__GNUC__)
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return __atomic_load_n(&refbuf_imported.api, __ATOMIC_ACQUIRE);
#else
    return refbuf_imported.api;
#endif
}

#ifdef REFBUF_BUILDING
/* refbuf itself exports these. */
void RefBuf_IncRef(PyObject *);
void RefBuf_DecRef(PyObject *);
void RefBuf_XIncRef(PyObject *);
void RefBuf_XDecRef(PyObject *);
PyObject *RefBuf_NewRef(PyObject *);
PyObject *RefBuf_XNewRef(PyObject *);
Py_ssize_t RefBuf_RefCount(PyObject *);
void RefBuf_Flush(void);
void RefBuf_FlushAll(void);
void RefBuf_GetStats(RefBuf_Stats *);
RefBuf_Account *RefBuf_Enroll(PyObject *);
void RefBuf_AccountRelease(RefBuf_Account *);
PyObject *RefBuf_AccountObject(RefBuf_Account *);
PyObject *RefBuf_AccountWithdraw(RefBuf_Account *);
#else

/* Returns 0, or -1 with ImportError set. Needs an attached thread. */
static inline int refbuf_import(void)
{
    /* By itself: PyCapsule_Import would hide why it fails. */
    PyObject *module = PyImport_ImportModule("refbuf");
    if (module == NULL) {
        return -1;
    }
    Py_DECREF(module);
    const RefBuf_API *api = (const RefBuf_API *)PyCapsule_Import(REFBUF_CAPSULE, 0);
    if (api == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_ImportError)) {
            PyErr_Clear();
            PyErr_SetString(PyExc_ImportError,
                            "the installed refbuf has no C API (refbuf._C_API): reinstall refbuf");
        }
        return -1;
    }
    if (api->abi_version != REFBUF_ABI_VERSION) {
        PyErr_Format(PyExc_ImportError,
                     "this extension was compiled for ABI version %u of refbuf, and version %u is"
                     " installed: rebuild the extension or install the matching refbuf",
                     (unsigned)REFBUF_ABI_VERSION, (unsigned)api->abi_version);
        return -1;
    }
    if (api->size < sizeof(RefBuf_API)) {
        PyErr_SetString(PyExc_ImportError,
                        "the installed refbuf is older than the refbuf.h that this extension was compiled"
                        " with: upgrade refbuf, or rebuild the extension");
        return -1;
    }
    /* The functions first: whoever sees a distance, in another thread, may need them. */
    REFBUF_PUBLISH(refbuf_imported.api, api);
    REFBUF_PUBLISH(refbuf_imported.tls_offset, REFBUF_INLINE ? api->tls_offset : 0);
    REFBUF_PUBLISH(refbuf_imported.account_tls_offset, REFBUF_TABLE_INLINE ? api->account_tls_offset : 0);
    return 0;
}

static inline void RefBuf_IncRef(PyObject *op)
{
    const RefBuf_API *api = refbuf_api();
    if (api != NULL) {
        api->IncRef(op);
    }
    else {
        Py_IncRef(op);
    }
}

static inline void RefBuf_DecRef(PyObject *op)
{
    const RefBuf_API *api = refbuf_api();
    if (api != NULL) {
        api->DecRef(op);
    }
    else {
        REFBUF_UNREACHED();
        Py_DecRef(op);
    }
}

static inline void RefBuf_XIncRef(PyObject *op)
{
    if (op != NULL) {
        RefBuf_IncRef(op);
    }
}

static inline void RefBuf_XDecRef(PyObject *op)
{
    if (op != NULL) {
        RefBuf_DecRef(op);
    }
}

static inline PyObject *RefBuf_NewRef(PyObject *op)
{
    RefBuf_IncRef(op);
    return op;
}

static inline PyObject *RefBuf_XNewRef(PyObject *op)
{
    RefBuf_XIncRef(op);
    return op;
}

/* The program's references: CPython's count without the buffers' credits. */
static inline Py_ssize_t RefBuf_RefCount(PyObject *op)
{
    const RefBuf_API *api = refbuf_api();
    return api != NULL ? api->RefCount(op) : Py_REFCNT(op);
}

/* Settles this thread's buffer. May run finalizers. */
static inline void RefBuf_Flush(void)
{
    const RefBuf_API *api = refbuf_api();
    if (api != NULL) {
        api->Flush();
    }
}

/* Settles every buffer. May run finalizers. */
static inline void RefBuf_FlushAll(void)
{
    const RefBuf_API *api = refbuf_api();
    if (api != NULL) {
        api->FlushAll();
    }
}

static inline void RefBuf_GetStats(RefBuf_Stats *stats)
{
    const RefBuf_API *api = refbuf_api();
    if (api != NULL) {
        api->GetStats(stats);
    }
    else {
        const RefBuf_Stats none = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
        *stats = none;
    }
}

static inline RefBuf_Account *RefBuf_Enroll(PyObject *op)
{
    const RefBuf_API *api = refbuf_api();
    if (api == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "RefBuf_Enroll needs refbuf: call refbuf_import() first");
        return NULL;
    }
    return api->Enroll(op);
}

static inline void RefBuf_AccountRelease(RefBuf_Account *account)
{
    refbuf_api()->AccountRelease(account);
}

static inline PyObject *RefBuf_AccountObject(RefBuf_Account *account)
{
    return refbuf_api()->AccountObject(account);
}

static inline PyObject *RefBuf_AccountWithdraw(RefBuf_Account *account)
{
    return refbuf_api()->AccountWithdraw(account);
}
#endif /* REFBUF_BUILDING */

/* -- references without the interpreter -----------------------------------
 *
 * A thread that is not attached to the interpreter (that does not hold the GIL,
 * or has no thread state) must not touch an object, not even its count. It may
 * count references to it all the same, through the object's account:
 *
 *     RefBuf_Account *account = RefBuf_Enroll(object);   attached; NULL and an exception if it fails
 *     RefBuf_AccountIncRef(account);                     any thread, attached or not
 *     RefBuf_AccountDecRef(account);                     any thread, attached or not
 *     PyObject *object = RefBuf_AccountObject(account);  borrowed; touch it while attached
 *     PyObject *mine = RefBuf_AccountWithdraw(account);  attached; the reference becomes an ordinary one
 *     RefBuf_AccountRelease(account);                    attached; as DecRef, and at once
 *
 * Enroll takes a reference of its own, which is the caller's to give up, by
 * DecRef, Release or Withdraw; so is each that IncRef takes. The account may be
 * used for as long as the caller has one of them. Enrolling an object again
 * gives the same account, and one more reference.
 *
 * An object whose last such reference and last ordinary one are gone is finalized
 * within two heartbeats, by an attached thread; Release sees to it at once, unless
 * another thread's buffer holds credits on the account. Meanwhile Py_REFCNT sees
 * the references that wait to be lent, and the garbage collector takes the
 * object for reachable.
 *
 * AccountIncRef attaches where more references are taken at once than have been
 * put by: so do not call it while holding a lock that attached threads wait for.
 * AccountDecRef never attaches. Release serves whatever accounts wait, so it may
 * finalize other objects as well: call it before an exception is set.
 *
 * Once the interpreter's exit has begun, both still count, without a buffer. A thread
 * without a thread state that finds nothing put by hangs then. What is given up last
 * is finalized by the thread that exits, if it gives something up itself; otherwise
 * it is leaked, as all is that Python has not got to. */

static inline void RefBuf_AccountIncRef(RefBuf_Account *account)
{
#if REFBUF_TABLE_INLINE
    intptr_t distance = REFBUF_DISTANCE(refbuf_imported.account_tls_offset);
    if (REFBUF_LIKELY(distance != 0)) {
        RefBuf_Buffer *buffer = refbuf_buffer(refbuf_thread_pointer(), distance);
        int aside = refbuf_skips(buffer);
        if (REFBUF_UNLIKELY(aside || !refbuf_spend(buffer, (uintptr_t)account))) {
            refbuf_api()->AccountIncRefMissed(account, aside);
        }
        return;
    }
#endif
    refbuf_api()->AccountIncRef(account);
}

static inline void RefBuf_AccountDecRef(RefBuf_Account *account)
{
#if REFBUF_TABLE_INLINE
    intptr_t distance = REFBUF_DISTANCE(refbuf_imported.account_tls_offset);
    if (REFBUF_LIKELY(distance != 0)) {
        RefBuf_Buffer *buffer = refbuf_buffer(refbuf_thread_pointer(), distance);
        int aside = refbuf_skips(buffer);
        if (REFBUF_UNLIKELY(aside || !refbuf_refund(buffer, (uintptr_t)account))) {
            refbuf_api()->AccountDecRefMissed(account, aside);
        }
        return;
    }
#endif
    refbuf_api()->AccountDecRef(account);
}

/* -- the inline path ------------------------------------------------------ */

#if REFBUF_INLINE

/* The table's turn. */
static inline void refbuf_incref_buffered(PyObject *op, RefBuf_Buffer *buffer)
{
    if (REFBUF_UNLIKELY(!refbuf_spend(buffer, (uintptr_t)op))) {
        refbuf_api()->IncRefMissed(op);
    }
}

static inline void refbuf_decref_buffered(PyObject *op, RefBuf_Buffer *buffer)
{
    if (REFBUF_UNLIKELY(!refbuf_refund(buffer, (uintptr_t)op))) {
        refbuf_api()->DecRefMissed(op);
    }
}

/* An object that is neither immortal nor this thread's. Inline as far as it does
 * without the table: a working set of any size must not notice us. */
REFBUF_ALWAYS_INLINE void refbuf_incref_foreign(PyObject *op, uintptr_t thread)
{
    intptr_t distance = REFBUF_DISTANCE(refbuf_imported.tls_offset);
    if (REFBUF_UNLIKELY(distance == 0)) {
        RefBuf_IncRef(op);
        return;
    }
    RefBuf_Buffer *buffer = refbuf_buffer(thread, distance);
    if (refbuf_skips(buffer)) {
        __atomic_fetch_add(&op->ob_ref_shared, (Py_ssize_t)1 << _Py_REF_SHARED_SHIFT, __ATOMIC_RELAXED);
    }
    else {
        refbuf_incref_buffered(op, buffer);
    }
}

REFBUF_ALWAYS_INLINE void refbuf_decref_foreign(PyObject *op, uintptr_t thread)
{
    intptr_t distance = REFBUF_DISTANCE(refbuf_imported.tls_offset);
    if (REFBUF_UNLIKELY(distance == 0)) {
        RefBuf_DecRef(op);
        return;
    }
    RefBuf_Buffer *buffer = refbuf_buffer(thread, distance);
    if (refbuf_skips(buffer)) {
        _Py_DecRefShared(op);
    }
    else {
        refbuf_decref_buffered(op, buffer);
    }
}

/* CPython's own path comes first, and always inline: immortal objects and those
 * that this thread owns never reach the buffer. */
REFBUF_ALWAYS_INLINE void refbuf_incref(PyObject *op)
{
    uint32_t local = __atomic_load_n(&op->ob_ref_local, __ATOMIC_RELAXED) + 1;
    if (local == 0) {
        return;
    }
    uintptr_t thread = _Py_ThreadId();
    if (REFBUF_LIKELY(__atomic_load_n(&op->ob_tid, __ATOMIC_RELAXED) == thread)) {
        __atomic_store_n(&op->ob_ref_local, local, __ATOMIC_RELAXED);
    }
    else {
        refbuf_incref_foreign(op, thread);
    }
}

REFBUF_ALWAYS_INLINE void refbuf_decref(PyObject *op)
{
    uint32_t local = __atomic_load_n(&op->ob_ref_local, __ATOMIC_RELAXED);
    if (local == UINT32_MAX) {
        return;
    }
    uintptr_t thread = _Py_ThreadId();
    if (REFBUF_LIKELY(__atomic_load_n(&op->ob_tid, __ATOMIC_RELAXED) == thread)) {
        local--;
        __atomic_store_n(&op->ob_ref_local, local, __ATOMIC_RELAXED);
        if (local == 0) {
            _Py_MergeZeroLocalRefcount(op);
        }
    }
    else {
        refbuf_decref_foreign(op, thread);
    }
}

#elif REFBUF_COUNTS
static inline void refbuf_incref(PyObject *op) { RefBuf_IncRef(op); }
static inline void refbuf_decref(PyObject *op) { RefBuf_DecRef(op); }
#else
static inline void refbuf_incref(PyObject *op) { Py_INCREF(op); }
static inline void refbuf_decref(PyObject *op) { Py_DECREF(op); }
#endif

static inline void refbuf_xincref(PyObject *op)
{
    if (op != NULL) {
        refbuf_incref(op);
    }
}

static inline void refbuf_xdecref(PyObject *op)
{
    if (op != NULL) {
        refbuf_decref(op);
    }
}

#if !defined(__GNUC__)
/* For RefBuf_CLEAR and its kin: the variable is changed before the reference
 * is dropped, since a finalizer may look at it. */
static inline void refbuf_clear(void *variable)
{
    PyObject *const none = NULL;
    PyObject *old;
    memcpy(&old, variable, sizeof old);
    /* Not written where there is nothing to drop, as in CPython: another thread may
     * just store there. */
    if (old != NULL) {
        memcpy(variable, &none, sizeof none);
        refbuf_decref(old);
    }
}

static inline PyObject *refbuf_read(void *variable)
{
    PyObject *op;
    memcpy(&op, variable, sizeof op);
    return op;
}

static inline void refbuf_write(void *variable, PyObject *op) { memcpy(variable, &op, sizeof op); }
#endif

#ifdef __cplusplus
}
#endif

#define REFBUF_OBJECT(op) ((PyObject *)(op))

#define RefBuf_INCREF(op) refbuf_incref(REFBUF_OBJECT(op))
#define RefBuf_DECREF(op) refbuf_decref(REFBUF_OBJECT(op))
#define RefBuf_XINCREF(op) refbuf_xincref(REFBUF_OBJECT(op))
#define RefBuf_XDECREF(op) refbuf_xdecref(REFBUF_OBJECT(op))

/* Each argument is evaluated once. The variable's comes first, then its value is read, then
 * the new one is evaluated, as in CPython: that may look at the variable, or change it. */
#define RefBuf_SETREF(variable, op) REFBUF_REPLACE(variable, op, RefBuf_DECREF)
#define RefBuf_XSETREF(variable, op) REFBUF_REPLACE(variable, op, RefBuf_XDECREF)

#if defined(__GNUC__)

/* By the variable's own type: it may be volatile or atomic, or point to a class that has
 * PyObject somewhere inside. */
#  define RefBuf_CLEAR(variable)                                                                     \
      do {                                                                                           \
          __typeof__(variable) *refbuf_variable_ = &(variable);                                      \
          __typeof__(variable) refbuf_old_ = *refbuf_variable_;                                      \
          if (refbuf_old_ != NULL) {                                                                 \
              *refbuf_variable_ = NULL;                                                              \
              RefBuf_DECREF(refbuf_old_);                                                            \
          }                                                                                          \
      } while (0)

#  define REFBUF_REPLACE(variable, op, drop)                                                         \
      do {                                                                                           \
          __typeof__(variable) *refbuf_variable_ = &(variable);                                      \
          __typeof__(variable) refbuf_old_ = *refbuf_variable_;                                      \
          *refbuf_variable_ = (op);                                                                  \
          drop(refbuf_old_);                                                                         \
      } while (0)

#else

/* A pointer of any kind, to be changed; it may be volatile. */
#  define REFBUF_VARIABLE(variable) ((void *)(uintptr_t)&(variable))

#  define RefBuf_CLEAR(variable) refbuf_clear(REFBUF_VARIABLE(variable))

#  define REFBUF_REPLACE(variable, op, drop)                                                         \
      do {                                                                                           \
          void *refbuf_variable_ = REFBUF_VARIABLE(variable);                                        \
          PyObject *refbuf_old_ = refbuf_read(refbuf_variable_);                                     \
          refbuf_write(refbuf_variable_, REFBUF_OBJECT(op));                                         \
          drop(refbuf_old_);                                                                         \
      } while (0)

#endif

#endif /* REFBUF_H */
