//! Buffered deltas (Olsen 2007). The thread that made an object counts plainly in
//! it, until another thread touches it: that promotes it, with one atomic
//! operation, and from then on every thread keeps its changes in a table of its
//! own: (object, signed delta), one place for each hash. A place whose delta is
//! back at 0 is vacant. Another object that wants an occupied place has it flushed
//! first, by one atomic add. A collection flushes all; only it can free an object
//! that has been promoted.

use super::super::cache::Use;
use super::super::hash::Hash;
use super::{Cast, Model, Plan, Thing};

/// Entries of a table, as in python-safethread.
pub const ENTRIES: usize = 2048;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    object: u32,
    delta: i64,
}

/// The scheme.
#[derive(Debug)]
pub struct Deltas<'a> {
    things: &'a [Thing],
    counts: Vec<i64>,
    promoted: Vec<bool>,
    tables: Vec<Vec<Entry>>,
    hash: Hash,
}

impl<'a> Deltas<'a> {
    /// Nothing counted yet.
    pub fn new(cast: Cast<'a>) -> Self {
        Deltas {
            things: cast.things,
            counts: cast.things.iter().map(Thing::references).collect(),
            promoted: vec![false; cast.things.len()],
            tables: vec![vec![Entry::default(); cast.slots]; cast.threads],
            hash: cast.hash,
        }
    }
}

impl Model for Deltas<'_> {
    fn count(&mut self, thread: usize, object: u32, up: bool, plan: &mut Plan) {
        let thing = &self.things[object as usize];
        plan.looks = true;
        let step = if up { 1 } else { -1 };
        let promoted = &mut self.promoted[object as usize];
        if !*promoted && thing.owner == Some(thread as u16) {
            self.counts[object as usize] += step;
            return plan.touch(thing.line, Use::Write);
        }
        if !*promoted {
            *promoted = true;
            plan.touch(thing.line, Use::Atomic);
        }
        plan.look_up();
        let table = &mut self.tables[thread];
        let place = self.hash.set(thing.address, table.len() as u64) as usize;
        let entry = &mut table[place];
        plan.hit = entry.delta == 0 || entry.object == object;
        if !plan.hit {
            self.counts[entry.object as usize] += entry.delta;
            plan.touch(self.things[entry.object as usize].line, Use::Atomic);
            entry.delta = 0;
        }
        *entry = Entry { object, delta: entry.delta + step };
    }

    fn flush(&mut self) {
        for entry in self.tables.iter_mut().flatten() {
            self.counts[entry.object as usize] += entry.delta;
            entry.delta = 0;
        }
    }

    fn references(&self, object: u32) -> i64 {
        self.counts[object as usize]
    }
}
