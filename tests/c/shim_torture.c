/* An extension that knows nothing of refbuf: each name by which CPython counts, in
 * each place where C allows it. As C from gnu89 on, and through shim_torture.cpp as
 * C++. Compiled as it is, and with the shim.
 *
 * A position is a function that takes and drops references to the object it is given,
 * as many as its row in the table says. It returns 0, or the line where something is
 * not as it should be.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "shim_torture.h"

#ifndef SHIM_MODULE
#  define SHIM_MODULE shim_torture
#endif
#define SHIM_JOIN_(a, b) a##b
#define SHIM_JOIN(a, b) SHIM_JOIN_(a, b)
#define SHIM_STRING_(name) #name
#define SHIM_STRING(name) SHIM_STRING_(name)

#define CHECK(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            return __LINE__;                                                                   \
        }                                                                                      \
    } while (0)

/* What a compiler cannot see through. */
static volatile int yes = 1;
static volatile int no = 0;

/* -- the plain forms ------------------------------------------------------ */

static int incref(PyObject *op) { Py_INCREF(op); return 0; }
static int decref(PyObject *op) { Py_DECREF(op); return 0; }
static int xincref(PyObject *op) { Py_XINCREF(op); return 0; }
static int xdecref(PyObject *op) { Py_XDECREF(op); return 0; }
static int function_incref(PyObject *op) { Py_IncRef(op); return 0; }
static int function_decref(PyObject *op) { Py_DecRef(op); return 0; }
static int inner_incref(PyObject *op) { _Py_IncRef(op); return 0; }
static int inner_decref(PyObject *op) { _Py_DecRef(op); return 0; }
static int newref(PyObject *op) { return Py_NewRef(op) == op ? 0 : __LINE__; }
static int xnewref(PyObject *op) { return Py_XNewRef(op) == op ? 0 : __LINE__; }
static int inner_newref(PyObject *op) { return _Py_NewRef(op) == op ? 0 : __LINE__; }
static int inner_xnewref(PyObject *op) { return _Py_XNewRef(op) == op ? 0 : __LINE__; }
static int in_another_unit(PyObject *op) { return shim_unit_both(op); }

static int clear(PyObject *op)
{
    Py_CLEAR(op);
    CHECK(op == NULL);
    Py_CLEAR(op);
    CHECK(op == NULL);
    return 0;
}

#ifdef Py_SETREF
static int setref(PyObject *op)
{
    PyObject *variable = op;
    Py_SETREF(variable, NULL);
    CHECK(variable == NULL);
    return 0;
}

static int setref_to_itself(PyObject *op)
{
    PyObject *variable = op;
    Py_SETREF(variable, Py_NewRef(op));
    CHECK(variable == op);
    return 0;
}

static int xsetref(PyObject *op)
{
    PyObject *variable = NULL;
    Py_XSETREF(variable, op);
    CHECK(variable == op);
    Py_XSETREF(variable, NULL);
    CHECK(variable == NULL);
    return 0;
}
#endif

#if defined(Py_SETREF) && PY_VERSION_HEX >= 0x030C0000
static PyObject *take_over(PyObject **variable, PyObject **moved, PyObject *op)
{
    *moved = *variable;
    *variable = NULL;
    return Py_NewRef(op);
}

/* The old value has been read when the new one is evaluated, which may change the variable. */
static int setref_to_what_changes_the_variable(PyObject *op)
{
    PyObject *variable = Py_NewRef(op), *moved = NULL;
    PyObject *items[2] = {NULL, NULL};
    int index = 0;
    Py_SETREF(variable, take_over(&variable, &moved, op));
    CHECK(variable == op && moved == op);
    Py_XSETREF(variable, take_over(&variable, &moved, op));
    CHECK(variable == op && moved == op);
    Py_DECREF(variable);
    Py_XSETREF(items[index++], index == 1 ? Py_NewRef(op) : NULL);
    CHECK(index == 1 && items[0] == op && items[1] == NULL);
    Py_CLEAR(items[0]);
    return 0;
}
#endif

