//! Both kinds of buffers together, as the user of a process sees them: of objects,
//! which attached threads of free-threaded builds have ([`crate::interp`]), and of
//! accounts, for threads that are not attached ([`crate::detached`]).

use std::thread;
use std::time::Duration;

use pyo3::ffi::PyObject;
use pyo3::prelude::*;

use crate::core::registry::Summary;
use crate::interp::config::{Config, ConfigError};
use crate::{detached, interp};

/// How often a count that another thread is changing is looked at again. That
/// thread drops one reference, unless it is the last, and then nobody asks.
const LOOKS: u32 = 2_000;

/// Settles the calling thread's buffers. May run finalizers.
pub(crate) fn flush(py: Python<'_>) {
    detached::flush(py);
    interp::flush(py);
}

/// Settles every buffer. May run finalizers.
pub(crate) fn flush_all(py: Python<'_>) {
    // First: what accounts release may have credits.
    detached::flush_all(py);
    interp::flush_all(py);
}

/// The program's references to an object: CPython's count without credits, and
/// without what an account has in reserve.
///
/// # Safety
///
/// As for `Py_REFCNT`.
pub(crate) unsafe fn ref_count(op: *mut PyObject) -> isize {
    // SAFETY: the caller's promise.
    let look = || unsafe { interp::count_once(op) };
    // SAFETY: as above.
    if unsafe { interp::is_immortal(op) } {
        return look().seen;
    }
    for _ in 1..LOOKS {
        let (waiting, count) = detached::count(op, look);
        if !count.unsettled {
            return count.seen - (count.credits + waiting) as isize;
        }
        thread::sleep(Duration::from_micros(50));
    }
    let (waiting, count) = detached::count(op, look);
    count.seen - (count.credits + waiting) as isize
}

/// Sums over all buffers of both kinds; the shape is that of objects'.
pub(crate) fn summary() -> Summary {
    let (objects, accounts) = (interp::summary(), detached::summary());
    let mut totals = objects.totals;
    totals.merge(&accounts.totals);
    Summary {
        totals,
        live: objects.live + accounts.live,
        orphans: objects.orphans + accounts.orphans,
        beats: objects.beats + accounts.beats,
        shape: objects.shape,
    }
}

/// Applies the choices, or changes nothing.
pub(crate) fn configure(config: Config) -> Result<(), ConfigError> {
    let shape = config.shape(interp::shape())?;
    let period = config.heartbeat()?;
    let reserve = config.reserve()?;
    let account_slots = config.account_slots()?;
    // Both, before either is changed.
    if config.reshapes() && interp::is_used() || account_slots.is_some() && detached::is_used() {
        return Err(ConfigError::TooLate);
    }
    let reshaped = !config.reshapes() || interp::reshape(shape);
    if !reshaped || !account_slots.is_none_or(detached::set_slots) {
        return Err(ConfigError::TooLate);
    }
    if let Some(reserve) = reserve {
        detached::set_reserve(reserve);
    }
    if let Some(period) = period {
        interp::set_heartbeat(period);
        detached::set_heartbeat(period);
    }
    Ok(())
}
