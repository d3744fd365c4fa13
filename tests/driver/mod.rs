//! The core over toy objects: what `interp` does for CPython's, without an
//! interpreter. One driver for both suites, so that the models and the stress
//! tests run the same protocol; `with_std` and `with_loom` hold what must differ.

use std::ops::Deref;

use refbuf::core::{Address, Counted, Handle, Outcome, Registry, Scope};

#[cfg(loom)]
mod with_loom;
#[cfg(not(loom))]
mod with_std;

#[cfg(loom)]
use with_loom::{AtomicUsize, Life, Ordering, IN_INCREMENT};
#[cfg(not(loom))]
pub use with_std::Freed;
#[cfg(not(loom))]
use with_std::{AtomicUsize, Life, Ordering, IN_INCREMENT};

/// A counted object: dies once, and only when its count does. Each suite has a
/// `Cell::make` of its own, and a `Life` that sees a wrong death.
#[repr(align(16))]
pub struct Cell {
    count: AtomicUsize,
    life: Life,
}

impl Cell {
    fn at<'a>(object: Address) -> &'a Cell {
        // SAFETY: the core's promise, which is under test: it is alive.
        let cell = unsafe { &*(object as *const Cell) };
        cell.life.check();
        cell
    }

    /// The object's own count.
    pub fn count(object: Address) -> usize {
        Cell::at(object).count.load(Ordering::SeqCst)
    }
}

// SAFETY: all but `release` touch the count of a cell alone; `take` leaves one
// reference.
unsafe impl Counted for Cell {
    unsafe fn add(object: Address, n: u32) {
        let before = Cell::at(object).count.fetch_add(n as usize, Ordering::Relaxed);
        assert_ne!(before, 0, "R1: a dead object was counted");
    }

    unsafe fn take(object: Address, n: u32) -> u32 {
        let count = &Cell::at(object).count;
        let mut before = count.load(Ordering::Relaxed);
        loop {
            assert_ne!(before, 0, "R1: credits on a dead object");
            let taken = (before - 1).min(n as usize);
            match count.compare_exchange_weak(before, before - taken, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return n - taken as u32,
                Err(now) => before = now,
            }
        }
    }

    unsafe fn has_others(object: Address) -> bool {
        Cell::at(object).count.load(Ordering::Relaxed) > 1
    }

    unsafe fn release(object: Address) {
        assert!(!IN_INCREMENT.with(|inside| inside.get()), "R2: an increment released");
        let before = Cell::at(object).count.fetch_sub(1, Ordering::AcqRel);
        assert_ne!(before, 0, "R1: a reference that the count did not hold");
        if before == 1 {
            // SAFETY: that was the last reference.
            unsafe { Life::end(object) };
        }
    }
}

/// A thread that counts. Its registry is borrowed, or shared where a model's
/// threads must own what they use.
pub struct Thread<R: Deref<Target = Registry<Cell>>> {
    pub registry: R,
    pub handle: Handle,
}

impl<R: Deref<Target = Registry<Cell>>> Thread<R> {
    pub fn start(registry: R) -> Self {
        let handle = registry.register().expect("open");
        Thread { registry, handle }
    }

    /// Increment.
    pub fn inc(&self, object: Address) {
        IN_INCREMENT.with(|inside| inside.set(true));
        // SAFETY: this thread's buffer.
        let buffer = unsafe { self.handle.as_ref() };
        let skips = buffer.skips();
        if skips || !buffer.spend(object) {
            let admit = || !self.registry.is_closed();
            if skips || buffer.denies(object) {
                // SAFETY: the caller has a reference.
                unsafe { Cell::add(object, 1) };
            } else {
                // SAFETY: this thread's buffer; the caller has a reference.
                let outcome = unsafe { buffer.increment_missed::<Cell>(object, admit) };
                // Natively the test that has a heartbeat asks, and wakes it.
                if cfg!(loom) && outcome == Outcome::Installed {
                    let _ = self.registry.must_wake();
                }
            }
        }
        IN_INCREMENT.with(|inside| inside.set(false));
    }

    /// Decrement, which is a safe point.
    pub fn dec(&self, object: Address) {
        // SAFETY: this thread's buffer.
        let buffer = unsafe { self.handle.as_ref() };
        let skips = buffer.skips();
        if skips || !buffer.refund(object) {
            let admit = || !self.registry.is_closed();
            let outcome = if skips || buffer.denies(object) {
                Outcome::Passed
            } else {
                // SAFETY: this thread's buffer; the reference is the caller's.
                unsafe { buffer.decrement_missed::<Cell>(object, admit) }
            };
            if outcome == Outcome::Passed {
                // SAFETY: the reference is still ours.
                unsafe { Cell::release(object) };
            }
        }
        if buffer.gate().is_parked() {
            while let Some(object) = buffer.unpark() {
                // SAFETY: the reference was the list's.
                unsafe { Cell::release(object) };
            }
        }
    }
}

/// Settles, and releases what is left.
pub fn settle(registry: &Registry<Cell>, scope: Scope) {
    // SAFETY: cells may be touched by any thread; no gate is entered here.
    unsafe {
        registry.settle(scope);
        registry.release_leftovers(0);
    }
}
