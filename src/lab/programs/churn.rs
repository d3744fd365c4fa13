//! `churn`: cells that live for a moment, in the thread that made them.

use super::{pair, Program, Run, Setting};
use crate::lab::scheme::{Mutator, Scheme};

/// Cells alive at a time.
const ALIVE: usize = 16;
/// Pairs on each, besides the one of its life.
const TOUCHES: usize = 3;

/// The program.
#[derive(Debug)]
pub struct Churn;

impl<S: Scheme> Program<S> for Churn {
    type Own = ();

    fn set_up(_scheme: &S, _maker: &mut S::Mutator<'_>, _setting: &Setting) -> Churn {
        Churn
    }

    fn begin(&self, _own: &mut S::Mutator<'_>, _setting: &Setting, _thread: usize) {}

    fn work(&self, own: &mut S::Mutator<'_>, _mine: &mut (), run: &mut Run<'_>) {
        while run.goes_on() {
            for _ in 0..ALIVE {
                let cell = own.make(0);
                own.common().stack.push(cell);
            }
            let bottom = own.common().stack.len() - ALIVE;
            for index in 0..ALIVE * TOUCHES {
                let cell = own.common().stack.get(bottom + index % ALIVE);
                // SAFETY: the stack has a reference.
                unsafe { pair::<S>(own, cell, run) };
            }
            for _ in 0..ALIVE {
                run.work.spend();
                if let Some(cell) = own.common().stack.pop() {
                    // SAFETY: the stack's reference.
                    unsafe { own.decrement(cell) };
                }
            }
            run.pairs += ALIVE as u64;
            own.safe_point();
        }
    }

    fn tear_down(self, _last: &mut S::Mutator<'_>) {}
}
