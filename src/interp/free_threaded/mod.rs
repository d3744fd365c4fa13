//! Free-threaded builds, 3.13 to 3.15.
//!
//! | file | holds |
//! |---|---|
//! | [`object`] | an object's count fields, and `Counted` for them; the check at import |
//! | [`dying`] | which objects may be in the middle of their deallocation |
//! | [`thread`] | this thread's buffer: finding it, making it, its end; the operations |
//! | [`hooks`] | GC, settling, and the settler's way to attach |

mod dying;
mod hooks;
mod object;
mod thread;

use std::time::Duration;

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;

use self::thread::BUFFERS;
use super::barrier;
use crate::core::registry::Summary;
use crate::core::sync::Barrier;
use crate::core::Shape;

pub(crate) use self::hooks::{flush, flush_all};
#[cfg(feature = "live")]
pub(crate) use self::hooks::{set_watch, Watch};
pub(crate) use self::object::{count_many, is_immortal, is_made_here, release_one, share_one, take_many};
#[cfg(feature = "live")]
pub(crate) use self::object::{release_address, release_foreign, set_original_release};
#[cfg(feature = "live")]
pub(crate) use self::thread::take_in;
pub(crate) use self::thread::{count_once, dec_ref, dec_ref_missed, inc_ref, inc_ref_missed};

/// Whether attached threads buffer on this build.
pub(crate) const BUFFERED: bool = true;

/// The distance from the thread pointer to the thread's buffer, for inline
/// paths; 0 where they may not be used, because they have no fence.
pub(crate) fn tls_offset() -> isize {
    match barrier::chosen() {
        Some(Barrier::Membarrier) => BUFFERS.word.offset(),
        _ => 0,
    }
}

/// Sums over all buffers.
pub(crate) fn summary() -> Summary {
    BUFFERS.registry.summary()
}

/// How buffers are made from now on.
pub(crate) fn shape() -> Shape {
    BUFFERS.registry.summary().shape.unwrap_or(Shape::DEFAULT)
}

/// Whether a buffer has been made, and the shape is fixed.
pub(crate) fn is_used() -> bool {
    BUFFERS.registry.is_used()
}

/// Changes the shape; false where it is too late.
pub(crate) fn reshape(shape: Shape) -> bool {
    BUFFERS.registry.reshape(shape)
}

/// Changes the heartbeat.
pub(crate) fn set_heartbeat(period: Duration) {
    BUFFERS.heartbeat.set_period(period);
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
    dying::start();
    thread::start(py);
    hooks::start(module)
}
