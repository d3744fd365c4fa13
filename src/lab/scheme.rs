//! What a scheme of counting is, to the workloads.
//!
//! A program's references are of two kinds, since some schemes count them apart: a
//! thread's own, which lie on its [`Stack`], and those in memory that threads share (an
//! edge of a cell, a table, a queue). [`Mutator::publish`] and [`Mutator::adopt`] turn one
//! kind into the other.
//!
//! | a program | calls |
//! |---|---|
//! | makes a cell | `make`, then pushes it |
//! | copies a reference, its own or one in memory that stays there meanwhile | `increment`, then pushes it |
//! | drops one of its own | pops it, then `decrement` |
//! | moves one of its own into memory | `publish`, puts it there, pops it |
//! | takes one out of memory | takes it, `adopt`, pushes it |
//!
//! Between the steps of a line nothing else happens. Now and then, at a moment when all its
//! references are on its stack or in memory, a thread passes a `safe_point`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cell::{At, EDGES};
use crate::core::sync::{Ordering, PlainU64};

/// What may be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// `plain`: how long a thread waits for the lock before it asks for it. CPython's
    /// is 5 ms.
    pub switch_interval: Duration,
    /// `deltas`: entries of a thread's table, a power of two. python-safethread's was 2,048.
    pub deltas: usize,
    /// `deltas`: cells made between two collections.
    pub collect_every: u64,
    /// `credits`: slots of a thread's table, a power of two up to 1,024.
    pub slots: usize,
    /// `credits`: the heartbeat.
    pub heartbeat: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            switch_interval: Duration::from_millis(5),
            deltas: 2048,
            collect_every: 10_000,
            slots: 1024,
            heartbeat: Duration::from_millis(10),
        }
    }
}

/// A way of counting references that threads share.
pub trait Scheme: Send + Sync + Sized + 'static {
    /// Its name on the command line.
    const NAME: &'static str;
    /// What a cell begins with.
    type Head: Send + Sync + 'static;
    /// A thread's part.
    type Mutator<'s>: Mutator<Head = Self::Head>;

    /// With nothing counted yet. `chores` is for cells that no thread of the program frees.
    fn new(options: &Options, chores: Common<Self::Head>) -> Self;

    /// The calling thread begins to work. Dropped, it has ended, with an empty stack.
    fn start<'s>(&'s self, common: Common<Self::Head>) -> Self::Mutator<'s>;

    /// Memory in which references lie: for schemes that trace.
    fn watch(&self, _memory: Arc<dyn Roots<Self::Head>>) {}

    /// Gives back all that is held for no reference, and frees what is free. Called
    /// once, when no thread works any more.
    fn rest(&self) {}

    /// Bytes of a cell that are there for counting.
    fn header_bytes() -> usize {
        size_of::<Self::Head>()
    }

    /// Bytes that a thread has for counting, at the most so far.
    fn thread_bytes(&self) -> usize;

    /// Atomic operations on cells' heads that no thread's tally has.
    fn more_atomics(&self) -> u64 {
        0
    }
}

/// A thread at work.
///
/// # Safety
///
/// Implementors promise that a cell is not freed while the program has a reference to
/// it, as the table above says.
pub unsafe trait Mutator {
    /// As the scheme's.
    type Head: Send + Sync + 'static;

    /// What all schemes have.
    fn common(&mut self) -> &mut Common<Self::Head>;

    /// A new cell, with the caller's reference. `probe` names it, if not 0.
    fn make(&mut self, probe: u32) -> At<Self::Head>;

    /// One reference more, the thread's own.
    ///
    /// # Safety
    ///
    /// There is another reference meanwhile.
    unsafe fn increment(&mut self, cell: At<Self::Head>);

    /// One reference of the thread's own less. May free cells.
    ///
    /// # Safety
    ///
    /// The caller has it, and loses it.
    unsafe fn decrement(&mut self, cell: At<Self::Head>);

    /// One of the thread's own becomes one in memory.
    ///
    /// # Safety
    ///
    /// The caller has it.
    #[inline(always)]
    unsafe fn publish(&mut self, _cell: At<Self::Head>) {}

    /// One in memory becomes the thread's own.
    ///
    /// # Safety
    ///
    /// The caller has taken it from there.
    #[inline(always)]
    unsafe fn adopt(&mut self, _cell: At<Self::Head>) {}

    /// Other threads, and chores, get their turn.
    fn safe_point(&mut self);

    /// Others need not wait for this thread, which touches no cell until `resume`. At a
    /// safe point.
    fn suspend(&mut self) {}

    /// Goes on.
    fn resume(&mut self) {}
}

/// Memory in which references lie.
pub trait Roots<H>: Send + Sync {
    /// Each of them. Called while no thread works.
    fn trace(&self, visit: &mut dyn FnMut(At<H>));
}

/// What a thread counts for the report. Written by it alone, and alone on its lines: what
/// one thread notes down must not cost another.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Tally {
    /// Cells made.
    pub made: PlainU64,
    /// Cells freed, by this thread or for it.
    pub freed: PlainU64,
    /// Atomic read-modify-write operations on cells' heads.
    pub atomics: PlainU64,
}

