//! This thread's buffer, and the operations on it.
//!
//! | the thread has | it counts |
//! |---|---|
//! | no buffer yet | a miss makes one |
//! | a buffer | through it |
//! | ended its thread-local life | as CPython does |
//!
//! Only objects of the main interpreter enter a buffer: the check stands where
//! credits are installed, so that an object of another interpreter is never
//! found in one. A thread that is running the collector installs none either:
//! an object with a credit from then would look resurrected.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicIsize, AtomicPtr, Ordering};
use std::time::Duration;

use pyo3::ffi::{self, PyInterpreterState, PyObject};
use pyo3::prelude::*;

use super::hooks::{Settler, HEARTBEAT};
use super::object::{is_immortal, is_owned, local, release_foreign, PyCell};
use crate::core::registry::Handle;
use crate::core::{Buffer, Counted, Outcome, Registry, Shape};

/// All buffers of this process.
pub(super) static REGISTRY: Registry<PyCell> = Registry::new(Shape::DEFAULT);

/// The interpreter whose objects are buffered.
static MAIN_INTERPRETER: AtomicPtr<PyInterpreterState> = AtomicPtr::new(ptr::null_mut());

/// From the thread pointer to the slot.
static SLOT_OFFSET: AtomicIsize = AtomicIsize::new(0);

extern "C" {
    /// The calling thread's slot; src/interp/thread_slot.c.
    #[allow(improper_ctypes)] // C only ever sees its head.
    fn refbuf_thread_slot_address() -> *mut *mut Buffer;
    /// What the slot points to in a thread without a buffer.
    #[allow(improper_ctypes)]
    static mut refbuf_no_buffer: Buffer;
    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    fn refbuf_thread_id() -> usize;
}

/// What the slot points to in a thread without a buffer.
#[inline(always)]
fn no_buffer() -> *mut Buffer {
    &raw mut refbuf_no_buffer
}

/// What belongs to a thread besides its buffer.
struct Here {
    collecting: Cell<bool>,
    settling: Cell<bool>,
}

thread_local! {
    static HERE: Here = const {
        Here { collecting: Cell::new(false), settling: Cell::new(false) }
    };
    static THREAD_END: ThreadEnd = const { ThreadEnd };
}

/// Hands the buffer to the registry when the thread ends. Python's thread state
/// is gone by then, so no object is touched.
struct ThreadEnd;

impl Drop for ThreadEnd {
    fn drop(&mut self) {
        if let Some(handle) = current() {
            // SAFETY: the slot is this thread's own.
            unsafe { slot().write(no_buffer()) };
            REGISTRY.retire(handle);
            if REGISTRY.must_wake() {
                HEARTBEAT.wake();
            }
        }
    }
}

/// At import, before the first operation.
pub(super) fn start(_py: Python<'_>) {
    // SAFETY: plain C without side effects.
    let slot = unsafe { refbuf_thread_slot_address() };
    SLOT_OFFSET.store(slot as isize - thread_id() as isize, Ordering::Relaxed);
    // SAFETY: attached.
    MAIN_INTERPRETER.store(unsafe { ffi::PyInterpreterState_Get() }, Ordering::Relaxed);
}

/// See `RefBuf_API.tls_offset`.
pub(super) fn slot_offset() -> isize {
    SLOT_OFFSET.load(Ordering::Relaxed)
}

/// CPython's id of the calling thread: the thread pointer, here.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[inline(always)]
pub(super) fn thread_id() -> usize {
    let id: usize;
    // SAFETY: by the ABI, the first word of the TLS block is its own address.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) id, options(nostack, pure, readonly, preserves_flags)) };
    id
}

/// CPython's id of the calling thread: the thread pointer, here.
#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
#[inline(always)]
pub(super) fn thread_id() -> usize {
    let id: usize;
    // SAFETY: reads the thread pointer register.
    unsafe { std::arch::asm!("mrs {}, tpidr_el0", out(reg) id, options(nostack, pure, nomem, preserves_flags)) };
    id
}

/// CPython's id of the calling thread.
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
pub(super) fn thread_id() -> usize {
    // SAFETY: plain C without side effects.
    unsafe { refbuf_thread_id() }
}

