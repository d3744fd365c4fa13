//! One lock that a thread holds while it runs, handed over as CPython's is.
//!
//! ```text
//! holder, at a safe point               waiter
//!   drop_request?                         sleeps until the lock is free, or an interval is over
//!     gives the lock up                   over, and the same holder: drop_request = true
//!     sleeps until another has it         free: takes it, drop_request = false
//!     takes it again, as a waiter
//! ```
//!
//! The holder that gives way waits until another thread has the lock: else it would
//! often get it back at once. Source: CPython, Python/ceval_gil.c, since 3.2 (Antoine Pitrou).

use std::sync::PoisonError;
use std::time::Duration;

use crate::core::sync::{lock, wait, AtomicBool, Condvar, Mutex, Ordering};

#[derive(Debug)]
struct State {
    held: bool,
    /// Times that it was taken.
    turn: u64,
}

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
            state: Mutex::new(State { held: false, turn: 0 }),
            free: Condvar::new(),
            taken: Condvar::new(),
            drop_request: AtomicBool::new(false),
        }
    }

    /// Waits for it.
    pub fn take(&self) {
        let mut state = lock(&self.state);
        while state.held {
            let turn = state.turn;
            let (back, result) = self.free.wait_timeout(state, self.interval).unwrap_or_else(PoisonError::into_inner);
            state = back;
            if result.timed_out() && state.held && state.turn == turn {
                self.drop_request.store(true, Ordering::Relaxed);
            }
        }
        state.held = true;
        state.turn += 1;
        self.drop_request.store(false, Ordering::Relaxed);
        self.taken.notify_all();
    }

    /// Gives it up.
    pub fn drop_it(&self) {
        lock(&self.state).held = false;
        self.free.notify_one();
    }

    /// The holder gives way, if somebody has asked.
    #[inline(always)]
    pub fn safe_point(&self) {
        if self.drop_request.load(Ordering::Relaxed) {
            self.give_way();
        }
    }

    #[cold]
    #[inline(never)]
    fn give_way(&self) {
        let mut state = lock(&self.state);
        let turn = state.turn;
        state.held = false;
        self.free.notify_one();
        // Who has asked is waiting, unless it was served meanwhile.
        while state.turn == turn && self.drop_request.load(Ordering::Relaxed) {
            state = wait(&self.taken, state);
        }
        drop(state);
        self.take();
    }
}
