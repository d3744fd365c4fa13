//! `biased`: the thread that made a cell counts plainly, all others atomically.
//!
//! ```text
//!               owner                      another thread
//! increment     local += 1                 shared += 1 (atomic)
//! decrement     local -= 1                 shared -= 1 (atomic), but where shared is
//!                 0: merges                  0 and nothing else: QUEUED, and the owner
//!                                            is told to merge; the reference goes with it
//! merge         shared += local, MERGED; from here on nobody owns the cell
//! ```
//!
//! | `shared`, low bits | means | a foreign decrement |
//! |---|---|---|
//! | 0 | the owner counts, too | at count 0: queues; else subtracts |
//! | QUEUED | the owner has been told | subtracts, below 0 if need be |
//! | MERGED | `shared` is the whole count | subtracts; at 0 the cell dies |
//!
//! The whole count is `local + shared`; `shared` alone may be negative, since a reference that
//! the owner took may be dropped elsewhere. So the last foreign decrement cannot know
//! that it is the last, and asks. An owner that has ended cannot merge: who would tell it
//! merges in its place, with the lock of the ended thread's queue.
//!
//! Source: Choi, Shull and Torrellas, "Biased Reference Counting", PACT 2018; CPython 3.13,
//! PEP 703 and Python/brc.c, of which this has everything but weak references.

use std::fmt;
use std::sync::Arc;

use crate::core::sync::{lock, AtomicBool, AtomicI64, AtomicU32, AtomicU64, Mutex, Ordering};
use crate::lab::cell::At;
use crate::lab::scheme::{bury, Common, Mutator, Options, Scheme};

/// The owner has been told.
const QUEUED: i64 = 2;
/// Nobody owns the cell.
const MERGED: i64 = 3;
/// Low bits.
#[cfg(any(not(loom), test))]
const FLAGS: i64 = 3;
/// One reference.
const ONE: i64 = 4;

/// A cell's counts.
#[derive(Debug)]
pub struct Head {
    /// The thread that counts in `local`; 0 once they are merged. Changed by it, or
    /// for it when it has ended.
    owner: AtomicU64,
    /// The owner's.
    local: AtomicU32,
    shared: AtomicI64,
}

/// What a thread is told.
#[derive(Debug)]
pub(super) struct Seat {
    /// Cells to merge, each with a reference that was dropped elsewhere.
    queue: Mutex<Queue>,
    /// There are some.
    told: AtomicBool,
}

#[derive(Debug)]
struct Queue {
    cells: Vec<usize>,
    ended: bool,
}

/// The scheme.
#[derive(Debug)]
pub struct Biased {
    /// By number, from 1.
    seats: Mutex<Vec<Arc<Seat>>>,
}

/// A thread.
pub struct Thread<'s> {
    scheme: &'s Biased,
    seat: Arc<Seat>,
    number: u64,
    common: Common<Head>,
}

impl fmt::Debug for Thread<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.common.fmt(formatter)
    }
}

/// What a decrement that another thread than the owner makes comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// Others are left, or the owner knows.
    Done,
    /// That was the last.
    Last,
    /// The owner must be told; the reference is still there.
    Tell,
}

impl Head {
    /// One reference, its maker's.
    pub(super) fn new(owner: u64) -> Head {
        Head { owner: AtomicU64::new(owner), local: AtomicU32::new(1), shared: AtomicI64::new(0) }
    }

    #[inline(always)]
    pub(super) fn is_owned_by(&self, thread: u64) -> bool {
        // Relaxed: only the thread itself, or one that has seen it end, changes this
        // from or to the thread's number.
        self.owner.load(Ordering::Relaxed) == thread
    }

