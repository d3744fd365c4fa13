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
mod model;
mod models;
mod schemes;
mod simulation;
mod stress;
mod traces;

/// So many cases at the most; PROPTEST_CASES makes them fewer.
fn at_most(cases: u32) -> proptest::test_runner::Config {
    let usual = proptest::test_runner::Config::default();
    proptest::test_runner::Config { failure_persistence: None, cases: usual.cases.min(cases), ..usual }
}
