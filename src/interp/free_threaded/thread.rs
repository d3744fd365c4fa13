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
//! an object with a credit from then would look resurrected. Nor does one that is
//! giving credits back.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::ffi::{self, PyInterpreterState, PyObject};
use pyo3::prelude::*;

use super::hooks::Settler;
use super::object::{is_immortal, is_owned, local, release_foreign, PyCell};
use crate::core::heartbeat::Heartbeat;
use crate::core::registry::{Count, Handle};
use crate::core::{Buffer, Counted, Outcome, Registry, Shape};
use crate::interp::life::Buffers;
use crate::interp::word::{thread_pointer, Word, HAS_THREAD_POINTER};

extern "C" {
    /// The calling thread's word; src/interp/thread_words.c.
    #[allow(improper_ctypes)] // C only ever sees a buffer's head.
    fn refbuf_object_word() -> *mut *mut Buffer;
    fn refbuf_thread_id() -> usize;
}

/// All buffers of objects of this process, with the default heartbeat of 10 ms.
pub(super) static BUFFERS: Buffers<PyCell> = Buffers {
    registry: Registry::new(Shape::DEFAULT),
    heartbeat: Heartbeat::new(10_000),
    word: Word::new(refbuf_object_word),
};

/// The interpreter whose objects are buffered.
static MAIN_INTERPRETER: AtomicPtr<PyInterpreterState> = AtomicPtr::new(ptr::null_mut());

thread_local! {
    /// This thread is running the collector.
    static COLLECTING: Cell<bool> = const { Cell::new(false) };
    /// How often this thread is in [`Abstaining`].
    static ABSTAINING: Cell<u32> = const { Cell::new(0) };
    static THREAD_END: ThreadEnd = const { ThreadEnd };
}

/// Hands the buffer to the registry when the thread ends.
struct ThreadEnd;

impl Drop for ThreadEnd {
    fn drop(&mut self) {
        BUFFERS.retire();
    }
}

/// At import, before the first operation.
pub(super) fn start(_py: Python<'_>) {
    // SAFETY: attached.
    MAIN_INTERPRETER.store(unsafe { ffi::PyInterpreterState_Get() }, Ordering::Relaxed);
}

/// CPython's id of the calling thread.
#[inline(always)]
pub(super) fn thread_id() -> usize {
    if HAS_THREAD_POINTER {
        return thread_pointer();
    }
    // SAFETY: plain C without side effects.
    unsafe { refbuf_thread_id() }
}

/// This thread's buffer, if it has one.
#[inline(always)]
pub(super) fn current() -> Option<Handle> {
    BUFFERS.current()
}

/// This thread's buffer, made if need be; see `Buffers`.
fn current_or_new(register: fn(&Registry<PyCell>) -> Option<Handle>) -> Option<Handle> {
    // Arms the destructor; fails once it has run.
    BUFFERS.current_or_new(register, || THREAD_END.try_with(|_| ()).is_ok())
}

/// Says that this thread is running the collector, or no longer does.
pub(super) fn set_collecting(collecting: bool) {
    let _ = COLLECTING.try_with(|here| here.set(collecting));
}

/// While it lives, this thread installs no credits. For whoever gives credits back: what
/// dies then may hold others' last references but one, and those would come in anew.
pub(super) struct Abstaining;

impl Abstaining {
    pub(super) fn new() -> Abstaining {
        let _ = ABSTAINING.try_with(|here| here.set(here.get() + 1));
        Abstaining
    }
}

impl Drop for Abstaining {
    fn drop(&mut self) {
        let _ = ABSTAINING.try_with(|here| here.set(here.get() - 1));
    }
}

/// Releases what settling has left.
///
/// # Safety
///
/// Attached to the main interpreter, where any code may run.
pub(super) unsafe fn release_leftovers() {
    let _abstaining = Abstaining::new();
    // SAFETY: the caller's promise; this thread is outside its gate.
    unsafe { BUFFERS.registry.release_leftovers(thread_id()) };
}