    /// By the owner.
    #[inline(always)]
    pub(super) fn increment_local(&self) {
        self.local.store(self.local.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// By the owner. Whether it has to merge.
    #[inline(always)]
    pub(super) fn decrement_local(&self) -> bool {
        let left = self.local.load(Ordering::Relaxed) - 1;
        self.local.store(left, Ordering::Relaxed);
        left == 0
    }

    /// By the owner, at a local count of 0. Whether the cell dies, and how many atomic
    /// operations that took.
    pub(super) fn merge_at_zero(&self) -> (bool, u64) {
        // Acquire: what others did with the cell comes before its death.
        if self.shared.load(Ordering::Acquire) == 0 {
            // Nobody else has ever had a reference, or all of those are gone.
            return (true, 0);
        }
        // Written first: once it is MERGED, others may free the cell.
        self.owner.store(0, Ordering::Relaxed);
        let before = self.shared.fetch_update(Ordering::AcqRel, Ordering::Acquire, |shared| Some(shared | MERGED));
        // One that is queued has a reference until it is merged.
        (before.is_ok_and(|shared| shared | MERGED == MERGED), 1)
    }

    /// Adds up both counts but for one reference, the queue's; nobody owns the cell from
    /// here on. By the owner, or for one that has ended. True if the cell dies.
    pub(super) fn merge_queued(&self) -> bool {
        // Written first: once it is MERGED, others may free the cell.
        let local = i64::from(self.local.load(Ordering::Relaxed));
        self.local.store(0, Ordering::Relaxed);
        self.owner.store(0, Ordering::Relaxed);
        let mut total = 0;
        let _ = self.shared.fetch_update(Ordering::AcqRel, Ordering::Acquire, |shared| {
            total = (shared >> 2) + local - 1;
            Some(total << 2 | MERGED)
        });
        total == 0
    }

    /// By a thread that is not the owner.
    #[inline(always)]
    pub(super) fn increment_shared(&self, n: u32) {
        // Relaxed: there is another reference meanwhile.
        self.shared.fetch_add(i64::from(n) * ONE, Ordering::Relaxed);
    }

    /// By a thread that is not the owner.
    #[inline(always)]
    pub(super) fn decrement_shared(&self) -> Dropped {
        let mut before = self.shared.load(Ordering::Relaxed);
        loop {
            let after = if before == 0 { QUEUED } else { before - ONE };
            // AcqRel: as in Arc.
            match self.shared.compare_exchange_weak(before, after, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if before == 0 => return Dropped::Tell,
                Ok(_) if after == MERGED => return Dropped::Last,
                Ok(_) => return Dropped::Done,
                Err(now) => before = now,
            }
        }
    }

    /// For credits. Takes back up to `n` references at once: not so many that the count comes to 0, or
    /// below, or to where the owner must be told. How many are left.
    #[cfg(any(not(loom), test))]
    pub(super) fn take_shared(&self, n: u32) -> u32 {
        let mut before = self.shared.load(Ordering::Relaxed);
        loop {
            let count = before >> 2;
            let keep = if before & FLAGS == MERGED { 1 } else { 0 };
            let taken = (count - keep).clamp(0, i64::from(n));
            if taken == 0 {
                return n;
            }
            match self.shared.compare_exchange_weak(before, before - taken * ONE, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return n - taken as u32,
                Err(now) => before = now,
            }
        }
    }

    /// Whether there are references besides one that the caller holds. A hint.
    #[cfg(not(loom))]
    pub(super) fn has_others(&self) -> bool {
        let shared = self.shared.load(Ordering::Relaxed);
        // Where somebody owns the cell, that thread's count is not looked at.
        shared >> 2 > 1 || shared & FLAGS != MERGED
    }

    pub(super) fn owner(&self) -> u64 {
        self.owner.load(Ordering::Relaxed)
    }
}

impl Biased {
    /// Without threads.
    pub(super) fn empty() -> Biased {
        Biased { seats: Mutex::new(Vec::new()) }
    }

    /// The calling thread gets a number.
    pub(super) fn enter(&self, common: Common<Head>) -> Thread<'_> {
        let queue = Mutex::new(Queue { cells: Vec::new(), ended: false });
        let seat = Arc::new(Seat { queue, told: AtomicBool::new(false) });
        let mut seats = lock(&self.seats);
        seats.push(seat.clone());
        Thread { scheme: self, seat, number: seats.len() as u64, common }
    }
}

impl Scheme for Biased {
    const NAME: &'static str = "biased";
    type Head = Head;
    type Mutator<'s> = Thread<'s>;

    fn new(_options: &Options, _chores: Common<Head>) -> Biased {
        Biased::empty()
    }

    fn start(&self, common: Common<Head>) -> Thread<'_> {
        self.enter(common)
    }

    fn thread_bytes(&self) -> usize {
        size_of::<Seat>()
    }
}

