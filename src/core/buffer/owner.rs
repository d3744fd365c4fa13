//! The owner's operations.

use super::super::counted::{Address, Counted};
use super::super::sync::Ordering;
use super::rank::{is_challenge, Rank};
use super::slot::{Slot, CREDIT_LIMIT, SLOT_SHIFT};
use super::{Buffer, Outcome};

/// Misses between two thoughts on whether the table pays. A power of two.
const WINDOW: u64 = 1024;
/// With fewer hits than one for so many misses, it does not. Hits that only make
/// up for the credits that came in do not count.
const MISSES_PER_HIT: u64 = 8;
/// Operations that skip the table, the first time and at the most.
const SKIP: (u32, u32) = (1 << 17, 1 << 20);

impl Buffer {
    /// Whether operations stand aside at the moment; counts none. By the owner.
    #[inline(always)]
    pub fn stands_aside(&self) -> bool {
        self.head.skip.load(Ordering::Relaxed) > 0
    }

    /// Whether this operation stands aside: the caller takes the interpreter's
    /// own path. By the owner.
    #[inline(always)]
    pub fn skips(&self) -> bool {
        let left = self.head.skip.load(Ordering::Relaxed);
        if left <= 0 {
            // Not stored: operations that the table serves would wait for each other's.
            return false;
        }
        self.head.skip.store(left - 1, Ordering::Relaxed);
        true
    }

    /// Increment, where a credit is at hand. By the owner, who alone changes whose a
    /// slot is: that much needs no gate.
    #[inline(always)]
    pub fn spend(&self, object: Address) -> bool {
        let slot = self.slot(object);
        if slot.object() != object || !self.gate().enter() {
            return false;
        }
        let hit = slot.spend_credit();
        self.gate().leave();
        hit
    }

    /// Decrement, where the object has credits here. By the owner.
    #[inline(always)]
    pub fn refund(&self, object: Address) -> bool {
        let slot = self.slot(object);
        if slot.object() != object || !self.gate().enter() {
            return false;
        }
        let hit = slot.refund_credit();
        self.gate().leave();
        hit
    }

    /// First half of a miss: whether both places have other residents, and
    /// `object` has not earned one. Then the caller takes the interpreter's own
    /// path; the miss is counted. By the owner, outside: what it reads of the
    /// slots is a hint.
    #[inline(always)]
    pub fn denies(&self, object: Address) -> bool {
        let first = self.pair(object);
        // SAFETY: the mask keeps pairs within the table, which is as long.
        let (one, other) = unsafe { (self.slots.get_unchecked(first), self.slots.get_unchecked(first + 1)) };
        if one.takes_in(object) || other.takes_in(object) && self.shape.slots > 1 {
            return false;
        }
        if is_challenge(self.counters.misses.get()) && self.challenge(object) {
            return false;
        }
        self.count_miss();
        true
    }

    /// The same, for an object that may have no credits, so that nobody asks for
    /// more: the miss is counted. By the owner.
    #[inline]
    pub fn pass(&self) {
        self.count_miss();
    }

    /// Counts a challenge of `object`; true if it wins.
    #[cold]
    #[inline(never)]
    fn challenge(&self, object: Address) -> bool {
        let index = self.place(object);
        let tag = (object >> SLOT_SHIFT) as u16 ^ (object >> 20) as u16;
        let mut rank = self.rank(index);
        let won = rank.challenge(tag, self.slots[index].uses());
        self.set_rank(index, rank);
        won
    }

    /// Where `object` is, or should go: the slot that is for it, else one without
    /// credits, else the one that was used less since its last challenge.
    fn place(&self, object: Address) -> usize {
        let first = self.pair(object);
        let second = first + 1;
        if self.slots[first].object() == object || self.shape.slots == 1 {
            return first;
        }
        if self.slots[second].object() == object {
            return second;
        }
        let used = |index: usize| match self.slots[index].credits() {
            0 => None,
            _ => Some(self.rank(index).used(self.slots[index].uses())),
        };
        if used(second) < used(first) {
            second
        } else {
            first
        }
    }

