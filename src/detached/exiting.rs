//! Whether the calling thread may still touch objects after the exit has begun.
//!
//! `PyGILState_Check` does not tell: once the interpreter has given up what it
//! looks at, it says yes to every thread. So the thread that exits is noted, with
//! its thread state; it is attached while that one is the current one.

use std::ffi::c_void;

use pyo3::ffi::{self, PyThreadState};
use pyo3::prelude::*;

extern "C" {
    /// Include/cpython/pystate.h: may be called by any thread, at any time. Until 3.11 it
    /// is the state of whoever holds the GIL, afterwards the calling thread's.
    #[cfg_attr(Py_3_13, link_name = "PyThreadState_GetUnchecked")]
    #[cfg_attr(not(Py_3_13), link_name = "_PyThreadState_UncheckedGet")]
    fn current_state() -> *mut PyThreadState;
}

/// The thread that exits.
pub(super) struct Exiting {
    thread: libc::pthread_t,
    state: *mut c_void,
}

// SAFETY: both are compared only.
unsafe impl Send for Exiting {}
// SAFETY: as above.
unsafe impl Sync for Exiting {}

impl Exiting {
    /// The calling thread, which is attached.
    pub(super) fn here(_py: Python<'_>) -> Exiting {
        // SAFETY: attached.
        unsafe { Exiting { thread: libc::pthread_self(), state: ffi::PyThreadState_Get().cast() } }
    }

    /// Whether the caller is that thread, and attached.
    pub(super) fn is_here_and_attached(&self) -> bool {
        // SAFETY: may be called by any thread.
        unsafe { libc::pthread_self() == self.thread && current_state().cast() == self.state }
    }
}
