/* refbuf_shim.h: the names by which CPython counts references, for refbuf.
 *
 * For extensions whose source nobody changes. include/shim/Python.h includes
 * this behind Python.h; where a build cannot have that directory,
 *
 *     CFLAGS="-include .../refbuf_shim.h"
 *
 * does the same, but comes before anything that the source defines: a
 * Py_LIMITED_API, Py_BUILD_CORE or _GNU_SOURCE of its own is too late then.
 *
 * What the macros and functions mean stays the same. Each evaluates its arguments
 * once, takes any pointer where CPython's does, and may be called, or have its
 * address taken.
 *
 * refbuf is found when the module is initialized. A library that is no module asks
 * for it when it first drops a reference to an object that another thread owns, and
 * has it once the main thread has come by. Until then, and where refbuf is missing or has
 * another ABI version, CPython counts. With REFBUF_REQUIRE=1 in the environment,
 * or defined, the module's import fails instead; of a library, sys.unraisablehook hears.
 *
 * On builds with a GIL all counts are CPython's own, and so are the names.
 */
#ifndef REFBUF_SHIM_H
#define REFBUF_SHIM_H

/* Force-included, it meets assembler and sources that do not know Python. */
#if defined(__ASSEMBLER__)
#  define REFBUF_SHIM_APPLIES 0
#elif defined(Py_PYTHON_H)
#  define REFBUF_SHIM_APPLIES 1
#elif defined(__has_include)
#  if __has_include(<Python.h>)
#    define REFBUF_SHIM_APPLIES 1
#  else
#    define REFBUF_SHIM_APPLIES 0
#  endif
#else
#  define REFBUF_SHIM_APPLIES 1
#endif

/* The warnings of a compilation are about the extension's own code. */
#if defined(__GNUC__)
#  pragma GCC system_header
#endif

#if REFBUF_SHIM_APPLIES && !defined(Py_PYTHON_H)
#  define REFBUF_SHIM_FORCED /* For shim/Python.h, which may be all that was found. */
/* Too late for the source to say so, and all that CPython still allows. */
#  if !defined(PY_SSIZE_T_CLEAN)
#    define PY_SSIZE_T_CLEAN
#    include <Python.h>
#    undef PY_SSIZE_T_CLEAN /* The source may define it with any value. */
#  else
#    include <Python.h>
#  endif
#  undef REFBUF_SHIM_FORCED
#endif

#if REFBUF_SHIM_APPLIES && defined(Py_PYTHON_H)

#include <stdlib.h>

#ifdef __cplusplus
extern "C" {
#endif
static inline void refbuf_shim_ask(void);
#ifdef __cplusplus
}
#endif

/* What refbuf.h does where it has not been reached. */
#define REFBUF_UNREACHED() refbuf_shim_ask()
#include "refbuf.h"

#ifndef REFBUF_REQUIRE
#  define REFBUF_REQUIRE 0
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* -- reaching refbuf ------------------------------------------------------ */

/* Whether this module has asked for refbuf; one for all its translation units. */
#if defined(__GNUC__)
__attribute__((weak, visibility("hidden"))) int refbuf_shim_asked
#  ifdef __cplusplus
    = 0
#  endif
    ;
#  define REFBUF_SHIM_ASKED() __atomic_load_n(&refbuf_shim_asked, __ATOMIC_RELAXED)
#  define REFBUF_SHIM_SET_ASKED(asked) __atomic_store_n(&refbuf_shim_asked, (asked), __ATOMIC_RELAXED)
#else
static int refbuf_shim_asked;
#  define REFBUF_SHIM_ASKED() refbuf_shim_asked
#  define REFBUF_SHIM_SET_ASKED(asked) (refbuf_shim_asked = (asked))
#endif

static inline int refbuf_shim_requires(void)
{
    const char *setting = getenv("REFBUF_REQUIRE");
    if (setting != NULL && setting[0] != '\0') {
        return !(setting[0] == '0' && setting[1] == '\0');
    }
    return REFBUF_REQUIRE;
}

/* Once in a life: kept out of whatever calls it, and out of what never does. */
#if defined(__GNUC__)
#  define REFBUF_SHIM_COLD __attribute__((noinline, cold)) static inline
#else
#  define REFBUF_SHIM_COLD static inline
#endif

