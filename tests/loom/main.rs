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

mod cell;
mod counting;
mod handshake;
mod lifecycle;
