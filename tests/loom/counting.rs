//! The counting equation, R1 and R2.

use std::sync::atomic::{AtomicBool, Ordering};

use loom::sync::Arc;
use loom::thread;
use refbuf::core::{Registry, Scope, Shape};

use crate::cell::{bounded, Cell, Thread, TINY};

/// Settles everything, as a flush of all does.
fn flush_all(registry: &Registry<Cell>) {
    // SAFETY: models are always attached; no gate is entered here.
    unsafe {
        registry.settle(Scope::All);
        registry.release_leftovers(0);
    }
}

fn equation(registry: &Registry<Cell>, cell: &Cell, program: usize) {
    let credits = registry.credits_of(cell.address()) as usize;
    assert_eq!(cell.count(), program + credits, "the counting equation");
}

#[test]
fn the_counting_equation_holds_after_every_interleaving_of_two_owners() {
    bounded(|| {
        let registry = Arc::new(Registry::<Cell>::new(TINY));
        let [cell, _] = Cell::make();
        let other = {
            let registry = registry.clone();
            thread::spawn(move || {
                let thread = Thread::start(&registry);
                thread.inc(cell);
                thread.dec(cell);
                thread.inc(cell);
            })
        };
        let here = Thread::start(&registry);
        here.inc(cell);
        here.dec(cell);
        other.join().unwrap();
        equation(&registry, cell, 2);
        flush_all(&registry);
        assert_eq!(cell.count(), 2);
        assert_eq!(cell.deaths(), 0);
    });
}

#[test]
fn no_credit_is_lost_when_a_flush_races_operations() {
    bounded(|| {
        let registry = Arc::new(Registry::<Cell>::new(TINY));
        let [cell, _] = Cell::make();
        let owner = {
            let registry = registry.clone();
            thread::spawn(move || {
                let thread = Thread::start(&registry);
                thread.inc(cell);
                thread.dec(cell);
                thread.inc(cell);
            })
        };
        flush_all(&registry);
        owner.join().unwrap();
        equation(&registry, cell, 2);
        flush_all(&registry);
        assert_eq!(cell.count(), 2);
    });
}

#[test]
fn an_object_dies_once_when_its_last_reference_races_the_settler() {
    bounded(|| {
        let registry = Arc::new(Registry::<Cell>::new(TINY));
        let [cell, _] = Cell::make();
        let owner = {
            let registry = registry.clone();
            thread::spawn(move || {
                let thread = Thread::start(&registry);
                thread.inc(cell);
                thread.dec(cell);
                // The model's own reference.
                thread.dec(cell);
            })
        };
        flush_all(&registry);
        owner.join().unwrap();
        flush_all(&registry);
        assert_eq!((cell.count(), cell.deaths()), (0, 1));
    });
}

#[test]
fn an_increment_that_evicts_parks_the_last_reference_and_the_next_decrement_releases_it() {
    // That the path is there at all: in some interleaving it must be taken.
    static PARKED: AtomicBool = AtomicBool::new(false);
    bounded(|| {
        // One slot: both cells want it.
        let registry = Arc::new(Registry::<Cell>::new(Shape { slots: 1, first_batch: 0, ..TINY }));
        let [resident, challenger] = Cell::make();
        let owner = {
            let registry = registry.clone();
            thread::spawn(move || {
                let thread = Thread::start(&registry);
                thread.inc(resident);
                thread.dec(resident);
                // Now the buffer holds one reference, and the program's last
                // one joins it.
                thread.dec(resident);
                // Cell asserts that none of these releases.
                for _ in 0..3 {
                    thread.inc(challenger);
                }
                for _ in 0..3 {
                    thread.dec(challenger);
                }
            })
        };
        // The settler may come at any moment.
        flush_all(&registry);
        owner.join().unwrap();
        if registry.summary().totals.parked > 0 {
            PARKED.store(true, Ordering::Relaxed);
        }
        flush_all(&registry);
        assert_eq!((resident.count(), resident.deaths()), (0, 1));
        assert_eq!((challenger.count(), challenger.deaths()), (1, 0));
    });
    assert!(PARKED.load(Ordering::Relaxed), "no interleaving has parked anything");
}
