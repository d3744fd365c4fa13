/* refbuf_table.h: one thread's table of credits, as C sees it. Included by
 * refbuf.h; nothing here knows Python. What a slot is for is an address: of an
 * object, or of an account.
 *
 * The one source of the layouts that C and Rust share: the crate's build script
 * reads them, and its core has the protocols (src/core).
 */
#ifndef REFBUF_TABLE_H
#define REFBUF_TABLE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The inline path finds a buffer at a constant distance from the thread
 * pointer. */
#if defined(__linux__) && defined(__GNUC__) && (defined(__x86_64__) || defined(__aarch64__))
#  define REFBUF_TABLE_INLINE 1
#else
#  define REFBUF_TABLE_INLINE 0
#endif

/* A slot's word: credits in the low 24 bits, and above them how many refunds
 * the slot has seen, which wraps harmlessly at the top. */
#define REFBUF_CREDIT_BITS 24
#define REFBUF_CREDITS 0xFFFFFFu   /* mask of the credits in a word */
#define REFBUF_CREDIT_LIMIT 0x800000u /* a slot this full is settled in part */
#define REFBUF_REFUND 0x1000001u   /* one credit and one refund */
#define REFBUF_MIX 0x9E3779B97F4A7C15u /* 2^64 over the golden ratio */
#define REFBUF_HASH_SHIFT 50           /* leaves as many bits as a table has bytes */

typedef struct RefBuf_Slot {
    uintptr_t object; /* address; means nothing while there are no credits */
    uint64_t word;
} RefBuf_Slot;

/* The head of a thread's buffer: what the inline path reads. `busy` is written
 * by the owning thread only; `attention` by whoever has revoked the buffer, and
 * by the owner when it has parked a release; `skip` by the owner; the rest never
 * changes. */
typedef struct RefBuf_Buffer {
    uint32_t busy;
    uint32_t attention;
    uintptr_t byte_mask; /* (number of slots - 2) * sizeof(RefBuf_Slot): where pairs begin */
    RefBuf_Slot *slots;
    int64_t skip; /* above 0: operations that leave the table alone, because it does not pay */
} RefBuf_Buffer;

#if REFBUF_TABLE_INLINE

#define REFBUF_LIKELY(condition) __builtin_expect(!!(condition), 1)
#define REFBUF_UNLIKELY(condition) __builtin_expect(!!(condition), 0)
#define REFBUF_ALWAYS_INLINE __attribute__((always_inline)) static inline

static inline uintptr_t refbuf_thread_pointer(void)
{
    uintptr_t pointer;
#  if defined(__x86_64__)
    /* By the ABI, the first word of the TLS block is its own address. */
    __asm__("mov {%%fs:0, %0|%0, fs:[0]}" : "=r"(pointer));
#  else
    __asm__("mrs %0, tpidr_el0" : "=r"(pointer));
#  endif
    return pointer;
}

/* The slot for `object`, if there is one: a multiplicative hash, as a byte offset,
 * gives a pair of slots, and the second is looked at where the first is for
 * another object. Without a branch: which of the two it is nobody can predict. By
 * a conditional move, which compilers do not choose by themselves: the count waits
 * for the slot's address. */
static inline RefBuf_Slot *refbuf_slot(const RefBuf_Buffer *buffer, uintptr_t object)
{
    uintptr_t hash = (uintptr_t)(((uint64_t)object * REFBUF_MIX) >> REFBUF_HASH_SHIFT);
    RefBuf_Slot *pair = (RefBuf_Slot *)(void *)((char *)buffer->slots + (hash & buffer->byte_mask));
    uintptr_t first = __atomic_load_n(&pair->object, __ATOMIC_RELAXED);
#  if defined(__x86_64__)
    RefBuf_Slot *slot = pair;
    __asm__("cmp {%[object], %[first]|%[first], %[object]}\n\t"
            "cmovne {%[second], %[slot]|%[slot], %[second]}"
            : [slot] "+r"(slot)
            : [first] "r"(first), [object] "r"(object), [second] "r"(pair + 1)
            : "cc");
    return slot;
#  else
    return pair + (first != object);
#  endif
}

