//! `calls`: functions call functions, each of which references its literals when it is
//! called and drops them when it returns.
//!
//! What Olsen and Tulloss argued about: in a program with threads all literals are shared
//! objects. A part of the literals, `share`, is the same in all threads; the rest stands for
//! whatever a function has to itself.

use std::sync::Arc;

use super::{make_own, Program, Run, Setting, Table};
use crate::lab::cell::At;
use crate::lab::scheme::{Mutator, Scheme};

/// Literals of a function.
const LITERALS: usize = 4;
/// Functions.
const FUNCTIONS: usize = 64;
/// Calls from the first to the innermost.
const DEPTH: u32 = 6;

/// The program.
pub struct Calls<S: Scheme> {
    shared: Arc<Table<S::Head>>,
    share: f64,
}

/// A thread's functions: the literals of each.
pub type Code<H> = Vec<[At<H>; LITERALS]>;

impl<S: Scheme> Program<S> for Calls<S> {
    type Own = Code<S::Head>;

    fn set_up(scheme: &S, maker: &mut S::Mutator<'_>, setting: &Setting) -> Calls<S> {
        Calls { shared: Table::make(scheme, maker, FUNCTIONS * LITERALS), share: setting.share }
    }

    fn begin(&self, own: &mut S::Mutator<'_>, _setting: &Setting, _thread: usize) -> Self::Own {
        let private = make_own::<S>(own, FUNCTIONS * LITERALS);
        let literal = |index: usize| if is_shared(index, self.share) { self.shared[index] } else { private[index] };
        (0..FUNCTIONS).map(|function| std::array::from_fn(|at| literal(function * LITERALS + at))).collect()
    }

    fn work(&self, own: &mut S::Mutator<'_>, mine: &mut Self::Own, run: &mut Run<'_>) {
        while run.goes_on() {
            call::<S>(own, mine, 1, run);
        }
    }

    fn tear_down(self, last: &mut S::Mutator<'_>) {
        self.shared.clear::<S>(last);
    }
}

/// Whether a literal is among the shared ones, which are spread evenly.
fn is_shared(index: usize, share: f64) -> bool {
    let before = (index as f64 * share).floor();
    ((index + 1) as f64 * share).floor() > before
}

/// One call: numbered as in a binary heap, so that its depth and its callees follow.
fn call<S: Scheme>(own: &mut S::Mutator<'_>, code: &Code<S::Head>, number: usize, run: &mut Run<'_>) {
    let literals = code[number % FUNCTIONS];
    for cell in literals {
        // SAFETY: the table, or the bottom of the stack, has a reference.
        unsafe { own.increment(cell) };
        own.common().stack.push(cell);
        run.work.spend();
    }
    if number >> (DEPTH - 1) == 0 {
        call::<S>(own, code, 2 * number, run);
        call::<S>(own, code, 2 * number + 1, run);
    }
    own.safe_point();
    for _ in 0..LITERALS {
        if let Some(cell) = own.common().stack.pop() {
            // SAFETY: the stack's reference.
            unsafe { own.decrement(cell) };
        }
    }
    run.pairs += LITERALS as u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_what_it_says() {
        for share in [0.0, 0.25, 0.3, 0.5, 1.0] {
            let shared = (0..256).filter(|&index| is_shared(index, share)).count();
            assert_eq!(shared, (256.0 * share) as usize, "{share}");
        }
    }
}
