//! Accounts through buffers, with many threads: no reference lost, none too many,
//! each account closed once.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::thread;

use refbuf::core::sync::prepare;
use refbuf::core::{Account, Address, Bank, Counted, Desk, Handle, Outcome, Registry, Scope, Shape};

/// An object: its own count.
struct Object {
    count: AtomicI64,
    deaths: AtomicUsize,
}

/// Touches objects; by whoever is "attached".
struct Objects;

impl Bank for Objects {
    fn count(&mut self, object: Address, n: u32) {
        // SAFETY: the tests' objects outlive their accounts.
        let object = unsafe { &*(object as *const Object) };
        assert!(object.count.fetch_add(n.into(), Ordering::Relaxed) > 0, "R1: a dead object was counted");
    }

    fn take(&mut self, object: Address, n: u32) -> u32 {
        // SAFETY: as above.
        let count = &unsafe { &*(object as *const Object) }.count;
        let before = count.load(Ordering::Relaxed);
        assert!(before >= n.into(), "R1: taken more than counted");
        // Others take, too: what they spoil is left.
        let taken = (before - 1).min(n.into());
        match count.compare_exchange(before, before - taken, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => n - taken as u32,
            Err(_) => n,
        }
    }

    fn release(&mut self, object: Address, n: u32) {
        // SAFETY: as above.
        let object = unsafe { &*(object as *const Object) };
        let before = object.count.fetch_sub(n.into(), Ordering::AcqRel);
        assert!(before >= n.into(), "R1: released more than counted");
        if before == i64::from(n) {
            object.deaths.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A thread with a buffer for accounts.
struct Detached<'a> {
    registry: &'a Registry<Account>,
    handle: Handle,
}

impl<'a> Detached<'a> {
    fn start(registry: &'a Registry<Account>) -> Self {
        Detached { registry, handle: registry.register().expect("open") }
    }

    /// The caller has a loan, and gets another.
    fn lend(&self, account: Address) {
        // SAFETY: this thread's buffer; the caller has a loan.
        unsafe {
            let buffer = self.handle.as_ref();
            let skips = buffer.skips();
            if !skips && buffer.spend(account) {
                return;
            }
            if skips || buffer.denies(account) {
                return Account::add(account, 1);
            }
            let _ = buffer.increment_missed::<Account>(account, || true);
        }
    }

    /// The caller's loan ends.
    fn give_back(&self, account: Address) {
        // SAFETY: this thread's buffer; the loan is the caller's.
        unsafe {
            let buffer = self.handle.as_ref();
            let skips = buffer.skips();
            if !skips && buffer.refund(account) {
                return;
            }
            let missed = || buffer.decrement_missed::<Account>(account, || true);
            if skips || buffer.denies(account) || missed() == Outcome::Passed {
                Account::release(account);
            }
        }
    }
}

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        self.registry.retire(self.handle);
    }
}

/// Under valgrind and sanitizers: the same paths, fewer times.
fn rounds() -> usize {
    let scale = std::env::var("REFBUF_TEST_SCALE").ok().and_then(|scale| scale.parse().ok());
    40_000 / scale.unwrap_or(1).max(1)
}

fn stress(reserve: u32, slots: usize) {
    prepare(true);
    let registry = Registry::<Account>::new(Shape { slots, parked: 1, ..Shape::DEFAULT });
    let desk = Desk::new(|| (), thread::yield_now);
    let objects: Vec<_> = (0..40).map(|_| Object { count: AtomicI64::new(1), deaths: AtomicUsize::new(0) }).collect();
    let open = |object| {
        // SAFETY: an object is made with one reference; the desk outlives all threads.
        unsafe { desk.enrol(std::ptr::from_ref::<Object>(object) as Address, reserve, &mut Objects) as Address }
    };
    let accounts: Vec<Address> = objects.iter().map(open).collect();
    let over = AtomicBool::new(false);
    // SAFETY: the desk's accounts are touched by whoever holds loans; "attached"
    // is this function's word for one thread at a time.
    let serve = || unsafe {
        registry.settle(Scope::Cold);
        desk.serve(&mut Objects);
    };
    thread::scope(|scope| {
        let settler = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                registry.beat();
                serve();
                thread::yield_now();
            }
        });
        let workers: Vec<_> = (0..6)
            .map(|seed| {
                let own = Detached::start(&registry);
                // Each begins with a loan of each.
                accounts.iter().for_each(|account| own.lend(*account));
                drop(own);
                let (registry, accounts) = (&registry, &accounts);
                scope.spawn(move || {
                    let thread = Detached::start(registry);
                    let mut held = accounts.clone();
                    let mut random = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed + 1);
                    for _ in 0..rounds() {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        let account = held[random as usize % held.len()];
                        if random >> 40 & 1 == 0 && held.len() < 300 {
                            thread.lend(account);
                            held.push(account);
                        } else if held.len() > 1 {
                            let last = held.swap_remove(random as usize % held.len());
                            thread.give_back(last);
                        }
                    }
                    held.into_iter().for_each(|account| thread.give_back(account));
                })
            })
            .collect();
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        over.store(true, Ordering::Relaxed);
        settler.join().unwrap();
        ended.into_iter().for_each(|end| end.unwrap());
    });
    assert!(objects.iter().all(|object| object.deaths.load(Ordering::Relaxed) == 0), "this function has loans");
    let last = Detached::start(&registry);
    accounts.iter().for_each(|account| last.give_back(*account));
    drop(last);
    for _ in 0..4 {
        registry.beat();
        serve();
    }
    for object in &objects {
        assert_eq!(object.count.load(Ordering::Relaxed), 0, "all is given back");
        assert_eq!(object.deaths.load(Ordering::Relaxed), 1, "closed once");
    }
    assert_eq!(registry.summary().totals.credits, 0);
}