impl Tally {
    /// One more, of one of them.
    #[inline(always)]
    pub fn add(counter: &PlainU64, n: u64) {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }
}

/// When cells that bear a number died, in nanoseconds since `start`, or 0.
#[derive(Debug)]
pub struct Probes {
    start: Instant,
    deaths: Box<[PlainU64]>,
}

impl Probes {
    /// For so many cells, numbered from 1.
    pub fn new(cells: usize) -> Probes {
        Probes { start: Instant::now(), deaths: (0..cells).map(|_| PlainU64::new(0)).collect() }
    }

    /// Nanoseconds since the start; never 0.
    pub fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64 | 1
    }

    /// When it died.
    pub fn death(&self, probe: u32) -> Option<u64> {
        Some(self.deaths[probe as usize - 1].load(Ordering::Acquire)).filter(|&time| time != 0)
    }

    fn note(&self, probe: u32) {
        self.deaths[probe as usize - 1].store(self.now(), Ordering::Release);
    }
}

/// A thread's own references, as an interpreter's frames have them.
pub struct Stack<H> {
    cells: Vec<At<H>>,
}

impl<H> Stack<H> {
    /// A reference comes.
    #[inline(always)]
    pub fn push(&mut self, cell: At<H>) {
        self.cells.push(cell);
    }

    /// The newest goes.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<At<H>> {
        self.cells.pop()
    }

    /// How many there are.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// One of them, which stays.
    #[inline(always)]
    pub fn get(&self, index: usize) -> At<H> {
        self.cells[index]
    }

    /// Takes one out from the middle; the newest gets its place.
    pub fn swap_remove(&mut self, index: usize) -> At<H> {
        self.cells.swap_remove(index)
    }
}

/// What a mutator of any scheme has.
pub struct Common<H> {
    /// The thread's own references.
    pub stack: Stack<H>,
    /// Its numbers.
    pub tally: Arc<Tally>,
    /// Cells that nobody refers to, whose edges are being dropped.
    dying: Vec<At<H>>,
    probes: Option<Arc<Probes>>,
}

impl<H> fmt::Debug for Common<H> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Common").field("stack", &self.stack.len()).field("tally", &self.tally).finish()
    }
}

/// Room on a stack from the start, so that it hardly ever grows.
const STACK: usize = 4096;

impl<H> Common<H> {
    /// An empty stack. Deaths of cells that bear a number go to `probes`.
    pub fn new(tally: Arc<Tally>, probes: Option<Arc<Probes>>) -> Common<H> {
        Common { stack: Stack { cells: Vec::with_capacity(STACK) }, tally, dying: Vec::new(), probes }
    }

    /// A new cell.
    pub fn allocate(&mut self, head: H, probe: u32) -> At<H> {
        Tally::add(&self.tally.made, 1);
        At::allocate(head, probe)
    }

    /// Counts atomic operations.
    #[inline(always)]
    pub fn atomics(&mut self, n: u64) {
        Tally::add(&self.tally.atomics, n);
    }

    /// Frees a cell whose edges are gone.
    ///
    /// # Safety
    ///
    /// Nobody has a reference to it.
    pub unsafe fn free(&mut self, cell: At<H>) {
        // SAFETY: the caller's promise.
        let probe = unsafe { cell.free() };
        Tally::add(&self.tally.freed, 1);
        if let (Some(probes), true) = (&self.probes, probe != 0) {
            probes.note(probe);
        }
    }

    /// All that a tracing collector begins with in this thread.
    pub fn trace(&self, visit: &mut dyn FnMut(At<H>)) {
        self.stack.cells.iter().for_each(|&cell| visit(cell));
        for cell in &self.dying {
            // SAFETY: not freed as long as it is on this list.
            let cell = unsafe { cell.get() };
            (0..EDGES).filter_map(|edge| cell.edge(edge)).for_each(&mut *visit);
        }
    }
}

/// Drops the edges of a cell that nobody refers to any more, and frees it; and others
/// that die of it, without recursion.
///
/// # Safety
///
/// The last reference to it is gone, and the caller alone has noticed.
#[cold]
#[inline(never)]
pub unsafe fn bury<M: Mutator + ?Sized>(mutator: &mut M, cell: At<M::Head>) {
    let dying = &mut mutator.common().dying;
    dying.push(cell);
    if dying.len() > 1 {
        // Whoever buries sees to it.
        return;
    }
    while let Some(&dead) = mutator.common().dying.last() {
        // SAFETY: freed below, and not before.
        let body = unsafe { dead.get() };
        let Some((index, edge)) = (0..EDGES).find_map(|index| Some((index, body.edge(index)?))) else {
            mutator.common().dying.pop();
            // SAFETY: the caller's promise; its edges are gone.
            unsafe { mutator.common().free(dead) };
            continue;
        };
        body.set_edge(index, None);
        // SAFETY: the edge was a reference in memory.
        unsafe {
            mutator.adopt(edge);
            mutator.decrement(edge);
        }
    }
}
