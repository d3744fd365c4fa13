//! `atomic`: one count, changed by atomic instructions.
//!
//! ```text
//! increment   count += 1   (atomic)
//! decrement   count -= 1   (atomic)   0: the cell dies
//! ```
//!
//! Greg Stein's patch of 1996 for Python 1.4 was the first to try, with a lock where the
//! system had no atomic instruction. In 2007 Adam Olsen reported a cost of about 12 % in one
//! thread, and a far greater one in two, since literals are shared
//! (<https://mail.python.org/pipermail/python-dev/2007-September/074653.html>).

use crate::core::sync::{AtomicU64, Ordering};
use crate::lab::cell::At;
use crate::lab::scheme::{bury, Common, Mutator, Options, Scheme};

/// The scheme.
#[derive(Debug)]
pub struct Atomic;

/// A cell's count.
#[derive(Debug)]
pub struct Head {
    count: AtomicU64,
}

/// A thread.
#[derive(Debug)]
pub struct Thread {
    common: Common<Head>,
}

impl Scheme for Atomic {
    const NAME: &'static str = "atomic";
    type Head = Head;
    type Mutator<'s> = Thread;

    fn new(_options: &Options, _chores: Common<Head>) -> Atomic {
        Atomic
    }

    fn start(&self, common: Common<Head>) -> Thread {
        Thread { common }
    }

    fn thread_bytes(&self) -> usize {
        0
    }
}

// SAFETY: a cell dies with its last reference, by the one decrement that finds it.
unsafe impl Mutator for Thread {
    type Head = Head;

    fn common(&mut self) -> &mut Common<Head> {
        &mut self.common
    }

    fn make(&mut self, probe: u32) -> At<Head> {
        self.common.allocate(Head { count: AtomicU64::new(1) }, probe)
    }

    #[inline(always)]
    unsafe fn increment(&mut self, cell: At<Head>) {
        // SAFETY: there is a reference. Relaxed: it orders nothing, as in Arc.
        unsafe { cell.get() }.head.count.fetch_add(1, Ordering::Relaxed);
        self.common.atomics(1);
    }

    #[inline(always)]
    unsafe fn decrement(&mut self, cell: At<Head>) {
        self.common.atomics(1);
        // AcqRel: what others did with the cell comes before its death.
        // SAFETY: the caller has a reference.
        if unsafe { cell.get() }.head.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: that was the last.
            unsafe { bury(self, cell) };
        }
    }

    #[inline(always)]
    fn safe_point(&mut self) {}
}