/* This thread's buffer: one load, behind the thread pointer. A thread that has
 * none yet gets one that nothing hits. */
static inline RefBuf_Buffer *refbuf_buffer(uintptr_t thread_pointer, intptr_t tls_offset)
{
    return *(RefBuf_Buffer **)(thread_pointer + (uintptr_t)tls_offset);
}

/* `busy` keeps out whoever wants to settle this buffer from another thread:
 * they set `attention`, issue a barrier on every running thread (membarrier),
 * and wait until `busy` is clear. So either they see our `busy`, or we see
 * their `attention`; the compiler barrier is all that is needed here. */
static inline int refbuf_enter(RefBuf_Buffer *buffer)
{
    __atomic_store_n(&buffer->busy, 1u, __ATOMIC_RELAXED);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    return __atomic_load_n(&buffer->attention, __ATOMIC_ACQUIRE) == 0;
}

/* Release: our slots are written before another thread sees them unused. */
static inline void refbuf_leave(RefBuf_Buffer *buffer)
{
    __atomic_store_n(&buffer->busy, 0u, __ATOMIC_RELEASE);
}

/* Only the owner changes which object a slot is for, so that much needs no gate:
 * a miss leaves it alone. */
static inline int refbuf_spend(RefBuf_Buffer *buffer, uintptr_t object)
{
    RefBuf_Slot *slot = refbuf_slot(buffer, object);
    if (REFBUF_UNLIKELY(__atomic_load_n(&slot->object, __ATOMIC_RELAXED) != object)) {
        return 0;
    }
    int hit = 0;
    if (REFBUF_LIKELY(refbuf_enter(buffer))) {
        uint64_t word = __atomic_load_n(&slot->word, __ATOMIC_RELAXED);
        if (REFBUF_LIKELY((word & REFBUF_CREDITS) != 0)) {
            __atomic_store_n(&slot->word, word - 1, __ATOMIC_RELAXED);
            hit = 1;
        }
    }
    refbuf_leave(buffer);
    return hit;
}

static inline int refbuf_refund(RefBuf_Buffer *buffer, uintptr_t object)
{
    RefBuf_Slot *slot = refbuf_slot(buffer, object);
    if (REFBUF_UNLIKELY(__atomic_load_n(&slot->object, __ATOMIC_RELAXED) != object)) {
        return 0;
    }
    int hit = 0;
    if (REFBUF_LIKELY(refbuf_enter(buffer))) {
        uint64_t word = __atomic_load_n(&slot->word, __ATOMIC_RELAXED);
        if (REFBUF_LIKELY((uint32_t)(word & REFBUF_CREDITS) - 1 < REFBUF_CREDIT_LIMIT - 1)) {
            __atomic_store_n(&slot->word, word + REFBUF_REFUND, __ATOMIC_RELAXED);
            hit = 1;
        }
    }
    refbuf_leave(buffer);
    return hit;
}

/* Where the working set is far larger than the table, the owner stands aside
 * for a while: CPython's own path, without a look at the table. A loop over many
 * objects is as fast as the processor can run ahead to the next one's cache
 * miss, and each instruction here shortens that: hence one that counts, stores
 * and tests. */
static inline int refbuf_skips(RefBuf_Buffer *buffer)
{
#  if defined(__x86_64__) && defined(__GCC_ASM_FLAG_OUTPUTS__)
    int aside;
    __asm__ __volatile__("sub{q $1, %0| %0, 1}" : "+m"(buffer->skip), "=@ccns"(aside));
    return aside;
#  else
    int64_t left = __atomic_load_n(&buffer->skip, __ATOMIC_RELAXED) - 1;
    __atomic_store_n(&buffer->skip, left, __ATOMIC_RELAXED);
    return left >= 0;
#  endif
}

#endif /* REFBUF_TABLE_INLINE */

#ifdef __cplusplus
}
#endif

#endif /* REFBUF_TABLE_H */
