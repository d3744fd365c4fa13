//! Free-threaded builds, 3.13 to 3.15.
//!
//! | file | holds |
//! |---|---|
//! | [`object`] | an object's count fields, and `Counted` for them; the check at import |
//! | [`thread`] | this thread's buffer: finding it, making it, its end; the operations |
//! | [`hooks`] | GC, fork, exit, and the settler's way to attach |

mod hooks;
mod object;
mod thread;

use std::time::Duration;

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;

use self::hooks::HEARTBEAT;
use self::thread::REGISTRY;
use super::barrier;
use super::config::{Config, ConfigError};
use crate::core::registry::Summary;
use crate::core::sync::Barrier;
use crate::core::Shape;

pub(crate) use self::hooks::{flush, flush_all};
pub(crate) use self::object::{count_many, release_many};
pub(crate) use self::thread::{dec_ref, dec_ref_missed, inc_ref, inc_ref_missed, ref_count};

/// Whether attached threads buffer on this build.
pub(crate) const BUFFERED: bool = true;

/// How the handshake is done.
pub(crate) fn barrier_name() -> &'static str {
    match barrier::chosen() {
        Some(Barrier::Membarrier) => "membarrier",
        _ => "fences",
    }
}

/// The distance from the thread pointer to the thread's buffer, for inline
/// paths; 0 where they may not be used, because they have no fence.
pub(crate) fn tls_offset() -> isize {
    match barrier::chosen() {
        Some(Barrier::Membarrier) => thread::slot_offset(),
        _ => 0,
    }
}

/// Sums over all buffers.
pub(crate) fn summary() -> Summary {
    REGISTRY.summary()
}

/// The heartbeat in force.
pub(crate) fn heartbeat() -> Duration {
    HEARTBEAT.period()
}

/// Applies the choices, or changes nothing.
pub(crate) fn configure(config: Config) -> Result<(), ConfigError> {
    let current = REGISTRY.summary().shape.unwrap_or(Shape::DEFAULT);
    let shape = config.shape(current)?;
    let period = config.heartbeat()?;
    if config.reshapes() && !REGISTRY.reshape(shape) {
        return Err(ConfigError::TooLate);
    }
    if let Some(period) = period {
        HEARTBEAT.set_period(period);
    }
    Ok(())
}

/// At import: checks that objects are what we think, then sets the hooks.
pub(crate) fn start(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    object::check_layout(py).map_err(|why| {
        PyImportError::new_err(format!(
            "refbuf was built for another layout of Python objects than this interpreter has ({why}): \
             rebuild refbuf with this interpreter"
        ))
    })?;
    barrier::prepare();
    thread::start(py);
    hooks::start(module)
}
