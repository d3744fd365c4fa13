//! What threads do with cells: the workloads.
//!
//! | program | does |
//! |---|---|
//! | [`calls`] | calls in a tree, each of which references its literals and drops them on return |
//! | [`private`] | each thread references cells of its own |
//! | [`graph`] | threads walk and rewire one graph |
//! | [`pipeline`] | cells made in one thread, freed in the next |
//! | [`churn`] | short-lived cells |
//! | [`zipf`] | 4,096 shared cells, few of them often |
//!
//! Beside each pair of an increment and a decrement stands a known amount of other work.
//! References are kept on the thread's stack, as an interpreter's frames keep them.

pub mod calls;
pub mod churn;
pub mod graph;
pub mod pipeline;
pub mod private;
pub mod zipf;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::SeedableRng;

use super::cell::At;
use super::scheme::{Mutator, Roots, Scheme};
use super::work::Work;

/// What all programs are told.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Threads that work.
    pub threads: usize,
    /// Units of other work beside each pair.
    pub work: u32,
    /// For `calls`: the part of the literals that threads share.
    pub share: f64,
    /// Where random numbers begin.
    pub seed: u64,
}

impl Setting {
    /// A thread's own random numbers.
    fn random(&self, thread: usize) -> SmallRng {
        SmallRng::seed_from_u64(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (thread as u64 + 1))
    }
}

/// One thread's run.
pub struct Run<'r> {
    /// Which thread, from 0.
    pub thread: usize,
    /// The other work.
    pub work: Work,
    /// Pairs so far.
    pub pairs: u64,
    /// When to end.
    pub stop: &'r AtomicBool,
}

impl Run<'_> {
    /// Whether to go on. Asked every some hundred pairs. A thread that gets its processor
    /// after the end does a few all the same: there is a time for each.
    pub fn goes_on(&self) -> bool {
        self.pairs == 0 || !self.stop.load(Ordering::Relaxed)
    }
}

/// A program on the cells of a scheme.
pub trait Program<S: Scheme>: Send + Sync + Sized {
    /// What a thread has for itself.
    type Own;

    /// Makes what threads share. Its references lie in memory.
    fn set_up(scheme: &S, maker: &mut S::Mutator<'_>, setting: &Setting) -> Self;

    /// A thread gets what is its own.
    fn begin(&self, own: &mut S::Mutator<'_>, setting: &Setting, thread: usize) -> Self::Own;

    /// Works until told to stop. Leaves the stack as it was.
    fn work(&self, own: &mut S::Mutator<'_>, mine: &mut Self::Own, run: &mut Run<'_>);

    /// Drops what threads shared; they have ended.
    fn tear_down(self, last: &mut S::Mutator<'_>);
}

/// Cells that all threads may reference, which stay to the end.
pub struct Table<H> {
    cells: Box<[At<H>]>,
    is_cleared: AtomicBool,
}

impl<H: Send + Sync> Roots<H> for Table<H> {
    fn trace(&self, visit: &mut dyn FnMut(At<H>)) {
        if !self.is_cleared.load(Ordering::Relaxed) {
            self.cells.iter().for_each(|&cell| visit(cell));
        }
    }
}

impl<H> std::ops::Deref for Table<H> {
    type Target = [At<H>];

    fn deref(&self) -> &[At<H>] {
        &self.cells
    }
}

impl<H: Send + Sync + 'static> Table<H> {
    /// So many new cells, known to the scheme.
    fn make<S: Scheme<Head = H>>(scheme: &S, maker: &mut S::Mutator<'_>, cells: usize) -> Arc<Table<H>> {
        let fill = |_| {
            let cell = maker.make(0);
            // SAFETY: the reference that `make` gave goes into the table. Until the
            // table is known, nothing collects: no safe point is passed.
            unsafe { maker.publish(cell) };
            cell
        };
        let table = Arc::new(Table { cells: (0..cells).map(fill).collect(), is_cleared: AtomicBool::new(false) });
        scheme.watch(table.clone());
        table
    }

    /// Drops the table's references. It is not used any more.
    fn clear<S: Scheme<Head = H>>(&self, last: &mut S::Mutator<'_>) {
        self.is_cleared.store(true, Ordering::Relaxed);
        for &cell in self.iter() {
            // SAFETY: the table's reference, which nobody looks at any more.
            unsafe { drop_from_memory::<S>(last, cell) };
        }
    }
}

/// Drops a reference that was taken out of memory.
///
/// # Safety
///
/// It was there, and is not any more.
#[inline(always)]
unsafe fn drop_from_memory<S: Scheme>(own: &mut S::Mutator<'_>, cell: At<S::Head>) {
    // SAFETY: the caller's promise.
    unsafe {
        own.adopt(cell);
        own.decrement(cell);
    }
}

/// References a cell that memory keeps meanwhile, works, and drops it: one pair.
///
/// # Safety
///
/// The memory, or the stack, has another reference meanwhile.
#[inline(always)]
unsafe fn pair<S: Scheme>(own: &mut S::Mutator<'_>, cell: At<S::Head>, run: &mut Run<'_>) {
    // SAFETY: the caller's promise; the reference is ours until it is dropped.
    unsafe {
        own.increment(cell);
        own.common().stack.push(cell);
        run.work.spend();
        own.common().stack.pop();
        own.decrement(cell);
    }
    run.pairs += 1;
}

/// Cells of a thread's own, at the bottom of its stack.
fn make_own<S: Scheme>(own: &mut S::Mutator<'_>, cells: usize) -> Vec<At<S::Head>> {
    let make = |_| {
        let cell = own.make(0);
        own.common().stack.push(cell);
        cell
    };
    (0..cells).map(make).collect()
}
