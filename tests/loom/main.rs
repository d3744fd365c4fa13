//! Models of the lock-free core, run by loom through every interleaving.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --no-default-features --release --test loom
//! ```
//!
//! Each test's name states its claim. Tables have two slots, batches one or two
//! credits, so that every path is near. loom sees neither the C header nor the
//! kernel's membarrier (both barriers are fences here): the stress tests and the
//! sanitizers stand behind it.

#![cfg(loom)]

mod accounts;
mod counting;
#[path = "../driver/mod.rs"]
mod driver;
mod handshake;
mod lab;
mod lifecycle;

use refbuf::core::Shape;

/// Two slots; acquires of two, then four.
const TINY: Shape = Shape { slots: 2, first_batch: 1, largest_batch: 2, parked: 1 };

/// All interleavings with up to three preemptions, which is where lock-free code
/// breaks (Musuvathi and Qadeer 2007), unless LOOM_MAX_PREEMPTIONS says another
/// bound. The handshake alone is small enough to have none.
fn bounded(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(model);
}
