/* Python.h, and then refbuf's counts in the place of CPython's: compile an
 * extension with this directory before Python's own,
 *
 *     CFLAGS="-O2 -DNDEBUG -I$(python -m refbuf config --shimdir)"
 *
 * and change nothing in its source. What that defines before it includes
 * Python.h still comes first. */
#ifndef REFBUF_SHIM_PYTHON_H
#define REFBUF_SHIM_PYTHON_H

/* The includer's warnings are about its own code; and the next line is a GNU one. */
#if defined(__GNUC__)
#  pragma GCC system_header
#endif

#include_next <Python.h>

#include "../refbuf_shim.h"

#endif /* REFBUF_SHIM_PYTHON_H */