/// The word that points to this thread's buffer.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
#[inline(always)]
fn slot() -> *mut *mut Buffer {
    (thread_id() as isize + SLOT_OFFSET.load(Ordering::Relaxed)) as *mut *mut Buffer
}

/// The word that points to this thread's buffer.
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn slot() -> *mut *mut Buffer {
    // SAFETY: plain C without side effects.
    unsafe { refbuf_thread_slot_address() }
}

/// This thread's buffer, if it has one.
#[inline(always)]
pub(super) fn current() -> Option<Handle> {
    // SAFETY: the slot is this thread's own.
    let buffer = unsafe { slot().read() };
    if ptr::eq(buffer, no_buffer()) {
        None
    } else {
        Handle::from_ptr(buffer)
    }
}

/// This thread's buffer, made if need be by `register`; none where the thread or
/// the process is ending.
fn current_or_new(register: fn(&Registry<PyCell>) -> Option<Handle>) -> Option<Handle> {
    if let Some(handle) = current() {
        return Some(handle);
    }
    // Arms the destructor; fails once it has run.
    THREAD_END.try_with(|_| ()).ok()?;
    let handle = register(&REGISTRY)?;
    // SAFETY: the slot is this thread's own.
    unsafe { slot().write(handle.as_ptr()) };
    Some(handle)
}

/// Says that this thread is running the collector, or no longer does.
pub(super) fn set_collecting(collecting: bool) {
    let _ = HERE.try_with(|here| here.collecting.set(collecting));
}

/// Says that this thread is the settler at work, or no longer is.
pub(super) fn set_settling(settling: bool) {
    let _ = HERE.try_with(|here| here.settling.set(settling));
}

/// Whether this thread is the settler at work.
pub(super) fn is_settling() -> bool {
    HERE.try_with(|here| here.settling.get()).unwrap_or(false)
}

/// Releases what settling has left.
///
/// # Safety
///
/// Attached to the main interpreter, where any code may run.
pub(super) unsafe fn release_leftovers() {
    // SAFETY: the caller's promise; this thread is outside its gate.
    unsafe { REGISTRY.release_leftovers(thread_id()) };
}

/// Whether the calling thread is attached to the interpreter whose objects are
/// buffered. Attached to some interpreter it must be.
pub(super) fn in_main_interpreter() -> bool {
    // SAFETY: attached.
    unsafe { ffi::PyInterpreterState_Get() == MAIN_INTERPRETER.load(Ordering::Relaxed) }
}

/// No credits without one who gives them back; none at all once closed.
fn start_settler() {
    if !REGISTRY.is_closed() {
        HEARTBEAT.start(&REGISTRY, Settler);
    }
}

/// Whether credits may come into this thread's buffer now. Asked inside the
/// gate: see the registry on closing.
fn admit() -> bool {
    HEARTBEAT.is_running()
        && !REGISTRY.is_closed()
        && in_main_interpreter()
        && HERE.try_with(|here| !here.collecting.get()).unwrap_or(false)
}

