//! `credits`: refbuf. As `biased`, but other threads than the owner spend and refund
//! references that are already counted.
//!
//! ```text
//! the owner                as in biased
//! another thread           increment   its table has a credit: credits -= 1
//!                          decrement   its table has the cell: credits += 1
//!                          otherwise   src/core/buffer: acquires, takes in, or goes biased's way
//! heartbeat                cold credits go back to the cell
//! ```
//!
//! ```text
//! local + shared = references of the program + Σ over tables of credits
//! ```
//!
//! The tables, the registry and the settler are those of [`crate::core`], as CPython's
//! objects have them; a cell stands for an object, and [`super::biased`] for the interpreter.

use std::cell::Cell as PlainCell;
use std::fmt;
use std::ptr;
use std::time::Duration;

use crate::core::heartbeat::{Heartbeat, Host};
use crate::core::registry::Thread as ThreadName;
use crate::core::sync::{lock, Mutex};
use crate::core::{Address, Counted, Handle, Outcome, Registry, Scope, Shape};
use crate::lab::cell::At;
use crate::lab::scheme::{bury, Common, Mutator, Options, Scheme};

use super::biased::{self, Biased, Head};

/// How long the end waits for the settler: it never waits for anybody.
const PATIENCE: Duration = Duration::from_secs(60);

/// The kind of object that is counted.
#[derive(Debug)]
enum Credited {}

/// What must not move: the settler refers to it.
struct Service {
    cells: Biased,
    registry: Registry<Credited>,
    heartbeat: Heartbeat,
    /// Whoever settles counts here, one at a time.
    chores: Mutex<Option<biased::Thread<'static>>>,
}

/// The scheme.
pub struct Credits {
    /// From a box, freed once the settler has ended.
    service: &'static Service,
}

/// A thread.
pub struct Thread<'s> {
    service: &'static Service,
    inner: biased::Thread<'s>,
    handle: Handle,
}

thread_local! {
    /// Who releases references in this thread at the moment.
    static RELEASER: PlainCell<*mut biased::Thread<'static>> = const { PlainCell::new(ptr::null_mut()) };
}

impl fmt::Debug for Credits {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Credits").field("registry", &self.service.registry).finish_non_exhaustive()
    }
}

impl fmt::Debug for Thread<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(formatter)
    }
}

fn head<'a>(object: Address) -> &'a Head {
    // SAFETY: the core's promise: it knows cells by their addresses, and the one it
    // speaks of is alive.
    unsafe { &At::<Head>::from_address(object).get().head }
}

// SAFETY: only `release` frees. The others change counts alone.
unsafe impl Counted for Credited {
    unsafe fn add(object: Address, n: u32) {
        head(object).increment_shared(n);
    }

    unsafe fn take(object: Address, n: u32) -> u32 {
        head(object).take_shared(n)
    }

    unsafe fn has_others(object: Address) -> bool {
        head(object).has_others()
    }

    unsafe fn release(object: Address) {
        let releaser = RELEASER.with(PlainCell::get);
        // SAFETY: set by `settle` for as long as it settles, and used by nobody else
        // meanwhile; the caller has a reference, and loses it.
        unsafe { (*releaser).decrement(At::from_address(object)) };
    }
}

impl Service {
    /// Settles, and drops what is left.
    fn settle(&self, scope: Scope) {
        let mut chores = lock(&self.chores);
        let Some(chores) = chores.as_mut() else { return };
        RELEASER.with(|releaser| releaser.set(ptr::from_mut(chores)));
        // SAFETY: cells may be touched by any thread; no gate is entered here, and
        // the only lock is that of the chores, which no cell's death takes.
        unsafe {
            self.registry.settle(scope);
            self.registry.release_leftovers(0);
        }
        RELEASER.with(|releaser| releaser.set(ptr::null_mut()));
    }

    fn admits(&self) -> bool {
        self.heartbeat.is_running() && !self.registry.is_closed()
    }
}

/// The settler.
struct Settler(&'static Service);

impl Host for Settler {
    fn attached(&self, _work: &mut dyn FnMut()) {
        self.0.settle(Scope::Cold);
    }

    fn thread(&self) -> ThreadName {
        0
    }
}

impl Scheme for Credits {
    const NAME: &'static str = "credits";
    type Head = Head;
    type Mutator<'s> = Thread<'s>;

    fn new(options: &Options, chores: Common<Head>) -> Credits {
        let shape = Shape { slots: options.slots, ..Shape::DEFAULT };
        let service: &'static Service = Box::leak(Box::new(Service {
            cells: Biased::empty(),
            registry: Registry::new(shape),
            heartbeat: Heartbeat::new(options.heartbeat.as_micros() as u64),
            chores: Mutex::new(None),
        }));
        *lock(&service.chores) = Some(service.cells.enter(chores));
        Credits { service }
    }

    fn start(&self, common: Common<Head>) -> Thread<'_> {
        let service = self.service;
        let handle = service.registry.register().unwrap_or_else(|| unreachable!("open until it is dropped"));
        Thread { service, inner: service.cells.enter(common), handle }
    }

    fn rest(&self) {
        self.service.settle(Scope::All);
    }

    fn thread_bytes(&self) -> usize {
        self.service.registry.summary().shape.map_or(0, |shape| shape.bytes())
    }

    fn more_atomics(&self) -> u64 {
        // Misses included, each of which is one that the buffer leaves to the cell.
        self.service.registry.summary().totals.atomics
    }
}

