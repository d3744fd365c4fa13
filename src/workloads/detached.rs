//! One thread's share of a workload, without the interpreter.
//!
//! The loops are those of kernel_body.h, over handles in place of objects. A
//! thread that is not attached may not look at an object: what keeps a handle from
//! being optimized away is that its address escapes.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{TryRecvError, TrySendError};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use pyo3::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::handle::Handle;
use super::plan::{Plan, Workload};
use super::share::{chunk, goes_on, seed, zipf_order, Channels, Share, BATCH, HELD, ORDER};
use super::work::work;
use crate::interp::bindings::{REFBUF_CALL_DEPTH, REFBUF_CALL_LITERALS};

const DEPTH: usize = REFBUF_CALL_DEPTH as usize;
const LITERALS: usize = REFBUF_CALL_LITERALS as usize;

/// The shared objects of a run, as its threads have them.
pub(super) struct Crowd<H> {
    objects: Vec<H>,
    /// For container, the values of a mapping; empty for the others.
    map: HashMap<usize, H>,
}

impl<H: Handle> Crowd<H> {
    /// A handle, or two, for each object. Attached.
    pub(super) fn new(py: Python<'_>, plan: &Plan) -> Crowd<H> {
        let handle = |object: Bound<'_, PyAny>| H::new(py, object.unbind());
        let objects = if plan.workload == Workload::Private {
            Vec::new()
        } else {
            plan.list.bind(py).iter().map(handle).collect()
        };
        let values = plan.dict.bind(py).values();
        Crowd { objects, map: values.iter().map(handle).enumerate().collect() }
    }
}

/// A thread with all it needs, ready to start.
pub(super) struct Worker<H> {
    workload: Workload,
    work: u64,
    crowd: Arc<Crowd<H>>,
    /// For private.
    own: Vec<H>,
    order: Vec<u32>,
    random: SmallRng,
    cursor: usize,
    held: Vec<H>,
    channels: Option<Channels<Vec<H>>>,
}

impl<H: Handle> Worker<H> {
    /// Sets up a thread's share, in that thread, attached.
    pub(super) fn new(
        py: Python<'_>,
        plan: &Plan,
        crowd: &Arc<Crowd<H>>,
        thread: usize,
        channels: Channels<Vec<H>>,
    ) -> PyResult<Worker<H>> {
        let objects = plan.list.bind(py).len();
        let own = if plan.workload == Workload::Private { objects } else { 0 };
        let own = (0..own).map(|_| plan.factory.call0(py).map(|object| H::new(py, object)));
        let mut random = SmallRng::seed_from_u64(seed(plan, thread));
        Ok(Worker {
            workload: plan.workload,
            work: plan.work,
            crowd: crowd.clone(),
            own: own.collect::<PyResult<_>>()?,
            order: zipf_order(plan, objects, &mut random),
            cursor: random.random_range(0..objects),
            random,
            held: Vec::with_capacity(HELD),
            channels: Some(channels),
        })
    }

    /// Works until the length is reached or `stop` is set. Not attached.
    pub(super) fn run(&mut self, plan: &Plan, started: Instant, stop: &AtomicBool) -> Share {
        let (wanted, chunk) = (plan.wanted(), chunk(plan));
        let mut pairs = 0;
        while pairs < wanted && goes_on(stop) {
            let chunk = chunk.min(wanted - pairs);
            pairs += match (self.workload, self.work) {
                (Workload::Handoff, _) => self.hand_over(chunk),
                (_, 0) => self.chunk::<false>(chunk),
                _ => self.chunk::<true>(chunk),
            };
        }
        let elapsed = started.elapsed();
        self.receive_the_rest();
        if !plan.keep {
            self.held.clear();
        }
        Share { pairs, elapsed, kept: Vec::new(), recording: None }
    }

    /// What is still held, attached again; the rest of the share goes.
    pub(super) fn into_kept(self, py: Python<'_>) -> Vec<Py<PyAny>> {
        self.held.into_iter().map(|handle| handle.into_object(py)).collect()
    }

