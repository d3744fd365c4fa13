//! The desk: where accounts wait for an attached moment, and the books of all
//! that are open.
//!
//! | an account is | from | to |
//! |---|---|---|
//! | open | `enrol` | the service that finds nothing lent |
//! | asked | who set its `ASKED`: `ask`, without a lock | an attached thread takes it |
//! | taken | out of `asked`, with the lock | served, with the lock |
//!
//! There is one account for an object, however often it is enrolled: its reserve
//! is counted once, and its loans share one place in a buffer. The books find it.
//!
//! The lock is held while references are counted and taken back in bulk, which
//! runs no foreign code and waits for nobody; never while one is released. It
//! comes before a registry's lock where both are held (fork, and counting).
//!
//! Forked child: an account that another thread had marked and not yet put on the
//! desk is found by the books.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::ptr;

use super::account::{Account, Served};
use super::counted::Address;
use super::sync::{lock, AtomicPtr, Mutex, MutexGuard, Ordering};

/// What an attached thread does for accounts.
pub trait Bank {
    /// Counts `n` more references on `object`, which is alive. Runs no foreign code.
    fn count(&mut self, object: Address, n: u32);

    /// Takes back up to `n` references in bulk: runs no foreign code, frees
    /// nothing. Says how many are left, for `release`.
    fn take(&mut self, object: Address, n: u32) -> u32;

    /// Drops `n` references. May run any code.
    fn release(&mut self, object: Address, n: u32);
}

/// Where accounts wait for an attached moment.
#[derive(Debug)]
pub struct Desk {
    /// Accounts that have asked, linked by `next`.
    asked: AtomicPtr<Account>,
    books: Mutex<Books>,
    /// Calls an attached thread. Blocks on nobody.
    ring: fn(),
    /// Sees to it that the desk is served, now.
    wait: fn(),
}

/// What the lock guards.
#[derive(Debug)]
pub struct Books {
    /// All accounts, by their objects.
    open: HashMap<Address, *mut Account, BuildHasherDefault<DefaultHasher>>,
    /// Taken from `asked`, and not yet served.
    taken: Vec<*mut Account>,
}

impl Books {
    const fn new() -> Books {
        Books { open: HashMap::with_hasher(BuildHasherDefault::new()), taken: Vec::new() }
    }

    /// The account of an object, if it has one.
    pub fn account(&self, object: Address) -> Option<&Account> {
        // SAFETY: accounts in the books live, and the lock is held.
        self.open.get(&object).map(|account| unsafe { &**account })
    }

    /// Accounts open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

// SAFETY: accounts may be served by any attached thread.
unsafe impl Send for Desk {}
// SAFETY: as above, one at a time by the lock.
unsafe impl Sync for Desk {}

impl Desk {
    /// An empty desk.
    #[cfg(not(loom))]
    pub const fn new(ring: fn(), wait: fn()) -> Desk {
        Desk { asked: AtomicPtr::new(ptr::null_mut()), books: Mutex::new(Books::new()), ring, wait }
    }

    /// An empty desk.
    #[cfg(loom)]
    pub fn new(ring: fn(), wait: fn()) -> Desk {
        Desk { asked: AtomicPtr::new(ptr::null_mut()), books: Mutex::new(Books::new()), ring, wait }
    }

    /// A loan of the object's account, for the caller's reference to it. Where it
    /// has none yet, one is opened, with a reserve of `size` references.
    ///
    /// # Safety
    ///
    /// Attached. The caller owns a reference to the object, which is the account's
    /// from now on. The desk outlives its accounts.
    pub unsafe fn enrol(&self, object: Address, size: u32, bank: &mut impl Bank) -> *const Account {
        let mut books = lock(&self.books);
        if let Some(account) = books.account(object) {
            account.join();
            return account;
        }
        bank.count(object, size);
        let account = Box::into_raw(Box::new(Account::new(object, size, self)));
        books.open.insert(object, account);
        account
    }

    /// Whether an account waits here.
    pub fn is_asked(&self) -> bool {
        !self.asked.load(Ordering::Acquire).is_null() || !lock(&self.books).taken.is_empty()
    }

    /// Puts an account here whose `ASKED` the caller has set.
    pub(super) fn ask(&self, account: &Account) {
        let this = ptr::from_ref(account).cast_mut();
        let mut first = self.asked.load(Ordering::Relaxed);
        loop {
            account.next.store(first, Ordering::Relaxed);
            // Release: pairs with the acquire in `take_asked`.
            match self.asked.compare_exchange_weak(first, this, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => first = now,
            }
        }
        (self.ring)();
    }

    /// A reserve is dry: has the desk served.
    pub(super) fn wait(&self) {
        (self.wait)();
    }

    /// What has been asked for is taken.
    fn take_asked(&self, books: &mut Books) {
        // Acquire: pairs with the release in `ask`.
        let mut account = self.asked.swap(ptr::null_mut(), Ordering::Acquire);
        while !account.is_null() {
            books.taken.push(account);
            // SAFETY: it is on the desk, and so ours alone to free.
            account = unsafe { &*account }.next.load(Ordering::Relaxed);
        }
    }

    /// Refills low reserves, and leaves the rest of what waits for [`serve`](Self::serve):
    /// runs no foreign code.
    ///
    /// # Safety
    ///
    /// Attached.
    pub unsafe fn refill(&self, bank: &mut impl Bank) {
        let mut books = lock(&self.books);
        self.take_asked(&mut books);
        for account in &books.taken {
            // SAFETY: taken, and not served: with the lock, nobody frees it.
            unsafe { &**account }.refill(bank);
        }
    }

    /// Refills low reserves, returns surplus, closes accounts of which nothing is
    /// lent.
    ///
    /// # Safety
    ///
    /// Attached, outside any gate, where any code may run.
    pub unsafe fn serve(&self, bank: &mut impl Bank) {
        // One at a time: a release may end this thread, and another goes on.
        while let Some((object, references)) = self.serve_one(bank) {
            if references > 0 {
                bank.release(object, references);
            }
        }
    }

    /// Serves one account; says what is left to be released. None if no account
    /// waits.
    fn serve_one(&self, bank: &mut impl Bank) -> Option<(Address, u32)> {
        let mut books = lock(&self.books);
        self.take_asked(&mut books);
        let account = books.taken.pop()?;
        // SAFETY: taken from the desk: with the lock, ours alone to free.
        let (served, object) = unsafe { ((*account).serve(bank), (*account).object()) };
        let references = match served {
            Served::Open(references) => references,
            Served::Closed(references) => {
                books.open.remove(&object);
                // SAFETY: nothing is lent, it is neither in the books nor on the
                // desk, and no more will be: nobody has its address.
                drop(unsafe { Box::from_raw(account) });
                references
            }
        };
        let left = if references > 0 { bank.take(object, references) } else { 0 };
        Some((object, left))
    }

    /// The books, kept as they are for as long as the guard lives. Also just
    /// before `fork`: in the child the guard goes to
    /// [`after_fork_in_child`](Self::after_fork_in_child).
    pub fn books(&self) -> MutexGuard<'_, Books> {
        lock(&self.books)
    }

    /// Just after `fork`, in the child: whatever other threads were about to do,
    /// accounts that need something are on the desk.
    pub fn after_fork_in_child(&self, mut books: MutexGuard<'_, Books>) {
        self.asked.store(ptr::null_mut(), Ordering::Relaxed);
        let Books { open, taken } = &mut *books;
        taken.clear();
        // SAFETY: accounts in the books live, and the lock is held.
        taken.extend(open.values().filter(|account| unsafe { &***account }.is_due()));
    }
}
