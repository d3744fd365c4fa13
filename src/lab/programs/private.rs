//! `private`: each thread references cells of its own, in turn. What counting costs where
//! nothing is shared.

use super::{make_own, pair, Program, Run, Setting};
use crate::lab::cell::At;
use crate::lab::scheme::{Mutator, Scheme};

/// Cells of a thread.
const CELLS: usize = 256;

/// The program.
#[derive(Debug)]
pub struct Private;

impl<S: Scheme> Program<S> for Private {
    type Own = Vec<At<S::Head>>;

    fn set_up(_scheme: &S, _maker: &mut S::Mutator<'_>, _setting: &Setting) -> Private {
        Private
    }

    fn begin(&self, own: &mut S::Mutator<'_>, _setting: &Setting, _thread: usize) -> Self::Own {
        make_own::<S>(own, CELLS)
    }

    fn work(&self, own: &mut S::Mutator<'_>, mine: &mut Self::Own, run: &mut Run<'_>) {
        while run.goes_on() {
            for &cell in mine.iter() {
                // SAFETY: the stack has a reference.
                unsafe { pair::<S>(own, cell, run) };
            }
            own.safe_point();
        }
    }

    fn tear_down(self, _last: &mut S::Mutator<'_>) {}
}
