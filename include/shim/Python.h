/* Python.h, and then refbuf's counts in the place of CPython's: compile an
 * extension with this directory before Python's own,
 *
 *     CFLAGS="-O2 -DNDEBUG -I$(python -m refbuf config --shimdir)"
 *
 * and change nothing in its source. What that defines before it includes
 * Python.h still comes first. */

/* The includer's warnings are about its own code; and what follows is GNU's. */
#if defined(__GNUC__)
#  pragma GCC system_header
#endif

#if defined(__has_include_next)
#  if !__has_include_next(<Python.h>)
#    define REFBUF_SHIM_ALONE
#  endif
#endif

#if defined(REFBUF_SHIM_ALONE)
#  undef REFBUF_SHIM_ALONE
/* What refbuf_shim.h is forced upon need not know Python. (gcc 12 says nothing of an
 * include_next in vain where it has been asked before.) */
#  if !defined(REFBUF_SHIM_FORCED)
#    error "Python.h is missing: shim/Python.h, which is refbuf's, must come before Python's own."
#  endif
#elif !defined(REFBUF_SHIM_PYTHON_H)
#  define REFBUF_SHIM_PYTHON_H
#  include_next <Python.h>
#  include "../refbuf_shim.h"
#else
/* Again, or from the first of two such directories: its headers are those that count. */
#  include_next <Python.h>
#endif
