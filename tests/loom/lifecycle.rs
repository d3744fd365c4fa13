//! Thread end, closing, sleeping, fork.

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::Arc;
use loom::thread;
use refbuf::core::{Registry, Scope};

use crate::driver::{settle, Cell, Thread};
use crate::{bounded, TINY};

#[test]
fn no_credit_is_lost_when_a_thread_ends_while_the_settler_works() {
    bounded(|| {
        let registry = Arc::new(Registry::<Cell>::new(TINY));
        let [cell, _] = Cell::make();
        let ending = {
            let registry = registry.clone();
            thread::spawn(move || {
                let thread = Thread::start(registry.clone());
                thread.inc(cell);
                thread.dec(cell);
                thread.end();
            })
        };
        registry.beat();
        settle(&registry, Scope::Cold);
        ending.join().unwrap();
        // The next beat finds the orphan, if this one did not.
        registry.beat();
        settle(&registry, Scope::Cold);
        assert_eq!(Cell::count(cell), 1);
        assert_eq!(registry.summary().orphans, 0);
        assert_eq!(registry.summary().totals.credits, 0);
    });
}

#[test]
fn after_closing_and_settling_no_credit_is_left_whatever_threads_still_count() {
    bounded(|| {
        let registry = Arc::new(Registry::<Cell>::new(TINY));
        let [cell, _] = Cell::make();
        let thread = Thread::start(registry.clone());
        let daemon = thread::spawn(move || {
            thread.inc(cell);
            thread.dec(cell);
        });
        registry.close();
        settle(&registry, Scope::All);
        daemon.join().unwrap();
        // Nothing has come in since.
        assert_eq!(registry.summary().totals.credits, 0);
        assert_eq!(Cell::count(cell), 1);
    });
}

#[test]
fn the_heartbeat_never_sleeps_on_credits_that_nobody_announces() {
    bounded(|| {
        let registry = Arc::new(Registry::<Cell>::new(TINY));
        let woken = Arc::new(AtomicBool::new(false));
        let [cell, _] = Cell::make();
        let thread = Thread::start(registry.clone());
        let owner = {
            let (registry, woken) = (registry.clone(), woken.clone());
            thread::spawn(move || {
                // SAFETY: this thread's buffer.
                let buffer = unsafe { thread.handle.as_ref() };
                // SAFETY: as above; the cell lives.
                let _ = unsafe { buffer.increment_missed::<Cell>(cell, || true) };
                if registry.must_wake() {
                    woken.store(true, Ordering::SeqCst);
                }
            })
        };
        let asleep = registry.fall_idle();
        owner.join().unwrap();
        assert!(!asleep || woken.load(Ordering::SeqCst), "asleep, and nobody will wake it");
    });
}

#[test]
fn a_fork_finds_no_owner_inside_its_table() {
    bounded(|| {
        let registry = Arc::new(Registry::<Cell>::new(TINY));
        let [cell, _] = Cell::make();
        let thread = Thread::start(registry.clone());
        let owner = thread::spawn(move || {
            thread.inc(cell);
            thread.dec(cell);
        });
        let guard = registry.before_fork();
        // What the child would see: the count is the program's references, of
        // which the owner has one or none, and the credits.
        let program = Cell::count(cell) - guard.credits_of(cell) as usize;
        registry.after_fork_in_parent(guard);
        owner.join().unwrap();
        assert!((1..=2).contains(&program), "{program} references of the program's");
        settle(&registry, Scope::All);
        assert_eq!(Cell::count(cell), 1);
    });
}

#[test]
fn a_forked_child_settles_the_buffers_of_threads_that_it_has_not() {
    bounded(|| {
        let registry = Arc::new(Registry::<Cell>::new(TINY));
        let [cell, _] = Cell::make();
        let own = Thread::start(registry.clone());
        let lost = Thread::start(registry.clone());
        for thread in [&own, &lost] {
            thread.inc(cell);
            thread.dec(cell);
        }
        let guard = registry.before_fork();
        registry.after_fork_in_child(guard, Some(own.handle), 0);
        assert_eq!(registry.summary().live, 1);
        settle(&registry, Scope::Cold);
        assert_eq!(registry.summary().orphans, 0);
        settle(&registry, Scope::Own(own.handle));
        assert_eq!(Cell::count(cell), 1);
        own.inc(cell);
        own.dec(cell);
        settle(&registry, Scope::All);
        assert_eq!(Cell::count(cell), 1);
    });
}
