//! One place in the table.

use super::super::counted::Address;
use super::super::sync::{AtomicU64, AtomicUsize, Ordering};

/// Low bits of a slot's word that hold its credits.
pub const CREDIT_BITS: u32 = 24;
/// Mask of the credits in a word.
pub const CREDITS: u64 = (1 << CREDIT_BITS) - 1;
/// Credits at which a slot is full.
pub const CREDIT_LIMIT: u64 = 1 << (CREDIT_BITS - 1);
/// Credits that a slot keeps beyond a beat, at the most: more than the largest batch.
const HOARD: u64 = 1 << 20;
/// Refunds that a slot counts beyond a beat, at the most: a quarter of what a word holds.
const MOST_REFUNDS: u64 = 1 << 38;
/// What a refund adds to a word: a credit, and one refund seen.
pub const REFUND: u64 = (1 << CREDIT_BITS) | 1;

/// log2 of the size of a slot, in bytes.
pub(super) const SLOT_SHIFT: u32 = 4;

/// One place in the table. Layout shared with the C header. All accesses are
/// relaxed: the gate orders them between threads.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct Slot {
    object: AtomicUsize,
    word: AtomicU64,
}

impl Slot {
    /// A slot for no object.
    pub(super) fn new() -> Slot {
        Slot { object: AtomicUsize::new(0), word: AtomicU64::new(0) }
    }

    #[inline(always)]
    pub(super) fn object(&self) -> Address {
        self.object.load(Ordering::Relaxed)
    }

    #[inline(always)]
    pub(super) fn word(&self) -> u64 {
        self.word.load(Ordering::Relaxed)
    }

    #[inline(always)]
    pub(super) fn credits(&self) -> u64 {
        self.word() & CREDITS
    }

    #[inline(always)]
    fn store(&self, word: u64) {
        self.word.store(word, Ordering::Relaxed);
    }

    #[inline(always)]
    pub(super) fn holds(&self, object: Address) -> bool {
        self.object() == object && self.credits() != 0
    }

    /// Whether the slot is for `object`, or for nobody.
    #[inline(always)]
    pub(super) fn takes_in(&self, object: Address) -> bool {
        // Both are evaluated: neither can be predicted from the other.
        (self.credits() == 0) | (self.object() == object)
    }

    /// For `object`, if the slot is its.
    pub(super) fn spend(&self, object: Address) -> bool {
        self.object() == object && self.spend_credit()
    }

    /// For `object`, if the slot is its.
    pub(super) fn refund(&self, object: Address) -> bool {
        self.object() == object && self.refund_credit()
    }

    /// For whose the slot is.
    #[inline(always)]
    pub(super) fn spend_credit(&self) -> bool {
        let word = self.word();
        let hit = word & CREDITS != 0;
        if hit {
            self.store(word - 1);
        }
        hit
    }

    /// For whose the slot is.
    #[inline(always)]
    pub(super) fn refund_credit(&self) -> bool {
        let word = self.word();
        // Neither dry nor full, in one comparison.
        let hit = (word & CREDITS).wrapping_sub(1) < CREDIT_LIMIT - 1;
        if hit {
            self.store(word.wrapping_add(REFUND));
        }
        hit
    }

    /// Whether it should be settled although it is in use: who only drops what others have
    /// taken gathers credits, which nobody else has then; and refunds have a limit.
    pub(super) fn is_worn(&self) -> bool {
        let word = self.word();
        word & CREDITS >= HOARD || word >> CREDIT_BITS >= MOST_REFUNDS
    }

    /// Puts credits into a slot that has none; keeps the refunds seen.
    pub(super) fn put(&self, object: Address, credits: u64) {
        self.object.store(object, Ordering::Relaxed);
        self.store(self.word() & !CREDITS | credits);
    }

    /// Takes some of the credits out.
    pub(super) fn thin(&self, credits: u64) {
        self.store(self.word() - credits);
    }

    /// Empties the slot; returns the refunds it saw. It still names its object,
    /// so that an object that comes back goes on with its batch.
    pub(super) fn clear(&self) -> u64 {
        let refunds = self.word() >> CREDIT_BITS;
        self.store(0);
        refunds
    }

    /// Empties the slot, and forgets its object.
    pub(super) fn forget(&self) {
        self.clear();
        self.object.store(0, Ordering::Relaxed);
    }

    /// Hits so far, modulo 256, up to a constant that changes when credits are
    /// put in or taken out: a spend is one credit less, a refund one more and
    /// one refund.
    #[inline]
    pub(super) fn uses(&self) -> u8 {
        let word = self.word();
        ((word >> CREDIT_BITS) as u8).wrapping_mul(2).wrapping_sub(word as u8)
    }
}

/// Where the C header expects things in a slot: `object`, `word`.
#[cfg(not(loom))]
pub(super) const OFFSETS: (usize, usize) = (std::mem::offset_of!(Slot, object), std::mem::offset_of!(Slot, word));

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_hit_is_one_use() {
        let slot = Slot::new();
        slot.put(16, 600);
        let before = slot.uses();
        for pair in 1..=300_u32 {
            assert!(slot.spend(16));
            assert_eq!(slot.uses().wrapping_sub(before), (2 * pair - 1) as u8);
            assert!(slot.refund(16));
            assert_eq!(slot.uses().wrapping_sub(before), (2 * pair) as u8);
        }
    }

    #[test]
    fn a_slot_without_credits_is_no_hit() {
        let slot = Slot::new();
        slot.put(16, 1);
        assert!(slot.spend(16));
        assert!(!slot.spend(16));
        assert!(!slot.refund(16));
    }
}
