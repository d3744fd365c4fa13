// shim_torture.c compiled as C++, and what only C++ has: the names in classes, templates,
// namespaces and lambdas, and objects that exist before the module is initialized.
// C++98; newer forms where the compiler is told to know them.
#define PY_SSIZE_T_CLEAN
// Many wrap it so, though it needs no wrapping.
extern "C" {
#include <Python.h>
}

#include <algorithm>
#include <vector>
#if __cplusplus >= 201103L
#  include <functional>
#  include <memory>
#  include <utility>
#endif

static int handles(PyObject *op);
static int templates(PyObject *op);
static int qualified_names(PyObject *op);
static int algorithms(PyObject *op);
static int conversions(PyObject *op);
static int counted_before_main(PyObject *op);
static int default_arguments(PyObject *op);
static int in_the_middle(PyObject *op);
#if __cplusplus >= 201103L
static int lambdas(PyObject *op);
static int smart_pointers(PyObject *op);
static int function_templates(PyObject *op);
static int variadic_macros(PyObject *op);
#  define SHIM_CPP11(rows) rows
#else
#  define SHIM_CPP11(rows)
#endif

#define SHIM_MORE_POSITIONS                                                                    \
    ROW(handles, 11, 11)                                                                       \
    ROW(templates, 11, 11)                                                                       \
    ROW(qualified_names, 9, 9)                                                                 \
    ROW(algorithms, 6, 6)                                                                      \
    ROW(conversions, 4, 4)                                                                     \
    ROW(counted_before_main, 1, 1)                                                             \
    ROW(default_arguments, 2, 2)                                                               \
    ROW(in_the_middle, 4, 4)                                                                   \
    SHIM_CPP11(ROW(lambdas, 8, 8) ROW(smart_pointers, 5, 5) ROW(function_templates, 6, 6)      \
                   ROW(variadic_macros, 2, 2))

#include "shim_torture.c"

namespace
{

// A counted pointer as C++ extensions write them.
template <typename T> class Handle
{
  public:
    explicit Handle(T *op) : op_(op) { Py_XINCREF(op_); }
    Handle(const Handle &other) : op_((Py_XINCREF(other.op_), other.op_)) {}
    Handle &operator=(const Handle &other)
    {
        Py_XINCREF(other.op_);
        Py_XDECREF(op_);
        op_ = other.op_;
        return *this;
    }
    ~Handle() { Py_CLEAR(this->op_); }
    T *get() const { return op_; }
    operator PyObject *() const { return reinterpret_cast<PyObject *>(op_); }

  private:
    T *op_;
};

struct Base {
    PyObject *member;
    explicit Base(PyObject *op) : member(Py_NewRef(op)) {}
    virtual ~Base() { Py_DECREF(member); }
    virtual void take() { Py_INCREF(member); }
    static void drop(PyObject *op) { Py_DECREF(op); }
};

struct Derived : Base {
    explicit Derived(PyObject *op) : Base(op) {}
    void take() { Base::take(); }
};

// Made and counted before PyInit: the interpreter is there, and refbuf not yet asked for.
struct Early {
    PyObject *op;
    Early() : op(PyList_New(0))
    {
        for (int turn = 0; turn < 1000; turn++) {
            Py_INCREF(op);
            Py_XINCREF(op);
            Py_DECREF(op);
        }
        for (int turn = 0; turn < 1000; turn++) {
            Py_DecRef(op);
        }
    }
};
Early early;
PyObject *const early_none = Py_NewRef(Py_None);

template <typename T> T *fresh(T *op)
{
    Py_INCREF(op);
    return op;
}

template <typename T> void take_all(T first, T last)
{
    for (; first != last; ++first)
        Py_INCREF(*first);
}

} // namespace

namespace shim
{
using ::Py_IncRef;
using ::Py_DecRef;

inline void take(PyObject *op) { ::Py_INCREF(op); }
inline void drop(PyObject *op) { ::Py_DECREF(op); }

namespace inner
{
void (*const taker)(PyObject *) = ::Py_IncRef;
void (*const dropper)(PyObject *) = &::Py_DECREF;
} // namespace inner
} // namespace shim

