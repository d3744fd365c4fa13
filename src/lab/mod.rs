//! The laboratory: the systems of the 2007 discussion, side by side.
//!
//! | module | holds |
//! |---|---|
//! | [`cell`] | what is counted: a header, references to other cells, a payload |
//! | [`scheme`] | what a scheme is to a program |
//! | [`schemes`] | the schemes |
//! | [`gil`], [`world`] | a lock handed over as CPython's; threads that can be stopped |

#[cfg(not(loom))]
pub mod calibrate;
pub mod cell;
#[cfg(not(loom))]
pub mod gil;
#[cfg(not(loom))]
pub mod programs;
#[cfg(not(loom))]
pub mod run;
pub mod scheme;
pub mod schemes;
#[cfg(not(loom))]
pub mod work;
pub mod world;
