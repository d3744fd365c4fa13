//! `deltas`: changes are buffered in each thread, and only the collector frees.
//!
//! ```text
//! the cell's owner   increment   count += 1
//!                    decrement   count -= 1     0: the cell dies
//! another thread     promotes the cell, which is asynchronous from then on
//! any thread, asynchronous cell  increment / decrement   table[cell] += 1 / -= 1
//! table              one entry for each place: an entry of another cell is flushed first,
//!                    count += delta (atomic)
//! collection         the world stopped: all entries flushed, all that threads can reach
//!                    marked, asynchronous cells without a mark freed, the others without an owner
//! ```
//!
//! | `owner` | means | changed |
//! |---|---|---|
//! | `NOBODY` | the next to touch the cell owns it | to that thread's number |
//! | a number | that thread counts, plainly | to `ASYNCHRONOUS`, by a thread that has its token |
//! | `ASYNCHRONOUS` | all threads count in their tables | to `NOBODY`, by the collector |
//!
//! While a cell is asynchronous its count alone says nothing: it may be 0, or below, while
//! tables owe it references. So no decrement frees it.
//!
//! Adam Olsen's way: a hash table as a cache of counts, flushed on a collision and when the
//! collector starts, with about 50 % of the speed and 90 % scalability at that time
//! (<https://mail.python.org/pipermail/python-dev/2007-September/074653.html>). Promotion,
//! the table of 2,048 entries, its hash, and what becomes of cells that a collection leaves
//! are those of python-safethread (Objects/object.c, Modules/gcmodule.c, 2008). There a
//! collection also found cycles among owned objects; here these are not looked at.

use std::cell::UnsafeCell;
use std::fmt;
use std::sync::Arc;

use crate::core::sync::{lock, AtomicBool, AtomicI64, AtomicU32, AtomicU64, Mutex, Ordering};
use crate::lab::cell::{At, EDGES};
use crate::lab::scheme::{bury, Common, Mutator, Options, Roots, Scheme};
use crate::lab::world::Token;

/// The next to touch the cell owns it.
const NOBODY: u64 = 0;
/// All threads count in their tables.
const ASYNCHRONOUS: u64 = 1;
/// The first thread's number.
const FIRST: u64 = 2;

/// Cells that a thread makes before it tells the world.
const MADE_BATCH: u64 = 64;

/// A cell's count.
#[derive(Debug)]
pub struct Head {
    owner: AtomicU64,
    count: AtomicI64,
    /// The collection that has last seen it.
    mark: AtomicU32,
}

/// An entry of a thread's table. Vacant: no cell, no delta.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    cell: usize,
    delta: i64,
}

/// What belongs to a thread, or to who has its token.
struct Inside {
    common: Common<Head>,
    table: Box<[Entry]>,
    /// Asynchronous cells that it has promoted.
    promoted: Vec<At<Head>>,
    made: u64,
}

/// A thread, to others.
struct Seat {
    token: Token,
    inside: UnsafeCell<Inside>,
}

// SAFETY: `inside` is touched only by who has the token.
unsafe impl Send for Seat {}
// SAFETY: as above.
unsafe impl Sync for Seat {}

/// The scheme.
pub struct Deltas {
    table: usize,
    collect_every: u64,
    /// By number, from `FIRST`.
    seats: Mutex<Vec<Arc<Seat>>>,
    memory: Mutex<Vec<Arc<dyn Roots<Head>>>>,
    /// Who stops the world. Holds the number of the last collection.
    collection: Mutex<u32>,
    /// Cells made since the last.
    made: AtomicU64,
    is_due: AtomicBool,
    /// For chores.
    chores: Mutex<Option<Common<Head>>>,
}

impl fmt::Debug for Deltas {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Deltas").field("table", &self.table).finish_non_exhaustive()
    }
}

/// A thread, which has its token.
pub struct Thread<'s> {
    scheme: &'s Deltas,
    seat: Arc<Seat>,
    number: u64,
}

impl fmt::Debug for Thread<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Thread").field("number", &self.number).finish()
    }
}

