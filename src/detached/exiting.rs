//! Whether the calling thread may still touch objects after the exit has begun.
//!
//! `PyGILState_Check` does not tell: once the interpreter has given up what it
//! looks at, it says yes to every thread. So the thread that exits is noted, with
//! its thread state; it is attached while that one is the current one.

use std::ffi::c_void;

use pyo3::prelude::*;

use crate::interp::attachment::current_state;

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
        // SAFETY: a plain question.
        Exiting { thread: unsafe { libc::pthread_self() }, state: current_state().cast() }
    }

    /// Whether the caller is that thread, and attached.
    pub(super) fn is_here_and_attached(&self) -> bool {
        // SAFETY: a plain question.
        let is_here = unsafe { libc::pthread_self() } == self.thread;
        is_here && !self.state.is_null() && current_state().cast() == self.state
    }
}