static int null_where_it_is_allowed(PyObject *op)
{
    PyObject *variable = NULL;
    (void)op;
    Py_XINCREF(variable);
    Py_XDECREF(variable);
    Py_XINCREF(NULL);
    Py_XDECREF(NULL);
    Py_IncRef(NULL);
    Py_DecRef(NULL);
    CHECK(Py_XNewRef(NULL) == NULL);
    CHECK(_Py_XNewRef(NULL) == NULL);
    Py_CLEAR(variable);
    return variable == NULL ? 0 : __LINE__;
}

/* -- statements ----------------------------------------------------------- */

static int if_else_without_braces(PyObject *op)
{
    PyObject *other = op;
    if (yes) Py_INCREF(op); else Py_DECREF(op);
    if (no) Py_INCREF(op); else Py_DECREF(op);
    if (yes)
        Py_XINCREF(op);
    else if (no)
        Py_XDECREF(op);
    else
        Py_INCREF(op);
    if (no)
        Py_IncRef(op);
    else
        Py_CLEAR(other);
    CHECK(other == NULL);
    other = op;
    if (yes)
        Py_INCREF(op);
    else
        Py_CLEAR(other);
    if (yes)
        Py_CLEAR(other);
    else
        Py_DECREF(op);
    CHECK(other == NULL);
    return 0;
}

#ifdef Py_SETREF
static int setref_without_braces(PyObject *op)
{
    PyObject *first = op, *second = op;
    if (yes)
        Py_SETREF(first, NULL);
    else
        Py_XSETREF(second, NULL);
    if (yes)
        Py_XSETREF(second, NULL);
    else
        Py_SETREF(first, NULL);
    CHECK(first == NULL && second == NULL);
    return 0;
}
#endif

static int loops(PyObject *op)
{
    int i;
    PyObject *variable;
    for (Py_INCREF(op), i = 0; i < 3; i++, Py_INCREF(op))
        Py_DECREF(op);
    for (i = 0; Py_XINCREF(op), i < 2; i++, Py_XDECREF(op)) {
    }
    Py_XDECREF(op);
    Py_DECREF(op);
    i = 2;
    while (Py_INCREF(op), i-- > 0)
        Py_DECREF(op);
    do
        Py_DECREF(op);
    while (i > 0);
    for (variable = op; variable != NULL;)
        Py_CLEAR(variable);
    return 0;
}

static int switch_and_labels(PyObject *op)
{
    int turn = 0;
again:
    Py_INCREF(op);
    switch (turn++) {
    case 0: Py_INCREF(op); break;
    case 1:
        Py_DECREF(op);
        break;
    default: Py_DecRef(op);
    }
    if (turn < 3)
        goto again;
    {
        Py_DECREF(op);
    }
    goto end;
end: Py_DECREF(op);
    return 0;
}

static int spelled_oddly(PyObject *op)
{
    Py_INCREF (op);
    Py_INCREF
        (op);
    Py_DECREF( /* a comment, with a comma */ op );
    Py_DECREF((op));
    (Py_INCREF(op));
    ((Py_DECREF(op)));
    (void)Py_INCREF(op);
    (void)Py_DECREF(op);
    ; Py_INCREF(op);; Py_DECREF(op);
    return 0;
}

/* -- expressions ---------------------------------------------------------- */

static PyObject *incref_and_give(PyObject *op) { return (Py_INCREF(op), op); }
static PyObject *xincref_and_give(PyObject *op) { return Py_XINCREF(op), op; }

static int comma_expressions(PyObject *op)
{
    PyObject *given = (Py_INCREF(op), op);
    PyObject *items[2];
    CHECK(given == op);
    CHECK(incref_and_give(op) == op && xincref_and_give(op) == op);
    items[0] = (Py_INCREF(op), Py_INCREF(op), op);
    items[1] = (Py_IncRef(op), op);
    Py_DECREF(op), Py_XDECREF(op), Py_DecRef(op), Py_DECREF(items[0]), Py_DECREF(items[1]);
    return (Py_DECREF(op), 0);
}