    fn chunk<const WORK: bool>(&mut self, pairs: u64) -> u64 {
        let Worker { crowd, own, order, random, cursor, work, held, .. } = self;
        let objects = &crowd.objects;
        let pair = |handle: &H| {
            drop(black_box(handle.take()));
            do_work::<WORK>(*work);
        };
        match self.workload {
            Workload::Shared => (0..pairs).for_each(|_| pair(&objects[0])),
            Workload::Literals => return literals::<H, WORK>(objects, *work, pairs),
            Workload::Zipf => {
                for _ in 0..pairs {
                    pair(&objects[order[*cursor & (ORDER - 1)] as usize]);
                    *cursor = cursor.wrapping_add(1);
                }
            }
            Workload::Wide => (0..pairs).for_each(|_| pair(&objects[below(random, objects.len())])),
            Workload::Private => {
                for _ in 0..pairs {
                    pair(&own[*cursor]);
                    *cursor = if *cursor + 1 == own.len() { 0 } else { *cursor + 1 };
                }
            }
            Workload::Container => return walk(objects, &crowd.map, pairs, pair),
            Workload::Random => {
                for operation in 0..2 * pairs {
                    take_or_drop(objects, held, random);
                    if operation & 1 == 1 {
                        do_work::<WORK>(*work);
                    }
                }
            }
            // Has loops of its own.
            Workload::Handoff => return 0,
        }
        pairs
    }

    /// Makes a batch of references for the next thread, and drops one that another
    /// has made.
    fn hand_over(&mut self, wanted: u64) -> u64 {
        let objects = &self.crowd.objects;
        let mut batch = Vec::with_capacity(BATCH);
        for _ in 0..wanted.min(BATCH as u64) {
            batch.push(objects[self.cursor].take());
            self.cursor = if self.cursor + 1 == objects.len() { 0 } else { self.cursor + 1 };
            if self.work > 0 {
                work(self.work);
            }
        }
        let made = batch.len() as u64;
        let Some(channels) = &self.channels else { return made };
        loop {
            match channels.next.try_send(batch) {
                Ok(()) => break,
                // The next thread is done: what it would have dropped is ours.
                Err(TrySendError::Disconnected(back)) => {
                    drop(back);
                    break;
                }
                Err(TrySendError::Full(back)) => {
                    batch = back;
                    if channels.own.try_recv().is_err() {
                        thread::yield_now();
                    }
                }
            }
        }
        drop(channels.own.try_recv());
        made
    }

    /// Drops what comes until the thread before this one has dropped its end.
    fn receive_the_rest(&mut self) {
        if let Some(Channels { next, own }) = self.channels.take() {
            drop(next);
            while !matches!(own.try_recv(), Err(TryRecvError::Disconnected)) {
                thread::yield_now();
            }
        }
    }
}

#[inline(always)]
fn do_work<const WORK: bool>(iterations: u64) {
    if WORK {
        work(iterations);
    }
}

#[inline(always)]
fn below(random: &mut SmallRng, bound: usize) -> usize {
    // Lemire's multiplication, as in kernels.c.
    ((u64::from(random.random::<u32>()) * bound as u64) >> 32) as usize
}

#[inline(always)]
fn take_or_drop<H: Handle>(objects: &[H], held: &mut Vec<H>, random: &mut SmallRng) {
    if held.is_empty() || held.len() < HELD && random.random::<bool>() {
        held.push(objects[below(random, objects.len())].take());
    } else {
        let at = below(random, held.len());
        drop(held.swap_remove(at));
    }
}

/// Walks the vector, then the mapping, to the end each time.
#[inline(always)]
fn walk<H>(objects: &[H], map: &HashMap<usize, H>, pairs: u64, mut visit: impl FnMut(&H)) -> u64 {
    let mut done = 0;
    while done < pairs {
        objects.iter().for_each(&mut visit);
        map.values().for_each(&mut visit);
        done += (objects.len() + map.len()) as u64;
    }
    done
}

fn literals<H: Handle, const WORK: bool>(objects: &[H], work: u64, pairs: u64) -> u64 {
    let mut done = 0;
    while done < pairs {
        call::<H, WORK>(objects, work, 0);
        done += (DEPTH * LITERALS) as u64;
    }
    done
}

/// One call: its constants are referenced first at its start and last at its return.
#[inline(never)]
fn call<H: Handle, const WORK: bool>(objects: &[H], work: u64, depth: usize) {
    let mut at = depth * LITERALS % objects.len();
    let constants: [H; LITERALS] = std::array::from_fn(|_| {
        do_work::<WORK>(work);
        let index = at;
        at = if at + 1 == objects.len() { 0 } else { at + 1 };
        objects[index].take()
    });
    if depth + 1 < DEPTH {
        call::<H, WORK>(objects, work, depth + 1);
    }
    drop(black_box(constants));
}