impl Drop for Credits {
    fn drop(&mut self) {
        let service = self.service;
        service.registry.close();
        if !service.heartbeat.stop(PATIENCE) {
            // Better a leak than a settler without its registry.
            return;
        }
        service.settle(Scope::All);
        *lock(&service.chores) = None;
        // SAFETY: from a box; the settler has ended, and mutators borrow `self`.
        drop(unsafe { Box::from_raw(ptr::from_ref(service).cast_mut()) });
    }
}

impl Thread<'_> {
    /// Not inlined: the owner's path, which is one addition, stays short. Nor are the ways
    /// out of it, each of which is its last call: it needs no stack.
    ///
    /// # Safety
    ///
    /// There is another reference; another thread owns the cell, or none.
    #[inline(never)]
    unsafe fn increment_foreign(&mut self, cell: At<Head>) {
        // SAFETY: this thread's, until it is retired.
        let buffer = unsafe { self.handle.as_ref() };
        if buffer.stands_aside() || !buffer.spend(cell.address()) {
            // SAFETY: the caller's promise.
            unsafe { self.increment_missed(cell) };
        }
    }

    /// # Safety
    ///
    /// The caller has the reference, and loses it; another thread owns the cell, or none.
    #[inline(never)]
    unsafe fn decrement_foreign(&mut self, cell: At<Head>) {
        // SAFETY: this thread's, until it is retired.
        let buffer = unsafe { self.handle.as_ref() };
        if buffer.stands_aside() || !buffer.refund(cell.address()) {
            // SAFETY: the caller's promise.
            unsafe { self.decrement_missed(cell) };
        } else if buffer.gate().is_parked() {
            self.release_parked();
        }
    }

    /// # Safety
    ///
    /// There is another reference; another thread owns the cell, or none.
    #[cold]
    #[inline(never)]
    unsafe fn increment_missed(&mut self, cell: At<Head>) {
        // SAFETY: this thread's, until it is retired.
        let buffer = unsafe { self.handle.as_ref() };
        if buffer.skips() || buffer.denies(cell.address()) {
            head(cell.address()).increment_shared(1);
            return;
        }
        self.service.heartbeat.start(&self.service.registry, Settler(self.service));
        // SAFETY: this thread's buffer; the caller's promise.
        let outcome = unsafe { buffer.increment_missed::<Credited>(cell.address(), || self.service.admits()) };
        self.wake_for(outcome);
    }

    /// # Safety
    ///
    /// The caller has the reference, and loses it; another thread owns the cell, or none.
    #[cold]
    #[inline(never)]
    unsafe fn decrement_missed(&mut self, cell: At<Head>) {
        // SAFETY: this thread's, until it is retired.
        let buffer = unsafe { self.handle.as_ref() };
        let outcome = if buffer.skips() || buffer.denies(cell.address()) {
            Outcome::Passed
        } else {
            self.service.heartbeat.start(&self.service.registry, Settler(self.service));
            // SAFETY: this thread's buffer; the caller's promise.
            unsafe { buffer.decrement_missed::<Credited>(cell.address(), || self.service.admits()) }
        };
        self.wake_for(outcome);
        if outcome == Outcome::Passed {
            // SAFETY: the reference is still the caller's. The buffer has counted.
            unsafe {
                if self.inner.drop_shared(cell) {
                    bury(self, cell);
                }
            }
        }
        if buffer.gate().is_parked() {
            self.release_parked();
        }
    }

    fn wake_for(&self, outcome: Outcome) {
        if outcome == Outcome::Installed && self.service.registry.must_wake() {
            self.service.heartbeat.wake();
        }
    }

    #[cold]
    #[inline(never)]
    fn release_parked(&mut self) {
        // SAFETY: this thread's, until it is retired.
        while let Some(object) = unsafe { self.handle.as_ref() }.unpark() {
            // SAFETY: the reference was the list's.
            unsafe { self.inner.decrement(At::from_address(object)) };
        }
    }
}

impl Drop for Thread<'_> {
    fn drop(&mut self) {
        self.service.registry.retire(self.handle);
        // An orphan is settled by the heartbeat, which may be asleep.
        self.service.heartbeat.wake();
    }
}

// SAFETY: as for `biased`; a credit is a reference that is counted.
unsafe impl Mutator for Thread<'_> {
    type Head = Head;

    fn common(&mut self) -> &mut Common<Head> {
        self.inner.common()
    }

    fn make(&mut self, probe: u32) -> At<Head> {
        self.inner.make(probe)
    }

    #[inline(always)]
    unsafe fn increment(&mut self, cell: At<Head>) {
        // SAFETY: there is a reference; the buffer is this thread's.
        unsafe {
            let head = &cell.get().head;
            if head.is_owned_by(self.inner.number()) {
                return head.increment_local();
            }
        }
        // SAFETY: as above.
        unsafe { self.increment_foreign(cell) }
    }

    #[inline(always)]
    unsafe fn decrement(&mut self, cell: At<Head>) {
        // SAFETY: the caller has a reference; the buffer is this thread's.
        unsafe {
            let head = &cell.get().head;
            if head.is_owned_by(self.inner.number()) {
                if head.decrement_local() && self.inner.merge_at_zero(cell) {
                    bury(self, cell);
                }
                return;
            }
        }
        // SAFETY: as above.
        unsafe { self.decrement_foreign(cell) }
    }

    #[inline(always)]
    fn safe_point(&mut self) {
        self.inner.safe_point();
    }
}
