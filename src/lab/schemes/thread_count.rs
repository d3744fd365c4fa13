//! `thread-count`: each thread counts for itself, and a cell counts the threads.
//!
//! Each thread has a vector with a count for each cell. A cell has one global count: the
//! threads that have references of their own to it, and the references to it in memory that
//! threads share.
//!
//! ```text
//! increment   own[cell] += 1    was 0: global += 1 (atomic)
//! decrement   own[cell] -= 1    is 0:  global -= 1 (atomic)    0: the cell dies
//! publish     own[cell] -= 1    is 0:  the thread's part of global is now the memory's
//!                               else:  global += 1 (atomic)
//! adopt       own[cell] += 1    was 0: the memory's part of global is now the thread's
//!                               else:  global -= 1 (atomic), which leaves the thread's
//! ```
//!
//! | | |
//! |---|---|
//! | `global` | threads with `own > 0`, + references in shared memory |
//! | a cell dies | when `global` is 0, noticed by the thread that made it so |
//!
//! Justin Tulloss proposed it on python-dev in September 2007, with a vector in each thread
//! (<https://mail.python.org/pipermail/python-dev/2007-September/074653.html> and
//! 074677.html). Olsen's objection, in the first of these: a literal is referenced first when
//! a function is called and last when it returns, so `global` is touched in each call. What
//! becomes of references that one thread stores and another removes, the proposal does not
//! say; `publish` and `adopt` are the least that is correct.

use std::fmt;
use std::sync::atomic::AtomicUsize;

use crate::core::sync::{lock, AtomicU64, Mutex, Ordering};
use crate::lab::cell::At;
use crate::lab::scheme::{bury, Common, Mutator, Options, Scheme};

/// The scheme.
#[derive(Debug)]
pub struct ThreadCount {
    numbers: Mutex<Numbers>,
    longest: AtomicUsize,
}

/// Which cell has which place in the vectors.
#[derive(Debug)]
struct Numbers {
    next: u32,
    free: Vec<u32>,
}

/// Numbers that a thread takes, or gives back, at a time.
const BATCH: usize = 64;

/// A cell's count.
#[derive(Debug)]
pub struct Head {
    global: AtomicU64,
    /// Its place in each thread's vector.
    number: u32,
}

/// A thread.
pub struct Thread<'s> {
    scheme: &'s ThreadCount,
    own: Vec<u32>,
    /// Numbers for cells to come.
    numbers: Vec<u32>,
    common: Common<Head>,
}

impl fmt::Debug for Thread<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.common.fmt(formatter)
    }
}

impl Scheme for ThreadCount {
    const NAME: &'static str = "thread-count";
    type Head = Head;
    type Mutator<'s> = Thread<'s>;

    fn new(_options: &Options, _chores: Common<Head>) -> ThreadCount {
        ThreadCount { numbers: Mutex::new(Numbers { next: 0, free: Vec::new() }), longest: AtomicUsize::new(0) }
    }

    fn start(&self, common: Common<Head>) -> Thread<'_> {
        Thread { scheme: self, own: Vec::new(), numbers: Vec::new(), common }
    }

    fn thread_bytes(&self) -> usize {
        self.longest.load(Ordering::Relaxed) * size_of::<u32>()
    }
}

impl Thread<'_> {
    #[inline(always)]
    fn own(&mut self, number: u32) -> &mut u32 {
        let at = number as usize;
        if at >= self.own.len() {
            self.lengthen(at);
        }
        &mut self.own[at]
    }

    #[cold]
    #[inline(never)]
    fn lengthen(&mut self, to: usize) {
        self.own.resize((to + 1).next_power_of_two(), 0);
        self.scheme.longest.fetch_max(self.own.len(), Ordering::Relaxed);
    }

    fn number(&mut self) -> u32 {
        if self.numbers.is_empty() {
            let mut all = lock(&self.scheme.numbers);
            let kept = all.free.len().saturating_sub(BATCH);
            self.numbers.extend(all.free.drain(kept..));
            while self.numbers.len() < BATCH {
                self.numbers.push(all.next);
                all.next += 1;
            }
        }
        self.numbers.pop().unwrap_or_default()
    }

    fn give_number_back(&mut self, number: u32) {
        self.numbers.push(number);
        if self.numbers.len() > 2 * BATCH {
            lock(&self.scheme.numbers).free.extend(self.numbers.drain(BATCH..));
        }
    }

    /// One less in the global count.
    ///
    /// # Safety
    ///
    /// The caller has a part of it, and loses it.
    #[inline(never)]
    unsafe fn leave(&mut self, cell: At<Head>) {
        self.common.atomics(1);
        // SAFETY: the part lasts until here.
        let head = &unsafe { cell.get() }.head;
        let number = head.number;
        // AcqRel: as in Arc.
        if head.global.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.give_number_back(number);
            // SAFETY: no thread has one of its own, and none is in memory.
            unsafe { bury(self, cell) };
        }
    }
}

impl Drop for Thread<'_> {
    fn drop(&mut self) {
        lock(&self.scheme.numbers).free.append(&mut self.numbers);
    }
}

// SAFETY: as in the head of this file: `global` is above 0 while anybody has a reference.
unsafe impl Mutator for Thread<'_> {
    type Head = Head;

    fn common(&mut self) -> &mut Common<Head> {
        &mut self.common
    }

    fn make(&mut self, probe: u32) -> At<Head> {
        let number = self.number();
        *self.own(number) = 1;
        self.common.allocate(Head { global: AtomicU64::new(1), number }, probe)
    }

    #[inline(always)]
    unsafe fn increment(&mut self, cell: At<Head>) {
        // SAFETY: there is a reference.
        let head = &unsafe { cell.get() }.head;
        let own = self.own(head.number);
        *own += 1;
        if *own == 1 {
            // Relaxed: there is another reference meanwhile.
            head.global.fetch_add(1, Ordering::Relaxed);
            self.common.atomics(1);
        }
    }

    #[inline(always)]
    unsafe fn decrement(&mut self, cell: At<Head>) {
        // SAFETY: the caller has a reference.
        let own = self.own(unsafe { cell.get() }.head.number);
        *own -= 1;
        if *own == 0 {
            // SAFETY: the thread had a part of the global count.
            unsafe { self.leave(cell) };
        }
    }

    unsafe fn publish(&mut self, cell: At<Head>) {
        // SAFETY: the caller has a reference.
        let head = &unsafe { cell.get() }.head;
        let own = self.own(head.number);
        *own -= 1;
        if *own != 0 {
            head.global.fetch_add(1, Ordering::Relaxed);
            self.common.atomics(1);
        }
    }

    unsafe fn adopt(&mut self, cell: At<Head>) {
        // SAFETY: the reference that came out of memory.
        let own = self.own(unsafe { cell.get() }.head.number);
        *own += 1;
        if *own != 1 {
            // SAFETY: the memory had a part of the global count; the thread's stays.
            unsafe { self.leave(cell) };
        }
    }

    #[inline(always)]
    fn safe_point(&mut self) {}
}
