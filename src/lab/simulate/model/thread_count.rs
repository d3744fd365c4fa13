//! Thread counts (Tulloss 2007): each thread has a counter of its own for each
//! object, and the object has one global count, of the threads whose counter is
//! not 0. The global count is touched, atomically, when a thread's counter leaves
//! 0 and when it comes back.
//!
//! A counter may be below 0, where a thread drops what another has taken; the sum
//! over all threads is right. A thread that ends adds what its counters hold to
//! the object.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::super::cache::Use;
use super::{Cast, Model, Plan, Thing};
use crate::core::buffer::MIX;

/// A multiplicative hash of a number: nobody attacks the simulator.
#[derive(Debug, Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(MIX).rotate_left(32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The scheme.
#[derive(Debug)]
pub struct ThreadCount<'a> {
    things: &'a [Thing],
    /// For each thread, its counters that are not 0.
    counters: Vec<HashMap<u32, i64, BuildHasherDefault<Mixer>>>,
    /// What ended threads have left.
    left: Vec<i64>,
    /// The global counts.
    threads: Vec<u32>,
}

impl<'a> ThreadCount<'a> {
    /// Nothing counted yet.
    pub fn new(cast: Cast<'a>) -> Self {
        ThreadCount {
            things: cast.things,
            counters: (0..cast.threads).map(|_| HashMap::default()).collect(),
            left: cast.things.iter().map(Thing::references).collect(),
            threads: vec![0; cast.things.len()],
        }
    }

    /// Threads that have references to an object, as its global count says.
    pub fn threads(&self, object: u32) -> u32 {
        self.threads[object as usize]
    }
}

impl Model for ThreadCount<'_> {
    fn count(&mut self, thread: usize, object: u32, up: bool, plan: &mut Plan) {
        plan.look_up();
        let counter = self.counters[thread].entry(object).or_insert(0);
        let before = *counter;
        *counter += if up { 1 } else { -1 };
        let after = *counter;
        plan.hit = before != 0 && after != 0;
        if before == 0 {
            self.threads[object as usize] += 1;
        }
        if after == 0 {
            self.counters[thread].remove(&object);
            self.threads[object as usize] -= 1;
        }
        if !plan.hit {
            plan.touch(self.things[object as usize].line, Use::Atomic);
        }
    }

    fn flush(&mut self) {
        for counters in &mut self.counters {
            for (object, counter) in counters.drain() {
                self.left[object as usize] += counter;
                self.threads[object as usize] -= 1;
            }
        }
    }

    fn references(&self, object: u32) -> i64 {
        self.left[object as usize]
    }
}
