//! The schemes, one file each, which opens with its protocol and its source.

pub mod atomic;
pub mod biased;
#[cfg(not(loom))]
pub mod credits;
pub mod deltas;
#[cfg(not(loom))]
pub mod plain;
pub mod thread_count;
