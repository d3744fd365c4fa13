//! Cells that are really allocated and really freed: a reference too few is a
//! use after free, which sanitizers see; one too many is a cell that the test
//! finds alive.

use std::cell::Cell as PlainCell;
use std::ops::Deref;
pub use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use refbuf::core::{Address, Registry, Scope};

use super::{settle, Cell, Thread};

thread_local! {
    /// This thread is inside an increment, where nothing may be released (R2).
    pub static IN_INCREMENT: PlainCell<bool> = const { PlainCell::new(false) };
}

/// Cells freed, for one test.
#[derive(Debug, Default)]
pub struct Freed(AtomicUsize);

impl Freed {
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

const ALIVE: u64 = 0xA11C_E000_A11C_E000;

pub struct Life {
    payload: u64,
    freed: Arc<Freed>,
}

impl Life {
    pub fn check(&self) {
        assert_eq!(self.payload, ALIVE, "R1: a freed object was touched");
    }

    /// # Safety
    ///
    /// Nobody has a reference to the object.
    pub unsafe fn end(object: Address) {
        // SAFETY: the caller's promise; `make` has it from a Box.
        let mut cell = unsafe { Box::from_raw(object as *mut Cell) };
        cell.life.payload = 0;
        cell.life.freed.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Cell {
    /// With so many references, held by the caller.
    pub fn make(references: usize, freed: &Arc<Freed>) -> Address {
        let life = Life { payload: ALIVE, freed: freed.clone() };
        Box::into_raw(Box::new(Cell { count: AtomicUsize::new(references), life })) as Address
    }
}

impl<R: Deref<Target = Registry<Cell>>> Thread<R> {
    pub fn flush(&self) {
        settle(&self.registry, Scope::Own(self.handle));
    }
}

impl<R: Deref<Target = Registry<Cell>>> Drop for Thread<R> {
    fn drop(&mut self) {
        self.registry.retire(self.handle);
    }
}