impl Scheme for Deltas {
    const NAME: &'static str = "deltas";
    type Head = Head;
    type Mutator<'s> = Thread<'s>;

    fn new(options: &Options, chores: Common<Head>) -> Deltas {
        assert!(options.deltas.is_power_of_two());
        Deltas {
            table: options.deltas,
            collect_every: options.collect_every,
            seats: Mutex::new(Vec::new()),
            memory: Mutex::new(Vec::new()),
            collection: Mutex::new(0),
            made: AtomicU64::new(0),
            is_due: AtomicBool::new(false),
            chores: Mutex::new(Some(chores)),
        }
    }

    fn start(&self, common: Common<Head>) -> Thread<'_> {
        let table = vec![Entry::default(); self.table].into_boxed_slice();
        let inside = UnsafeCell::new(Inside { common, table, promoted: Vec::new(), made: 0 });
        // Not while the world is stopped.
        let _still = lock(&self.collection);
        let mut seats = lock(&self.seats);
        let seat = Arc::new(Seat { token: Token::taken(), inside });
        seats.push(seat.clone());
        Thread { scheme: self, seat, number: seats.len() as u64 - 1 + FIRST }
    }

    fn watch(&self, memory: Arc<dyn Roots<Head>>) {
        lock(&self.memory).push(memory);
    }

    fn rest(&self) {
        let chores = lock(&self.chores).take();
        if let Some(chores) = chores {
            let mut thread = self.start(chores);
            thread.collect();
        }
    }

    fn thread_bytes(&self) -> usize {
        self.table * size_of::<Entry>()
    }
}

impl Inside {
    /// Counts in the table.
    ///
    /// # Safety
    ///
    /// The cell is asynchronous, and not freed before the entry is flushed: only a
    /// collection frees it, which flushes first.
    #[inline(always)]
    unsafe fn add(&mut self, cell: At<Head>, delta: i64) {
        let address = cell.address();
        // python-safethread's hash.
        let place = (address ^ (address >> 3) ^ (address >> 7) ^ (address >> 17)) & (self.table.len() - 1);
        if self.table[place].cell != address {
            // SAFETY: the entry's cell is asynchronous.
            unsafe { self.flush(place) };
            self.table[place].cell = address;
        }
        let entry = &mut self.table[place];
        entry.delta += delta;
        if entry.delta == 0 {
            entry.cell = 0;
        }
    }

    /// # Safety
    ///
    /// As for `add`.
    unsafe fn flush(&mut self, place: usize) {
        let entry = std::mem::take(&mut self.table[place]);
        if entry.cell != 0 {
            // SAFETY: the caller's promise. AcqRel: as in Arc, for the collector.
            unsafe { At::<Head>::from_address(entry.cell).get() }.head.count.fetch_add(entry.delta, Ordering::AcqRel);
            self.common.atomics(1);
        }
    }

    /// # Safety
    ///
    /// As for `add`.
    unsafe fn flush_all(&mut self) {
        for place in 0..self.table.len() {
            // SAFETY: the caller's promise.
            unsafe { self.flush(place) };
        }
    }
}

