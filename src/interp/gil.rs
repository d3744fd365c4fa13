//! Builds with a GIL: it serializes attached threads' counts already, so every
//! path here is CPython's own, at its own cost. No buffer of objects is ever made.

use std::ffi::c_int;
use std::time::Duration;

use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;

use super::unwinding::HangOnUnwind;
use crate::core::registry::{Count, Summary};
use crate::core::Shape;

/// Whether attached threads buffer on this build.
pub(crate) const BUFFERED: bool = false;

/// No inline path.
pub(crate) fn tls_offset() -> isize {
    0
}

/// # Safety
///
/// As for `Py_INCREF`.
pub(crate) unsafe fn inc_ref(op: *mut PyObject) {
    // SAFETY: the caller's promises.
    unsafe { ffi::Py_IncRef(op) }
}

/// # Safety
///
/// As for `Py_DECREF`.
pub(crate) unsafe fn dec_ref(op: *mut PyObject) {
    // SAFETY: the caller's promises.
    unsafe { ffi::Py_DecRef(op) }
}

pub(crate) use {dec_ref as dec_ref_missed, inc_ref as inc_ref_missed};

/// The interpreter's count: nothing else is held.
///
/// # Safety
///
/// As for `Py_REFCNT`.
pub(crate) unsafe fn count_once(op: *mut PyObject) -> Count<isize> {
    // SAFETY: the caller's promises.
    Count { credits: 0, seen: unsafe { ffi::Py_REFCNT(op) }, unsettled: false }
}

/// Whether `op` is never freed, nor counted.
///
/// # Safety
///
/// As for `Py_REFCNT`.
pub(crate) unsafe fn is_immortal(op: *mut PyObject) -> bool {
    // SAFETY: the caller's promises.
    unsafe { refbuf_is_immortal(op) != 0 }
}

/// Whether the calling thread made `op`: nobody keeps that here, and who asks has
/// made it.
///
/// # Safety
///
/// As for `Py_REFCNT`.
pub(crate) unsafe fn is_made_here(_op: *mut PyObject) -> bool {
    true
}

extern "C" {
    fn refbuf_is_immortal(op: *mut PyObject) -> c_int;
    fn refbuf_count_many(op: *mut PyObject, n: ffi::Py_ssize_t);
    fn refbuf_take_many(op: *mut PyObject, n: ffi::Py_ssize_t) -> ffi::Py_ssize_t;
}

extern "C-unwind" {
    /// pyo3 declares it as unable to unwind; see [`super::unwinding`].
    fn Py_DecRef(op: *mut PyObject);
}

/// Any thread that is attached may drop any reference.
///
/// # Safety
///
/// Any.
pub(crate) unsafe fn share_one(_op: *mut PyObject) {}

/// Counts `n` more references at once.
///
/// # Safety
///
/// Attached; `op` is alive.
pub(crate) unsafe fn count_many(op: *mut PyObject, n: u32) {
    // SAFETY: the caller's promises.
    unsafe { refbuf_count_many(op, n as ffi::Py_ssize_t) }
}

/// Takes back up to `n` references in bulk, without foreign code; says how many are
/// left for `release_one`.
///
/// # Safety
///
/// Attached; the caller owns the references, and loses those taken.
pub(crate) unsafe fn take_many(op: *mut PyObject, n: u32) -> u32 {
    // SAFETY: the caller's promises.
    unsafe { refbuf_take_many(op, n as ffi::Py_ssize_t) as u32 }
}

/// Drops a reference. May run any code.
///
/// # Safety
///
/// Attached; the caller owns the reference, and loses it.
pub(crate) unsafe fn release_one(op: *mut PyObject) {
    let guard = HangOnUnwind;
    // SAFETY: the caller's promises.
    unsafe { Py_DecRef(op) };
    std::mem::forget(guard);
}

/// Nothing is held.
pub(crate) fn flush(_py: Python<'_>) {}

/// Nothing is held.
pub(crate) fn flush_all(_py: Python<'_>) {}

/// All zero.
pub(crate) fn summary() -> Summary {
    Summary { shape: Some(Shape::DEFAULT), ..Summary::default() }
}

/// How buffers would be made.
pub(crate) fn shape() -> Shape {
    Shape::DEFAULT
}

/// Never.
pub(crate) fn is_used() -> bool {
    false
}

/// Nothing to change.
pub(crate) fn reshape(_shape: Shape) -> bool {
    true
}

/// Nothing to change.
pub(crate) fn set_heartbeat(_period: Duration) {}

/// Nothing to set up.
pub(crate) fn start(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