    fn rank(&self, index: usize) -> Rank {
        Rank::unpack(self.ranks[index].load(Ordering::Relaxed))
    }

    fn set_rank(&self, index: usize, rank: Rank) {
        self.ranks[index].store(rank.pack(), Ordering::Relaxed);
    }

    /// Second half of a miss, for an increment. Counts the reference in any
    /// case. `admit` says whether credits may be acquired now.
    ///
    /// # Safety
    ///
    /// By the owner, attached; `object` is alive.
    #[cold]
    #[inline(never)]
    pub unsafe fn increment_missed<O: Counted>(&self, object: Address, admit: impl FnOnce() -> bool) -> Outcome {
        // Also by whoever holds the gate: a settler that is kept from its work says nothing
        // about the table.
        let (mut outcome, mut refused) = (Outcome::Passed, true);
        if self.gate().enter() {
            refused = false;
            let admit = || {
                refused = !admit();
                !refused
            };
            // SAFETY: the caller's promises; we are inside.
            outcome = unsafe { self.increment_inside::<O>(object, admit) };
            self.gate().leave();
        }
        if outcome == Outcome::Passed {
            self.count_miss_if(refused);
            // SAFETY: the caller's promises.
            unsafe { O::add(object, 1) };
        }
        outcome
    }

    /// # Safety
    ///
    /// As for `increment_missed`, inside the gate.
    unsafe fn increment_inside<O: Counted>(&self, object: Address, admit: impl FnOnce() -> bool) -> Outcome {
        let index = self.place(object);
        if self.slots[index].spend(object) {
            return Outcome::Hit;
        }
        // SAFETY: the caller's promises.
        let Some(batch) = (unsafe { self.make_room::<O>(index, object, admit) }) else {
            return Outcome::Passed;
        };
        // One of the references is the caller's.
        // SAFETY: the caller's promises.
        let Some(credits) = (unsafe { self.acquire::<O>(object, 1 << batch) }).checked_sub(1) else {
            return Outcome::Passed;
        };
        self.install(index, object, credits, batch);
        Outcome::Installed
    }

    /// Counts up to so many references on an object; returns how many.
    ///
    /// # Safety
    ///
    /// `object` is alive; what is counted goes into a slot or to the caller.
    unsafe fn acquire<O: Counted>(&self, object: Address, references: u32) -> u64 {
        // SAFETY: the caller's promises.
        let drawn = unsafe { O::draw(object, references) };
        self.counters.acquires.add(u64::from(drawn > 0));
        self.counters.atomics.add(u64::from(drawn > 0));
        drawn.into()
    }

    /// Second half of a miss, for a decrement. Where it says `Passed`, the caller
    /// still has the reference, and must release it.
    ///
    /// # Safety
    ///
    /// By the owner, attached; the caller owns a reference to `object`, and
    /// loses it unless the outcome is `Passed`.
    #[cold]
    #[inline(never)]
    pub unsafe fn decrement_missed<O: Counted>(&self, object: Address, admit: impl FnOnce() -> bool) -> Outcome {
        let (mut outcome, mut refused) = (Outcome::Passed, true);
        if self.gate().enter() {
            refused = false;
            let admit = || {
                refused = !admit();
                !refused
            };
            // SAFETY: the caller's promises; we are inside.
            outcome = unsafe { self.decrement_inside::<O>(object, admit) };
            self.gate().leave();
        }
        if outcome == Outcome::Passed {
            self.count_miss_if(refused);
        }
        outcome
    }

