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
#ifndef REFBUF_H
#define REFBUF_H

#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Changes with any layout or meaning below. */
#define REFBUF_ABI_VERSION 1u

/* Whether attached threads buffer here: free-threaded, full API, and no
 * reference totals kept by the interpreter, which buffering would falsify. */
#if defined(Py_GIL_DISABLED) && !defined(Py_REF_DEBUG) && !defined(Py_LIMITED_API)
#  define REFBUF_BUFFERED 1
#else
#  define REFBUF_BUFFERED 0
#endif

/* The inline path finds the buffer at a constant distance from the thread
 * pointer. CPython's thread id is that pointer on these targets. */
#if REFBUF_BUFFERED && defined(__linux__) && defined(__GNUC__) \
    && (defined(__x86_64__) || defined(__aarch64__))
#  define REFBUF_INLINE 1
#else
#  define REFBUF_INLINE 0
#endif

/* -- layouts -------------------------------------------------------------- */

/* A slot's word: credits in the low 24 bits, and above them how many refunds
 * the slot has seen, which wraps harmlessly at the top. */
#define REFBUF_CREDIT_BITS 24
#define REFBUF_CREDITS 0xFFFFFFu   /* mask of the credits in a word */
#define REFBUF_CREDIT_LIMIT 0x800000u /* a slot this full is settled in part */
#define REFBUF_REFUND 0x1000001u   /* one credit and one refund */
#define REFBUF_MIX 0x9E3779B97F4A7C15u /* 2^64 over the golden ratio */
#define REFBUF_HASH_SHIFT 50           /* leaves as many bits as a table has bytes */

typedef struct RefBuf_Slot {
    uintptr_t object; /* address; means nothing while there are no credits */
    uint64_t word;
} RefBuf_Slot;

/* The head of a thread's buffer: what the inline path reads. `busy` is written
 * by the owning thread only; `attention` by whoever has revoked the buffer, and
 * by the owner when it has parked a release; `skip` by the owner; the rest never
 * changes. */
typedef struct RefBuf_Buffer {
    uint32_t busy;
    uint32_t attention;
    uintptr_t byte_mask; /* (number of slots - 2) * sizeof(RefBuf_Slot): where pairs begin */
    RefBuf_Slot *slots;
    int64_t skip; /* above 0: operations that leave the table alone, because it does not pay */
} RefBuf_Buffer;

/* Sums over all buffers, past and present. Exact when no thread is counting. */
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
    uint64_t slots;        /* of each buffer */
    uint64_t buffer_bytes; /* memory of each buffer, all included */
} RefBuf_Stats;

typedef struct RefBuf_API {
    uint32_t abi_version; /* REFBUF_ABI_VERSION */
    uint32_t size;        /* sizeof(RefBuf_API) */
    uint32_t buffered;    /* REFBUF_BUFFERED of the build of refbuf */
    uint32_t reserved;
    /* From the thread pointer to the thread's RefBuf_Buffer *; 0 where only
     * the functions may be used. */
    intptr_t tls_offset;
    void (*IncRef)(PyObject *);
    void (*DecRef)(PyObject *);
    /* What the inline path could not serve: a foreign object, no hit. */
    void (*IncRefMissed)(PyObject *);
    void (*DecRefMissed)(PyObject *);
    Py_ssize_t (*RefCount)(PyObject *);
    void (*Flush)(void);
    void (*FlushAll)(void);
    void (*GetStats)(RefBuf_Stats *);
} RefBuf_API;

/* -- reaching refbuf ------------------------------------------------------ */

#define REFBUF_CAPSULE "refbuf._C_API"

/* What an extension knows of refbuf after refbuf_import(). */
typedef struct RefBuf_Import {
    const RefBuf_API *api;
    intptr_t tls_offset;
} RefBuf_Import;

#ifdef REFBUF_BUILDING
/* refbuf itself: the exported functions, and the one import state. */
extern RefBuf_Import refbuf_imported;
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
#else

/* One for all translation units of a module (weak), none shared between
 * modules (hidden). */
#  if defined(__GNUC__)
__attribute__((weak, visibility("hidden"))) RefBuf_Import refbuf_imported
#    ifdef __cplusplus
    = {NULL, 0}
#    endif
    ;
#  else
static RefBuf_Import refbuf_imported;
#  endif

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
    /* The table first: whoever sees the distance may need it. */
    refbuf_imported.api = api;
    refbuf_imported.tls_offset = REFBUF_INLINE ? api->tls_offset : 0;
    return 0;
}

