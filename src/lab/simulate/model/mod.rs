//! The schemes: what each does to counts, and which lines it touches for that.
//!
//! | file | scheme |
//! |---|---|
//! | [`plain`] | `plain` and `atomic`: one count in the object |
//! | [`thread_count`] | `thread-count`: a count for each thread, and how many threads have one |
//! | [`deltas`] | `deltas`: the owner's plain count, then buffered changes |
//! | [`biased`] | `biased`: the owner's plain count, the others' atomic one |
//! | [`credits`] | `credits`: the same, the others through the core's own buffer |
//!
//! A model counts for real, in numbers of its own, so that nothing can be lost
//! unseen: after [`Model::flush`] the count of each object is what the
//! operations make it.

pub mod biased;
pub mod credits;
pub mod deltas;
pub mod plain;
pub mod thread_count;

use super::cache::{Line, Use};
use super::hash::Hash;

/// A simulated object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thing {
    /// Where it lies: replicas have addresses of their own.
    pub address: u64,
    /// The line of its count.
    pub line: Line,
    /// The simulated thread that made it, if that counts at all.
    pub owner: Option<u16>,
    /// Its count is not kept.
    pub immortal: bool,
    /// It dies in the trace: all its references are there to see.
    pub mortal: bool,
}

/// References that an object has from outside the trace, if it does not die there.
const KEPT: i64 = 1 << 32;

impl Thing {
    /// References that are there before the first operation.
    pub fn references(&self) -> i64 {
        if self.mortal {
            0
        } else {
            KEPT
        }
    }
}

/// What one operation does.
#[derive(Debug, Default)]
pub struct Plan {
    /// Lines in the order of their use. The first is the object's own.
    pub touches: Vec<(Line, Use)>,
    /// Uses of the thread's own table.
    pub table: u32,
    /// The operation wanted the table, and found what it needed there.
    pub hit: bool,
    /// The operation wanted the table.
    pub wanted: bool,
    /// What it does to the object depends on what it sees there.
    pub looks: bool,
}

impl Plan {
    /// Nothing yet.
    pub fn clear(&mut self) {
        self.touches.clear();
        self.table = 0;
        self.hit = false;
        self.wanted = false;
        self.looks = false;
    }

    /// Looks at the header, or counts in it: the two are one use of the line.
    pub(super) fn touch(&mut self, line: Line, how: Use) {
        match self.touches.last_mut() {
            Some((last, before)) if *last == line && *before == Use::Read => *before = how,
            _ => self.touches.push((line, how)),
        }
    }

    /// Asks the thread's table.
    pub(super) fn look_up(&mut self) {
        self.table += 1;
        self.wanted = true;
    }
}

/// A scheme.
pub trait Model {
    /// One operation: an increment if `up`, else a decrement. `plan` is empty, but
    /// for the look at the object's header. Never for an immortal object.
    fn count(&mut self, thread: usize, object: u32, up: bool, plan: &mut Plan);

    /// All threads end, or a collection with the world stopped.
    fn flush(&mut self);

    /// An object's references, after a flush.
    fn references(&self, object: u32) -> i64;
}

/// What a model is made for.
#[derive(Clone, Copy, Debug)]
pub struct Cast<'a> {
    /// All objects.
    pub things: &'a [Thing],
    /// So many threads count.
    pub threads: usize,
    /// Slots of a thread's table.
    pub slots: usize,
    /// Of the table.
    pub hash: Hash,
}