impl Thread<'_> {
    #[inline(always)]
    fn inside(&mut self) -> &mut Inside {
        // SAFETY: this thread has its token, and lends what is inside to nobody.
        unsafe { &mut *self.seat.inside.get() }
    }

    /// A step towards counting a cell that this thread does not own.
    ///
    /// # Safety
    ///
    /// There is a reference to the cell.
    #[cold]
    #[inline(never)]
    unsafe fn promote(&mut self, cell: At<Head>) {
        // SAFETY: the caller's promise; while this thread waits, its stack keeps it.
        let head = &unsafe { cell.get() }.head;
        let owner = head.owner.load(Ordering::Acquire);
        if owner == NOBODY {
            self.inside().common.atomics(1);
            let _ = head.owner.compare_exchange(NOBODY, self.number, Ordering::AcqRel, Ordering::Relaxed);
            return;
        }
        if owner == ASYNCHRONOUS {
            return;
        }
        self.inside().common.stack.push(cell);
        let seat = lock(&self.scheme.seats)[(owner - FIRST) as usize].clone();
        self.suspend();
        seat.token.take_from_thread();
        // The owner stands still, and sees the change when it goes on.
        let won = head.owner.compare_exchange(owner, ASYNCHRONOUS, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if won {
            // With the owner's cells: this thread may not touch its own now, and who
            // collects has both tokens.
            // SAFETY: this thread has the owner's token.
            unsafe { &mut *seat.inside.get() }.promoted.push(cell);
        }
        seat.token.give();
        self.resume();
        let common = &mut self.inside().common;
        common.stack.pop();
        common.atomics(1);
    }

    /// Stops the world, unless another thread has just done so, and collects.
    #[cold]
    #[inline(never)]
    fn collect_if_due(&mut self) {
        self.suspend();
        let collection = lock(&self.scheme.collection);
        self.seat.token.take();
        if self.scheme.is_due.load(Ordering::Relaxed) {
            self.collect_as(collection);
        }
    }

    fn collect(&mut self) {
        self.suspend();
        let collection = lock(&self.scheme.collection);
        self.seat.token.take();
        self.collect_as(collection);
    }

    fn collect_as(&mut self, mut collection: crate::core::sync::MutexGuard<'_, u32>) {
        *collection += 1;
        let seats: Vec<Arc<Seat>> = lock(&self.scheme.seats).clone();
        let others = || seats.iter().filter(|seat| !Arc::ptr_eq(seat, &self.seat));
        others().for_each(|seat| seat.token.take_from_thread());
        // SAFETY: the world stands still: all tokens are this thread's.
        let dead = unsafe { self.scheme.mark_and_sweep(&seats, *collection) };
        self.scheme.made.store(0, Ordering::Relaxed);
        self.scheme.is_due.store(false, Ordering::Relaxed);
        for cell in dead {
            // SAFETY: nobody can reach it; its edges are gone.
            unsafe { (*self.seat.inside.get()).common.free(cell) };
        }
        others().for_each(|seat| seat.token.give());
    }
}

impl Deltas {
    /// Finds asynchronous cells that nothing can reach, and cells that nobody refers to
    /// but these. Their edges are gone. The asynchronous ones that are left have no owner.
    ///
    /// # Safety
    ///
    /// The caller has all tokens.
    unsafe fn mark_and_sweep(&self, seats: &[Arc<Seat>], collection: u32) -> Vec<At<Head>> {
        let mut promoted = Vec::new();
        for seat in seats {
            // SAFETY: the caller has its token; what is in tables is asynchronous.
            let inside = unsafe { &mut *seat.inside.get() };
            // SAFETY: as above.
            unsafe { inside.flush_all() };
            promoted.append(&mut inside.promoted);
        }
        let mut grey = Vec::new();
        let mut visit = |cell: At<Head>| {
            // SAFETY: reachable cells are alive.
            if unsafe { cell.get() }.head.mark.swap(collection, Ordering::Relaxed) != collection {
                grey.push(cell);
            }
        };
        for seat in seats {
            // SAFETY: the caller has its token.
            unsafe { &*seat.inside.get() }.common.trace(&mut visit);
        }
        lock(&self.memory).iter().for_each(|memory| memory.trace(&mut visit));
        while let Some(cell) = grey.pop() {
            // SAFETY: as above.
            let cell = unsafe { cell.get() };
            for next in (0..EDGES).filter_map(|edge| cell.edge(edge)) {
                // SAFETY: as above.
                if unsafe { next.get() }.head.mark.swap(collection, Ordering::Relaxed) != collection {
                    grey.push(next);
                }
            }
        }
        // SAFETY: the caller's promise; all that can be reached is marked.
        unsafe { sweep(promoted, collection) }
    }
}