/* 0, with or without refbuf; -1 with ImportError where it is required, and with what
 * is no error, as KeyboardInterrupt. Imports: only where any Python code may run. */
REFBUF_SHIM_COLD int refbuf_shim_reach(void)
{
    PyObject *type, *value, *traceback;
    int required;
    if (refbuf_api() != NULL) {
        return 0;
    }
    required = refbuf_shim_requires();
    if (!REFBUF_COUNTS && !required) {
        return 0;
    }
    REFBUF_SHIM_SET_ASKED(1);
    if (refbuf_import() == 0) {
        return 0;
    }
    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        return -1;
    }
    if (!required) {
        PyErr_Clear();
        return 0;
    }
    if (PyErr_ExceptionMatches(PyExc_ImportError)) {
        return -1;
    }
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_Format(PyExc_ImportError, "REFBUF_REQUIRE is set, and refbuf cannot be imported: %S",
                 value != NULL ? value : type);
    if (!PyErr_ExceptionMatches(PyExc_ImportError)) {
        /* Its own text is an error. */
        PyErr_Clear();
        PyErr_SetString(PyExc_ImportError, "REFBUF_REQUIRE is set, and refbuf cannot be imported");
    }
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return -1;
}

/* There is no import that could fail, and whatever the main thread is at has nothing to do
 * with it: that refbuf is missing goes to sys.unraisablehook. */
static inline int refbuf_shim_pending(void *unused)
{
    int status = refbuf_shim_reach();
    (void)unused;
    if (status < 0 && PyErr_ExceptionMatches(PyExc_ImportError)) {
        PyErr_WriteUnraisable(NULL);
        status = 0;
    }
    return status;
}

/* Counting must not import: whoever counts may hold any lock, or be half-way through
 * anything. The main thread does where it could run a signal handler. By a decrement
 * that found nothing: it may run anything and wait for anybody, an increment may not. */
static inline void refbuf_shim_ask(void)
{
    if (REFBUF_COUNTS && !REFBUF_SHIM_ASKED()) {
        REFBUF_SHIM_SET_ASKED(1);
        if (Py_AddPendingCall(refbuf_shim_pending, NULL) < 0) {
            REFBUF_SHIM_SET_ASKED(0); /* Too many wait already: the next one, then. */
        }
    }
}

/* A module's initialization comes by one of these, with the interpreter ready to import
 * others. Not by 3.15's PyModExport hook: a module with that is reached as a library is. */

static inline PyObject *refbuf_shim_PyModule_Create2(struct PyModuleDef *definition, int version)
{
    return refbuf_shim_reach() < 0 ? NULL : PyModule_Create2(definition, version);
}

/* CPython declares it from 3.5 on. */
#if !defined(Py_LIMITED_API) || Py_LIMITED_API + 0 >= 0x03050000
static inline PyObject *refbuf_shim_PyModuleDef_Init(struct PyModuleDef *definition)
{
    return refbuf_shim_reach() < 0 ? NULL : PyModuleDef_Init(definition);
}
#  define PyModuleDef_Init refbuf_shim_PyModuleDef_Init
#endif

/* -- the functions -------------------------------------------------------- */

#if REFBUF_COUNTS

/* C++ has types that are named by functions. They are the same in all translation units
 * only where the functions are, and as visible as these. Another module's in their place
 * would count as well. */
#if defined(__cplusplus) && defined(__GNUC__)
#  define REFBUF_SHIM_FUNCTION __attribute__((visibility("default"))) inline
#else
#  define REFBUF_SHIM_FUNCTION static inline
#endif

REFBUF_SHIM_FUNCTION void refbuf_shim_Py_INCREF(PyObject *op) { refbuf_incref(op); }
REFBUF_SHIM_FUNCTION void refbuf_shim_Py_DECREF(PyObject *op) { refbuf_decref(op); }
REFBUF_SHIM_FUNCTION void refbuf_shim_Py_XINCREF(PyObject *op) { refbuf_xincref(op); }
REFBUF_SHIM_FUNCTION void refbuf_shim_Py_XDECREF(PyObject *op) { refbuf_xdecref(op); }
REFBUF_SHIM_FUNCTION void refbuf_shim_Py_IncRef(PyObject *op) { refbuf_xincref(op); }
REFBUF_SHIM_FUNCTION void refbuf_shim_Py_DecRef(PyObject *op) { refbuf_xdecref(op); }