static int conditional_expressions(PyObject *op)
{
    PyObject *given;
    yes ? Py_INCREF(op) : Py_DECREF(op);
    no ? Py_INCREF(op) : Py_DECREF(op);
    no ? (void)0 : Py_XINCREF(op);
    yes ? Py_XDECREF(op) : (void)0;
    given = yes ? Py_NewRef(op) : NULL;
    CHECK(given == op);
    given = no ? Py_NewRef(op) : (Py_INCREF(op), op);
    CHECK(given == op);
    CHECK(yes && (Py_DECREF(op), 1) && (no || (Py_DECREF(op), 1)));
    return 0;
}

static int nested(PyObject *op)
{
    PyObject *const thrice = Py_NewRef(Py_XNewRef(Py_NewRef(op)));
    Py_INCREF(Py_NewRef(op));
    Py_DECREF(Py_NewRef(op));
    Py_DECREF((Py_INCREF(op), op));
    Py_DECREF(thrice);
    Py_DecRef(Py_NewRef(op));
    CHECK(sizeof(Py_NewRef(op)) == sizeof op); /* not evaluated */
    return 0;
}

static PyObject *look(PyObject *op, int *calls) { ++*calls; return op; }

/* Each argument has an effect, and that happens once; in 3.11 what is assigned to
 * appears more than once in CPython's own macros, and is not tried there. */
static int arguments_are_evaluated_once(PyObject *op)
{
    PyObject *items[8];
    PyObject **cursor = items;
    int calls = 0, index;
    for (index = 0; index < 8; index++) {
        items[index] = op;
    }
    Py_INCREF(*cursor++);
    CHECK(cursor == items + 1);
    Py_XINCREF(*cursor++);
    CHECK(cursor == items + 2);
    CHECK(Py_NewRef(*cursor++) == op && cursor == items + 3);
    CHECK(Py_XNewRef(*cursor++) == op && cursor == items + 4);
    CHECK(_Py_NewRef(*cursor++) == op && cursor == items + 5);
    CHECK(_Py_XNewRef(*cursor++) == op && cursor == items + 6);
    Py_IncRef(*cursor++);
    _Py_IncRef(*cursor++);
    CHECK(cursor == items + 8);
    Py_DECREF(*--cursor);
    CHECK(cursor == items + 7);
    Py_XDECREF(*--cursor);
    CHECK(cursor == items + 6);
    Py_DecRef(*--cursor);
    CHECK(cursor == items + 5);
    _Py_DecRef(*--cursor);
    CHECK(cursor == items + 4);
    Py_INCREF(look(op, &calls));
    Py_DECREF(look(op, &calls));
    Py_XINCREF(look(op, &calls));
    Py_XDECREF(look(op, &calls));
    CHECK(calls == 4);
#if defined(Py_SETREF) && PY_VERSION_HEX >= 0x030C0000
    {
        PyObject *values[2];
        PyObject **value = values;
        values[0] = op;
        values[1] = NULL;
        Py_CLEAR(*--cursor);
        CHECK(cursor == items + 3 && *cursor == NULL);
        Py_XSETREF(*cursor++, *value++);
        CHECK(cursor == items + 4 && value == values + 1 && items[3] == op);
        Py_SETREF(*--cursor, *value++);
        CHECK(cursor == items + 3 && value == values + 2 && items[3] == NULL);
    }
#else
    Py_DECREF(op);
    Py_DECREF(op);
#endif
    Py_DECREF(op);
    Py_DECREF(op);
    return 0;
}

/* -- pointers of other types ---------------------------------------------- */

typedef struct Holder {
    int padding;
    OtherType *type;
    SizedType *sized;
    AnyType *anything;
#ifndef Py_LIMITED_API
    PyListObject *list;
#endif
} Holder;

