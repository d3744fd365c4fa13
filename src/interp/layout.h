/* What bindgen reads: CPython's object header and our own layouts. */
#define REFBUF_BUILDING
#include <Python.h>
#include <refbuf.h>

#include "../workloads/kernels.h"

#if REFBUF_BUFFERED
/* Where the count fields are. */
enum {
    REFBUF_OFFSET_TID = offsetof(PyObject, ob_tid),
    REFBUF_OFFSET_LOCAL = offsetof(PyObject, ob_ref_local),
    REFBUF_OFFSET_SHARED = offsetof(PyObject, ob_ref_shared),
};
#endif