    /// # Safety
    ///
    /// As for `decrement_missed`, inside the gate.
    unsafe fn decrement_inside<O: Counted>(&self, object: Address, admit: impl FnOnce() -> bool) -> Outcome {
        let index = self.place(object);
        let slot = &self.slots[index];
        if slot.refund(object) {
            return Outcome::Hit;
        }
        if slot.holds(object) {
            // SAFETY: the slot's credits are ours to give back.
            unsafe { self.thin::<O>(slot) };
            return if slot.refund(object) { Outcome::Hit } else { Outcome::Passed };
        }
        // R7: what may be the last reference is not kept.
        // SAFETY: the caller owns a reference.
        if !unsafe { O::has_others(object) } {
            return Outcome::Passed;
        }
        let is_back = slot.object() == object;
        // SAFETY: the caller's promises.
        let Some(batch) = (unsafe { self.make_room::<O>(index, object, admit) }) else {
            return Outcome::Passed;
        };
        let mut credits = 1;
        if is_back {
            // It is incremented here, too: a single credit would be gone with the
            // next increment, and each decrement would end up here.
            // SAFETY: the caller's reference keeps the object alive.
            credits += unsafe { self.acquire::<O>(object, 1 << batch) };
        }
        if credits == 1 {
            self.counters.take_ins.add(1);
        }
        self.install(index, object, credits, batch);
        Outcome::Installed
    }

    /// Empties the slot for `object`, which has earned it, and says log2 of how
    /// many credits it should acquire; or leaves all as it is.
    ///
    /// # Safety
    ///
    /// By the owner, inside, attached; `object` is alive.
    unsafe fn make_room<O: Counted>(&self, index: usize, object: Address, admit: impl FnOnce() -> bool) -> Option<u32> {
        // SAFETY: the caller's promise.
        if !admit() || !unsafe { O::admits_credits(object) } {
            return None;
        }
        let slot = &self.slots[index];
        let resident = slot.object();
        // SAFETY: the slot's credits are ours to give back.
        if slot.credits() != 0 && !unsafe { self.evict::<O>(slot) } {
            return None;
        }
        if resident == object {
            return Some((self.rank(index).batch + 1).clamp(self.shape.first_batch, self.shape.largest_batch));
        }
        self.counters.refunds.add(slot.clear());
        Some(self.shape.first_batch)
    }

    /// Makes `object` the resident of a slot without credits.
    fn install(&self, index: usize, object: Address, credits: u64, batch: u32) {
        let slot = &self.slots[index];
        slot.put(object, credits);
        let mut rank = self.rank(index);
        rank.batch = batch;
        rank.settle_in(slot.uses());
        self.set_rank(index, rank);
        // Behind the slot: a look that sees it finds what came.
        self.counters.credits_in.add_released(credits);
    }

    /// Settles a resident to make room; parks what would be a release. False,
    /// and nothing done, where there is no place to park.
    ///
    /// # Safety
    ///
    /// By the owner, inside, attached.
    unsafe fn evict<O: Counted>(&self, slot: &Slot) -> bool {
        if self.parked_len.load(Ordering::Relaxed) == self.parked.len() {
            return false;
        }
        self.counters.evictions.add(1);
        // SAFETY: the caller's promises; there is a place to park.
        unsafe { self.settle_slot::<O>(slot) };
        true
    }

    /// Gives a slot's credits back; parks what would be a release.
    ///
    /// # Safety
    ///
    /// By the owner, inside, attached; there is a place to park.
    unsafe fn settle_slot<O: Counted>(&self, slot: &Slot) {
        let parked = self.parked_len.load(Ordering::Relaxed);
        let (object, credits) = (slot.object(), slot.credits());
        self.counters.settles.add(1);
        self.counters.atomics.add(1);
        self.counters.credits_out.add(credits);
        // SAFETY: these references are the slot's; it is cleared below.
        let left = unsafe { O::take(object, credits as u32) };
        self.counters.refunds.add(slot.clear());
        if left > 0 {
            self.counters.parked.add(u64::from(left));
            self.parked[parked].object.store(object, Ordering::Relaxed);
            self.parked[parked].count.store(left, Ordering::Relaxed);
            self.parked_len.store(parked + 1, Ordering::Relaxed);
            self.gate().set_parked(true);
        }
    }

