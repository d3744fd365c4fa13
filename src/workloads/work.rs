//! Other work beside each pair: a chain of multiplications, measured once against
//! the clock.

use std::sync::OnceLock;
use std::time::Instant;

use crate::interp::bindings::refbuf_work;

/// Iterations of a measurement: about 2 ms.
const MEASURED: u64 = 2_000_000;
/// The fastest of so many is what an undisturbed processor does.
const MEASUREMENTS: u32 = 15;

/// Iterations that take so many nanoseconds; none for 0.
pub(super) fn iterations(nanoseconds: f64) -> u64 {
    if nanoseconds <= 0.0 {
        return 0;
    }
    (nanoseconds / nanoseconds_per_iteration()).round().max(1.0) as u64
}

/// Measured once in a process.
pub(crate) fn nanoseconds_per_iteration() -> f64 {
    static MEASURED_ONCE: OnceLock<f64> = OnceLock::new();
    *MEASURED_ONCE.get_or_init(|| {
        let times = (0..MEASUREMENTS).map(|_| {
            let began = Instant::now();
            work(MEASURED);
            began.elapsed().as_nanos() as f64 / MEASURED as f64
        });
        // A clock that stands still must not make it endless.
        times.fold(f64::INFINITY, f64::min).max(0.01)
    })
}

/// Does it.
#[inline(always)]
pub(super) fn work(iterations: u64) {
    // SAFETY: a loop over a number.
    unsafe { refbuf_work(iterations) }
}
