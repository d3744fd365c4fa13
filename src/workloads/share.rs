//! What attached and detached threads of a run have in common.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::time::Duration;

use pyo3::prelude::*;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::SeedableRng;
use rand_distr::{Distribution, Zipf};

use super::driver::is_closed;
use super::plan::{Plan, Workload};
use super::record::Recording;

/// Pairs between two looks at the stop flag, at the most.
const CHUNK: u64 = 1024;
/// Iterations of other work between two looks, at the most: about 0.1 ms.
const WORK_BETWEEN: u64 = 100_000;
/// Accesses in a zipf order; a power of two.
pub(super) const ORDER: usize = 1 << 16;
/// Skew of the zipf order.
const SKEW: f64 = 1.0;
/// References that `random` may hold at once.
pub(super) const HELD: usize = 4096;
/// References in one batch of `handoff`.
pub(super) const BATCH: usize = 256;
/// Batches on their way, for each thread of handoff.
const BATCHES_UNDER_WAY: usize = 16;

/// What a thread did.
pub(super) struct Share {
    pub(super) pairs: u64,
    /// From when all were sent off, so that waiting for the GIL counts.
    pub(super) elapsed: Duration,
    pub(super) kept: Vec<Py<PyAny>>,
    /// For the variant that records.
    pub(super) recording: Option<Recording>,
}

/// The ends of handoff's channels that a thread has.
pub(super) struct Channels<B> {
    pub(super) next: SyncSender<B>,
    pub(super) own: Receiver<B>,
}

/// Each thread's channels: to the next one, from the one before.
pub(super) fn ring<B>(threads: usize) -> Vec<Channels<B>> {
    let (mut senders, receivers): (Vec<_>, Vec<_>) = (0..threads).map(|_| sync_channel(BATCHES_UNDER_WAY)).unzip();
    senders.rotate_left(1);
    senders.into_iter().zip(receivers).map(|(next, own)| Channels { next, own }).collect()
}

/// Pairs between two looks at the stop flag.
pub(super) fn chunk(plan: &Plan) -> u64 {
    (WORK_BETWEEN / plan.work.max(1)).clamp(1, CHUNK)
}

/// Whether a thread should go on. Asked after every chunk.
pub(super) fn goes_on(stop: &AtomicBool) -> bool {
    !stop.load(Ordering::Relaxed) && !is_closed()
}

/// Each thread's own, from the run's.
pub(super) fn seed(plan: &Plan, thread: usize) -> u64 {
    plan.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (thread as u64 + 1)
}

/// Indices with a few often and most seldom. Which are the frequent ones is the
/// same in all threads of a run: they share them.
pub(super) fn zipf_order(plan: &Plan, count: usize, random: &mut SmallRng) -> Vec<u32> {
    if plan.workload != Workload::Zipf {
        return Vec::new();
    }
    let zipf = Zipf::new(count as f64, SKEW).expect("count is not 0");
    // Shuffled: a regular order of regular addresses would be the hash's best
    // case or its worst.
    let mut by_rank: Vec<u32> = (0..count as u32).collect();
    by_rank.shuffle(&mut SmallRng::seed_from_u64(plan.seed));
    (0..ORDER).map(|_| by_rank[zipf.sample(random) as usize - 1]).collect()
}
