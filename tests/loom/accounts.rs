//! Accounts: draw, give back, refill, close.

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::Arc;
use loom::thread;
use refbuf::core::{Account, Address, Bank, Counted, Desk};

use crate::bounded;

/// An object's own count, and a thread that may touch it.
struct Object(AtomicUsize);

impl Object {
    /// With so many references.
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

    fn take(&mut self, _: Address, n: u32) -> u32 {
        let before = self.0.load(Ordering::SeqCst);
        assert!(before >= n as usize, "R1: taken more than counted");
        // The last one is left, and what others spoil.
        let taken = (before - 1).min(n as usize);
        match self.0.compare_exchange(before, before - taken, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => n - taken as u32,
            Err(_) => n,
        }
    }

    fn release(&mut self, _: Address, n: u32) {
        assert!(self.0.fetch_sub(n as usize, Ordering::SeqCst) >= n as usize, "R1: released more than counted");
    }
}

fn desk() -> Arc<Desk> {
    Arc::new(Desk::new(|| {}, thread::yield_now))
}

/// A loan of the object's account, for a reference of the caller's.
fn enrol(desk: &Desk, object: &Object, size: u32) -> Address {
    // SAFETY: the models' objects have that reference, and desks are kept to the
    // end.
    unsafe { desk.enrol(64, size, &mut &*object) as Address }
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
        let (desk, object) = (desk(), Object::new(1));
        let account = enrol(&desk, &object, 2);
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
        let (desk, object) = (desk(), Object::new(1));
        let account = enrol(&desk, &object, 2);
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
        let (desk, object) = (desk(), Object::new(1));
        let account = enrol(&desk, &object, 1);
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
        let (desk, object) = (desk(), Object::new(1));
        let account = enrol(&desk, &object, 2);
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

#[test]
fn an_object_enrolled_while_its_account_closes_is_counted_once_and_lost_never() {
    bounded(|| {
        // Our reference goes into the account and comes back; the other thread
        // enrols with one of its own meanwhile.
        let (desk, object) = (desk(), Object::new(2));
        let account = enrol(&desk, &object, 1);
        let other = {
            let (desk, object) = (desk.clone(), object.clone());
            thread::spawn(move || {
                let account = enrol(&desk, &object, 1);
                serve(&desk, &object);
                let found = desk.books().account(64).map(Account::address);
                assert_eq!(found, Some(account), "an open account is in the books");
                // SAFETY: a loan of this thread's.
                let (lent, reserve) = unsafe { Account::at(account) }.balance();
                assert!(lent >= 1 && object.count() >= (lent + reserve) as usize);
                drop_loan(account);
                serve(&desk, &object);
            })
        };
        drop_loan(account);
        serve(&desk, &object);
        other.join().unwrap();
        serve(&desk, &object);
        assert_eq!(object.count(), 0, "closed, and all given back");
        assert!(desk.books().is_empty() && !desk.is_asked());
    });
}

#[test]
fn enrolling_an_object_twice_at_once_opens_one_account() {
    bounded(|| {
        let (desk, object) = (desk(), Object::new(2));
        let other = {
            let (desk, object) = (desk.clone(), object.clone());
            thread::spawn(move || enrol(&desk, &object, 1))
        };
        let account = enrol(&desk, &object, 1);
        assert_eq!(other.join().unwrap(), account);
        // SAFETY: two loans are ours now.
        assert_eq!(unsafe { Account::at(account) }.balance(), (2, 1));
        assert_eq!(object.count(), 3);
        (0..2).for_each(|_| drop_loan(account));
        serve(&desk, &object);
        assert_eq!(object.count(), 0);
    });
}
