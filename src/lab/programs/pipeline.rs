//! `pipeline`: cells made in one thread and freed in the next, in a ring of queues.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::{drop_from_memory, pair, Program, Run, Setting};
use crate::lab::cell::At;
use crate::lab::scheme::{Mutator, Roots, Scheme};

/// Cells in a queue at the most.
const ROOM: usize = 256;
/// Cells that go in or come out at a time.
const BATCH: usize = 32;

/// A queue between two threads.
struct Queue<H>(Mutex<VecDeque<At<H>>>);

impl<H> Queue<H> {
    fn with<T>(&self, work: impl FnOnce(&mut VecDeque<At<H>>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<H: Send + Sync> Roots<H> for Queue<H> {
    fn trace(&self, visit: &mut dyn FnMut(At<H>)) {
        self.with(|cells| cells.iter().for_each(|&cell| visit(cell)));
    }
}

/// The program.
pub struct Pipeline<S: Scheme> {
    queues: Vec<Arc<Queue<S::Head>>>,
}

impl<S: Scheme> Program<S> for Pipeline<S> {
    type Own = ();

    fn set_up(scheme: &S, _maker: &mut S::Mutator<'_>, setting: &Setting) -> Pipeline<S> {
        let queue = |_| {
            let queue = Arc::new(Queue(Mutex::new(VecDeque::with_capacity(ROOM))));
            scheme.watch(queue.clone());
            queue
        };
        Pipeline { queues: (0..setting.threads).map(queue).collect() }
    }

    fn begin(&self, _own: &mut S::Mutator<'_>, _setting: &Setting, _thread: usize) {}

    fn work(&self, own: &mut S::Mutator<'_>, _mine: &mut (), run: &mut Run<'_>) {
        let incoming = &self.queues[run.thread];
        let outgoing = &self.queues[(run.thread + 1) % self.queues.len()];
        while run.goes_on() {
            let sent = send::<S>(own, outgoing);
            let received = receive::<S>(own, incoming, run);
            own.safe_point();
            if !sent && !received {
                own.suspend();
                thread::yield_now();
                own.resume();
            }
        }
    }

    fn tear_down(self, last: &mut S::Mutator<'_>) {
        for queue in &self.queues {
            while let Some(cell) = queue.with(VecDeque::pop_front) {
                last.common().stack.push(cell);
                last.common().stack.pop();
                // SAFETY: it came out of the queue.
                unsafe { drop_from_memory::<S>(last, cell) };
            }
        }
    }
}

/// Makes a batch, where there is room for it.
fn send<S: Scheme>(own: &mut S::Mutator<'_>, queue: &Queue<S::Head>) -> bool {
    // This thread alone puts cells in.
    if queue.with(|cells| cells.len()) + BATCH > ROOM {
        return false;
    }
    let mut batch = [None; BATCH];
    for slot in &mut batch {
        let cell = own.make(0);
        own.common().stack.push(cell);
        *slot = Some(cell);
    }
    for &cell in batch.iter().flatten() {
        // SAFETY: the stack's reference goes into the queue.
        unsafe { own.publish(cell) };
    }
    queue.with(|cells| cells.extend(batch.iter().flatten()));
    for _ in 0..BATCH {
        own.common().stack.pop();
    }
    true
}

/// Takes a batch out, uses each cell once, and drops it.
fn receive<S: Scheme>(own: &mut S::Mutator<'_>, queue: &Queue<S::Head>, run: &mut Run<'_>) -> bool {
    let stack = &mut own.common().stack;
    let bottom = stack.len();
    queue.with(|cells| cells.drain(..BATCH.min(cells.len())).for_each(|cell| stack.push(cell)));
    let received = own.common().stack.len() - bottom;
    for index in bottom..bottom + received {
        let cell = own.common().stack.get(index);
        // SAFETY: it came out of the queue.
        unsafe { own.adopt(cell) };
    }
    for index in (bottom..bottom + received).rev() {
        let cell = own.common().stack.get(index);
        // SAFETY: the stack has a reference.
        unsafe { pair::<S>(own, cell, run) };
        run.work.spend();
        own.common().stack.pop();
        // SAFETY: it was the stack's.
        unsafe { own.decrement(cell) };
        run.pairs += 1;
    }
    received > 0
}