static inline void RefBuf_IncRef(PyObject *op)
{
    if (refbuf_imported.api != NULL) {
        refbuf_imported.api->IncRef(op);
    }
    else {
        Py_IncRef(op);
    }
}

static inline void RefBuf_DecRef(PyObject *op)
{
    if (refbuf_imported.api != NULL) {
        refbuf_imported.api->DecRef(op);
    }
    else {
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
    return refbuf_imported.api != NULL ? refbuf_imported.api->RefCount(op) : Py_REFCNT(op);
}

/* Settles this thread's buffer. May run finalizers. */
static inline void RefBuf_Flush(void)
{
    if (refbuf_imported.api != NULL) {
        refbuf_imported.api->Flush();
    }
}

/* Settles every buffer. May run finalizers. */
static inline void RefBuf_FlushAll(void)
{
    if (refbuf_imported.api != NULL) {
        refbuf_imported.api->FlushAll();
    }
}

static inline void RefBuf_GetStats(RefBuf_Stats *stats)
{
    if (refbuf_imported.api != NULL) {
        refbuf_imported.api->GetStats(stats);
    }
    else {
        const RefBuf_Stats none = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
        *stats = none;
    }
}
#endif /* REFBUF_BUILDING */

/* -- the inline path ------------------------------------------------------ */

#if REFBUF_INLINE

#define REFBUF_LIKELY(condition) __builtin_expect(!!(condition), 1)
#define REFBUF_UNLIKELY(condition) __builtin_expect(!!(condition), 0)
#define REFBUF_ALWAYS_INLINE __attribute__((always_inline)) static inline

/* The slot for `op`, if there is one: a multiplicative hash, as a byte offset,
 * gives a pair of slots, and the second is looked at where the first is for
 * another object. Without a branch: which of the two it is nobody can predict. */
static inline RefBuf_Slot *refbuf_slot(const RefBuf_Buffer *buffer, uintptr_t op)
{
    uintptr_t hash = (uintptr_t)(((uint64_t)op * REFBUF_MIX) >> REFBUF_HASH_SHIFT);
    RefBuf_Slot *pair = (RefBuf_Slot *)((char *)buffer->slots + (hash & buffer->byte_mask));
    return pair + (__atomic_load_n(&pair->object, __ATOMIC_RELAXED) != op);
}

/* This thread's buffer: one load, behind the thread pointer. A thread that has
 * none yet gets one that nothing hits. */
static inline RefBuf_Buffer *refbuf_buffer(uintptr_t thread_pointer)
{
    return *(RefBuf_Buffer **)(thread_pointer + (uintptr_t)refbuf_imported.tls_offset);
}

/* `busy` keeps out whoever wants to settle this buffer from another thread:
 * they set `attention`, issue a barrier on every running thread (membarrier),
 * and wait until `busy` is clear. So either they see our `busy`, or we see
 * their `attention`; the compiler barrier is all that is needed here. */
static inline int refbuf_enter(RefBuf_Buffer *buffer)
{
    __atomic_store_n(&buffer->busy, 1u, __ATOMIC_RELAXED);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    return __atomic_load_n(&buffer->attention, __ATOMIC_ACQUIRE) == 0;
}

/* Release: our slots are written before another thread sees them unused. */
static inline void refbuf_leave(RefBuf_Buffer *buffer)
{
    __atomic_store_n(&buffer->busy, 0u, __ATOMIC_RELEASE);
}

/* Only the owner changes which object a slot is for, so that much needs no gate:
 * a miss leaves it alone. */
static inline int refbuf_spend(RefBuf_Buffer *buffer, PyObject *op)
{
    RefBuf_Slot *slot = refbuf_slot(buffer, (uintptr_t)op);
    if (REFBUF_UNLIKELY(__atomic_load_n(&slot->object, __ATOMIC_RELAXED) != (uintptr_t)op)) {
        return 0;
    }
    int hit = 0;
    if (REFBUF_LIKELY(refbuf_enter(buffer))) {
        uint64_t word = __atomic_load_n(&slot->word, __ATOMIC_RELAXED);
        if (REFBUF_LIKELY((word & REFBUF_CREDITS) != 0)) {
            __atomic_store_n(&slot->word, word - 1, __ATOMIC_RELAXED);
            hit = 1;
        }
    }
    refbuf_leave(buffer);
    return hit;
}

static inline int refbuf_refund(RefBuf_Buffer *buffer, PyObject *op)
{
    RefBuf_Slot *slot = refbuf_slot(buffer, (uintptr_t)op);
    if (REFBUF_UNLIKELY(__atomic_load_n(&slot->object, __ATOMIC_RELAXED) != (uintptr_t)op)) {
        return 0;
    }
    int hit = 0;
    if (REFBUF_LIKELY(refbuf_enter(buffer))) {
        uint64_t word = __atomic_load_n(&slot->word, __ATOMIC_RELAXED);
        if (REFBUF_LIKELY((uint32_t)(word & REFBUF_CREDITS) - 1 < REFBUF_CREDIT_LIMIT - 1)) {
            __atomic_store_n(&slot->word, word + REFBUF_REFUND, __ATOMIC_RELAXED);
            hit = 1;
        }
    }
    refbuf_leave(buffer);
    return hit;
}

/* Where the working set is far larger than the table, the owner stands aside
 * for a while: CPython's own path, without a look at the table. A loop over many
 * objects is as fast as the processor can run ahead to the next one's cache
 * miss, and each instruction here shortens that: hence one that counts, stores
 * and tests. */
static inline int refbuf_skips(RefBuf_Buffer *buffer)
{
#  if defined(__x86_64__) && defined(__GCC_ASM_FLAG_OUTPUTS__)
    int aside;
    __asm__ __volatile__("subq $1, %0" : "+m"(buffer->skip), "=@ccns"(aside));
    return aside;
#  else
    int64_t left = __atomic_load_n(&buffer->skip, __ATOMIC_RELAXED) - 1;
    __atomic_store_n(&buffer->skip, left, __ATOMIC_RELAXED);
    return left >= 0;
#  endif
}

/* The table's turn. */
static inline void refbuf_incref_buffered(PyObject *op, RefBuf_Buffer *buffer)
{
    if (REFBUF_UNLIKELY(!refbuf_spend(buffer, op))) {
        refbuf_imported.api->IncRefMissed(op);
    }
}

static inline void refbuf_decref_buffered(PyObject *op, RefBuf_Buffer *buffer)
{
    if (REFBUF_UNLIKELY(!refbuf_refund(buffer, op))) {
        refbuf_imported.api->DecRefMissed(op);
    }
}

/* An object that is neither immortal nor this thread's. Inline as far as it does
 * without the table: a working set of any size must not notice us. */
REFBUF_ALWAYS_INLINE void refbuf_incref_foreign(PyObject *op, uintptr_t thread)
{
    if (REFBUF_UNLIKELY(refbuf_imported.tls_offset == 0)) {
        RefBuf_IncRef(op);
        return;
    }
    RefBuf_Buffer *buffer = refbuf_buffer(thread);
    if (refbuf_skips(buffer)) {
        __atomic_fetch_add(&op->ob_ref_shared, (Py_ssize_t)1 << _Py_REF_SHARED_SHIFT, __ATOMIC_RELAXED);
    }
    else {
        refbuf_incref_buffered(op, buffer);
    }
}

REFBUF_ALWAYS_INLINE void refbuf_decref_foreign(PyObject *op, uintptr_t thread)
{
    if (REFBUF_UNLIKELY(refbuf_imported.tls_offset == 0)) {
        RefBuf_DecRef(op);
        return;
    }
    RefBuf_Buffer *buffer = refbuf_buffer(thread);
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

#elif REFBUF_BUFFERED || defined(Py_LIMITED_API)
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

/* For RefBuf_CLEAR and its kin: the variable is changed before the reference
 * is dropped, since a finalizer may look at it. */
static inline void refbuf_replace(void *variable, PyObject *op, int nullable)
{
    PyObject *old;
    memcpy(&old, variable, sizeof old);
    memcpy(variable, &op, sizeof op);
    if (!nullable || old != NULL) {
        refbuf_decref(old);
    }
}

#ifdef __cplusplus
}
#endif

#define REFBUF_OBJECT(op) ((PyObject *)(op))

#define RefBuf_INCREF(op) refbuf_incref(REFBUF_OBJECT(op))
#define RefBuf_DECREF(op) refbuf_decref(REFBUF_OBJECT(op))
#define RefBuf_XINCREF(op) refbuf_xincref(REFBUF_OBJECT(op))
#define RefBuf_XDECREF(op) refbuf_xdecref(REFBUF_OBJECT(op))

/* Each argument is evaluated once. */
#define RefBuf_CLEAR(variable) refbuf_replace(&(variable), NULL, 1)
#define RefBuf_SETREF(variable, op) refbuf_replace(&(variable), REFBUF_OBJECT(op), 0)
#define RefBuf_XSETREF(variable, op) refbuf_replace(&(variable), REFBUF_OBJECT(op), 1)

#endif /* REFBUF_H */