/* Only the pointers are of these types; the object may be any. */
static int pointers_of_other_types(PyObject *op)
{
    ConstantType *constant = op;
    ByteType *bytes = (ByteType *)(void *)op;
    Holder holders[2];
    Holder *holder = holders + 1;
    memset(holders, 0, sizeof holders);
    holder->type = (OtherType *)op;
    holder->sized = (SizedType *)op;
    holder->anything = op;
    Py_INCREF(holder->type);
    Py_XINCREF(holder->sized);
    Py_INCREF(holder->anything);
    Py_INCREF(constant);
    Py_INCREF(bytes);
    CHECK(Py_NewRef(holder->type) == op);
    CHECK(Py_XNewRef(holder->sized) == op);
    Py_DECREF((holders + 1)->type);
    Py_XDECREF(holders[1].sized);
    Py_DECREF(*&holder->anything);
    Py_DECREF(constant);
    Py_DECREF(bytes);
    Py_CLEAR(holder->type);
    Py_CLEAR((holders + 1)->sized);
    CHECK(holder->type == NULL && holder->sized == NULL && holder->anything == (void *)op);
#ifndef Py_LIMITED_API
    holder->list = (PyListObject *)Py_NewRef(op);
    Py_INCREF(holder->list);
    Py_XSETREF(holder->type, (OtherType *)Py_NewRef(op));
    Py_SETREF(holder->type, NULL);
    Py_SETREF(holder->list, (PyListObject *)Py_NewRef(op));
    Py_XSETREF(holder->list, NULL);
    Py_DECREF(op);
    CHECK(holder->list == NULL && holder->type == NULL);
#else
    Py_INCREF(op);
    Py_DECREF(op);
#endif
    CHECK(holder->padding == 0 && holders[0].anything == NULL);
    return 0;
}

/* -- macros of the extension's own ------------------------------------------ */

#define MY_INCREF(op) Py_INCREF(op)
#define MY_DECREF Py_DECREF
#define BOTH(first, second) (Py_INCREF(first), Py_XINCREF(second))
#define KIND(kind) Py_##kind
#define APPLY(function, op) function(op)
#define RETURN_NEW(op) return Py_INCREF(op), (op)
#define GUARDED(op)                                                                            \
    do {                                                                                       \
        Py_INCREF(op);                                                                         \
        Py_DECREF(op);                                                                         \
    } while (0)
/* As pythoncapi_compat.h and others ask. */
#ifndef Py_NewRef
#  error "Py_NewRef is a macro in CPython"
#endif
#ifndef Py_XSETREF /* CPython's limited API has none */
#  define Py_XSETREF(variable, op)                                                             \
    do {                                                                                       \
        PyObject *old_ = (variable);                                                           \
        (variable) = (op);                                                                     \
        Py_XDECREF(old_);                                                                      \
    } while (0)
#endif

static PyObject *return_new(PyObject *op) { RETURN_NEW(op); }

static int macros_of_its_own(PyObject *op)
{
    MY_INCREF(op);
    MY_DECREF(op);
    BOTH(op, op);
    KIND(DECREF)(op);
    KIND(DecRef)(op);
    APPLY(Py_INCREF, op);
    APPLY(Py_DECREF, op);
    APPLY(KIND(XINCREF), op);
    APPLY(MY_DECREF, op);
    if (yes)
        GUARDED(op);
    CHECK(return_new(op) == op);
    MY_DECREF (op);
    return 0;
}

/* -- names as functions ------------------------------------------------------ */

typedef void (*counter)(PyObject *);
typedef PyObject *(*giver)(PyObject *);

typedef struct Way {
    counter take, drop;
    giver give;
} Way;

