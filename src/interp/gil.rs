//! Builds with a GIL: it serializes attached threads' counts already, so every
//! path here is CPython's own, at its own cost. No buffer is ever made.

use std::time::Duration;

use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;

use super::config::{Config, ConfigError};
use super::unwinding::HangOnUnwind;
use crate::core::registry::Summary;
use crate::core::Shape;

/// Whether attached threads buffer on this build.
pub(crate) const BUFFERED: bool = false;

/// How the handshake is done: not at all.
pub(crate) fn barrier_name() -> &'static str {
    "none"
}

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

/// # Safety
///
/// As for `Py_REFCNT`.
pub(crate) unsafe fn ref_count(op: *mut PyObject) -> isize {
    // SAFETY: the caller's promises.
    unsafe { ffi::Py_REFCNT(op) }
}

extern "C" {
    fn refbuf_count_many(op: *mut PyObject, n: ffi::Py_ssize_t);
}

extern "C-unwind" {
    fn refbuf_release_many(op: *mut PyObject, n: ffi::Py_ssize_t);
}

/// Counts `n` more references at once.
///
/// # Safety
///
/// Attached; `op` is alive.
pub(crate) unsafe fn count_many(op: *mut PyObject, n: u32) {
    // SAFETY: the caller's promises.
    unsafe { refbuf_count_many(op, n as ffi::Py_ssize_t) }
}

/// Drops `n` references. May run any code.
///
/// # Safety
///
/// Attached; the caller owns the references, and loses them.
pub(crate) unsafe fn release_many(op: *mut PyObject, n: u32) {
    let guard = HangOnUnwind;
    // SAFETY: the caller's promises.
    unsafe { refbuf_release_many(op, n as ffi::Py_ssize_t) };
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

/// The heartbeat that other builds would have.
pub(crate) fn heartbeat() -> Duration {
    Duration::from_millis(10)
}

/// Checks the choices, and has no use for them.
pub(crate) fn configure(config: Config) -> Result<(), ConfigError> {
    config.shape(Shape::DEFAULT)?;
    config.heartbeat()?;
    Ok(())
}

/// Nothing to set up.
pub(crate) fn start(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