#[test]
fn accounts_keep_exact_counts_under_many_threads() {
    stress(1 << 16, 128);
}

#[test]
fn accounts_whose_reserve_runs_dry_all_the_time_keep_exact_counts() {
    stress(4, 16);
}

#[test]
fn accounts_with_the_smallest_reserve_in_the_smallest_table_keep_exact_counts() {
    stress(1, 1);
}

/// An account with one loan, which is given back: it waits on the desk, to be closed.
fn asking(desk: &Desk, object: &Object) {
    // SAFETY: the object has one reference; the desk lives on.
    let account = unsafe { desk.enrol(std::ptr::from_ref(object) as Address, 4, &mut Objects) };
    // SAFETY: the loan.
    unsafe { Account::release(account as Address) };
}

#[test]
fn accounts_that_waited_for_service_at_a_fork_are_served_in_the_child() {
    let desk = Desk::new(|| (), || ());
    let objects: Vec<_> = (0..3).map(|_| Object { count: AtomicI64::new(1), deaths: AtomicUsize::new(0) }).collect();
    asking(&desk, &objects[0]);
    // SAFETY: "attached". The first is taken now, the second asks, the third is neither.
    unsafe { desk.refill(&mut Objects) };
    asking(&desk, &objects[1]);
    // SAFETY: the object has one reference; the desk lives on.
    let open = unsafe { desk.enrol(std::ptr::from_ref(&objects[2]) as Address, 4, &mut Objects) };
    desk.after_fork_in_child(desk.books());
    // SAFETY: "attached".
    unsafe { desk.serve(&mut Objects) };
    let deaths = |object: &Object| object.deaths.load(Ordering::Relaxed);
    assert_eq!(objects.iter().map(deaths).collect::<Vec<_>>(), [1, 1, 0]);
    // SAFETY: the loan; then "attached".
    unsafe {
        Account::release(open as Address);
        desk.serve(&mut Objects);
    }
    assert_eq!(deaths(&objects[2]), 1);
}

#[test]
fn misses_before_credits_are_to_be_had_do_not_make_a_thread_stand_aside() {
    prepare(true);
    let registry = Registry::<Account>::new(Shape::DEFAULT);
    let desk = Desk::new(|| (), || ());
    let object = Object { count: AtomicI64::new(1), deaths: AtomicUsize::new(0) };
    // SAFETY: the object has one reference; the desk lives on.
    let account = unsafe { desk.enrol(std::ptr::from_ref(&object) as Address, 1 << 16, &mut Objects) } as Address;
    let thread = Detached::start(&registry);
    // SAFETY: this thread's buffer, and loans of its own.
    unsafe {
        let buffer = thread.handle.as_ref();
        for _ in 0..5_000 {
            assert_eq!(buffer.increment_missed::<Account>(account, || false), Outcome::Passed);
            assert_eq!(buffer.decrement_missed::<Account>(account, || false), Outcome::Passed);
            Account::release(account);
        }
        assert!(!buffer.skips(), "nothing was tried yet");
    }
    thread.lend(account);
    thread.give_back(account);
    assert_eq!(registry.summary().totals.misses, 10_000, "and all are counted");
    assert_eq!(registry.summary().totals.acquires, 1, "the table is used");
    thread.give_back(account);
    drop(thread);
    // SAFETY: "attached".
    unsafe {
        registry.settle(Scope::All);
        desk.serve(&mut Objects);
    }
    assert_eq!(object.deaths.load(Ordering::Relaxed), 1);
}