static const counter takers[] = {Py_INCREF, Py_XINCREF, Py_IncRef, &Py_IncRef, _Py_IncRef, &Py_INCREF};
static const counter droppers[] = {Py_DECREF, Py_XDECREF, Py_DecRef, &Py_DecRef, _Py_DecRef, &Py_DECREF};
static const giver givers[] = {Py_NewRef, Py_XNewRef, &Py_NewRef, _Py_NewRef, _Py_XNewRef};
static const Way ways[] = {{Py_INCREF, Py_DECREF, Py_NewRef}, {Py_IncRef, Py_DecRef, Py_XNewRef}};
static void (*const as_any[])(void) = {(void (*)(void))Py_IncRef, (void (*)(void))&Py_DECREF};

static void call(counter count, PyObject *op) { count(op); }

static int pointers_to_functions(PyObject *op)
{
    size_t index;
    for (index = 0; index < sizeof takers / sizeof *takers; index++) {
        takers[index](op);
        (*droppers[index])(op);
    }
    for (index = 0; index < sizeof givers / sizeof *givers; index++) {
        CHECK(givers[index](op) == op);
    }
    for (index = 0; index < sizeof givers / sizeof *givers; index++) {
        droppers[index](op);
    }
    for (index = 0; index < sizeof ways / sizeof *ways; index++) {
        ways[index].take(op);
        CHECK(ways[index].give(op) == op);
        ways[index].drop(op);
        ways[index].drop(op);
    }
    ((counter)as_any[0])(op);
    ((counter)as_any[1])(op);
    return 0;
}

static int names_passed_on(PyObject *op)
{
    counter local = Py_INCREF;
    counter other;
    other = &Py_DecRef;
    local(op);
    other(op);
    (Py_INCREF)(op);
    (Py_DECREF)(op);
    (*Py_IncRef)(op);
    (&Py_DecRef)(op);
    (yes ? Py_INCREF : Py_DECREF)(op);
    (no ? Py_IncRef : Py_DecRef)(op);
    call(Py_XINCREF, op);
    call(Py_XDECREF, op);
    call(&Py_IncRef, op);
    call(yes ? Py_DecRef : Py_IncRef, op);
    call((counter)Py_INCREF, op);
    call((counter)(void (*)(void))Py_DECREF, op);
    CHECK(&Py_IncRef == Py_IncRef && takers[2] == Py_IncRef && shim_unit_call(Py_INCREF, op) == 0);
    return shim_unit_call(Py_DECREF, op);
}

/* -- CPython's macros that count --------------------------------------------- */

/* What they return lives for ever in later versions, and is not counted at all then. So
 * here it is an object that can be watched. */
#define CALLS(name) static PyObject *name(PyObject *op) { (void)op;
#undef Py_None
#undef Py_True
#undef Py_False
#define Py_None op
#define Py_True op
#define Py_False op
CALLS(return_none) Py_RETURN_NONE; }
CALLS(return_true) Py_RETURN_TRUE; }
CALLS(return_false) Py_RETURN_FALSE; }
CALLS(return_compared) Py_RETURN_RICHCOMPARE(1, 2, Py_LT); }
#undef Py_None
#undef Py_True
#undef Py_False
#define Py_None (&_Py_NoneStruct)
#if defined(Py_LIMITED_API) && Py_LIMITED_API + 0 >= 0x030D0000
#  undef Py_None
#  define Py_None Py_GetConstantBorrowed(Py_CONSTANT_NONE)
#endif

/* From 3.12 on they are returned without a count, but for limited APIs that begin before. */
#ifdef Py_LIMITED_API
#  define RETURNS_COUNT (Py_LIMITED_API + 0 < 0x030C0000)
#else
#  define RETURNS_COUNT (PY_VERSION_HEX < 0x030C0000)
#endif

static int returning_macros(PyObject *op)
{
    CHECK(return_none(op) == op);
    CHECK(return_true(op) == op);
    CHECK(return_false(op) == op);
    CHECK(return_compared(op) == op);
    return 0;
}

/* -- the table --------------------------------------------------------------- */

typedef struct Position {
    const char *name;
    int (*visit)(PyObject *);
    int takes, drops;
} Position;

