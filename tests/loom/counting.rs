//! The counting equation, R1 and R2.

use std::sync::atomic::{AtomicBool, Ordering};

use loom::sync::Arc;
use loom::thread;
use refbuf::core::{Address, Registry, Scope, Shape};

use crate::driver::{settle, Cell, Thread};
use crate::{bounded, TINY};

fn equation(registry: &Registry<Cell>, cell: Address, program: usize) {
    let credits = registry.credits_of(cell) as usize;
    assert_eq!(Cell::count(cell), program + credits, "the counting equation");
}

#[test]
fn the_counting_equation_holds_after_every_interleaving_of_two_owners() {
    bounded(|| {
        let registry = Arc::new(Registry::<Cell>::new(TINY));
        let [cell, _] = Cell::make();
        let other = {
            let registry = registry.clone();
            thread::spawn(move || {
                let thread = Thread::start(registry.clone());
                thread.inc(cell);
                thread.dec(cell);
                thread.inc(cell);
            })
        };
        let here = Thread::start(registry.clone());
        here.inc(cell);
        here.dec(cell);
        other.join().unwrap();
        equation(&registry, cell, 2);
        settle(&registry, Scope::All);
        assert_eq!(Cell::count(cell), 2);
        assert_eq!(Cell::deaths(cell), 0);
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
                let thread = Thread::start(registry.clone());
                thread.inc(cell);
                thread.dec(cell);
                thread.inc(cell);
            })
        };
        settle(&registry, Scope::All);
        owner.join().unwrap();
        equation(&registry, cell, 2);
        settle(&registry, Scope::All);
        assert_eq!(Cell::count(cell), 2);
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
                let thread = Thread::start(registry.clone());
                thread.inc(cell);
                thread.dec(cell);
                // The model's own reference.
                thread.dec(cell);
            })
        };
        settle(&registry, Scope::All);
        owner.join().unwrap();
        settle(&registry, Scope::All);
        assert_eq!((Cell::count(cell), Cell::deaths(cell)), (0, 1));
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
                let thread = Thread::start(registry.clone());
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
        settle(&registry, Scope::All);
        owner.join().unwrap();
        if registry.summary().totals.parked > 0 {
            PARKED.store(true, Ordering::Relaxed);
        }
        settle(&registry, Scope::All);
        assert_eq!((Cell::count(resident), Cell::deaths(resident)), (0, 1));
        assert_eq!((Cell::count(challenger), Cell::deaths(challenger)), (1, 0));
    });
    assert!(PARKED.load(Ordering::Relaxed), "no interleaving has parked anything");
}
