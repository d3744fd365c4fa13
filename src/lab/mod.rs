//! The laboratory: the systems of the 2007 discussion, side by side.
//!
//! | module | holds |
//! |---|---|
//! | [`trace`] | what a program did to reference counts: the format, written and read |
//! | [`simulate`] | a trace replayed through each scheme, on a model of caches |

pub mod simulate;
pub mod trace;