#ifdef Py_SETREF
#  define IF_SETREF(row) row
#endif

#ifndef SHIM_MORE_POSITIONS
#  define SHIM_MORE_POSITIONS
#endif

#define ROW(name, takes, drops) {#name, name, takes, drops},

static const Position positions[] = {
    ROW(incref, 1, 0)
    ROW(decref, 0, 1)
    ROW(xincref, 1, 0)
    ROW(xdecref, 0, 1)
    ROW(function_incref, 1, 0)
    ROW(function_decref, 0, 1)
    ROW(inner_incref, 1, 0)
    ROW(inner_decref, 0, 1)
    ROW(newref, 1, 0)
    ROW(xnewref, 1, 0)
    ROW(inner_newref, 1, 0)
    ROW(inner_xnewref, 1, 0)
    ROW(in_another_unit, 7, 7)
    ROW(clear, 0, 1)
#ifdef Py_SETREF
    ROW(setref, 0, 1)
    ROW(setref_to_itself, 1, 1)
    ROW(xsetref, 0, 1)
    ROW(setref_without_braces, 0, 2)
#endif
#if defined(Py_SETREF) && PY_VERSION_HEX >= 0x030C0000
    ROW(setref_to_what_changes_the_variable, 4, 4)
#endif
    ROW(null_where_it_is_allowed, 0, 0)
    ROW(if_else_without_braces, 3, 3)
    ROW(loops, 10, 11)
    ROW(switch_and_labels, 4, 4)
    ROW(spelled_oddly, 5, 5)
    ROW(comma_expressions, 6, 6)
    ROW(conditional_expressions, 4, 4)
    ROW(nested, 8, 4)
    ROW(arguments_are_evaluated_once, 10, 10)
    ROW(pointers_of_other_types, SHIM_IN_FULL(11, 8), SHIM_IN_FULL(11, 8))
    ROW(macros_of_its_own, 7, 7)
    ROW(pointers_to_functions, 16, 16)
    ROW(names_passed_on, 8, 8)
    ROW(returning_macros, 4 * RETURNS_COUNT, 0)
    SHIM_MORE_POSITIONS
    {NULL, NULL, 0, 0},
};

/* -- the module --------------------------------------------------------------- */

/* [(name, takes, drops), ...] */
static PyObject *table(PyObject *self, PyObject *unused)
{
    PyObject *rows = PyList_New(0);
    const Position *position;
    (void)self, (void)unused;
    for (position = positions; rows != NULL && position->name != NULL; position++) {
        PyObject *row = Py_BuildValue("sii", position->name, position->takes, position->drops);
        if (row == NULL || PyList_Append(rows, row) < 0) {
            Py_CLEAR(rows);
        }
        Py_XDECREF(row);
    }
    return rows;
}

/* go(name, object, times, balance): goes to a position, and if asked makes up for what it
 * took or dropped each time. How many references were taken or dropped by all that. */
static PyObject *go(PyObject *self, PyObject *args)
{
    const char *name;
    PyObject *op;
    int times, balance, done, line, left;
    const Position *position;
    (void)self;
    if (!PyArg_ParseTuple(args, "sOii", &name, &op, &times, &balance)) {
        return NULL;
    }
    for (position = positions; position->name != NULL; position++) {
        if (strcmp(position->name, name) == 0) {
            break;
        }
    }
    if (position->name == NULL) {
        return PyErr_Format(PyExc_ValueError, "there is no position called %s", name);
    }
    left = position->takes - position->drops;
    for (done = 0; done < times; done++) {
        int by;
        line = position->visit(op);
        if (line != 0) {
            return PyErr_Format(PyExc_AssertionError, "%s: line %d", name, line);
        }
        for (by = left; balance && by > 0; by--) {
            Py_DECREF(op);
        }
        for (; balance && by < 0; by++) {
            Py_INCREF(op);
        }
    }
    return PyLong_FromLong((long)times * (position->takes + position->drops + (!balance ? 0 : left < 0 ? -left : left)));
}