/// Whether the calling thread is attached to the interpreter whose objects are
/// buffered. Attached to some interpreter it must be.
pub(super) fn in_main_interpreter() -> bool {
    // SAFETY: attached.
    unsafe { ffi::PyInterpreterState_Get() == MAIN_INTERPRETER.load(Ordering::Relaxed) }
}

/// Whether credits may come into this thread's buffer now. Asked inside the
/// gate: see the registry on closing.
fn admit() -> bool {
    let installs = COLLECTING.try_with(|here| !here.get()).unwrap_or(false)
        && ABSTAINING.try_with(|here| here.get() == 0).unwrap_or(false);
    installs && BUFFERS.admits() && in_main_interpreter()
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
    // SAFETY: the caller's promises.
    unsafe {
        if passes(op) {
            PyCell::add(op as usize, 1);
        } else {
            inc_ref_slow(op);
        }
    }
}

/// Whether the buffer has no place for `op`, or it may have no credits: asked before the
/// slow way, which for such objects is none.
///
/// # Safety
///
/// As for `inc_ref_missed`.
#[inline(always)]
unsafe fn passes(op: *mut PyObject) -> bool {
    let Some(handle) = current() else { return false };
    // SAFETY: the buffer is this thread's; the caller's promises.
    unsafe {
        let buffer = handle.as_ref();
        if buffer.denies(op as usize) {
            return true;
        }
        let refused = !PyCell::admits_credits(op as usize);
        if refused {
            buffer.pass();
        }
        refused
    }
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
    BUFFERS.start_settler(Settler);
    // SAFETY: the caller's promises; the buffer is this thread's.
    let outcome = unsafe { handle.as_ref().increment_missed::<PyCell>(op as usize, admit) };
    if outcome == Outcome::Installed {
        BUFFERS.wake_if_idle();
    }
}

/// Decrement of a foreign object that the inline path could not serve.
///
/// # Safety
///
/// As for `Py_DECREF`; `op` is neither immortal nor owned by this thread.
pub(crate) unsafe fn dec_ref_missed(op: *mut PyObject) {
    // SAFETY: the caller's promises; the reference is still the caller's where it was not
    // taken in.
    unsafe {
        if !take_in(op) {
            release_foreign(op);
        }
    }
    if let Some(handle) = current() {
        // SAFETY: the buffer is this thread's.
        if unsafe { handle.as_ref() }.gate().is_parked() {
            // SAFETY: a decrement is a safe point.
            unsafe { release_parked(handle) };
        }
    }
}

/// A decrement of a foreign object that the inline path could not serve, if the reference
/// can become a credit; otherwise nothing, and false. What is parked stays: where the
/// interpreter drops a reference whose end runs no code, others' must not run any.
///
/// # Safety
///
/// As for `dec_ref_missed`.
pub(crate) unsafe fn take_in(op: *mut PyObject) -> bool {
    // SAFETY: the caller's promises.
    unsafe { !passes(op) && take_in_slow(op) }
}

/// # Safety
///
/// As for `dec_ref_missed`.
#[cold]
#[inline(never)]
unsafe fn take_in_slow(op: *mut PyObject) -> bool {
    let Some(handle) = current_or_new(Registry::register) else { return false };
    BUFFERS.start_settler(Settler);
    // SAFETY: the caller's promises; the buffer is this thread's.
    match unsafe { handle.as_ref().decrement_missed::<PyCell>(op as usize, admit) } {
        Outcome::Hit => true,
        Outcome::Installed => {
            BUFFERS.wake_if_idle();
            true
        }
        Outcome::Passed => false,
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

/// One look at CPython's count, and at the credits that buffers hold.
///
/// # Safety
///
/// As for `Py_REFCNT`.
pub(crate) unsafe fn count_once(op: *mut PyObject) -> Count<isize> {
    // SAFETY: the caller's promise.
    BUFFERS.registry.count(op as usize, thread_id(), || unsafe { ffi::Py_REFCNT(op) })
}
