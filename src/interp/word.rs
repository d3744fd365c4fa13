//! A thread's own word, which says where its buffer is.
//!
//! One for each kind of buffer, in C (`thread_words.c`), since stable Rust cannot
//! choose a TLS model: this finds it with one load, at one distance from the
//! thread pointer in all threads.

use std::ptr;
use std::sync::atomic::{AtomicIsize, Ordering};

use crate::core::registry::Handle;
use crate::core::Buffer;

extern "C" {
    /// What a word points to in a thread without a buffer.
    #[allow(improper_ctypes)] // C only ever sees its head.
    static mut refbuf_no_buffer: Buffer;
}

/// What a word points to in a thread without a buffer.
#[inline(always)]
fn no_buffer() -> *mut Buffer {
    &raw mut refbuf_no_buffer
}

/// One word in each thread.
pub(crate) struct Word {
    /// From the thread pointer to the word, once it has been found.
    offset: AtomicIsize,
    /// The calling thread's.
    address: unsafe extern "C" fn() -> *mut *mut Buffer,
}

impl Word {
    /// The word whose address this C function knows.
    pub(crate) const fn new(address: unsafe extern "C" fn() -> *mut *mut Buffer) -> Word {
        Word { offset: AtomicIsize::new(0), address }
    }

    /// Measures the distance. Before any other use.
    pub(crate) fn find(&self) {
        // SAFETY: plain C without side effects.
        let address = unsafe { (self.address)() };
        self.offset.store(address as isize - thread_pointer() as isize, Ordering::Relaxed);
    }

    /// From the thread pointer to the word; 0 where that is no constant.
    pub(crate) fn offset(&self) -> isize {
        if HAS_THREAD_POINTER {
            self.offset.load(Ordering::Relaxed)
        } else {
            0
        }
    }

    #[inline(always)]
    fn place(&self) -> *mut *mut Buffer {
        if HAS_THREAD_POINTER {
            return (thread_pointer() as isize + self.offset.load(Ordering::Relaxed)) as *mut *mut Buffer;
        }
        // SAFETY: plain C without side effects.
        unsafe { (self.address)() }
    }

    /// This thread's buffer, if it has one.
    #[inline(always)]
    pub(crate) fn get(&self) -> Option<Handle> {
        // SAFETY: the word is this thread's own, and `find` came first.
        let buffer = unsafe { self.place().read() };
        if ptr::eq(buffer, no_buffer()) {
            None
        } else {
            Handle::from_ptr(buffer)
        }
    }

    /// This thread has a buffer, or no longer has one; returns the one it had.
    pub(crate) fn replace(&self, handle: Option<Handle>) -> Option<Handle> {
        let before = self.get();
        // SAFETY: as in `get`.
        unsafe { self.place().write(handle.map_or(no_buffer(), Handle::as_ptr)) };
        before
    }
}

/// Whether there is a register that tells threads apart: the thread pointer. On
/// free-threaded builds it is CPython's thread id, too.
pub(crate) const HAS_THREAD_POINTER: bool =
    cfg!(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")));

/// The thread pointer.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[inline(always)]
pub(crate) fn thread_pointer() -> usize {
    let pointer: usize;
    // SAFETY: by the ABI, the first word of the TLS block is its own address.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, pure, readonly, preserves_flags)) };
    pointer
}

/// The thread pointer.
#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
#[inline(always)]
pub(crate) fn thread_pointer() -> usize {
    let pointer: usize;
    // SAFETY: reads the thread pointer register.
    unsafe { std::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nostack, pure, nomem, preserves_flags)) };
    pointer
}

/// Elsewhere none is used.
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
pub(crate) fn thread_pointer() -> usize {
    0
}
