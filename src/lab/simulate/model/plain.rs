//! One count in each object. `plain`: under one lock, which the engine hands
//! round. `atomic`: each count is one atomic operation.

use super::super::cache::Use;
use super::{Cast, Model, Plan, Thing};

/// Both schemes.
#[derive(Debug)]
pub struct Single<'a> {
    things: &'a [Thing],
    counts: Vec<i64>,
    how: Use,
}

impl<'a> Single<'a> {
    /// With [`Use::Write`] or [`Use::Atomic`].
    pub fn new(cast: Cast<'a>, how: Use) -> Self {
        Single { things: cast.things, counts: cast.things.iter().map(Thing::references).collect(), how }
    }
}

impl Model for Single<'_> {
    fn count(&mut self, _thread: usize, object: u32, up: bool, plan: &mut Plan) {
        self.counts[object as usize] += if up { 1 } else { -1 };
        plan.touch(self.things[object as usize].line, self.how);
    }

    fn flush(&mut self) {}

    fn references(&self, object: u32) -> i64 {
        self.counts[object as usize]
    }
}
