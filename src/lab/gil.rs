//! One lock that a thread holds while it runs, handed over as CPython's is.
//!
//! ```text
//! holder, at a safe point               waiter
//!   drop_request?                         sleeps until the lock is free, or an interval is over
//!     gives the lock up                   over, and no other holder: drop_request = true
//!     sleeps until another has it         free: takes it, drop_request = false
//!     takes it again, as a waiter
//! ```
//!
//! Whoever gives the lock up when it has been asked for, at a safe point or to sleep, waits
//! until another thread has it: else it would often get it back at once. Not so who ends. A
//! holder that gives it up and takes it again by itself is the same holder to who waits.
//! Source: CPython, Python/ceval_gil.c, since 3.2 (Antoine Pitrou); `drop_gil` in 3.13.

use std::sync::PoisonError;
use std::time::Duration;

use crate::core::sync::{lock, wait, AtomicBool, Condvar, Mutex, MutexGuard, Ordering};

#[derive(Debug)]
struct State {
    held: bool,
    /// Who had it last; 0 is nobody.
    last: u64,
    /// Times that another took it than who had it last.
    switches: u64,
    /// Threads so far.
    threads: u64,
}

/// A thread, to the lock.
#[derive(Debug)]
pub struct Holder(u64);

/// The lock.
#[derive(Debug)]
pub struct Gil {
    interval: Duration,
    state: Mutex<State>,
    /// The lock is free.
    free: Condvar,
    /// Somebody has taken it.
    taken: Condvar,
    drop_request: AtomicBool,
}

impl Gil {
    /// Free.
    pub fn new(interval: Duration) -> Gil {
        Gil {
            interval,
            state: Mutex::new(State { held: false, last: 0, switches: 0, threads: 0 }),
            free: Condvar::new(),
            taken: Condvar::new(),
            drop_request: AtomicBool::new(false),
        }
    }

    /// A thread that has not had it yet.
    pub fn holder(&self) -> Holder {
        let mut state = lock(&self.state);
        state.threads += 1;
        Holder(state.threads)
    }

    /// Waits for it.
    pub fn take(&self, me: &Holder) {
        let mut state = lock(&self.state);
        while state.held {
            let switches = state.switches;
            let (back, result) = self.free.wait_timeout(state, self.interval).unwrap_or_else(PoisonError::into_inner);
            state = back;
            if result.timed_out() && state.held && state.switches == switches {
                self.drop_request.store(true, Ordering::Relaxed);
            }
        }
        state.held = true;
        state.switches += u64::from(state.last != me.0);
        state.last = me.0;
        self.drop_request.store(false, Ordering::Relaxed);
        self.taken.notify_all();
    }

    /// Whether somebody has asked for it.
    pub fn is_asked_for(&self) -> bool {
        self.drop_request.load(Ordering::Relaxed)
    }

    /// How often another thread took it than who had it last.
    pub fn switches(&self) -> u64 {
        lock(&self.state).switches
    }

    /// Gives it up, for a while; to another, if somebody has asked.
    pub fn give_up(&self, me: &Holder) {
        let mut state = self.free_it();
        // Who has asked is waiting, unless it was served meanwhile.
        while state.last == me.0 && self.drop_request.load(Ordering::Relaxed) {
            state = wait(&self.taken, state);
        }
    }

    /// Gives it up for good.
    pub fn leave(&self) {
        drop(self.free_it());
    }

    fn free_it(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        state.held = false;
        self.free.notify_one();
        state
    }

    /// The holder gives way, if somebody has asked.
    #[inline(always)]
    pub fn safe_point(&self, me: &Holder) {
        if self.drop_request.load(Ordering::Relaxed) {
            self.give_way(me);
        }
    }

    #[cold]
    #[inline(never)]
    fn give_way(&self, me: &Holder) {
        self.give_up(me);
        self.take(me);
    }
}
