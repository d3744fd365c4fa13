//! Threads that can be stopped, each with a token.
//!
//! ```text
//! thread, while it works: has its token
//!   at a safe point, if somebody wants it:   gives the token, until nobody wants it any more
//!   where it waits for something else:       gives the token first, takes it back afterwards
//!
//! who inspects a thread:   wants its token, takes it: the thread stands still meanwhile
//! who stops the world:     takes the tokens of all others
//! ```
//!
//! Whoever waits for another's token has given up its own, or stops the world, which one
//! thread at a time does: so nobody waits in a circle.
//!
//! Source: python-safethread's inspection of one thread by another, and its collector
//! (Adam Olsen, 2008).

use crate::core::sync::{lock, wait, AtomicU32, Condvar, Mutex, Ordering};

/// One thread's.
#[derive(Debug)]
pub struct Token {
    taken: Mutex<bool>,
    changed: Condvar,
    /// How many want it besides the thread.
    wanted: AtomicU32,
}

impl Token {
    /// Taken, by the thread itself.
    pub fn taken() -> Token {
        Token { taken: Mutex::new(true), changed: Condvar::new(), wanted: AtomicU32::new(0) }
    }

    /// Takes it, as its own thread.
    pub fn take(&self) {
        let mut taken = lock(&self.taken);
        while *taken {
            taken = wait(&self.changed, taken);
        }
        *taken = true;
    }

    /// Gives it, whoever has it.
    pub fn give(&self) {
        *lock(&self.taken) = false;
        self.changed.notify_all();
    }

    /// Takes it from its thread.
    pub fn take_from_thread(&self) {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        self.take();
        // With the lock, so that the thread which waits for it does not miss it.
        let taken = lock(&self.taken);
        self.wanted.fetch_sub(1, Ordering::Relaxed);
        drop(taken);
        self.changed.notify_all();
    }

    /// Whether somebody wants it.
    #[inline(always)]
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) != 0
    }

    /// Its own thread lets others have it, and takes it back.
    #[cold]
    #[inline(never)]
    pub fn give_way(&self) {
        self.give();
        let mut taken = lock(&self.taken);
        while self.is_wanted() || *taken {
            taken = wait(&self.changed, taken);
        }
        *taken = true;
    }
}
