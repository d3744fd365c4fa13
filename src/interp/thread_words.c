/* The thread-local words that point to a thread's buffers: of credits on objects,
 * where attached threads have such, and of credits on accounts.
 *
 * In C because stable Rust cannot choose a TLS model. Initial-exec: the words
 * lie in the static TLS block, at one distance from the thread pointer in all
 * threads, so that any extension module finds them with one load, given that
 * distance (RefBuf_API.tls_offset, account_tls_offset). A module opened with dlopen may
 * use this model as long as the loader has static TLS left: glibc keeps a reserve
 * for it, of which these take 16 bytes; where the reserve is used up, dlopen fails
 * with a message that says so, and nothing is loaded.
 */
#define REFBUF_BUILDING
#include <Python.h>
#include <refbuf.h>

#if defined(__ELF__)
#  define THREAD_WORD __attribute__((tls_model("initial-exec"))) static __thread
#else
#  define THREAD_WORD static __thread
#endif

/* The buffer of a thread that has none: its only slots are for nothing, so that
 * everything misses. Nothing is written here but `skip`, which stays below zero
 * and means nothing. */
static RefBuf_Slot no_slots[2] = {{1, 0}, {1, 0}};
RefBuf_Buffer refbuf_no_buffer = {0, 0, 0, no_slots, 0};

THREAD_WORD RefBuf_Buffer *account_word = &refbuf_no_buffer;

RefBuf_Buffer **refbuf_account_word(void);
RefBuf_Buffer **refbuf_account_word(void)
{
    return &account_word;
}

_Static_assert(sizeof(RefBuf_Slot) == 16, "a slot is 16 bytes");
_Static_assert(offsetof(RefBuf_Slot, word) == 8, "the word follows the address");
_Static_assert(offsetof(RefBuf_Buffer, attention) == 4, "one load reads either word of the gate");
_Static_assert(REFBUF_REFUND == ((1u << REFBUF_CREDIT_BITS) | 1u), "a refund is one credit and one refund seen");

#if REFBUF_BUFFERED

THREAD_WORD RefBuf_Buffer *object_word = &refbuf_no_buffer;

RefBuf_Buffer **refbuf_object_word(void);
RefBuf_Buffer **refbuf_object_word(void)
{
    return &object_word;
}

/* CPython's id of the calling thread, as ob_tid has it. */
uintptr_t refbuf_thread_id(void);
uintptr_t refbuf_thread_id(void)
{
    return _Py_ThreadId();
}

/* The layouts that Rust asserts on its side, on this one. */
_Static_assert(_Py_REF_SHARED_SHIFT == 2, "two flag bits below the shared count");
_Static_assert(_Py_REF_MERGED == 3, "both flags set: merged");
_Static_assert(_Py_IMMORTAL_REFCNT_LOCAL == UINT32_MAX, "all ones is immortal");

#endif

/* refbuf's own import state, for the inline paths compiled into refbuf. */
RefBuf_Import refbuf_imported;
