//! The gate: owner and revoker are never inside together.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::Arc;
use loom::thread;
use refbuf::core::gate::Gate;
use refbuf::core::sync::{heavy, light};

/// Something that only one party at a time may touch: loom reports a race.
struct Guarded<G> {
    gate: G,
    table: UnsafeCell<u32>,
}

// SAFETY: what the models are there to find out.
unsafe impl<G: Sync> Sync for Guarded<G> {}
// SAFETY: as above.
unsafe impl<G: Send> Send for Guarded<G> {}

impl<G> Guarded<G> {
    fn touch(&self) {
        // SAFETY: what the models are there to find out.
        self.table.with_mut(|table| unsafe { *table += 1 });
    }
}

#[test]
fn owner_and_revoker_never_hold_the_table_together() {
    loom::model(|| {
        let guarded = Arc::new(Guarded { gate: Gate::new(), table: UnsafeCell::new(0) });
        let owner = {
            let guarded = guarded.clone();
            thread::spawn(move || {
                let mut entered = 0;
                for _ in 0..2 {
                    if guarded.gate.enter() {
                        guarded.touch();
                        guarded.gate.leave();
                        entered += 1;
                    }
                }
                entered
            })
        };
        guarded.gate.revoke();
        heavy();
        guarded.gate.await_owner();
        guarded.touch();
        guarded.gate.restore();
        let entered = owner.join().unwrap();
        // SAFETY: the owner is done.
        let touched = guarded.table.with(|table| unsafe { *table });
        assert_eq!(touched, entered + 1);
    });
}

/// The gate, but for one step.
struct BrokenGate {
    busy: AtomicU32,
    revoked: AtomicU32,
    barriers: bool,
    check_again: bool,
}

impl BrokenGate {
    fn new(barriers: bool, check_again: bool) -> Self {
        BrokenGate { busy: AtomicU32::new(0), revoked: AtomicU32::new(0), barriers, check_again }
    }

    fn enter(&self) -> bool {
        if !self.check_again {
            let open = self.revoked.load(Ordering::Acquire) == 0;
            self.busy.store(1, Ordering::Relaxed);
            return open;
        }
        self.busy.store(1, Ordering::Relaxed);
        if self.barriers {
            light();
        }
        self.revoked.load(Ordering::Acquire) == 0
    }

    fn model(barriers: bool, check_again: bool) {
        loom::model(move || {
            let gate = BrokenGate::new(barriers, check_again);
            let guarded = Arc::new(Guarded { gate, table: UnsafeCell::new(0) });
            let owner = {
                let guarded = guarded.clone();
                thread::spawn(move || {
                    if guarded.gate.enter() {
                        guarded.touch();
                    }
                    guarded.gate.busy.store(0, Ordering::Release);
                })
            };
            guarded.gate.revoked.store(1, Ordering::Relaxed);
            if barriers {
                heavy();
            }
            while guarded.gate.busy.load(Ordering::Acquire) != 0 {
                thread::yield_now();
            }
            guarded.touch();
            owner.join().unwrap();
        });
    }
}

#[test]
fn the_model_of_the_broken_gates_is_sound_when_nothing_is_broken() {
    BrokenGate::model(true, true);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_barriers_the_handshake_fails_its_model() {
    BrokenGate::model(false, true);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn checking_for_revocation_before_being_busy_fails_its_model() {
    BrokenGate::model(true, false);
}
