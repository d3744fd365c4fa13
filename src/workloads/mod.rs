//! Multithreaded drivers on real Python objects, for tests and benchmarks.
//!
//! Threads are Rust's, attached through PyO3; the inner loops are C, through the
//! inline header, so that each variant is compiled as an extension's code would
//! be. What is measured is counting alone: loops touch an object's type and
//! nothing else of it.
//!
//! | file | holds |
//! |---|---|
//! | [`plan`] | workloads, variants, a request and what is wrong with it |
//! | [`driver`] | threads: start, run together, stop, sum up |
//! | [`worker`] | one thread's share |
//! | `kernels.c` | the inner loops |

pub(crate) mod driver;
pub(crate) mod plan;
pub(crate) mod worker;
