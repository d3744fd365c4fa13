//! The handshake: who may touch a buffer's table.
//!
//! A table belongs to one thread, its *owner*, which uses it with plain loads
//! and stores. Others (the settler, a flush of all buffers, GC start, fork) must
//! be able to use it while the owner sleeps. So the table has a biased,
//! revocable lock.
//!
//! ```text
//! owner                                 revoker (one at a time, by the registry's lock)
//!   busy = 1            (relaxed)         attention |= REVOKED   (relaxed)
//!   light barrier                         heavy barrier
//!   attention == 0?       (acquire)       busy == 0?             (acquire) — wait until so
//!     yes: use the table
//!   real fence, where FENCED
//!   attention & REVOKED?  (acquire)
//!     set:   busy = 0, go without           use the table
//!     clear: use the table                attention &= !REVOKED  (release)
//!   busy = 0            (release)
//! ```
//!
//! Light and heavy barrier together order like sequentially consistent fences
//! on both sides ([`super::sync`]). Both interleavings:
//!
//! * The owner's barrier comes first: its `busy = 1` is visible to the
//!   revoker's load, which waits. When the revoker then reads the `busy = 0`
//!   that the owner stored with release, its acquire load sees all that the
//!   owner wrote to the table.
//! * The revoker's barrier comes first: the owner's load sees REVOKED, and it
//!   keeps off. It sees REVOKED cleared only by the acquire load that pairs with
//!   the revoker's release, and then all that the revoker wrote.
//!
//! The owner never waits (R2): where the table is revoked it takes the
//! interpreter's own path. The revoker waits for one operation of the owner at
//! most: once its barrier is past, every later operation sees REVOKED, and
//! `busy` is then set only for the few instructions until the owner gives up.
//!
//! | `attention` | means | set and cleared by |
//! |---|---|---|
//! | `REVOKED` | another thread uses the table | the revoker |
//! | `PARKED` | the owner has releases to do at a safe point | the owner inside the gate, or a revoker |
//! | `FENCED` | the light barrier must be a real fence | whoever makes the gate or gives it to an owner, or the only thread of a forked child |
//!
//! Any bit sends the inline path of the C header to its slow twin, and [`Gate::enter`] to
//! its second look: so what is rare costs one comparison, all together.
//!
//! Forked child: the owner of another thread's buffer is gone. Fork revokes all
//! buffers first ([`super::registry`]), so none of them is inside at that moment.

use super::sync::{in_order, light, needs_fences, AtomicU32, Backoff, Ordering};

/// Another thread uses the table.
pub const REVOKED: u32 = 1;
/// The owner has releases to do at its next safe point.
pub const PARKED: u32 = 2;
/// There is no `membarrier(2)`: see [`super::sync`].
pub const FENCED: u32 = 4;

/// The two words of the handshake. `busy` is written by the owner only;
/// `attention` is read by the owner on each operation.
#[repr(C)]
#[derive(Debug)]
pub struct Gate {
    busy: AtomicU32,
    attention: AtomicU32,
}

/// Where the C header expects `busy`.
pub const BUSY_OFFSET: usize = std::mem::offset_of!(Gate, busy);
/// Where the C header expects `attention`.
pub const ATTENTION_OFFSET: usize = std::mem::offset_of!(Gate, attention);

impl Gate {
    /// An open gate, for the barrier that this process uses.
    pub fn new() -> Self {
        Gate { busy: AtomicU32::new(0), attention: AtomicU32::new(if needs_fences() { FENCED } else { 0 }) }
    }

    /// For the barrier that this process uses now, which a forked child has chosen anew:
    /// before the owner's first operation, or its first in the child.
    pub fn renew(&self) {
        // Relaxed: there is no other thread, or none that knows the gate.
        if needs_fences() {
            self.attention.fetch_or(FENCED, Ordering::Relaxed);
        } else {
            self.attention.fetch_and(!FENCED, Ordering::Relaxed);
        }
    }

    /// Owner: begins an operation. False where the table is revoked; then the
    /// gate has been left again.
    #[inline(always)]
    pub fn enter(&self) -> bool {
        // Relaxed: the light barrier orders it before the load below.
        self.busy.store(1, Ordering::Relaxed);
        in_order();
        // Acquire: pairs with the release in `restore`.
        self.attention.load(Ordering::Acquire) == 0 || self.enter_with_care()
    }

    /// There is something to attend to. Inlined: a call would have the fast path save
    /// registers for it.
    #[inline(always)]
    fn enter_with_care(&self) -> bool {
        // `busy` is set; this may be the fence that FENCED asks for.
        light();
        // Acquire: as in `enter`.
        let open = self.attention.load(Ordering::Acquire) & REVOKED == 0;
        if !open {
            self.leave();
        }
        open
    }

    /// Owner: ends an operation.
    #[inline(always)]
    pub fn leave(&self) {
        // Release: pairs with the acquire in `await_owner`.
        self.busy.store(0, Ordering::Release);
    }

    /// Revoker, first step. A heavy barrier must follow.
    pub fn revoke(&self) {
        // Relaxed: the heavy barrier orders it before the load of `busy`.
        self.attention.fetch_or(REVOKED, Ordering::Relaxed);
    }

    /// Revoker, after the heavy barrier: waits until the owner is outside.
    pub fn await_owner(&self) {
        let mut backoff = Backoff::new();
        // Acquire: pairs with the release in `leave`.
        while self.busy.load(Ordering::Acquire) != 0 {
            backoff.wait();
        }
    }

    /// Revoker, last step: the table is the owner's again.
    pub fn restore(&self) {
        // Release: pairs with the acquire in `enter`.
        self.attention.fetch_and(!REVOKED, Ordering::Release);
    }

    /// Whoever has the table: says that there are parked releases, or none.
    pub fn set_parked(&self, parked: bool) {
        // Relaxed: a hint for the owner; the parked list is read inside the gate.
        if parked {
            self.attention.fetch_or(PARKED, Ordering::Relaxed);
        } else {
            self.attention.fetch_and(!PARKED, Ordering::Relaxed);
        }
    }

    /// Owner: whether another thread uses the table; a hint.
    pub fn is_revoked(&self) -> bool {
        self.attention.load(Ordering::Relaxed) & REVOKED != 0
    }

    /// Owner: whether a release waits for a safe point.
    pub fn is_parked(&self) -> bool {
        self.attention.load(Ordering::Relaxed) & PARKED != 0
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_revoked_gate_turns_its_owner_away() {
        let gate = Gate::new();
        assert!(gate.enter());
        gate.leave();
        gate.revoke();
        gate.await_owner();
        assert!(!gate.enter());
        gate.restore();
        assert!(gate.enter());
    }

    #[test]
    fn parked_releases_do_not_close_the_gate() {
        let gate = Gate::new();
        gate.set_parked(true);
        assert!(gate.is_parked());
        assert!(gate.enter());
        gate.set_parked(false);
        assert!(!gate.is_parked());
    }
}