static int handles(PyObject *op)
{
    Handle<PyObject> one(op);
    {
        std::vector<Handle<OtherType> > many;
        many.reserve(3);
        many.push_back(Handle<OtherType>((OtherType *)op));
        many.push_back(many[0]);
        many[1] = many[0];
        const Handle<PyObject> two = one;
        one = two;
        one = Handle<PyObject>(NULL);
        one = two;
        CHECK(one.get() == op && many[1].get() == (OtherType *)op);
    }
    {
        Base *base = new Derived(op);
        base->take();
        Base::drop(base->member);
        delete base;
    }
    {
        PyObject *&reference = op;
        Py_INCREF(reference);
        PyObject *copy = reference;
        Py_CLEAR(copy);
        CHECK(copy == NULL);
    }
    return 0;
}

static int templates(PyObject *op)
{
    PyObject *items[4] = {op, op, op, op};
    take_all(items, items + 4);
    take_all(items, items + 1);
    CHECK(fresh(op) == op && fresh((OtherType *)op) == (OtherType *)op);
    for (int index = 0; index < 4; index++)
        Py_DECREF(items[index]);
    Py_DECREF(fresh<PyObject>(op) == op ? op : NULL);
    Py_DECREF(op);
    Py_DECREF(op);
    Py_INCREF(op);
    Py_CLEAR(items[0]);
    Py_XDECREF(items[0]);
    Py_DecRef(items[1]);
    Py_XINCREF(op);
    return items[0] == NULL ? (Py_INCREF(op), Py_XDECREF(op), Py_DECREF(op), 0) : __LINE__;
}

static int qualified_names(PyObject *op)
{
    ::Py_INCREF(op);
    ::Py_DECREF(op);
    ::Py_XINCREF(op);
    ::Py_XDECREF(op);
    ::Py_IncRef(op);
    ::Py_DecRef(op);
    CHECK(::Py_NewRef(op) == op && ::Py_XNewRef(op) == op && ::_Py_NewRef(op) == op);
    shim::Py_DecRef(op);
    shim::Py_DecRef(op);
    shim::drop(op);
    shim::take(op);
    shim::inner::taker(op);
    shim::inner::dropper(op);
    shim::Py_IncRef(op);
    {
        using namespace shim;
        drop(op);
        (&::Py_DecRef)(op);
    }
    return 0;
}

static int algorithms(PyObject *op)
{
    std::vector<PyObject *> items(3, op);
    std::for_each(items.begin(), items.end(), Py_INCREF);
    std::for_each(items.begin(), items.end(), &Py_IncRef);
    std::for_each(items.begin(), items.end(), Py_DecRef);
    std::for_each(items.begin(), items.end(), ::Py_DECREF);
    return 0;
}

static int conversions(PyObject *op)
{
    const Handle<OtherType> handle((OtherType *)op);
    Py_INCREF(handle);
    Py_XINCREF(handle);
    CHECK(Py_NewRef(handle) == op);
    Py_DECREF(handle);
    Py_XDECREF(handle);
    Py_DecRef(handle);
    return 0;
}

/* What was counted before PyInit has the count that it should have. */
static int counted_before_main(PyObject *op)
{
    CHECK(early_none == Py_None && PyList_Size(early.op) == 0);
#ifndef Py_LIMITED_API
    CHECK(Py_REFCNT(early.op) == 1);
#endif
    Py_INCREF(op);
    Py_DECREF(op);
    return 0;
}

static int call_both(PyObject *op, void (*take)(PyObject *) = Py_INCREF,
                     void (*drop)(PyObject *) = &Py_DecRef)
{
    take(op);
    drop(op);
    return 0;
}

static int default_arguments(PyObject *op)
{
    return call_both(op) + call_both(op, Py_IncRef, Py_DECREF);
}

// PyObject is not where the class begins: behind what its virtual functions are found by.
struct Middle : PyObject {
    virtual ~Middle() {}
};