    /// Gives back all credits on one object. False, and nothing done, where another
    /// thread is at the table or there is no place to park. By the owner.
    ///
    /// # Safety
    ///
    /// Attached, if the object's kind asks for it.
    pub unsafe fn settle_one<O: Counted>(&self, object: Address) -> bool {
        if !self.gate().enter() {
            return false;
        }
        let slot = self.slot(object);
        let may = self.parked_len.load(Ordering::Relaxed) < self.parked.len();
        if may && slot.holds(object) {
            // SAFETY: by the owner, inside; the caller's promise.
            unsafe { self.settle_slot::<O>(slot) };
        }
        self.gate().leave();
        may
    }

    /// Gives back half of a full slot's credits.
    ///
    /// # Safety
    ///
    /// By the owner, inside, attached.
    unsafe fn thin<O: Counted>(&self, slot: &Slot) {
        let surplus = CREDIT_LIMIT / 2;
        // SAFETY: the slot holds more than that; what is left stays in it.
        let left = unsafe { O::take(slot.object(), surplus as u32) };
        let taken = surplus - u64::from(left);
        self.counters.atomics.add(1);
        self.counters.credits_out.add(taken);
        slot.thin(taken);
    }

    /// One parked release, for the owner to do now. At a safe point.
    pub fn unpark(&self) -> Option<Address> {
        if !self.gate().enter() {
            return None;
        }
        let last = self.parked_len.load(Ordering::Relaxed).checked_sub(1);
        let object = last.map(|last| {
            let parked = &self.parked[last];
            let count = parked.count.load(Ordering::Relaxed) - 1;
            parked.count.store(count, Ordering::Relaxed);
            if count == 0 {
                self.parked_len.store(last, Ordering::Relaxed);
            }
            parked.object.load(Ordering::Relaxed)
        });
        if self.parked_len.load(Ordering::Relaxed) == 0 {
            self.gate().set_parked(false);
        }
        self.gate().leave();
        object
    }

    /// Counts an operation that takes the interpreter's own path, which is one
    /// atomic operation. By the owner.
    #[inline]
    fn count_miss(&self) {
        self.counters.misses.add(1);
        if self.counters.misses.get() % WINDOW == 0 {
            self.consider_skipping();
        }
    }

    /// The same; where no credits were to be had at all, as before the settler runs or while
    /// the gate is shut, it says nothing about whether the table pays.
    fn count_miss_if(&self, refused: bool) {
        if refused {
            self.counters.misses.add(1);
        } else {
            self.count_miss();
        }
    }

    /// Whether the table has paid since the last thought; if not, stands aside.
    #[cold]
    #[inline(never)]
    fn consider_skipping(&self) {
        // Who stands aside does not look at what is parked. And while another thread settles,
        // hits are on their way to the registry's totals.
        if self.gate().is_parked() || self.gate().is_revoked() {
            return;
        }
        let totals = self.totals();
        // Credits that come in cost one atomic operation, and one to go back:
        // what they save, a pair without a table would have cost.
        let gain = totals.hits().wrapping_sub(2 * (totals.acquires + totals.take_ins));
        let since = gain.wrapping_sub(self.window.gain.swap(gain, Ordering::Relaxed)) as i64;
        if since >= (WINDOW / MISSES_PER_HIT) as i64 {
            self.window.skip.store(0, Ordering::Relaxed);
            return;
        }
        let longer = self.window.skip.load(Ordering::Relaxed).saturating_mul(2).clamp(SKIP.0, SKIP.1);
        self.window.skip.store(longer, Ordering::Relaxed);
        // Counted now; what is not yet done is taken off whenever they are read.
        self.counters.misses.add(u64::from(longer));
        self.head.skip.store(i64::from(longer), Ordering::Relaxed);
    }
}