REFBUF_SHIM_FUNCTION PyObject *refbuf_shim_Py_NewRef(PyObject *op)
{
    refbuf_incref(op);
    return op;
}

REFBUF_SHIM_FUNCTION PyObject *refbuf_shim_Py_XNewRef(PyObject *op)
{
    refbuf_xincref(op);
    return op;
}

#endif /* REFBUF_COUNTS */

#ifdef __cplusplus
}
#endif

/* -- the names ------------------------------------------------------------ */

/* A name becomes our function's, whatever follows it; followed by arguments, that is a
 * macro which casts them, as CPython's does. So no use of the name escapes. */

#undef PyModule_Create2
#define PyModule_Create2 refbuf_shim_PyModule_Create2

/* Elsewhere the names of ours would be CPython's again: its code stays what it was. */
#if REFBUF_COUNTS

#undef Py_INCREF
#undef Py_DECREF
#undef Py_XINCREF
#undef Py_XDECREF
#undef Py_NewRef
#undef Py_XNewRef

#define Py_INCREF refbuf_shim_Py_INCREF
#define Py_DECREF refbuf_shim_Py_DECREF
#define Py_XINCREF refbuf_shim_Py_XINCREF
#define Py_XDECREF refbuf_shim_Py_XDECREF
#define Py_NewRef refbuf_shim_Py_NewRef
#define Py_XNewRef refbuf_shim_Py_XNewRef
#define _Py_NewRef refbuf_shim_Py_NewRef
#define _Py_XNewRef refbuf_shim_Py_XNewRef
#define _Py_IncRef refbuf_shim_Py_INCREF
#define _Py_DecRef refbuf_shim_Py_DECREF
#define Py_IncRef refbuf_shim_Py_IncRef
#define Py_DecRef refbuf_shim_Py_DecRef

#if defined(Py_LIMITED_API)
/* Functions there, whose one argument may have commas of its own: a template's. */
#  define refbuf_shim_Py_INCREF(...) refbuf_shim_Py_INCREF(REFBUF_OBJECT((__VA_ARGS__)))
#  define refbuf_shim_Py_DECREF(...) refbuf_shim_Py_DECREF(REFBUF_OBJECT((__VA_ARGS__)))
#  define refbuf_shim_Py_XINCREF(...) refbuf_shim_Py_XINCREF(REFBUF_OBJECT((__VA_ARGS__)))
#  define refbuf_shim_Py_XDECREF(...) refbuf_shim_Py_XDECREF(REFBUF_OBJECT((__VA_ARGS__)))
#  define refbuf_shim_Py_NewRef(...) refbuf_shim_Py_NewRef(REFBUF_OBJECT((__VA_ARGS__)))
#  define refbuf_shim_Py_XNewRef(...) refbuf_shim_Py_XNewRef(REFBUF_OBJECT((__VA_ARGS__)))
#else
#  define refbuf_shim_Py_INCREF(op) refbuf_shim_Py_INCREF(REFBUF_OBJECT(op))
#  define refbuf_shim_Py_DECREF(op) refbuf_shim_Py_DECREF(REFBUF_OBJECT(op))
#  define refbuf_shim_Py_XINCREF(op) refbuf_shim_Py_XINCREF(REFBUF_OBJECT(op))
#  define refbuf_shim_Py_XDECREF(op) refbuf_shim_Py_XDECREF(REFBUF_OBJECT(op))
#  define refbuf_shim_Py_NewRef(op) refbuf_shim_Py_NewRef(REFBUF_OBJECT(op))
#  define refbuf_shim_Py_XNewRef(op) refbuf_shim_Py_XNewRef(REFBUF_OBJECT(op))
#endif

/* Py_CLEAR, Py_SETREF and Py_XSETREF are macros that drop by these names. */

#endif /* REFBUF_COUNTS */

#endif /* REFBUF_SHIM_APPLIES && Py_PYTHON_H */

#endif /* REFBUF_SHIM_H */
