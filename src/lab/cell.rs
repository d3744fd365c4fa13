//! What the schemes count.
//!
//! A cell is allocated and freed for real. It has a header that its scheme
//! chooses, references to other cells, and a payload.
//!
//! | field | touched by |
//! |---|---|
//! | `head` | its scheme |
//! | `edges` | whoever has `guard`; without it, who frees the cell, or a collector while the world stands still |
//! | `payload` | whoever has a reference |
//! | `probe` | set before others know the cell; read by who frees it |

use std::alloc::{alloc, dealloc, handle_alloc_error, Layout};
use std::ptr::{self, NonNull};

use crate::core::sync::{AtomicU32, Ordering, PlainU64};

/// References that a cell can have to others.
pub const EDGES: usize = 4;

/// A counted object of the laboratory.
#[repr(C, align(16))]
pub struct Cell<H> {
    /// The scheme's count.
    pub head: H,
    guard: AtomicU32,
    probe: u32,
    edges: [PlainU64; EDGES],
    payload: [PlainU64; 2],
}

/// Where a cell is. Copying it counts nothing.
#[derive(Debug)]
pub struct At<H>(NonNull<Cell<H>>);

impl<H> Clone for At<H> {
    fn clone(&self) -> At<H> {
        *self
    }
}

impl<H> Copy for At<H> {}

impl<H> PartialEq for At<H> {
    fn eq(&self, other: &At<H>) -> bool {
        self.0 == other.0
    }
}

impl<H> Eq for At<H> {}

// SAFETY: a cell is all atomics, but for what is written before it is shared;
// when it may be touched is its scheme's business.
unsafe impl<H: Send + Sync> Send for At<H> {}
// SAFETY: as above.
unsafe impl<H: Send + Sync> Sync for At<H> {}

impl<H> At<H> {
    /// A new cell, without edges. `probe` names it for who hears of its death; 0 for
    /// most cells.
    pub fn allocate(head: H, probe: u32) -> At<H> {
        let layout = Layout::new::<Cell<H>>();
        // SAFETY: the layout has a size.
        let Some(cell) = NonNull::new(unsafe { alloc(layout) }.cast::<Cell<H>>()) else { handle_alloc_error(layout) };
        let fresh = Cell {
            head,
            guard: AtomicU32::new(0),
            probe,
            edges: Default::default(),
            payload: [PlainU64::new(1), PlainU64::new(0)],
        };
        // SAFETY: allocated for it.
        unsafe { ptr::write(cell.as_ptr(), fresh) };
        At(cell)
    }

    /// The cell at an address that `address` gave.
    ///
    /// # Safety
    ///
    /// It is such an address.
    pub unsafe fn from_address(address: usize) -> At<H> {
        // SAFETY: such addresses are not null.
        At(unsafe { NonNull::new_unchecked(address as *mut Cell<H>) })
    }

    /// As a number.
    pub fn address(self) -> usize {
        self.0.as_ptr() as usize
    }

    /// The cell.
    ///
    /// # Safety
    ///
    /// It is not freed while the result is used: somebody's reference to it lasts.
    #[inline(always)]
    pub unsafe fn get<'a>(self) -> &'a Cell<H> {
        // SAFETY: the caller's promise.
        unsafe { self.0.as_ref() }
    }

    /// Gives its memory back, and says which probe it was.
    ///
    /// # Safety
    ///
    /// Nobody has a reference to it, and its edges are gone.
    pub unsafe fn free(self) -> u32 {
        // SAFETY: the caller's promise; allocated with this layout.
        unsafe {
            let cell = ptr::read(self.0.as_ptr());
            dealloc(self.0.as_ptr().cast(), Layout::new::<Cell<H>>());
            cell.probe
        }
    }
}

impl<H> Cell<H> {
    /// Takes the guard of the edges; calls `wait` while another thread has it.
    #[inline]
    pub fn lock(&self, mut wait: impl FnMut()) {
        // Acquire: pairs with the release in `unlock`.
        while self.guard.swap(1, Ordering::Acquire) != 0 {
            wait();
        }
    }

    /// Gives the guard back.
    #[inline]
    pub fn unlock(&self) {
        self.guard.store(0, Ordering::Release);
    }

    /// What an edge refers to.
    #[inline]
    pub fn edge(&self, index: usize) -> Option<At<H>> {
        let address = self.edges[index].load(Ordering::Relaxed) as usize;
        NonNull::new(address as *mut Cell<H>).map(At)
    }

    /// Changes an edge. The reference goes with it.
    #[inline]
    pub fn set_edge(&self, index: usize, to: Option<At<H>>) {
        self.edges[index].store(to.map_or(0, At::address) as u64, Ordering::Relaxed);
    }

    /// Something for a program to do with a cell.
    #[inline(always)]
    pub fn use_payload(&self) -> u64 {
        self.payload[0].load(Ordering::Relaxed)
    }
}
