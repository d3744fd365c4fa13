//! Whether the calling thread is attached to an interpreter, as CPython knows it.
//!
//! PyO3's `Python::try_attach` goes by a count of its own: a thread that it has
//! attached counts as attached, also where C code has let go of the interpreter
//! meanwhile (`Py_BEGIN_ALLOW_THREADS`). Whoever may be called from such code, as by
//! an increment of an account, must ask here.
//!
//! | the thread's current state | attached |
//! |---|---|
//! | none | no |
//! | of the main interpreter | to it |
//! | of another interpreter | to that one |
//!
//! Until 3.11 the current state is that of whoever holds the GIL: the thread's own only
//! if it is the one that `PyGILState_Ensure` knows for the thread. So a thread in a
//! sub-interpreter counts as not attached there, as it does for `PyGILState_Ensure`.

use std::mem;
use std::time::Duration;

use pyo3::ffi::{self, PyThreadState};
use pyo3::prelude::*;

use super::is_main_interpreter;
use super::unwinding::HangOnUnwind;

extern "C" {
    /// Include/cpython/pystate.h: may be called by any thread, at any time.
    #[cfg_attr(Py_3_13, link_name = "PyThreadState_GetUnchecked")]
    #[cfg_attr(not(Py_3_13), link_name = "_PyThreadState_UncheckedGet")]
    fn unchecked_state() -> *mut PyThreadState;
}

extern "C-unwind" {
    // pyo3 declares these as unable to unwind; see `unwinding`.
    fn PyGILState_Ensure() -> ffi::PyGILState_STATE;
    fn PyEval_RestoreThread(state: *mut PyThreadState);
}

/// What a thread is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attachment {
    /// Nothing.
    None,
    /// The interpreter whose objects are counted here.
    Main,
    /// Another interpreter.
    Other,
}

/// The thread state by which the calling thread is attached; null where it is not.
pub(crate) fn current_state() -> *mut PyThreadState {
    // SAFETY: may be called by any thread, at any time.
    let state = unsafe { unchecked_state() };
    // SAFETY: as above; the two are only compared.
    if cfg!(not(Py_3_12)) && state != unsafe { ffi::PyGILState_GetThisThreadState() } {
        return std::ptr::null_mut();
    }
    state
}

/// What the calling thread is attached to.
pub(crate) fn attachment() -> Attachment {
    if current_state().is_null() {
        Attachment::None
    } else if is_main_interpreter() {
        Attachment::Main
    } else {
        Attachment::Other
    }
}

/// Whether the calling thread has a thread state, current or not. Without one,
/// attaching makes one.
pub(crate) fn has_state() -> bool {
    // SAFETY: may be called by any thread, at any time.
    !unsafe { ffi::PyGILState_GetThisThreadState() }.is_null()
}

/// Attaches a thread that is not attached, for as long as `work` runs. None where
/// there is no interpreter. A thread that comes too late hangs.
pub(crate) fn attach<T>(work: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    // SAFETY: may be called by any thread, at any time.
    if unsafe { ffi::Py_IsInitialized() } == 0 {
        return None;
    }
    let guard = HangOnUnwind;
    // SAFETY: there is an interpreter; released below.
    let state = unsafe { PyGILState_Ensure() };
    mem::forget(guard);
    // SAFETY: attached just now.
    let result = work(unsafe { Python::assume_attached() });
    // SAFETY: pairs with the above.
    unsafe { ffi::PyGILState_Release(state) };
    Some(result)
}

/// Sleeps, and lets go of whatever interpreter the thread is attached to.
///
/// # Safety
///
/// Attached.
pub(crate) unsafe fn nap_detached(time: Duration) {
    // SAFETY: attached, by the caller's promise.
    let state = unsafe { ffi::PyEval_SaveThread() };
    std::thread::sleep(time);
    let guard = HangOnUnwind;
    // SAFETY: the state that was current.
    unsafe { PyEval_RestoreThread(state) };
    mem::forget(guard);
}
