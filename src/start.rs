//! Where the threads of a run wait for each other.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// Holds threads back until all are ready, or sends them home.
#[derive(Default)]
pub(crate) struct Start {
    state: Mutex<StartState>,
    changed: Condvar,
}

#[derive(Default)]
struct StartState {
    ready: usize,
    /// Go, since then; or do not.
    decision: Option<Option<Instant>>,
}

impl Start {
    /// A worker is set up, or has failed: waits for the decision.
    pub(crate) fn ready(&self) -> Option<Instant> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.ready += 1;
        self.changed.notify_all();
        loop {
            if let Some(go) = state.decision {
                return go;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until so many are.
    pub(crate) fn await_ready(&self, threads: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.ready < threads {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Go; or do not, and whoever still comes is told the same.
    pub(crate) fn decide(&self, go: Option<Instant>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).decision = Some(go);
        self.changed.notify_all();
    }
}