impl Thread<'_> {
    /// The thread's number.
    #[cfg(not(loom))]
    #[inline(always)]
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// What the owner does with its last reference.
    ///
    /// # Safety
    ///
    /// The local count has come to 0.
    #[cold]
    #[inline(never)]
    pub(super) unsafe fn merge_at_zero(&mut self, cell: At<Head>) -> bool {
        // SAFETY: whoever has other references cannot free it before it is merged.
        let (dies, atomics) = unsafe { cell.get() }.head.merge_at_zero();
        self.common.atomics(atomics);
        dies
    }

    /// Drops a reference to a cell that this thread does not own, with one atomic
    /// operation, which the caller counts. True if it dies.
    ///
    /// # Safety
    ///
    /// The caller has the reference, and loses it.
    #[inline(always)]
    pub(super) unsafe fn drop_shared(&mut self, cell: At<Head>) -> bool {
        // SAFETY: the caller's promise.
        match unsafe { cell.get() }.head.decrement_shared() {
            Dropped::Done => false,
            Dropped::Last => true,
            // SAFETY: the reference that the queue is to have.
            Dropped::Tell => unsafe { self.tell(cell) },
        }
    }

    /// Has the owner merge a cell; where it has ended, merges it. True if the cell dies.
    ///
    /// # Safety
    ///
    /// The caller has a reference, which it loses, and the cell is QUEUED.
    #[cold]
    #[inline(never)]
    unsafe fn tell(&mut self, cell: At<Head>) -> bool {
        // SAFETY: the caller's promise.
        let head = &unsafe { cell.get() }.head;
        let owner = head.owner();
        self.common.atomics(1);
        if owner == 0 {
            // It merges at this moment, or has merged: no need of its help.
            return head.decrement_shared() == Dropped::Last;
        }
        let seat = lock(&self.scheme.seats)[owner as usize - 1].clone();
        let mut queue = lock(&seat.queue);
        if queue.ended {
            return head.merge_queued();
        }
        queue.cells.push(cell.address());
        seat.told.store(true, Ordering::Release);
        false
    }

    /// Merges what others have queued.
    #[cold]
    #[inline(never)]
    pub(super) fn merge_queued(&mut self, mut dies: impl FnMut(&mut Self, At<Head>)) {
        self.seat.told.store(false, Ordering::Relaxed);
        let cells = std::mem::take(&mut lock(&self.seat.queue).cells);
        for address in cells {
            // SAFETY: put there by `tell`; the queue has a reference.
            let cell = unsafe { At::<Head>::from_address(address) };
            self.common.atomics(1);
            // SAFETY: as above.
            if unsafe { cell.get() }.head.merge_queued() {
                dies(self, cell);
            }
        }
    }

    #[inline(always)]
    pub(super) fn is_told(&self) -> bool {
        self.seat.told.load(Ordering::Relaxed)
    }

    /// No more cells are queued for this thread: others merge in its place.
    pub(super) fn end(&mut self, mut dies: impl FnMut(&mut Self, At<Head>)) {
        loop {
            self.merge_queued(&mut dies);
            let mut queue = lock(&self.seat.queue);
            if queue.cells.is_empty() {
                queue.ended = true;
                return;
            }
        }
    }
}

impl Drop for Thread<'_> {
    fn drop(&mut self) {
        self.end(|thread, cell| {
            // SAFETY: its last reference was the queue's.
            unsafe { bury(thread, cell) }
        });
    }
}

// SAFETY: as in the head of this file: the whole count is exact, and who makes it 0 with the
// counts merged, or the owner with nothing shared, is one thread alone.
unsafe impl Mutator for Thread<'_> {
    type Head = Head;

    fn common(&mut self) -> &mut Common<Head> {
        &mut self.common
    }

    fn make(&mut self, probe: u32) -> At<Head> {
        let head = Head::new(self.number);
        self.common.allocate(head, probe)
    }

    #[inline(always)]
    unsafe fn increment(&mut self, cell: At<Head>) {
        // SAFETY: there is a reference.
        let head = &unsafe { cell.get() }.head;
        if head.is_owned_by(self.number) {
            head.increment_local();
        } else {
            head.increment_shared(1);
            self.common.atomics(1);
        }
    }

    #[inline(always)]
    unsafe fn decrement(&mut self, cell: At<Head>) {
        // SAFETY: the caller has a reference, throughout.
        let dies = unsafe {
            let head = &cell.get().head;
            if head.is_owned_by(self.number) {
                head.decrement_local() && self.merge_at_zero(cell)
            } else {
                self.common.atomics(1);
                self.drop_shared(cell)
            }
        };
        if dies {
            // SAFETY: that was the last.
            unsafe { bury(self, cell) };
        }
    }

    #[inline(always)]
    fn safe_point(&mut self) {
        if self.is_told() {
            self.merge_queued(|thread, cell| {
                // SAFETY: its last reference was the queue's.
                unsafe { bury(thread, cell) }
            });
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::thread;

    use super::*;
    use crate::lab::scheme::Tally;

    /// A thread that is not the owner gives `credits` back, as a settler does: at once as many
    /// as can be, and the others one by one. The owner drops the reference that it has, and then
    /// ends or comes to a safe point.
    fn one_death(credits: u32, ends: bool) {
        loom::model(move || {
            let tally: [Arc<Tally>; 2] = Default::default();
            let scheme = Arc::new(Biased::empty());
            let mut own = scheme.enter(Common::new(tally[0].clone(), None));
            let cell = own.make(0);
            // SAFETY: the reference that `make` gave.
            unsafe { cell.get() }.head.increment_shared(credits);
            let settler = thread::spawn({
                let (scheme, tally) = (scheme.clone(), tally[1].clone());
                move || {
                    let mut settler = scheme.enter(Common::new(tally, None));
                    // SAFETY: the credits.
                    let left = unsafe { cell.get() }.head.take_shared(credits);
                    // SAFETY: those that are left.
                    (0..left).for_each(|_| unsafe { settler.decrement(cell) });
                }
            });
            // SAFETY: the reference that `make` gave.
            unsafe { own.decrement(cell) };
            if ends {
                drop(own);
                settler.join().unwrap();
            } else {
                settler.join().unwrap();
                own.safe_point();
                drop(own);
            }
            let freed: u64 = tally.iter().map(|tally| tally.freed.load(Ordering::Relaxed)).sum();
            assert_eq!(freed, 1);
        });
    }

    #[test]
    fn credits_that_come_back_while_the_owner_drops_its_last_reference() {
        for credits in 1..=3 {
            one_death(credits, false);
            one_death(credits, true);
        }
    }
}
