//! The core on cells of its own, without Python: against an exact model, and
//! with many threads. Run natively, under valgrind and under AddressSanitizer.
//!
//! ```text
//! cargo test --no-default-features --test core
//! ```

#![cfg(not(loom))]

mod accounts;
#[path = "../driver/mod.rs"]
mod driver;
mod lab;
mod model;
mod stress;
