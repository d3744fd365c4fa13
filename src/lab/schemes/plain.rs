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
use crate::lab::gil::Gil;
use crate::lab::scheme::{bury, Common, Mutator, Options, Scheme};

/// The scheme.
#[derive(Debug)]
pub struct Plain {
    gil: Gil,
}

/// A cell's count.
#[derive(Debug)]
pub struct Head {
    /// Changed with the lock. A plain load and a plain store.
    count: PlainU64,
}

/// A thread, which has the lock.
pub struct Thread<'s> {
    gil: &'s Gil,
    common: Common<Head>,
}

impl fmt::Debug for Thread<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.common.fmt(formatter)
    }
}

impl Scheme for Plain {
    const NAME: &'static str = "plain";
    type Head = Head;
    type Mutator<'s> = Thread<'s>;

    fn new(options: &Options, _chores: Common<Head>) -> Plain {
        Plain { gil: Gil::new(options.switch_interval) }
    }

    fn start(&self, common: Common<Head>) -> Thread<'_> {
        self.gil.take();
        Thread { gil: &self.gil, common }
    }

    fn thread_bytes(&self) -> usize {
        0
    }
}

impl Drop for Thread<'_> {
    fn drop(&mut self) {
        self.gil.drop_it();
    }
}

// SAFETY: with the lock, a count is exact; a cell dies with its last reference.
unsafe impl Mutator for Thread<'_> {
    type Head = Head;

    fn common(&mut self) -> &mut Common<Head> {
        &mut self.common
    }

    fn make(&mut self, probe: u32) -> At<Head> {
        self.common.allocate(Head { count: PlainU64::new(1) }, probe)
    }

    #[inline(always)]
    unsafe fn increment(&mut self, cell: At<Head>) {
        // SAFETY: there is a reference.
        let count = &unsafe { cell.get() }.head.count;
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    #[inline(always)]
    unsafe fn decrement(&mut self, cell: At<Head>) {
        // SAFETY: the caller has a reference.
        let count = &unsafe { cell.get() }.head.count;
        let left = count.load(Ordering::Relaxed) - 1;
        count.store(left, Ordering::Relaxed);
        if left == 0 {
            // SAFETY: that was the last.
            unsafe { bury(self, cell) };
        }
    }

    #[inline(always)]
    fn safe_point(&mut self) {
        self.gil.safe_point();
    }

    fn suspend(&mut self) {
        self.gil.drop_it();
    }

    fn resume(&mut self) {
        self.gil.take();
    }
}