/// # Safety
///
/// As for `Py_INCREF`.
#[inline]
pub(crate) unsafe fn inc_ref(op: *mut PyObject) {
    // SAFETY: the caller's promises; `current` is this thread's buffer.
    unsafe {
        if is_immortal(op) {
            return;
        }
        if is_owned(op) {
            let local = local(op);
            local.store(local.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            return;
        }
        if let Some(handle) = current() {
            let buffer = handle.as_ref();
            if buffer.skips() {
                return PyCell::add(op as usize, 1);
            }
            if buffer.spend(op as usize) {
                return;
            }
        }
        inc_ref_missed(op);
    }
}

/// # Safety
///
/// As for `Py_DECREF`.
#[inline]
pub(crate) unsafe fn dec_ref(op: *mut PyObject) {
    // SAFETY: the caller's promises; `current` is this thread's buffer.
    unsafe {
        if is_immortal(op) {
            return;
        }
        if is_owned(op) {
            return PyCell::release(op as usize);
        }
        if let Some(handle) = current() {
            let buffer = handle.as_ref();
            if buffer.skips() {
                return release_foreign(op);
            }
            if buffer.refund(op as usize) {
                if buffer.gate().is_parked() {
                    release_parked(handle);
                }
                return;
            }
        }
        dec_ref_missed(op);
    }
}

/// Increment of a foreign object that the inline path could not serve.
///
/// # Safety
///
/// As for `Py_INCREF`; `op` is neither immortal nor owned by this thread.
pub(crate) unsafe fn inc_ref_missed(op: *mut PyObject) {
    if let Some(handle) = current() {
        // SAFETY: the buffer is this thread's.
        if unsafe { handle.as_ref() }.denies(op as usize) {
            // SAFETY: the caller's promises.
            return unsafe { PyCell::add(op as usize, 1) };
        }
    }
    // SAFETY: the caller's promises.
    unsafe { inc_ref_slow(op) }
}

/// # Safety
///
/// As for `inc_ref_missed`.
#[cold]
#[inline(never)]
unsafe fn inc_ref_slow(op: *mut PyObject) {
    let Some(handle) = current_or_new(Registry::try_register) else {
        // SAFETY: the caller's promises.
        return unsafe { PyCell::add(op as usize, 1) };
    };
    start_settler();
    // SAFETY: the caller's promises; the buffer is this thread's.
    let outcome = unsafe { handle.as_ref().increment_missed::<PyCell>(op as usize, admit) };
    if outcome == Outcome::Installed && REGISTRY.must_wake() {
        HEARTBEAT.wake();
    }
}

/// Decrement of a foreign object that the inline path could not serve.
///
/// # Safety
///
/// As for `Py_DECREF`; `op` is neither immortal nor owned by this thread.
pub(crate) unsafe fn dec_ref_missed(op: *mut PyObject) {
    if let Some(handle) = current() {
        // SAFETY: the buffer is this thread's.
        let buffer = unsafe { handle.as_ref() };
        if buffer.denies(op as usize) {
            // SAFETY: the caller's promises.
            unsafe { release_foreign(op) };
            if buffer.gate().is_parked() {
                // SAFETY: a decrement is a safe point.
                unsafe { release_parked(handle) };
            }
            return;
        }
    }
    // SAFETY: the caller's promises.
    unsafe { dec_ref_slow(op) }
}

/// # Safety
///
/// As for `dec_ref_missed`.
#[cold]
#[inline(never)]
unsafe fn dec_ref_slow(op: *mut PyObject) {
    let Some(handle) = current_or_new(Registry::register) else {
        // SAFETY: the caller's promises.
        return unsafe { release_foreign(op) };
    };
    start_settler();
    // SAFETY: the caller's promises; the buffer is this thread's.
    match unsafe { handle.as_ref().decrement_missed::<PyCell>(op as usize, admit) } {
        Outcome::Hit => {}
        Outcome::Installed => {
            if REGISTRY.must_wake() {
                HEARTBEAT.wake();
            }
        }
        // SAFETY: the reference is still the caller's, who gives it up.
        Outcome::Passed => unsafe { release_foreign(op) },
    }
    // SAFETY: the buffer is this thread's still: finalizers do not end it.
    if unsafe { handle.as_ref() }.gate().is_parked() {
        // SAFETY: a decrement is a safe point.
        unsafe { release_parked(handle) };
    }
}

/// Does the releases that increments have put off.
///
/// # Safety
///
/// At a safe point: attached, where any code may run. The buffer is this
/// thread's.
#[cold]
unsafe fn release_parked(handle: Handle) {
    // What is parked belongs to the main interpreter.
    if !in_main_interpreter() {
        return;
    }
    // SAFETY: the buffer is this thread's.
    while let Some(object) = unsafe { handle.as_ref() }.unpark() {
        // SAFETY: the reference was the list's, and is no longer.
        unsafe { PyCell::release(object) };
    }
}

/// How often a count that another thread is changing is looked at again. That
/// thread drops one reference, unless it is the last, and then nobody asks.
const LOOKS: u32 = 100;

/// The program's count: CPython's, without the credits of buffers.
///
/// # Safety
///
/// As for `Py_REFCNT`.
pub(crate) unsafe fn ref_count(op: *mut PyObject) -> isize {
    // SAFETY: the caller's promise.
    let own = || unsafe { ffi::Py_REFCNT(op) };
    // SAFETY: as above.
    if unsafe { is_immortal(op) } {
        return own();
    }
    let mut look = 0;
    loop {
        let count = REGISTRY.count(op as usize, thread_id(), own);
        look += 1;
        if !count.unsettled || look == LOOKS {
            return count.seen - count.credits as isize;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}
