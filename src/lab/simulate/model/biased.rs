//! Biased counts, as in CPython 3.13t: the object's owner counts plainly in one
//! field, all others atomically in another of the same line.
//!
//! An increment is one locked instruction; a decrement loads, and swaps. A decrement by another thread that finds no shared reference queues the object
//! for its owner, which costs a second atomic operation (the queue's lock), once
//! for each object; that the owner then merges the fields is not simulated.
//! Source: `_Py_DecRefSharedDebug` in Objects/object.c, Python/brc.c.

use super::super::cache::Use;
use super::{Cast, Model, Plan, Thing};

#[derive(Clone, Debug)]
struct Fields {
    local: i64,
    shared: i64,
    queued: bool,
}

/// The scheme.
#[derive(Debug)]
pub struct Biased<'a> {
    things: &'a [Thing],
    fields: Vec<Fields>,
}

impl<'a> Biased<'a> {
    /// Nothing counted yet.
    pub fn new(cast: Cast<'a>) -> Self {
        let fields = |thing: &Thing| Fields { local: thing.references(), shared: 0, queued: false };
        Biased { things: cast.things, fields: cast.things.iter().map(fields).collect() }
    }
}

impl Model for Biased<'_> {
    fn count(&mut self, thread: usize, object: u32, up: bool, plan: &mut Plan) {
        let (thing, fields) = (&self.things[object as usize], &mut self.fields[object as usize]);
        let step = if up { 1 } else { -1 };
        plan.looks = true;
        if thing.owner == Some(thread as u16) {
            fields.local += step;
            return plan.touch(thing.line, Use::Write);
        }
        plan.touch(thing.line, if up { Use::Atomic } else { Use::Swap });
        if !up && fields.shared == 0 && !fields.queued {
            fields.queued = true;
            plan.touch(thing.line, Use::Atomic);
        }
        fields.shared += step;
    }

    fn flush(&mut self) {}

    fn references(&self, object: u32) -> i64 {
        let fields = &self.fields[object as usize];
        fields.local + fields.shared
    }
}
