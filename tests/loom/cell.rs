//! A counted object for models: dies once, and only when its count does.

use std::cell::Cell as PlainCell;
use std::mem::MaybeUninit;
use std::ptr;

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::Arc;
use refbuf::core::{Address, Counted, Handle, Outcome, Registry, Shape};

/// Two slots; acquires of two, then four.
pub const TINY: Shape = Shape { slots: 2, first_batch: 1, largest_batch: 2, parked: 1 };

/// The object.
#[repr(align(16))]
pub struct Cell {
    count: AtomicUsize,
    deaths: AtomicUsize,
}

/// Cells of one model.
const CELLS: usize = 2;

/// A page, so that a cell's slot is the same in every run.
#[repr(align(4096))]
struct Arena([MaybeUninit<Cell>; CELLS]);

std::thread_local! {
    /// loom runs a model again and again, on one real thread, and each run must
    /// take the same path: so cells are at the same addresses in each. Leaked.
    static ARENA: *mut Arena = Box::into_raw(Box::new(Arena([const { MaybeUninit::uninit() }; CELLS])));
}

loom::thread_local! {
    /// This thread is inside an increment, where nothing may be released (R2).
    static IN_INCREMENT: PlainCell<bool> = PlainCell::new(false);
}

impl Cell {
    /// The cells of a model, each with one reference, held by the program.
    pub fn make() -> [&'static Cell; CELLS] {
        let arena = ARENA.with(|arena| *arena);
        let make = |at: usize| {
            // SAFETY: the run before is over, and nobody has its cells any more.
            unsafe {
                let cell: *mut Cell = (*arena).0[at].as_mut_ptr();
                ptr::write(cell, Cell { count: AtomicUsize::new(1), deaths: AtomicUsize::new(0) });
                &*cell
            }
        };
        [make(0), make(1)]
    }

    pub fn address(&self) -> Address {
        let cell: *const Cell = self;
        cell as Address
    }

    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    pub fn deaths(&self) -> usize {
        self.deaths.load(Ordering::SeqCst)
    }

    fn at<'a>(object: Address) -> &'a Cell {
        // SAFETY: cells are leaked.
        unsafe { &*(object as *const Cell) }
    }
}

// SAFETY: the counts of a cell alone; `take` leaves one reference.
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
            match count.compare_exchange(before, before - taken, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return n - taken as u32,
                Err(now) => before = now,
            }
        }
    }

    unsafe fn has_others(object: Address) -> bool {
        Cell::at(object).count.load(Ordering::Relaxed) > 1
    }

    unsafe fn release(object: Address) {
        assert!(!IN_INCREMENT.with(PlainCell::get), "R2: an increment released");
        let cell = Cell::at(object);
        let before = cell.count.fetch_sub(1, Ordering::AcqRel);
        assert_ne!(before, 0, "R1: a reference that the count did not hold");
        if before == 1 {
            cell.deaths.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// All interleavings with up to three preemptions, which is where lock-free code
/// breaks (Musuvathi and Qadeer 2007), unless LOOM_MAX_PREEMPTIONS says another
/// bound. The handshake alone is small enough to have none.
pub fn bounded(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(model);
}

/// What `interp` does for a thread, without an interpreter.
pub struct Thread {
    pub registry: Arc<Registry<Cell>>,
    pub handle: Handle,
}

impl Thread {
    pub fn start(registry: &Arc<Registry<Cell>>) -> Thread {
        Thread { registry: registry.clone(), handle: registry.register().expect("open") }
    }

    /// Increment.
    pub fn inc(&self, cell: &Cell) {
        let object = cell.address();
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
                if unsafe { buffer.increment_missed::<Cell>(object, admit) } == Outcome::Installed {
                    let _ = self.registry.must_wake();
                }
            }
        }
        IN_INCREMENT.with(|inside| inside.set(false));
    }

    /// Decrement, which is a safe point.
    pub fn dec(&self, cell: &Cell) {
        let object = cell.address();
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

    pub fn end(self) {
        self.registry.retire(self.handle);
    }
}
