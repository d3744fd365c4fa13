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
//! | draw n | −n | +n | anywhere; as many as there are, or none |
//! | give back n | +n | −n | anywhere |
//! | withdraw | | −1 | attached: the loan becomes the caller's own reference |
//! | refill n | +n, the object's count first | | attached |
//! | return surplus n | −n, the object's count afterwards | | attached |
//! | close | all go back | 0 | attached |
//!
//! Both numbers share a word with the bit `ASKED`: the account waits on its
//! *desk* for an attached moment. Whoever sets the bit puts the account on the
//! desk; only who takes it from there clears it. `lent` never leaves zero, since
//! only a holder of a loan can draw: then the account is closed at the next
//! attached moment, and freed. With the last loan given back and the bit set, an
//! account belongs to the desk alone, and nobody else touches it.
//!
//! A dry reserve: [`Counted::add`] has [`Desk::wait`] see to a refill.

use std::ptr;

use super::counted::{Address, Counted};
use super::sync::{lock, AtomicPtr, AtomicU64, Mutex, MutexGuard, Ordering};

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
    next: AtomicPtr<Account>,
}

// SAFETY: the object's address is only handed out; the desk outlives accounts.
unsafe impl Send for Account {}
// SAFETY: as above; the rest is atomic.
unsafe impl Sync for Account {}

/// What an attached thread does for accounts.
pub trait Bank {
    /// Counts `n` more references on `object`, which is alive.
    fn count(&mut self, object: Address, n: u32);

    /// Drops `n` references. May run any code.
    fn release(&mut self, object: Address, n: u32);
}

/// Where accounts wait for an attached moment.
#[derive(Debug)]
pub struct Desk {
    asked: AtomicPtr<Account>,
    /// Taken from `asked`, and not yet served: a finalizer may end its thread,
    /// and another goes on.
    taken: Mutex<Vec<*mut Account>>,
    /// Calls an attached thread. Blocks on nobody.
    ring: fn(),
    /// Sees to it that the desk is served, now.
    wait: fn(),
}

// SAFETY: accounts may be served by any attached thread.
unsafe impl Send for Desk {}
// SAFETY: as above, one at a time by the lock.
unsafe impl Sync for Desk {}

impl Desk {
    /// An empty desk.
    #[cfg(not(loom))]
    pub const fn new(ring: fn(), wait: fn()) -> Desk {
        Desk { asked: AtomicPtr::new(ptr::null_mut()), taken: Mutex::new(Vec::new()), ring, wait }
    }

    /// An empty desk.
    #[cfg(loom)]
    pub fn new(ring: fn(), wait: fn()) -> Desk {
        Desk { asked: AtomicPtr::new(ptr::null_mut()), taken: Mutex::new(Vec::new()), ring, wait }
    }

    /// Opens an account with one loan, the caller's, for an object on which
    /// `1 + size` references have just been counted for it.
    ///
    /// # Safety
    ///
    /// The references are the account's from now on, and the desk outlives it.
    pub unsafe fn open(&self, object: Address, size: u32) -> *const Account {
        assert!(size > 0 && u64::from(size) <= LENT / 4, "a reserve of that size");
        let state = AtomicU64::new(u64::from(size) << RESERVE_SHIFT | 1);
        Box::into_raw(Box::new(Account { object, state, size, desk: self, next: AtomicPtr::new(ptr::null_mut()) }))
    }

    /// Whether an account waits here.
    pub fn is_asked(&self) -> bool {
        !self.asked.load(Ordering::Acquire).is_null() || !lock(&self.taken).is_empty()
    }

    /// Puts an account here whose `ASKED` the caller has set.
    fn ask(&self, account: &Account) {
        let this = ptr::from_ref(account).cast_mut();
        let mut first = self.asked.load(Ordering::Relaxed);
        loop {
            account.next.store(first, Ordering::Relaxed);
            // Release: pairs with the acquire in `take`.
            match self.asked.compare_exchange_weak(first, this, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => first = now,
            }
        }
        (self.ring)();
    }

    /// One account that waits.
    fn take(&self) -> Option<*mut Account> {
        let mut taken = lock(&self.taken);
        if let Some(account) = taken.pop() {
            return Some(account);
        }
        // Acquire: pairs with the release in `ask`.
        let mut account = self.asked.swap(ptr::null_mut(), Ordering::Acquire);
        while !account.is_null() {
            taken.push(account);
            // SAFETY: it is on the desk, and so ours alone to free.
            account = unsafe { &*account }.next.load(Ordering::Relaxed);
        }
        taken.pop()
    }

    /// Refills low reserves, and leaves the rest of what waits for [`serve`](Self::serve):
    /// runs no foreign code.
    ///
    /// # Safety
    ///
    /// Attached.
    pub unsafe fn refill(&self, bank: &mut impl Bank) {
        let mut seen = Vec::new();
        while let Some(account) = self.take() {
            // SAFETY: taken from the desk, so nobody else frees it.
            unsafe { &*account }.refill(bank);
            seen.push(account);
        }
        if !seen.is_empty() {
            lock(&self.taken).append(&mut seen);
            // Who was called meanwhile has not seen them here.
            (self.ring)();
        }
    }

    /// Just before `fork`: the guard is dropped after it, in both processes.
    pub fn before_fork(&self) -> MutexGuard<'_, Vec<*mut Account>> {
        lock(&self.taken)
    }

    /// Refills low reserves, returns surplus, closes accounts of which nothing is
    /// lent.
    ///
    /// # Safety
    ///
    /// Attached, outside any gate, where any code may run.
    pub unsafe fn serve(&self, bank: &mut impl Bank) {
        while let Some(account) = self.take() {
            // SAFETY: taken from the desk, so nobody else frees it.
            let freed = unsafe { &*account }.serve(bank);
            if let Some((object, references)) = freed {
                // SAFETY: nothing is lent, it is not on the desk, and no more will
                // be: nobody has its address.
                drop(unsafe { Box::from_raw(account) });
                bank.release(object, references);
            }
        }
    }
}

impl Account {
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

    /// Makes a low reserve full again; returns the state.
    fn refill(&self, bank: &mut impl Bank) -> u64 {
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

    /// Does what the account needs. If nothing is lent, says what to release.
    fn serve(&self, bank: &mut impl Bank) -> Option<(Address, u32)> {
        // Acquire: pairs with the release of who gave back.
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let (lent, reserve) = (state & LENT, state >> RESERVE_SHIFT);
            if lent == 0 {
                return Some((self.object, reserve as u32));
            }
            if reserve <= self.low() {
                state = self.refill(bank);
                continue;
            }
            let surplus = if reserve > self.high() { reserve - u64::from(self.size) } else { 0 };
            let rest = (state - surplus * RESERVE_ONE) & if surplus > 0 { u64::MAX } else { !ASKED };
            match self.state.compare_exchange_weak(state, rest, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) if surplus > 0 => {
                    bank.release(self.object, surplus as u32);
                    state = self.state.load(Ordering::Acquire);
                }
                Ok(_) => return None,
                Err(now) => state = now,
            }
        }
    }
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
            (unsafe { &*account.desk }.wait)();
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
