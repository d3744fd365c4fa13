/* What shim_torture.c takes from shim_unit.c, the second translation unit of the same
 * module. */
#ifndef SHIM_TORTURE_H
#define SHIM_TORTURE_H

#ifdef __cplusplus
extern "C" {
#endif

/* Takes seven references and drops seven. */
int shim_unit_both(PyObject *op);
/* Calls what it is given. */
int shim_unit_call(void (*count)(PyObject *), PyObject *op);

#ifdef __cplusplus
}
#endif

/* Of two amounts, one for the full and one for the limited API. */
#ifdef Py_LIMITED_API
#  define SHIM_IN_FULL(full, limited) limited
#else
#  define SHIM_IN_FULL(full, limited) full
#endif

/* What the names take besides PyObject *: with the limited API they do not cast. */
#ifdef Py_LIMITED_API
typedef PyObject OtherType, SizedType, AnyType, ConstantType, ByteType;
#else
typedef PyTypeObject OtherType;
typedef PyVarObject SizedType;
typedef void AnyType;
typedef const PyObject ConstantType;
typedef const char ByteType;
#endif

#endif /* SHIM_TORTURE_H */
