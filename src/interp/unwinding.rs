//! Threads that the interpreter ends while it shuts down.
//!
//! Until 3.13, a thread that attaches after finalization has begun is ended with
//! `pthread_exit`, which unwinds its stack. No frame of Rust may be unwound so:
//! guards on the way would release a thread state that is gone. The thread hangs
//! in place instead, as 3.14 does itself.
//!
//! PyO3 0.28 sees to this where it attaches, not where it attaches again after
//! `Python::detach`.

use std::hint::black_box;
use std::mem;
use std::thread;

use pyo3::prelude::*;

/// Hangs the thread if its frame is unwound by anything but a panic.
pub(crate) struct HangOnUnwind;

impl Drop for HangOnUnwind {
    fn drop(&mut self) {
        while !thread::panicking() {
            thread::park();
        }
    }
}

/// `Python::detach`, but a thread that may not come back hangs.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    let guard = HangOnUnwind;
    let (mut work, mut result) = (Some(work), None);
    let mut step = || {
        let work = work.take();
        result = py.detach(|| work.map(|work| work()));
    };
    // Opaque: the compiler must not conclude, from how PyO3 declares CPython's
    // functions, that nothing unwinds here.
    let step: &mut dyn FnMut() = &mut step;
    black_box(step)();
    mem::forget(guard);
    result.expect("the step has run")
}
