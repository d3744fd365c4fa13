/* Every name of refbuf.h, once. Compiled as C and as C++, with and without the
 * limited API, and never run. */
#ifdef REFBUF_FIRST
#  include <refbuf.h>
#endif
#include <Python.h>
#include <refbuf.h>
#include <refbuf.h>

#ifdef __cplusplus
#  define EVERY_ASSERT static_assert
#else
#  define EVERY_ASSERT _Static_assert
#endif

EVERY_ASSERT(sizeof(RefBuf_Slot) == 16, "a slot is 16 bytes");
EVERY_ASSERT(offsetof(RefBuf_Slot, word) == 8, "the word follows the address");
EVERY_ASSERT(offsetof(RefBuf_Buffer, attention) == 4, "the gate's two words are neighbours");
EVERY_ASSERT(offsetof(RefBuf_API, size) == 4, "version and size come first in every version");
EVERY_ASSERT(REFBUF_ABI_VERSION >= 1u, "versions start at 1");
EVERY_ASSERT(REFBUF_REFUND == (1u << REFBUF_CREDIT_BITS) + 1u, "a refund is one credit and one refund seen");
EVERY_ASSERT(REFBUF_CREDITS == (1u << REFBUF_CREDIT_BITS) - 1u, "the mask has as many bits as there are");
EVERY_ASSERT(REFBUF_CREDIT_LIMIT <= REFBUF_CREDITS, "a full slot still fits");
#if REFBUF_INLINE && !REFBUF_BUFFERED
#  error "inline paths where nothing is buffered"
#endif

PyObject *every_account_name(PyObject *op);
PyObject *every_account_name(PyObject *op)
{
    RefBuf_Account *account = RefBuf_Enroll(op);
    if (account == NULL) {
        return NULL;
    }
    RefBuf_AccountIncRef(account);
    RefBuf_AccountDecRef(account);
    RefBuf_AccountIncRef(account);
    RefBuf_AccountRelease(account);
    return RefBuf_AccountObject(account) == op ? RefBuf_AccountWithdraw(account) : NULL;
}

Py_ssize_t every_name(PyObject *op, RefBuf_Stats *stats);
Py_ssize_t every_name(PyObject *op, RefBuf_Stats *stats)
{
    PyObject *variable = op;
    if (refbuf_import() < 0) {
        return -1;
    }
    RefBuf_INCREF(op);
    RefBuf_DECREF(op);
    RefBuf_XINCREF(op);
    RefBuf_XDECREF(op);
    RefBuf_IncRef(op);
    RefBuf_DecRef(op);
    RefBuf_XIncRef(op);
    RefBuf_XDecRef(op);
    RefBuf_SETREF(variable, RefBuf_NewRef(op));
    RefBuf_XSETREF(variable, RefBuf_XNewRef(op));
    RefBuf_CLEAR(variable);
    RefBuf_Flush();
    RefBuf_FlushAll();
    RefBuf_GetStats(stats);
    return RefBuf_RefCount(op);
}
