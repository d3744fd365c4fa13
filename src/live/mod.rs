//! Live mode: the counts of an unmodified interpreter go through the buffers.
//!
//! | file | holds |
//! |---|---|
//! | [`image`] | what is loaded: code, and the bounds of functions |
//! | [`flow`] | which registers and flags the code behind a site needs |
//! | [`branches`] | that no branch goes into the middle of a site |
//! | [`plan`] | which instructions count, and whether each may be replaced |
//! | [`trampoline`] | the machine code that stands in for them |
//! | [`gdb`] | their names, for a debugger |
//! | [`recorder`] | what the threads of a program count, written down |
//! | [`lulls`] | when the sites are as they were, since nothing contends |
//! | [`memory`] | pages within reach of a jump |
//! | [`patch`] | apply, all or nothing, and revert |
//! | [`trial`] | runs machine code in a machine state of choice |
//! | [`selftest`] | whether trampolines do what they should, on scratch objects |
//! | `interpreter` | CPython: when it may be done, and what the slow ways are |
//! | `installation` | what is installed in this process: from plan to revert |
//!
//! x86-64 Linux. `docs/LIVE.md` has the protocol.

pub mod branches;
pub mod flow;
pub mod gdb;
pub mod image;
pub mod lulls;
pub mod memory;
pub mod patch;
pub mod plan;
pub mod recorder;
pub mod selftest;
pub mod trampoline;
pub mod trial;

#[cfg(test)]
mod tests;

#[cfg(all(feature = "python", buffered))]
pub(crate) mod installation;
#[cfg(all(feature = "python", buffered))]
mod interpreter;
