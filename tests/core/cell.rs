//! A counted object that is really allocated and really freed: a reference too
//! few is a use after free, which sanitizers see; one too many is a cell that
//! the test finds alive.

use std::cell::Cell as PlainCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use refbuf::core::{Address, Counted, Handle, Outcome, Registry, Scope};

/// Cells freed, for one test.
#[derive(Debug, Default)]
pub struct Freed(AtomicUsize);

impl Freed {
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

#[repr(align(16))]
pub struct Cell {
    count: AtomicUsize,
    payload: u64,
    freed: Arc<Freed>,
}

const ALIVE: u64 = 0xA11C_E000_A11C_E000;

thread_local! {
    static IN_INCREMENT: PlainCell<bool> = const { PlainCell::new(false) };
}

impl Cell {
    /// With so many references, held by the caller.
    pub fn make(references: usize, freed: &Arc<Freed>) -> Address {
        let cell = Cell { count: AtomicUsize::new(references), payload: ALIVE, freed: freed.clone() };
        Box::into_raw(Box::new(cell)) as Address
    }

    fn at<'a>(object: Address) -> &'a Cell {
        // SAFETY: the core's promise, which is under test: it is alive.
        let cell = unsafe { &*(object as *const Cell) };
        assert_eq!(cell.payload, ALIVE, "R1: a freed object was touched");
        cell
    }

    /// The object's own count.
    pub fn count(object: Address) -> usize {
        Cell::at(object).count.load(Ordering::SeqCst)
    }
}

// SAFETY: the count of a cell alone; `take` leaves one reference.
unsafe impl Counted for Cell {
    unsafe fn add(object: Address, n: u32) {
        let before = Cell::at(object).count.fetch_add(n as usize, Ordering::Relaxed);
        assert_ne!(before, 0, "R1: a dead object was counted");
    }

    unsafe fn take(object: Address, n: u32) -> u32 {
        let count = &Cell::at(object).count;
        let mut before = count.load(Ordering::Relaxed);
        loop {
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
        assert!(!IN_INCREMENT.get(), "R2: an increment released");
        if Cell::at(object).count.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: that was the last reference.
            let mut cell = unsafe { Box::from_raw(object as *mut Cell) };
            cell.payload = 0;
            cell.freed.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// What `interp` does for a thread, without an interpreter.
pub struct Thread<'a> {
    pub registry: &'a Registry<Cell>,
    pub handle: Handle,
}

impl<'a> Thread<'a> {
    pub fn start(registry: &'a Registry<Cell>) -> Thread<'a> {
        Thread { registry, handle: registry.register().expect("open") }
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
                let _: Outcome = unsafe { buffer.increment_missed::<Cell>(object, admit) };
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
        self.safe_point();
    }

    fn safe_point(&self) {
        // SAFETY: this thread's buffer.
        let buffer = unsafe { self.handle.as_ref() };
        if buffer.gate().is_parked() {
            while let Some(object) = buffer.unpark() {
                // SAFETY: the reference was the list's.
                unsafe { Cell::release(object) };
            }
        }
    }

    pub fn flush(&self) {
        settle(self.registry, Scope::Own(self.handle));
    }
}

impl Drop for Thread<'_> {
    fn drop(&mut self) {
        self.registry.retire(self.handle);
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
