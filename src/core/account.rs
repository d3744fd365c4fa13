//! Accounts: references to one object for threads that must not touch it.
//!
//! A reference that is counted later is unsound: the object may die first. So an
//! account owns references that were counted when a thread could do so, its
//! *reserve*, and lends them. A loan is a real reference (rule R1); where the
//! object's count says `n`, the account's share of it is
//!
//! ```text
//! references counted by the account = reserve + lent
//! lent = references that the program holds + Σ over buffers of credits(buffer, account)
//! ```
//!
//! | step | `reserve` | `lent` | where |
//! |---|---|---|---|
//! | enrol | | +1 | attached, with the books' lock: the caller's own reference becomes a loan |
//! | draw n | −n | +n | anywhere; as many as there are, or none |
//! | give back n | +n | −n | anywhere |
//! | withdraw | | −1 | attached: the loan becomes the caller's own reference |
//! | refill n | +n, the object's count first | | attached, with the lock |
//! | return surplus n | −n, the object's count afterwards | | attached, with the lock |
//! | close | all go back | 0 | attached, with the lock |
//!
//! Both numbers share a word with the bit `ASKED`: the account waits on its
//! *desk* ([`super::desk`]) for an attached moment. Whoever sets the bit puts the
//! account on the desk; only who takes it from there clears it. Without the lock
//! `lent` never leaves zero, since only a holder of a loan can draw. So who finds
//! it zero, with the lock, closes the account and frees it: with the last loan
//! given back and the bit set, an account belongs to the desk alone.
//!
//! A dry reserve: [`Counted::add`] has [`Desk::wait`] see to a refill.

use std::ptr;

use super::counted::{Address, Counted};
use super::desk::{Bank, Desk};
use super::sync::{AtomicPtr, AtomicU64, Ordering};

/// Low bits of the word: `lent`.
const LENT: u64 = (1 << 31) - 1;
/// The account is on the desk, or about to be.
const ASKED: u64 = 1 << 31;
/// Where the reserve begins.
const RESERVE_SHIFT: u32 = 32;
/// One reference in reserve.
const RESERVE_ONE: u64 = 1 << RESERVE_SHIFT;

/// References to one object, for threads that must not touch it.
#[repr(align(16))]
#[derive(Debug)]
pub struct Account {
    object: Address,
    state: AtomicU64,
    /// References that a refill makes the reserve up to.
    size: u32,
    desk: *const Desk,
    /// The next account on the desk.
    pub(super) next: AtomicPtr<Account>,
}

// SAFETY: the object's address is only handed out; the desk outlives accounts.
unsafe impl Send for Account {}
// SAFETY: as above; the rest is atomic.
unsafe impl Sync for Account {}

/// What an attached thread did for an account.
pub(super) enum Served {
    /// It goes on; so many references were too many, and are no longer its.
    Open(u32),
    /// Nothing is lent: the account is to be freed, and so many references to be
    /// released.
    Closed(u32),
}

