//! Buffered counts, with no Python in them.
//!
//! | file | holds |
//! |---|---|
//! | [`counted`] | what the core asks of an object |
//! | [`gate`] | the handshake between a buffer's owner and whoever settles it |
//! | [`buffer`] | one thread's table of credits: acquire, spend, refund, evict, park |
//! | [`account`] | references lent to threads that must not touch the object |
//! | [`desk`] | all accounts, and where they wait for a thread that may |
//! | [`registry`] | all buffers: registering, settling, orphans, fork |
//! | [`heartbeat`] | the settler's loop |
//! | [`totals`] | accounting |
//! | [`sync`] | std or loom |
//!
//! The counting equation, for each object at all times:
//!
//! ```text
//! object's own count = references held by the program + Σ over buffers of credits(buffer, object)
//! ```
//!
//! An object may die only when its own count does, so never while a buffer
//! holds a credit on it: a credit is a real reference.

pub mod account;
pub mod buffer;
pub mod counted;
pub mod desk;
pub mod gate;
#[cfg(not(loom))]
pub mod heartbeat;
pub mod registry;
pub mod sync;
pub mod totals;

pub use account::Account;
pub use buffer::{Buffer, Outcome, Shape, Slot};
pub use counted::{Address, Counted};
pub use desk::{Bank, Desk};
pub use registry::{Handle, Registry, Scope};
pub use totals::Totals;
