//! `zipf`: many shared cells, few of them often. How schemes with a table do when it is too
//! small.

use std::sync::Arc;

use rand::seq::SliceRandom;
use rand::SeedableRng;
use rand_distr::{Distribution, Zipf as Ranks};

use super::{pair, Program, Run, Setting, Table};
use crate::lab::scheme::{Mutator, Scheme};

/// Cells.
const CELLS: usize = 4096;
/// The skew: the frequency of a cell is one over its rank.
const SKEW: f64 = 1.0;
/// Accesses in a thread's order, which it repeats; a power of two.
const ORDER: usize = 1 << 16;
/// Pairs between two safe points.
const CHUNK: usize = 256;

/// The program.
pub struct Zipf<S: Scheme> {
    table: Arc<Table<S::Head>>,
}

/// A thread's order, and where it is.
#[derive(Debug)]
pub struct Own {
    order: Vec<u16>,
    at: usize,
}

impl<S: Scheme> Program<S> for Zipf<S> {
    type Own = Own;

    fn set_up(scheme: &S, maker: &mut S::Mutator<'_>, _setting: &Setting) -> Zipf<S> {
        Zipf { table: Table::make(scheme, maker, CELLS) }
    }

    fn begin(&self, _own: &mut S::Mutator<'_>, setting: &Setting, thread: usize) -> Own {
        let mut random = setting.random(thread);
        let ranks = Ranks::new(CELLS as f64, SKEW).expect("there are cells");
        // Which are the frequent ones is the same in all threads; where they lie is not.
        let mut by_rank: Vec<u16> = (0..CELLS as u16).collect();
        by_rank.shuffle(&mut rand::rngs::SmallRng::seed_from_u64(setting.seed));
        let order = (0..ORDER).map(|_| by_rank[ranks.sample(&mut random) as usize - 1]).collect();
        Own { order, at: 0 }
    }

    fn work(&self, own: &mut S::Mutator<'_>, mine: &mut Own, run: &mut Run<'_>) {
        while run.goes_on() {
            for _ in 0..CHUNK {
                mine.at = (mine.at + 1) & (ORDER - 1);
                // SAFETY: the table has a reference.
                unsafe { pair::<S>(own, self.table[usize::from(mine.order[mine.at])], run) };
            }
            own.safe_point();
        }
    }

    fn tear_down(self, last: &mut S::Mutator<'_>) {
        self.table.clear::<S>(last);
    }
}
