// torture.c compiled as C++, and what only C++ has: the header inside classes,
// templates and lambdas, on references and members.
#include <Python.h>
#include <refbuf.h>

#include <utility>
#include <vector>

static PyObject *serves_cpp_handles(PyObject *self, PyObject *op);

#define TORTURE_MODULE torture_cpp
#define TORTURE_MORE_METHODS {"serves_cpp_handles", serves_cpp_handles, METH_O, NULL},
#include "torture.c"

namespace
{

// A counted pointer as C++ extensions write them.
template <typename T> class Handle
{
  public:
    explicit Handle(T *op) : op_(op) { RefBuf_XINCREF(op_); }
    Handle(const Handle &other) : op_(other.op_) { RefBuf_XINCREF(op_); }
    Handle(Handle &&other) noexcept : op_(std::exchange(other.op_, nullptr)) {}
    Handle &operator=(Handle other) noexcept
    {
        std::swap(op_, other.op_);
        return *this;
    }
    ~Handle() { RefBuf_CLEAR(op_); }
    void reset(T *stolen) { RefBuf_XSETREF(op_, stolen); }
    bool empty() const { return op_ == nullptr; }

  private:
    T *op_;
};

} // namespace

static PyObject *serves_cpp_handles(PyObject *, PyObject *op)
{
    const Py_ssize_t before = RefBuf_RefCount(op);
    {
        std::vector<Handle<PyObject>> handles;
        for (int round = 0; round < 100; round++) {
            handles.emplace_back(op);
        }
        CHECK(RefBuf_RefCount(op) == before + 100);
        std::vector<Handle<PyObject>> copies(handles);
        CHECK(RefBuf_RefCount(op) == before + 200);
        handles.clear();
        CHECK(RefBuf_RefCount(op) == before + 100);
        copies[0] = copies[1];
        copies[2] = std::move(copies[3]);
        CHECK(copies[3].empty() && RefBuf_RefCount(op) == before + 99);
        copies[4].reset(nullptr);
        copies[5].reset(RefBuf_NewRef(op));
        CHECK(RefBuf_RefCount(op) == before + 98);
    }
    CHECK(RefBuf_RefCount(op) == before);
    const auto pair = [](PyObject *&reference) {
        RefBuf_INCREF(reference);
        RefBuf_CLEAR(reference);
    };
    PyObject *variable = op;
    pair(variable);
    CHECK(variable == nullptr && RefBuf_RefCount(op) == before);
    Py_RETURN_NONE;
}
