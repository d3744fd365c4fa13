/* What bindgen reads: CPython's object header and our own layouts. */
#define REFBUF_BUILDING
#include <Python.h>
#include <refbuf.h>

#include "../workloads/kernels.h"
