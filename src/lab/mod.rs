//! The laboratory: the systems of the 2007 discussion, side by side.
//!
//! | module | holds |
//! |---|---|
//! | [`cell`] | what is counted: a header, references to other cells, a payload |
//! | [`scheme`] | what a scheme is to a program |
//! | [`schemes`] | the schemes |
//! | [`gil`], [`world`] | a lock handed over as CPython's; threads that can be stopped |
//! | [`names`] | what schemes and workloads are called |
//! | [`programs`] | what threads do with cells |
//! | [`run`] | a program on a scheme, measured |
//! | [`work`], [`calibrate`] | what a program does besides counting, and how much of it |
//! | [`trace`] | what a program did to reference counts: the format, written and read |
//! | [`simulate`] | a trace replayed through each scheme, on a model of caches |

#[cfg(not(loom))]
pub mod calibrate;
pub mod cell;
#[cfg(not(loom))]
pub mod gil;
#[cfg(not(loom))]
pub mod names;
#[cfg(not(loom))]
pub mod programs;
#[cfg(not(loom))]
pub mod run;
pub mod scheme;
pub mod schemes;
#[cfg(not(loom))]
pub mod simulate;
#[cfg(not(loom))]
pub mod trace;
#[cfg(not(loom))]
pub mod work;
pub mod world;
