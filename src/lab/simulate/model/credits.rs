//! Credits: refbuf. The owner counts plainly, as in `biased`; all others through
//! a buffer of the core, the very code that real objects are counted with, over
//! counts of our own.
//!
//! The core knows an object by its address alone, and asks for what it needs
//! through functions without a context. So the counts of a simulation are in a
//! variable of the thread that simulates, put there for one operation, and the
//! address that the core sees says which object it is ([`Hash::stand_in`]).

use std::cell::RefCell;

use super::super::cache::Use;
use super::super::hash::number_of;
use super::{Cast, Model, Plan, Thing};
use crate::core::{Address, Buffer, Counted, Shape, Totals};

/// Counts, and what the core has done to them.
#[derive(Debug, Default)]
struct Counts {
    references: Vec<i64>,
    /// Objects' lines that were touched, in order.
    touched: Vec<(u32, Use)>,
}

impl Counts {
    fn add(&mut self, object: u32, n: i64, how: Use) {
        self.references[object as usize] += n;
        self.touched.push((object, how));
    }
}

thread_local! {
    static COUNTS: RefCell<Counts> = RefCell::default();
}

/// The object kind of simulations.
enum Simulated {}

fn with<T>(object: Address, work: impl FnOnce(&mut Counts, u32) -> T) -> T {
    COUNTS.with_borrow_mut(|counts| work(counts, number_of(object)))
}

// SAFETY: numbers in a vector; nothing is freed, and nobody is waited for.
unsafe impl Counted for Simulated {
    unsafe fn add(object: Address, n: u32) {
        with(object, |counts, number| counts.add(number, n.into(), Use::Atomic));
    }

    unsafe fn take(object: Address, n: u32) -> u32 {
        with(object, |counts, number| {
            // The last reference is for `release`.
            let taken = (counts.references[number as usize] - 1).clamp(0, n.into());
            counts.add(number, -taken, Use::Swap);
            n - taken as u32
        })
    }

    unsafe fn has_others(object: Address) -> bool {
        with(object, |counts, number| {
            counts.add(number, 0, Use::Read);
            counts.references[number as usize] > 1
        })
    }

    unsafe fn release(object: Address) {
        with(object, |counts, number| counts.add(number, -1, Use::Swap));
    }
}

/// The scheme.
#[derive(Debug)]
pub struct Credits<'a> {
    things: &'a [Thing],
    stand_ins: Vec<Address>,
    buffers: Vec<Buffer>,
    counts: Counts,
}

impl<'a> Credits<'a> {
    /// Nothing counted yet.
    pub fn new(cast: Cast<'a>) -> Self {
        let shape = Shape { slots: cast.slots, ..Shape::DEFAULT };
        let stand_in = |(number, thing): (usize, &Thing)| cast.hash.stand_in(thing.address, number as u32);
        let references = cast.things.iter().map(Thing::references).collect();
        Credits {
            things: cast.things,
            stand_ins: cast.things.iter().enumerate().map(stand_in).collect(),
            buffers: (0..cast.threads).map(|_| *Buffer::new(shape)).collect(),
            counts: Counts { references, touched: Vec::new() },
        }
    }

    /// What a thread's buffer has counted.
    pub fn totals(&self, thread: usize) -> Totals {
        self.buffers[thread].totals()
    }
}

/// Lends the counts to this thread's variable meanwhile.
fn lend<T>(counts: &mut Counts, work: impl FnOnce() -> T) -> T {
    COUNTS.with_borrow_mut(|lent| std::mem::swap(lent, counts));
    let result = work();
    COUNTS.with_borrow_mut(|lent| std::mem::swap(lent, counts));
    result
}

impl Model for Credits<'_> {
    fn count(&mut self, thread: usize, object: u32, up: bool, plan: &mut Plan) {
        let thing = &self.things[object as usize];
        plan.looks = true;
        if thing.owner == Some(thread as u16) {
            self.counts.references[object as usize] += if up { 1 } else { -1 };
            return plan.touch(thing.line, Use::Write);
        }
        let (buffer, stand_in) = (&self.buffers[thread], self.stand_ins[object as usize]);
        if buffer.skips() {
            plan.wanted = true;
            self.counts.references[object as usize] += if up { 1 } else { -1 };
            // As CPython does: an atomic addition, and a loop around a compare-and-swap.
            return plan.touch(thing.line, if up { Use::Atomic } else { Use::Swap });
        }
        plan.look_up();
        plan.hit = if up { buffer.spend(stand_in) } else { buffer.refund(stand_in) };
        let hit = plan.hit;
        if !hit || !up && buffer.gate().is_parked() {
            lend(&mut self.counts, || match (hit, up) {
                (false, true) => increment(buffer, stand_in),
                (false, false) => decrement(buffer, stand_in),
                (true, _) => release_parked(buffer),
            });
        }
        for (touched, how) in self.counts.touched.drain(..) {
            plan.touch(self.things[touched as usize].line, how);
        }
    }

    fn flush(&mut self) {
        let buffers = &self.buffers;
        lend(&mut self.counts, || {
            let (mut leftovers, mut totals) = (Vec::new(), Totals::default());
            for buffer in buffers {
                // SAFETY: nobody is at the table, and objects are numbers.
                unsafe { buffer.drain::<Simulated>(false, &mut leftovers, &mut totals) };
            }
            for leftover in leftovers {
                // SAFETY: these references were the buffers'.
                (0..leftover.count).for_each(|_| unsafe { Simulated::release(leftover.object) });
            }
        });
        self.counts.touched.clear();
    }

    fn references(&self, object: u32) -> i64 {
        self.counts.references[object as usize]
    }
}

/// What a thread does whose table had no credit for it, as in `interp`.
fn increment(buffer: &Buffer, object: Address) {
    if buffer.denies(object) {
        // SAFETY: a number.
        unsafe { Simulated::add(object, 1) };
    } else {
        // SAFETY: this simulated thread's buffer.
        let _ = unsafe { buffer.increment_missed::<Simulated>(object, || true) };
    }
}

/// The same, for a decrement, which is a safe point.
fn decrement(buffer: &Buffer, object: Address) {
    use crate::core::Outcome;
    let outcome = if buffer.denies(object) {
        Outcome::Passed
    } else {
        // SAFETY: this simulated thread's buffer, and its reference.
        unsafe { buffer.decrement_missed::<Simulated>(object, || true) }
    };
    if outcome == Outcome::Passed {
        // SAFETY: the reference is still the thread's.
        unsafe { Simulated::release(object) };
    }
    release_parked(buffer);
}

/// At a safe point.
fn release_parked(buffer: &Buffer) {
    while buffer.gate().is_parked() {
        let Some(parked) = buffer.unpark() else { break };
        // SAFETY: the reference was the list's.
        unsafe { Simulated::release(parked) };
    }
}
