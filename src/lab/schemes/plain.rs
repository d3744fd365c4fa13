//! `plain`: one count, changed by plain instructions, under one lock.
//!
//! ```text
//! increment   count += 1
//! decrement   count -= 1   0: the cell dies
//! ```
//!
//! A thread holds the lock while it works, and gives way at safe points ([`super::super::gil`]):
//! CPython, from the beginning until 3.12 and still by default. What everything else is
//! compared with.

use std::fmt;

use crate::core::sync::{Ordering, PlainU64};
use crate::lab::cell::At;
use crate::lab::gil::{Gil, Holder};
use crate::lab::scheme::{bury, Common, Mutator, Options, Scheme};

/// The scheme. Counts each reference as `TIMES`, one after the other: what counting once
/// costs follows from the difference ([`super::super::calibrate`]).
#[derive(Debug)]
pub struct Plain<const TIMES: u64 = 1> {
    gil: Gil,
}

/// A cell's count.
#[derive(Debug)]
pub struct Head {
    /// Changed with the lock. A plain load and a plain store.
    count: PlainU64,
}

/// A thread, which has the lock.
pub struct Thread<'s, const TIMES: u64> {
    gil: &'s Gil,
    me: Holder,
    common: Common<Head>,
}

impl<const TIMES: u64> fmt::Debug for Thread<'_, TIMES> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.common.fmt(formatter)
    }
}

impl<const TIMES: u64> Scheme for Plain<TIMES> {
    const NAME: &'static str = "plain";
    type Head = Head;
    type Mutator<'s> = Thread<'s, TIMES>;

    fn new(options: &Options, _chores: Common<Head>) -> Plain<TIMES> {
        Plain { gil: Gil::new(options.switch_interval) }
    }

    fn start(&self, common: Common<Head>) -> Thread<'_, TIMES> {
        let me = self.gil.holder();
        self.gil.take(&me);
        Thread { gil: &self.gil, me, common }
    }

    fn thread_bytes(&self) -> usize {
        0
    }
}

impl<const TIMES: u64> Drop for Thread<'_, TIMES> {
    fn drop(&mut self) {
        self.gil.leave();
    }
}

// SAFETY: with the lock, a count is exact; a cell dies with its last reference.
unsafe impl<const TIMES: u64> Mutator for Thread<'_, TIMES> {
    type Head = Head;

    fn common(&mut self) -> &mut Common<Head> {
        &mut self.common
    }

    fn make(&mut self, probe: u32) -> At<Head> {
        self.common.allocate(Head { count: PlainU64::new(TIMES) }, probe)
    }

    #[inline(always)]
    unsafe fn increment(&mut self, cell: At<Head>) {
        // SAFETY: there is a reference.
        let count = &unsafe { cell.get() }.head.count;
        for _ in 0..TIMES {
            count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    unsafe fn decrement(&mut self, cell: At<Head>) {
        // SAFETY: the caller has a reference.
        let count = &unsafe { cell.get() }.head.count;
        for _ in 0..TIMES {
            let left = count.load(Ordering::Relaxed) - 1;
            count.store(left, Ordering::Relaxed);
            if left == 0 {
                // SAFETY: that was the last.
                return unsafe { bury(self, cell) };
            }
        }
    }

    #[inline(always)]
    fn safe_point(&mut self) {
        self.gil.safe_point(&self.me);
    }

    fn suspend(&mut self) {
        self.gil.give_up(&self.me);
    }

    fn resume(&mut self) {
        self.gil.take(&self.me);
    }
}
