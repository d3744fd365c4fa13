//! The laboratory: the systems of the 2007 discussion, side by side.
//!
//! | module | holds |
//! |---|---|
//! | [`cell`] | what is counted: a header, references to other cells, a payload |
//! | [`scheme`] | what a scheme is to a program |
//! | [`schemes`] | the schemes |
//! | [`gil`], [`world`] | a lock handed over as CPython's; threads that can be stopped |

pub mod cell;
#[cfg(not(loom))]
pub mod gil;
pub mod scheme;
pub mod schemes;
pub mod world;
