/* What torture.c takes from torture_unit.c, the second translation unit of the
 * same module. It is C in both modules. */
#ifndef TORTURE_H
#define TORTURE_H

#ifdef __cplusplus
extern "C" {
#endif

void torture_unit_incref(PyObject *op);
void torture_unit_decref(PyObject *op);
/* The address of the unit's import state. */
void *torture_unit_import_state(void);

#ifdef __cplusplus
}
#endif

#endif /* TORTURE_H */
