/* The inner loops of the workloads, compiled once for each variant: CPython's
 * macros, our inline ones, and our exported functions. */
#define REFBUF_BUILDING
#include <Python.h>
#include <refbuf.h>

#include "kernels.h"

/* xorshift64*: Vigna 2016. Good enough to spread accesses, and two cycles. */
static inline uint32_t next_random(RefBuf_Task *task)
{
    uint64_t x = task->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    task->random = x;
    return (uint32_t)((x * 0x2545F4914F6CDD1Du) >> 32);
}

/* Uniform below `bound`, by multiplication: Lemire 2019. */
static inline size_t random_below(RefBuf_Task *task, size_t bound)
{
    return (size_t)(((uint64_t)next_random(task) * bound) >> 32);
}

/* Between an increment and its decrement anything may look at the object. Without
 * this a compiler that sees both, as plain additions on builds with a GIL, leaves
 * neither. */
#define USE(op) __asm__ __volatile__("" : : "r"(op) : "memory")

/* Where this thread's chain has got to. Initial-exec as in interp/thread_words.c: no
 * call for it. */
#if defined(__ELF__)
__attribute__((tls_model("initial-exec")))
#endif
static __thread uint64_t chain;

/* A chain of multiplications, each of which waits for the one before, also for the
 * last one of the call before: so many iterations take so much time, however far
 * the processor runs ahead. */
void refbuf_work(uint64_t iterations)
{
    uint64_t x = chain;
    for (uint64_t i = 0; i < iterations; i++) {
        x = x * 0x2545F4914F6CDD1Du + 1;
        __asm__ __volatile__("" : "+r"(x));
    }
    chain = x;
}

#define VARIANT(name) stock_##name
#define INC(op) Py_INCREF(op)
#define DEC(op) Py_DECREF(op)
#define WORK(task) (void)(task)
#define KERNELS refbuf_kernels_stock
#include "kernel_body.h"

#define VARIANT(name) inline_##name
#define INC(op) RefBuf_INCREF(op)
#define DEC(op) RefBuf_DECREF(op)
#define WORK(task) (void)(task)
#define KERNELS refbuf_kernels_inline
#include "kernel_body.h"

#define VARIANT(name) call_##name
#define INC(op) RefBuf_IncRef(op)
#define DEC(op) RefBuf_DecRef(op)
#define WORK(task) (void)(task)
#define KERNELS refbuf_kernels_call
#include "kernel_body.h"

static inline void record(RefBuf_Task *task, PyObject *op, uintptr_t is_decrement)
{
    RefBuf_Recorder *recorder = task->recorder;
    if (recorder->count < recorder->room) {
        recorder->events[recorder->count++] = (uintptr_t)op | is_decrement;
    }
    else {
        recorder->lost++;
    }
}

static inline void traced_inc(RefBuf_Task *task, PyObject *op)
{
    record(task, op, 0);
    Py_INCREF(op);
}

static inline void traced_dec(RefBuf_Task *task, PyObject *op)
{
    /* First: afterwards its address may be another object's. */
    record(task, op, 1);
    Py_DECREF(op);
}

#define VARIANT(name) traced_##name
#define INC(op) traced_inc(task, op)
#define DEC(op) traced_dec(task, op)
#define WORK(task) (void)(task)
#define KERNELS refbuf_kernels_traced
#include "kernel_body.h"

#define VARIANT(name) bare_##name
#define INC(op) (void)(op)
#define DEC(op) (void)(op)
#define WORK(task) (void)(task)
#define KERNELS refbuf_kernels_bare
#include "kernel_body.h"

/* The same, with other work beside each pair. */

#define VARIANT(name) stock_work_##name
#define INC(op) Py_INCREF(op)
#define DEC(op) Py_DECREF(op)
#define WORK(task) refbuf_work((task)->work)
#define KERNELS refbuf_kernels_stock_work
#include "kernel_body.h"

#define VARIANT(name) inline_work_##name
#define INC(op) RefBuf_INCREF(op)
#define DEC(op) RefBuf_DECREF(op)
#define WORK(task) refbuf_work((task)->work)
#define KERNELS refbuf_kernels_inline_work
#include "kernel_body.h"

#define VARIANT(name) call_work_##name
#define INC(op) RefBuf_IncRef(op)
#define DEC(op) RefBuf_DecRef(op)
#define WORK(task) refbuf_work((task)->work)
#define KERNELS refbuf_kernels_call_work
#include "kernel_body.h"