/* References without an owner: a number that any thread may give to any module's drop(). */
static PyObject *make(PyObject *self, PyObject *op)
{
    (void)self;
    return PyLong_FromVoidPtr(Py_NewRef(op));
}

static PyObject *drop(PyObject *self, PyObject *number)
{
    PyObject *op = (PyObject *)PyLong_AsVoidPtr(number);
    (void)self;
    Py_XDECREF(op);
    return PyErr_Occurred() ? NULL : PyLong_FromLong(0);
}

/* A reference as a capsule's: it is dropped by the module that took it, whoever ends it. */
static void end_capsule(PyObject *capsule)
{
    Py_DECREF((PyObject *)PyCapsule_GetPointer(capsule, NULL));
}

static PyObject *wrap(PyObject *self, PyObject *op)
{
    PyObject *capsule = PyCapsule_New(op, NULL, end_capsule);
    (void)self;
    if (capsule != NULL) {
        Py_INCREF(op);
    }
    return capsule;
}

static PyObject *unwrap(PyObject *self, PyObject *capsule)
{
    PyObject *op = (PyObject *)PyCapsule_GetPointer(capsule, NULL);
    (void)self;
    Py_XINCREF(op);
    return op;
}

/* A variable that finalizers look at, and that exit finds full. */
static PyObject *kept;

static PyObject *keep(PyObject *self, PyObject *op)
{
    (void)self;
    Py_INCREF(op);
    Py_XSETREF(kept, op);
    return PyLong_FromLong(0);
}

static PyObject *give(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return kept == NULL ? PyLong_FromLong(0) : Py_NewRef(kept);
}

static PyObject *forget(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    Py_CLEAR(kept);
    return PyLong_FromLong(0);
}

/* The module's own state; the collector must see it, and exit clears it. */
typedef struct State {
    PyObject *held;
} State;

static PyObject *hold(PyObject *self, PyObject *op)
{
    State *state = (State *)PyModule_GetState(self);
    Py_INCREF(op);
    Py_XSETREF(state->held, op);
    return PyLong_FromLong(0);
}

static int traverse_state(PyObject *self, visitproc visit, void *arg)
{
    State *state = (State *)PyModule_GetState(self);
    if (state != NULL) {
        Py_VISIT(state->held);
    }
    return 0;
}

static int clear_state(PyObject *self)
{
    State *state = (State *)PyModule_GetState(self);
    if (state != NULL) {
        Py_CLEAR(state->held);
    }
    return 0;
}

static void free_state(void *self) { (void)clear_state((PyObject *)self); }

#define METHOD(name, flags) {#name, name, flags, NULL}

static PyMethodDef methods[] = {
    METHOD(table, METH_NOARGS), METHOD(go, METH_VARARGS), METHOD(make, METH_O),
    METHOD(drop, METH_O),       METHOD(wrap, METH_O),        METHOD(unwrap, METH_O),
    METHOD(keep, METH_O),       METHOD(give, METH_NOARGS),   METHOD(forget, METH_NOARGS),
    METHOD(hold, METH_O),       {NULL, NULL, 0, NULL},
};

#ifdef SHIM_SINGLE_PHASE
#  define SLOTS NULL
#else
static PyModuleDef_Slot slots[] = {
#  ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#  endif
#  ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#  endif
    {0, NULL},
};
#  define SLOTS slots
#endif

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, SHIM_STRING(SHIM_MODULE), NULL, sizeof(State), methods, SLOTS,
    traverse_state, clear_state, free_state,
};

PyMODINIT_FUNC SHIM_JOIN(PyInit_, SHIM_MODULE)(void)
{
#ifdef SHIM_SINGLE_PHASE
    PyObject *module = PyModule_Create(&definition);
#  ifdef Py_GIL_DISABLED
    if (module != NULL) {
        PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
    }
#  endif
    return module;
#else
    return PyModuleDef_Init(&definition);
#endif
}
