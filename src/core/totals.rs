//! Accounting: exact counters that cost the fast path nothing.
//!
//! A hit leaves its trace in the slot it hits: a refund counts itself in the
//! upper bits of the slot's word, and the number of spends follows from the
//! counting equation of the slots,
//!
//! ```text
//! credits in the slots = credits in − credits out − spends + refunds
//! ```
//!
//! Only slow paths count anything else. The owner counts in its buffer; whoever
//! settles counts in the registry, under its lock, so that no counter has two
//! writers.

use super::sync::{Ordering, PlainU64};

/// Sums of what happened, and what is there now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Operations left to the interpreter's own path.
    pub misses: u64,
    /// Batches of credits counted on an object.
    pub acquires: u64,
    /// References taken in by a decrement that missed, and acquired nothing.
    pub take_ins: u64,
    /// Residents with credits that made room for another object.
    pub evictions: u64,
    /// Slots whose credits went back to their object, evictions included.
    pub settles: u64,
    /// Releases put off to a safe point (rule R2).
    pub parked: u64,
    /// Atomic operations on objects' counts.
    pub atomics: u64,
    /// Hits of decrements.
    pub refunds: u64,
    /// Credits that came into slots otherwise than by a refund.
    pub credits_in: u64,
    /// Credits that left slots otherwise than by a spend.
    pub credits_out: u64,
    /// Credits in the slots now.
    pub credits: u64,
}

impl Totals {
    /// Hits of increments, from the counting equation of the slots.
    pub fn spends(&self) -> u64 {
        // Wrapping: read while threads count, the terms may be out of step.
        let spends =
            self.credits_in.wrapping_add(self.refunds).wrapping_sub(self.credits_out).wrapping_sub(self.credits);
        if spends > u64::MAX / 2 {
            0
        } else {
            spends
        }
    }

    /// Increments and decrements that a slot served.
    pub fn hits(&self) -> u64 {
        self.spends() + self.refunds
    }

    /// Adds another sum to this one.
    pub fn merge(&mut self, other: &Totals) {
        self.misses += other.misses;
        self.acquires += other.acquires;
        self.take_ins += other.take_ins;
        self.evictions += other.evictions;
        self.settles += other.settles;
        self.parked += other.parked;
        self.atomics += other.atomics;
        self.refunds += other.refunds;
        self.credits_in += other.credits_in;
        self.credits_out += other.credits_out;
        self.credits += other.credits;
    }
}

/// A counter with one writer; others may read it.
#[derive(Debug, Default)]
pub struct Counter(PlainU64);

impl Counter {
    /// Counts `n`. By the one writer only.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        // Not an atomic add: there is one writer.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The same; who sees it with `get_acquired` sees what came before. By the one writer only.
    #[inline(always)]
    pub fn add_released(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Release);
    }

    /// The sum so far; with what came before `add_released`.
    pub fn get_acquired(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Starts again at zero. By the one writer only.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// What a buffer's owner counts.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) misses: Counter,
    pub(super) acquires: Counter,
    pub(super) take_ins: Counter,
    pub(super) evictions: Counter,
    pub(super) settles: Counter,
    pub(super) parked: Counter,
    /// Other than those of misses, which are one each.
    pub(super) atomics: Counter,
    pub(super) refunds: Counter,
    pub(super) credits_in: Counter,
    pub(super) credits_out: Counter,
}

impl Counters {
    fn all(&self) -> [&Counter; 10] {
        [
            &self.misses,
            &self.acquires,
            &self.take_ins,
            &self.evictions,
            &self.settles,
            &self.parked,
            &self.atomics,
            &self.refunds,
            &self.credits_in,
            &self.credits_out,
        ]
    }

    /// The sums so far.
    pub(super) fn sums(&self) -> Totals {
        let [misses, acquires, take_ins, evictions, settles, parked, atomics, refunds, credits_in, credits_out] =
            self.all().map(Counter::get);
        Totals {
            misses,
            acquires,
            take_ins,
            evictions,
            settles,
            parked,
            atomics,
            refunds,
            credits_in,
            credits_out,
            credits: 0,
        }
    }

    /// Starts again at zero.
    pub(super) fn reset(&self) {
        self.all().into_iter().for_each(Counter::reset);
    }
}
