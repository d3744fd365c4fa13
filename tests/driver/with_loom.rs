//! Cells that loom watches, and that stay when they die: a model counts deaths.

use std::cell::Cell as PlainCell;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::ptr;

pub use loom::sync::atomic::{AtomicUsize, Ordering};
use refbuf::core::{Address, Registry};

use super::{Cell, Thread};

loom::thread_local! {
    /// This thread is inside an increment, where nothing may be released (R2).
    pub static IN_INCREMENT: PlainCell<bool> = PlainCell::new(false);
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

pub struct Life {
    deaths: AtomicUsize,
}

impl Life {
    /// The arena's cells can always be touched; that they are not counted when
    /// dead is asserted of the count.
    pub fn check(&self) {}

    /// # Safety
    ///
    /// The object is a cell of the arena.
    pub unsafe fn end(object: Address) {
        Cell::at(object).life.deaths.fetch_add(1, Ordering::Relaxed);
    }
}

impl Cell {
    /// The cells of a model, each with one reference, held by the program.
    pub fn make() -> [Address; CELLS] {
        let arena = ARENA.with(|arena| *arena);
        let make = |at: usize| {
            // SAFETY: the run before is over, and nobody has its cells any more.
            unsafe {
                let cell: *mut Cell = (*arena).0[at].as_mut_ptr();
                let life = Life { deaths: AtomicUsize::new(0) };
                ptr::write(cell, Cell { count: AtomicUsize::new(1), life });
                cell as Address
            }
        };
        [make(0), make(1)]
    }

    pub fn deaths(object: Address) -> usize {
        Cell::at(object).life.deaths.load(Ordering::SeqCst)
    }
}

/// Not on drop: each step costs interleavings, so a model says where a thread ends.
impl<R: Deref<Target = Registry<Cell>>> Thread<R> {
    pub fn end(self) {
        self.registry.retire(self.handle);
    }
}
