//! What others than the owner do with a buffer: settling, the heartbeat's look,
//! accounting, recycling.

use super::super::counted::{Address, Counted};
use super::super::sync::Ordering;
use super::super::totals::Totals;
use super::slot::{CREDITS, CREDIT_BITS};
use super::{Buffer, Leftover, MIX, NEVER};

/// Looks that must find a slot unchanged before it is cold.
const COLD_AFTER: u32 = 2;
/// Bits of an age that count them.
const LOOKS_MASK: u32 = 3;

/// What a look at a buffer found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Something to settle.
    pub cold: bool,
    /// Something held at all.
    pub occupied: bool,
}

/// Mixes all bits of a slot into the upper ones.
fn digest(object: Address, word: u64) -> u64 {
    (word ^ (object as u64).rotate_left(32)).wrapping_mul(MIX)
}

impl Buffer {
    // -- for whoever has the table to itself ----------------------------------

    /// Settles all slots, or the cold ones, and the parked list. What cannot be
    /// taken back in bulk is appended to `leftovers`.
    ///
    /// # Safety
    ///
    /// Attached, with the registry's lock, and either revoked or without a
    /// running owner.
    pub unsafe fn drain<O: Counted>(&self, only_cold: bool, leftovers: &mut Vec<Leftover>, totals: &mut Totals) {
        for (index, slot) in self.slots.iter().enumerate() {
            let credits = slot.credits();
            if credits == 0 || (only_cold && !self.is_cold(index)) {
                continue;
            }
            let object = slot.object();
            // SAFETY: these references are the slot's; it is cleared below.
            let left = unsafe { O::take(object, credits as u32) };
            if left > 0 {
                leftovers.push(Leftover { object, count: left });
            }
            let refunds = slot.clear();
            totals.refunds += refunds;
            self.window.forget(credits, refunds);
            // What comes back as it was is not cold for that.
            self.ages[index].store(0, Ordering::Relaxed);
            totals.settles += 1;
            totals.atomics += 1;
            totals.credits_out += credits;
        }
        for parked in &self.parked[..self.parked_len.load(Ordering::Relaxed)] {
            let object = parked.object.load(Ordering::Relaxed);
            leftovers.push(Leftover { object, count: parked.count.load(Ordering::Relaxed) });
        }
        self.parked_len.store(0, Ordering::Relaxed);
        self.gate().set_parked(false);
    }

    /// References that this buffer holds on `object`. Exact for whoever has the
    /// table to itself.
    pub fn credits_of(&self, object: Address) -> u64 {
        let slot = self.slot(object);
        let credits = if slot.object() == object { slot.credits() } else { 0 };
        let parked = &self.parked[..self.parked_len.load(Ordering::Relaxed)];
        let parked: u32 = parked
            .iter()
            .filter(|parked| parked.object.load(Ordering::Relaxed) == object)
            .map(|parked| parked.count.load(Ordering::Relaxed))
            .sum();
        credits + u64::from(parked)
    }

    // -- for the heartbeat ----------------------------------------------------

    /// Looks at every slot, without the gate: whether any is cold now, and
    /// whether any holds anything. A slot is cold when two looks have found it as
    /// a look before them did. With the registry's lock.
    pub fn census(&self) -> Census {
        let mut census = Census { cold: false, occupied: self.gate().is_parked() };
        // What is parked waits for the owner's next safe point at the longest
        // until this beat.
        census.cold |= census.occupied;
        // Empty at the last look, and nothing has come since: a thread that sleeps costs nothing.
        let came = self.counters.credits_in.get_acquired();
        if self.looks.empty_at.load(Ordering::Relaxed) == came {
            return census;
        }
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.credits() == 0 {
                continue;
            }
            census.occupied = true;
            let now = self.age_now(index);
            let age = self.ages[index].load(Ordering::Relaxed);
            let unchanged = age & !LOOKS_MASK == now;
            let age = if unchanged { now | ((age & LOOKS_MASK) + 1).min(COLD_AFTER) } else { now };
            census.cold |= age & LOOKS_MASK == COLD_AFTER || slot.is_worn();
            self.ages[index].store(age, Ordering::Relaxed);
        }
        self.looks.empty_at.store(if census.occupied { NEVER } else { came }, Ordering::Relaxed);
        self.looks.found_cold.store(census.cold, Ordering::Relaxed);
        census
    }

    /// Whether a settling of the cold would find anything here. With the
    /// registry's lock.
    pub fn is_due(&self) -> bool {
        let cold = |index: usize| self.slots[index].credits() != 0 && self.is_cold(index);
        self.gate().is_parked() || self.looks.found_cold.load(Ordering::Relaxed) && (0..self.slots.len()).any(cold)
    }

    /// Whether the slot was found cold, and has not changed since; or is worn.
    fn is_cold(&self, index: usize) -> bool {
        self.ages[index].load(Ordering::Relaxed) == self.age_now(index) | COLD_AFTER || self.slots[index].is_worn()
    }

    /// Digest of a slot; the low bits are for the count of looks.
    fn age_now(&self, index: usize) -> u32 {
        let slot = &self.slots[index];
        (digest(slot.object(), slot.word()) >> 32) as u32 & !LOOKS_MASK
    }

    // -- accounting -----------------------------------------------------------

    /// Sums so far. Exact while the owner is not counting.
    pub fn totals(&self) -> Totals {
        let mut totals = self.counters.sums();
        // Saturating: another thread may read between two stores of the owner's.
        let skips = self.head.skip.load(Ordering::Relaxed).max(0) as u64;
        totals.misses = totals.misses.saturating_sub(skips);
        totals.atomics += totals.misses;
        for slot in &self.slots {
            let word = slot.word();
            totals.credits += word & CREDITS;
            totals.refunds += word >> CREDIT_BITS;
        }
        totals
    }

    /// Makes an orphan ready for its next owner; returns its sums. Without a
    /// running owner, drained.
    pub fn recycle(&self) -> Totals {
        let totals = self.totals();
        debug_assert_eq!(totals.credits, 0);
        self.counters.reset();
        self.head.skip.store(0, Ordering::Relaxed);
        self.window.gain.store(0, Ordering::Relaxed);
        self.window.skip.store(0, Ordering::Relaxed);
        self.looks.empty_at.store(NEVER, Ordering::Relaxed);
        self.looks.found_cold.store(false, Ordering::Relaxed);
        for slot in &self.slots {
            slot.forget();
        }
        for rank in &self.ranks {
            rank.store(0, Ordering::Relaxed);
        }
        totals
    }
}
