/* What the inner loops work on. One kernel for each workload and variant; the
 * loops are in kernel_body.h. Read by bindgen, for the driver in Rust. */
#ifndef REFBUF_KERNELS_H
#define REFBUF_KERNELS_H

#include <Python.h>
#include <stddef.h>
#include <stdint.h>

/* What a thread did to counts, for a trace: bounded. */
typedef struct RefBuf_Recorder {
    uintptr_t *events; /* objects' addresses; bit 0 is set for a decrement */
    size_t count;
    size_t room;
    uint64_t lost; /* events that found no room */
} RefBuf_Recorder;

/* One thread's share of a workload. Objects are kept alive by the caller. */
typedef struct RefBuf_Task {
    PyObject **objects;
    size_t count;          /* of objects, not 0 */
    const uint32_t *order; /* indices into objects, for zipf */
    size_t order_length;   /* a power of two */
    size_t cursor;
    uint64_t random; /* state of the generator, not 0 */
    PyObject *list;  /* for container */
    PyObject *dict;
    Py_ssize_t list_at;
    Py_ssize_t dict_at;
    PyObject **held; /* references of the thread's own: handoff, random */
    size_t held_count;
    size_t held_room;
    uint64_t work;     /* iterations of other work beside each pair */
    RefBuf_Recorder *recorder; /* not NULL for the kernels that record */
    uintptr_t sink; /* keeps reads of the objects from being optimized away */
} RefBuf_Task;

/* Does about `pairs` increments and decrements; returns how many pairs. */
typedef uint64_t (*RefBuf_Kernel)(RefBuf_Task *task, uint64_t pairs);

/* The kernels of one variant. `make` and `drop` are the halves of handoff:
 * they fill and empty `held`. */
typedef struct RefBuf_Kernels {
    RefBuf_Kernel shared;
    RefBuf_Kernel literals;
    RefBuf_Kernel zipf;
    RefBuf_Kernel wide;
    RefBuf_Kernel private_;
    RefBuf_Kernel container;
    RefBuf_Kernel random;
    RefBuf_Kernel make;
    RefBuf_Kernel drop;
} RefBuf_Kernels;

extern const RefBuf_Kernels refbuf_kernels_stock;
extern const RefBuf_Kernels refbuf_kernels_inline;
extern const RefBuf_Kernels refbuf_kernels_call;
extern const RefBuf_Kernels refbuf_kernels_stock_work;
extern const RefBuf_Kernels refbuf_kernels_inline_work;
extern const RefBuf_Kernels refbuf_kernels_call_work;
/* As stock, and each operation is recorded. */
extern const RefBuf_Kernels refbuf_kernels_traced;
/* Counts nothing: what a workload costs without its counts. */
extern const RefBuf_Kernels refbuf_kernels_bare;

/* Other work. */
void refbuf_work(uint64_t iterations);

/* Shape of literals: calls nested so deep, so many constants each. */
#define REFBUF_CALL_DEPTH 4
#define REFBUF_CALL_LITERALS 8

#endif /* REFBUF_KERNELS_H */
