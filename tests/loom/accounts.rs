//! Accounts: draw, give back, refill, close.

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::Arc;
use loom::thread;
use refbuf::core::{Account, Address, Bank, Counted, Desk};

use crate::bounded;

/// An object's own count, and a thread that may touch it.
struct Object(AtomicUsize);

impl Object {
    /// With the references that its account begins with.
    fn new(references: usize) -> Arc<Object> {
        Arc::new(Object(AtomicUsize::new(references)))
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Bank for &Object {
    fn count(&mut self, _: Address, n: u32) {
        assert_ne!(self.0.fetch_add(n as usize, Ordering::SeqCst), 0, "R1: a dead object was counted");
    }

    fn release(&mut self, _: Address, n: u32) {
        assert!(self.0.fetch_sub(n as usize, Ordering::SeqCst) >= n as usize, "R1: released more than counted");
    }
}

fn desk() -> Arc<Desk> {
    Arc::new(Desk::new(|| {}, thread::yield_now))
}

/// An account with one loan, the caller's.
fn open(desk: &Desk, size: u32) -> Address {
    // SAFETY: the models' objects have these references, and desks are kept to
    // the end.
    unsafe { desk.open(64, size) as Address }
}

fn serve(desk: &Desk, object: &Object) {
    // SAFETY: "attached" means nothing here.
    unsafe { desk.serve(&mut &*object) };
}

/// Drops a loan.
fn drop_loan(account: Address) {
    // SAFETY: the models count their loans.
    unsafe { Account::release(account) };
}

#[test]
fn the_last_loans_to_come_back_close_an_account_once_and_lose_nothing() {
    bounded(|| {
        let (desk, object) = (desk(), Object::new(3));
        let account = open(&desk, 2);
        // SAFETY: we have a loan.
        assert_eq!(unsafe { Account::draw(account, 1) }, 1);
        let others: Vec<_> = (0..2).map(|_| thread::spawn(move || drop_loan(account))).collect();
        serve(&desk, &object);
        for other in others {
            other.join().unwrap();
        }
        serve(&desk, &object);
        assert_eq!(object.count(), 0, "closed, and all given back");
        assert!(!desk.is_asked());
    });
}

#[test]
fn a_refill_that_races_draws_and_returns_keeps_every_reference() {
    bounded(|| {
        let (desk, object) = (desk(), Object::new(3));
        let account = open(&desk, 2);
        let other = {
            // SAFETY: we have a loan, and lend it one.
            assert_eq!(unsafe { Account::draw(account, 1) }, 1);
            thread::spawn(move || {
                // SAFETY: a loan of this thread's.
                let drawn = unsafe { Account::draw(account, 1) };
                assert!(drawn <= 1);
                (0..=drawn).for_each(|_| drop_loan(account));
            })
        };
        serve(&desk, &object);
        other.join().unwrap();
        // SAFETY: our loan.
        let (lent, reserve) = unsafe { Account::at(account) }.balance();
        assert_eq!(lent, 1);
        assert_eq!(object.count(), (lent + reserve) as usize, "the account's equation");
        drop_loan(account);
        serve(&desk, &object);
        assert_eq!(object.count(), 0);
    });
}

#[test]
fn a_dry_reserve_is_filled_whenever_it_is_waited_for() {
    bounded(|| {
        let (desk, object) = (desk(), Object::new(2));
        let account = open(&desk, 1);
        let other = {
            // SAFETY: we have a loan. Now the reserve is dry.
            assert_eq!(unsafe { Account::draw(account, 1) }, 1);
            thread::spawn(move || {
                // SAFETY: a loan of this thread's.
                unsafe { Account::add(account, 1) };
                drop_loan(account);
                drop_loan(account);
            })
        };
        while !desk.is_asked() {
            thread::yield_now();
        }
        serve(&desk, &object);
        other.join().unwrap();
        drop_loan(account);
        serve(&desk, &object);
        assert_eq!(object.count(), 0);
    });
}

#[test]
fn a_withdrawn_reference_is_the_callers_and_not_the_accounts() {
    bounded(|| {
        let (desk, object) = (desk(), Object::new(3));
        let account = open(&desk, 2);
        // SAFETY: we have a loan, and lend it one.
        assert_eq!(unsafe { Account::draw(account, 1) }, 1);
        let other = {
            let object = object.clone();
            thread::spawn(move || {
                // SAFETY: a loan of this thread's.
                unsafe { Account::at(account).withdraw() };
                assert!(object.count() >= 1);
            })
        };
        drop_loan(account);
        serve(&desk, &object);
        other.join().unwrap();
        serve(&desk, &object);
        assert_eq!(object.count(), 1);
    });
}