impl Account {
    /// An account with one loan, the caller's, for an object on which `1 + size`
    /// references have been counted for it.
    pub(super) fn new(object: Address, size: u32, desk: &Desk) -> Account {
        assert!(size > 0 && u64::from(size) <= LENT / 4, "a reserve of that size");
        let state = AtomicU64::new(u64::from(size) << RESERVE_SHIFT | 1);
        Account { object, state, size, desk, next: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The account at an address.
    ///
    /// # Safety
    ///
    /// The caller has a loan of it for as long as the result is used.
    pub unsafe fn at<'a>(account: Address) -> &'a Account {
        // SAFETY: while something is lent, it is not freed.
        unsafe { &*(account as *const Account) }
    }

    /// The object.
    pub fn object(&self) -> Address {
        self.object
    }

    /// One loan more, for a reference that the caller owned. Also where nothing was
    /// lent, since whoever closes accounts has the lock too. With the books' lock.
    pub(super) fn join(&self) {
        let before = self.state.fetch_add(1, Ordering::AcqRel);
        check_lent((before & LENT) + 1);
    }

    /// Its address, by which buffers know it.
    pub fn address(&self) -> Address {
        ptr::from_ref(self) as Address
    }

    /// References lent, and in reserve. A hint.
    pub fn balance(&self) -> (u32, u32) {
        let state = self.state.load(Ordering::Relaxed);
        ((state & LENT) as u32, (state >> RESERVE_SHIFT) as u32)
    }

    /// Reserve below which a refill is asked for.
    fn low(&self) -> u64 {
        u64::from(self.size / 4)
    }

    /// Reserve above which some is returned.
    fn high(&self) -> u64 {
        u64::from(self.size) * 2
    }

    /// Lends up to `n` references: never more than half of what is there, rounded
    /// up, so that others find some.
    ///
    /// # Safety
    ///
    /// The caller has a loan.
    unsafe fn draw(&self, n: u32) -> u32 {
        let mut drawn = 0;
        // SAFETY: the caller's loan keeps the account.
        unsafe {
            self.change(|state| {
                drawn = u64::from(n).min((state >> RESERVE_SHIFT).div_ceil(2));
                check_lent((state & LENT) + drawn);
                state - drawn * RESERVE_ONE + drawn
            });
        }
        drawn as u32
    }

    /// # Safety
    ///
    /// The caller gives up `n` loans, and may not touch the account afterwards
    /// unless it has another.
    unsafe fn give_back(&self, n: u32) {
        let n = u64::from(n);
        // SAFETY: until the change, the loans keep the account.
        unsafe { self.change(|state| state - n + n * RESERVE_ONE) };
    }

    /// Makes a loan the caller's own reference to the object.
    ///
    /// # Safety
    ///
    /// Attached. The caller gives up a loan; as for `give_back`.
    pub unsafe fn withdraw(&self) {
        // SAFETY: until the change, the loan keeps the account.
        unsafe { self.change(|state| state - 1) };
    }

    /// One change of the word, after which the account asks for what it needs.
    ///
    /// # Safety
    ///
    /// The caller has a loan until the change.
    unsafe fn change(&self, mut step: impl FnMut(u64) -> u64) {
        let desk = self.desk;
        let mut before = self.state.load(Ordering::Relaxed);
        loop {
            let mut after = step(before);
            let asks = before & ASKED == 0 && self.needs(after);
            if asks {
                after |= ASKED;
            }
            // Release: what the holder did with the object comes before who drops
            // the last reference. Acquire: and that party sees it.
            match self.state.compare_exchange_weak(before, after, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if asks => {
                    // SAFETY: not freed before it has been on the desk, which
                    // outlives it.
                    unsafe { (*desk).ask(self) };
                    return;
                }
                // From here on others may free the account.
                Ok(_) => return,
                Err(now) => before = now,
            }
        }
    }

    /// Whether an attached thread should look at an account in this state.
    fn needs(&self, state: u64) -> bool {
        let reserve = state >> RESERVE_SHIFT;
        state & LENT == 0 || reserve < self.low() || reserve == 0 || reserve > self.high()
    }

    /// Marks an account that should be on the desk; says whether it should.
    /// While no other thread exists.
    pub(super) fn is_due(&self) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        let due = state & ASKED != 0 || self.needs(state);
        if due {
            self.state.store(state | ASKED, Ordering::Relaxed);
        }
        due
    }

    /// Makes a low reserve full again; returns the state. Attached, with the
    /// books' lock.
    pub(super) fn refill(&self, bank: &mut impl Bank) -> u64 {
        let state = self.state.load(Ordering::Acquire);
        let (lent, reserve) = (state & LENT, state >> RESERVE_SHIFT);
        if lent == 0 || reserve > self.low() {
            return state;
        }
        let n = u64::from(self.size) - reserve;
        // The loans were counted, and what comes back goes to the reserve: the
        // object is alive until this account is closed.
        bank.count(self.object, n as u32);
        self.state.fetch_add(n * RESERVE_ONE, Ordering::AcqRel) + n * RESERVE_ONE
    }

    /// Does what the account needs. Attached, with the books' lock, by who has
    /// taken the account from the desk.
    pub(super) fn serve(&self, bank: &mut impl Bank) -> Served {
        // Acquire: pairs with the release of who gave back.
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let (lent, reserve) = (state & LENT, state >> RESERVE_SHIFT);
            if lent == 0 {
                return Served::Closed(reserve as u32);
            }
            if reserve <= self.low() {
                state = self.refill(bank);
                continue;
            }
            let surplus = if reserve > self.high() { reserve - u64::from(self.size) } else { 0 };
            let rest = (state - surplus * RESERVE_ONE) & !ASKED;
            match self.state.compare_exchange_weak(state, rest, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Served::Open(surplus as u32),
                Err(now) => state = now,
            }
        }
    }
}

/// As for `Arc`: a program that leaks references by the thousand million ends
/// before their number wraps.
fn check_lent(lent: u64) {
    if lent > LENT / 2 {
        overflow();
    }
}

#[cold]
fn overflow() -> ! {
    eprintln!("refbuf: more than a thousand million references to one object are lent: some are leaked");
    std::process::abort()
}

// SAFETY: no function touches the object. `take` may take the last loan, but
// frees nothing: that is done where the desk is served. `add` may wait, which
// this kind documents.
unsafe impl Counted for Account {
    unsafe fn add(object: Address, n: u32) {
        // SAFETY: the caller has a loan.
        let account = unsafe { Account::at(object) };
        let mut left = n;
        loop {
            // SAFETY: as above.
            left -= unsafe { account.draw(left) };
            if left == 0 {
                return;
            }
            // SAFETY: the desk outlives its accounts.
            unsafe { &*account.desk }.wait();
        }
    }

    unsafe fn draw(object: Address, n: u32) -> u32 {
        // SAFETY: the caller has a loan.
        unsafe { Account::at(object).draw(n) }
    }

    unsafe fn take(object: Address, n: u32) -> u32 {
        // SAFETY: the caller has these loans, and gives them up.
        unsafe { Account::at(object).give_back(n) };
        0
    }

    unsafe fn has_others(object: Address) -> bool {
        // SAFETY: the caller has a loan.
        unsafe { Account::at(object) }.balance().0 > 1
    }

    unsafe fn release(object: Address) {
        // SAFETY: the caller has this loan, and gives it up.
        unsafe { Account::at(object).give_back(1) }
    }
}