static int in_the_middle(PyObject *op)
{
    Middle *first = static_cast<Middle *>(op), *second = first;
    CHECK(static_cast<void *>(first) != static_cast<void *>(op));
    Py_INCREF(first);
    Py_XINCREF(second);
    CHECK(Py_NewRef(first) == op && Py_XNewRef(second) == op);
    Py_CLEAR(first);
    CHECK(first == NULL);
#ifdef Py_SETREF
    Middle *third = second;
    Py_SETREF(second, third);
    CHECK(second == third);
    Py_XSETREF(third, NULL);
    CHECK(third == NULL);
#else
    Py_DECREF(second);
    Py_XDECREF(second);
#endif
    Py_CLEAR(second);
    return 0;
}

#if __cplusplus >= 201103L

static int lambdas(PyObject *op)
{
    const auto take = [](PyObject *it) { Py_INCREF(it); };
    const auto give = [&] { return Py_NewRef(op); };
    const auto drop = [=]() -> void { return Py_DECREF(op); };
    const auto drop_each = [op](int times) {
        for (int turn = 0; turn < times; turn++)
            Py_DECREF(op);
    };
    const auto pointer = Py_XINCREF;
    void (*const plain)(PyObject *) = [](PyObject *it) { Py_CLEAR(it); };
    const std::function<void(PyObject *)> wrapped = Py_IncRef;
    take(op);
    CHECK(give() == op);
    drop();
    pointer(op);
    wrapped(op);
    plain(op);
    drop_each(2);
    std::function<PyObject *(PyObject *)>{Py_NewRef}(op);
    std::function<void(PyObject *)>{&Py_DECREF}(op);
    for (auto *it : {op, op, op})
        Py_INCREF(it);
    drop_each(3);
    return 0;
}

struct Deleter {
    void operator()(PyObject *op) const { Py_XDECREF(op); }
};

static int smart_pointers(PyObject *op)
{
    const std::unique_ptr<PyObject, decltype(&Py_DecRef)> one(Py_NewRef(op), &Py_DecRef);
    const std::unique_ptr<PyObject, void (*)(PyObject *)> two(Py_XNewRef(op), Py_DECREF);
    std::unique_ptr<PyObject, Deleter> three((Py_INCREF(op), op));
    const std::shared_ptr<PyObject> four(Py_NewRef(op), Py_XDECREF);
    static_assert(std::is_same<decltype(Py_NewRef(op)), PyObject *>::value, "as CPython's");
    static_assert(std::is_same<decltype(Py_INCREF(op)), void>::value, "as CPython's");
    Py_INCREF(one.get());
    Py_DECREF(two.get());
    PyObject *raw = three.release();
    Py_CLEAR(raw);
    return raw == nullptr && Py_XNewRef(nullptr) == nullptr ? 0 : __LINE__;
}

template <void (*count)(PyObject *)> void counted_by(PyObject *op) { count(op); }
template <typename... Objects> void drop_all(Objects *...objects)
{
    const int each[] = {(Py_DECREF(objects), 0)...};
    (void)each;
}

static int function_templates(PyObject *op)
{
    counted_by<Py_IncRef>(op);
    counted_by<&Py_INCREF>(op);
    counted_by<Py_DECREF>(op);
    counted_by<&Py_DecRef>(op);
    Py_IncRef(std::get<0>(std::pair<PyObject *, int>(op, 1))); // a function's arguments may have commas
    Py_INCREF((std::get<0>(std::pair<PyObject *, int>(op, 1))));
    Py_INCREF(std::get<0>(std::make_pair(op, 1)));
    CHECK(Py_NewRef(op) == op);
    drop_all(op, (OtherType *)op, (SizedType *)op);
    drop_all(op);
    return 0;
}

#  define ALL_OF(function, ...) function(__VA_ARGS__)
#  define FIRST_OF(first, ...) Py_INCREF(first)

static int variadic_macros(PyObject *op)
{
    FIRST_OF(op, 1, 2);
    ALL_OF(Py_DECREF, op);
    ALL_OF(Py_XINCREF, op);
    ALL_OF(Py_DecRef, op);
    return 0;
}

#endif