/// See `mark_and_sweep`.
///
/// # Safety
///
/// The world stands still, and all that can be reached is marked.
unsafe fn sweep(promoted: Vec<At<Head>>, collection: u32) -> Vec<At<Head>> {
    let mut dead = Vec::new();
    for cell in promoted {
        // SAFETY: asynchronous cells are freed here alone.
        let head = &unsafe { cell.get() }.head;
        if head.mark.load(Ordering::Relaxed) == collection {
            assert!(head.count.load(Ordering::Relaxed) > 0, "a reference that is not counted");
            head.owner.store(NOBODY, Ordering::Release);
        } else {
            dead.push(cell);
        }
    }
    let mut next = 0;
    while next < dead.len() {
        // SAFETY: freed by the caller, later.
        let cell = unsafe { dead[next].get() };
        next += 1;
        for index in 0..EDGES {
            let Some(to) = cell.edge(index) else { continue };
            cell.set_edge(index, None);
            // SAFETY: the edge was a reference.
            let head = &unsafe { to.get() }.head;
            let left = head.count.load(Ordering::Relaxed) - 1;
            head.count.store(left, Ordering::Relaxed);
            let is_listed = head.owner.load(Ordering::Relaxed) == ASYNCHRONOUS;
            if left == 0 && !is_listed && head.mark.load(Ordering::Relaxed) != collection {
                dead.push(to);
            }
        }
    }
    dead
}

impl Drop for Thread<'_> {
    fn drop(&mut self) {
        let inside = self.inside();
        // SAFETY: what is in the table is asynchronous.
        unsafe { inside.flush_all() };
        inside.table = Box::default();
        self.suspend();
    }
}

// SAFETY: an owned cell's count is exact, and dies with the last reference; an
// asynchronous one is freed where nothing can reach it.
unsafe impl Mutator for Thread<'_> {
    type Head = Head;

    fn common(&mut self) -> &mut Common<Head> {
        &mut self.inside().common
    }

    fn make(&mut self, probe: u32) -> At<Head> {
        let (number, scheme) = (self.number, self.scheme);
        let inside = self.inside();
        inside.made += 1;
        if inside.made >= MADE_BATCH.min(scheme.collect_every) {
            let made = scheme.made.fetch_add(inside.made, Ordering::Relaxed) + inside.made;
            inside.made = 0;
            if made >= scheme.collect_every {
                scheme.is_due.store(true, Ordering::Relaxed);
            }
        }
        let head = Head { owner: AtomicU64::new(number), count: AtomicI64::new(1), mark: AtomicU32::new(0) };
        inside.common.allocate(head, probe)
    }

    #[inline(always)]
    unsafe fn increment(&mut self, cell: At<Head>) {
        // SAFETY: there is a reference.
        let head = &unsafe { cell.get() }.head;
        loop {
            // Acquire: pairs with the release of who has promoted it.
            let owner = head.owner.load(Ordering::Acquire);
            if owner == self.number {
                head.count.store(head.count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                return;
            }
            if owner == ASYNCHRONOUS {
                // SAFETY: it is asynchronous until a collection.
                return unsafe { self.inside().add(cell, 1) };
            }
            // SAFETY: there is a reference.
            unsafe { self.promote(cell) };
        }
    }

    #[inline(always)]
    unsafe fn decrement(&mut self, cell: At<Head>) {
        // SAFETY: the caller has a reference.
        let head = &unsafe { cell.get() }.head;
        loop {
            // Acquire: as above.
            let owner = head.owner.load(Ordering::Acquire);
            if owner == self.number {
                let left = head.count.load(Ordering::Relaxed) - 1;
                head.count.store(left, Ordering::Relaxed);
                if left == 0 {
                    // SAFETY: that was the last.
                    unsafe { bury(self, cell) };
                }
                return;
            }
            if owner == ASYNCHRONOUS {
                // SAFETY: it is asynchronous until a collection.
                return unsafe { self.inside().add(cell, -1) };
            }
            // SAFETY: there is a reference: the caller's.
            unsafe { self.promote(cell) };
        }
    }

    #[inline(always)]
    fn safe_point(&mut self) {
        if self.seat.token.is_wanted() {
            self.seat.token.give_way();
        }
        if self.scheme.is_due.load(Ordering::Relaxed) {
            self.collect_if_due();
        }
    }

    fn suspend(&mut self) {
        self.seat.token.give();
    }

    fn resume(&mut self) {
        self.seat.token.take();
    }
}
