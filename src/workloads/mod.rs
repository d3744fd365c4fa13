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
//! | [`share`] | what all threads of a run have in common |
//! | [`attached`] | one thread's share, attached |
//! | [`detached`] | one thread's share, not attached |
//! | [`handle`] | what a thread that is not attached has of an object |
//! | [`work`] | other work beside each pair |
//! | [`record`] | what threads did to counts, as a trace |
//! | `kernels.c` | the inner loops |

pub(crate) mod attached;
mod detached;
pub(crate) mod driver;
mod handle;
pub(crate) mod plan;
pub(crate) mod record;
mod share;
pub(crate) mod work;
