//! `graph`: threads walk one graph, and rewire it.
//!
//! A node's edges go to nodes made before it, or to leaves, so that no cycle ever exists,
//! which counting alone does not free. Who reads or changes the edges of a node has its
//! guard; that costs the same in all schemes, and is no part of counting.

use std::hint;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::Rng;

use super::{Program, Run, Setting, Table};
use crate::lab::cell::{At, EDGES};
use crate::lab::scheme::{Mutator, Scheme};

/// Nodes.
const NODES: usize = 1024;
/// Steps of a walk.
const WALK: usize = 16;
/// One step in so many changes an edge.
const REWIRE: u32 = 16;

/// The program.
pub struct Graph<S: Scheme> {
    nodes: Arc<Table<S::Head>>,
}

impl<S: Scheme> Program<S> for Graph<S> {
    type Own = SmallRng;

    fn set_up(scheme: &S, maker: &mut S::Mutator<'_>, setting: &Setting) -> Graph<S> {
        let nodes = Table::make(scheme, maker, NODES);
        let mut random = setting.random(usize::MAX - 1);
        for from in 1..NODES {
            for edge in 0..EDGES {
                let to = nodes[random.random_range(0..from)];
                // SAFETY: the table has references to both.
                unsafe {
                    maker.increment(to);
                    maker.publish(to);
                    nodes[from].get().set_edge(edge, Some(to));
                }
            }
        }
        Graph { nodes }
    }

    fn begin(&self, _own: &mut S::Mutator<'_>, setting: &Setting, thread: usize) -> SmallRng {
        setting.random(thread)
    }

    fn work(&self, own: &mut S::Mutator<'_>, random: &mut SmallRng, run: &mut Run<'_>) {
        while run.goes_on() {
            self.walk(own, random, run);
            own.safe_point();
        }
    }

    fn tear_down(self, last: &mut S::Mutator<'_>) {
        self.nodes.clear::<S>(last);
    }
}

impl<S: Scheme> Graph<S> {
    fn walk(&self, own: &mut S::Mutator<'_>, random: &mut SmallRng, run: &mut Run<'_>) {
        let start = random.random_range(1..NODES);
        let mut at = self.nodes[start];
        // SAFETY: the table has a reference.
        unsafe { own.increment(at) };
        own.common().stack.push(at);
        for _ in 0..WALK {
            run.work.spend();
            if random.random_range(0..REWIRE) == 0 {
                self.rewire(own, random, run);
            }
            // SAFETY: the stack has a reference to where we are.
            let next = unsafe { follow::<S>(own, at, random.random_range(0..EDGES)) };
            let Some(next) = next else { break };
            own.common().stack.push(next);
            let below = own.common().stack.len() - 2;
            own.common().stack.swap_remove(below);
            // SAFETY: the stack's reference to where we were.
            unsafe { own.decrement(at) };
            run.pairs += 1;
            at = next;
        }
        own.common().stack.pop();
        // SAFETY: the stack's reference.
        unsafe { own.decrement(at) };
        run.pairs += 1;
    }

    /// An edge of some node to another node, or to a new leaf.
    fn rewire(&self, own: &mut S::Mutator<'_>, random: &mut SmallRng, run: &mut Run<'_>) {
        let from = random.random_range(1..NODES);
        let to = if random.random() {
            let leaf = own.make(0);
            own.common().stack.push(leaf);
            leaf
        } else {
            let to = self.nodes[random.random_range(0..from)];
            // SAFETY: the table has a reference.
            unsafe { own.increment(to) };
            own.common().stack.push(to);
            to
        };
        // SAFETY: the stack's reference goes into the edge.
        unsafe { own.publish(to) };
        // SAFETY: the table has a reference.
        let node = unsafe { self.nodes[from].get() };
        let edge = random.random_range(0..EDGES);
        node.lock(|| wait::<S>(own));
        let before = node.edge(edge);
        node.set_edge(edge, Some(to));
        own.common().stack.pop();
        if let Some(before) = before {
            own.common().stack.push(before);
            node.unlock();
            // SAFETY: it came out of the edge.
            unsafe { own.adopt(before) };
            own.common().stack.pop();
            // SAFETY: it is ours.
            unsafe { own.decrement(before) };
        } else {
            node.unlock();
        }
        run.pairs += 1;
    }
}

/// A reference to what an edge refers to.
///
/// # Safety
///
/// There is a reference to the node meanwhile.
unsafe fn follow<S: Scheme>(own: &mut S::Mutator<'_>, node: At<S::Head>, edge: usize) -> Option<At<S::Head>> {
    // SAFETY: the caller's promise.
    let node = unsafe { node.get() };
    node.lock(|| wait::<S>(own));
    let next = node.edge(edge);
    if let Some(next) = next {
        // SAFETY: the edge has a reference, and keeps it while we have the guard.
        unsafe { own.increment(next) };
    }
    node.unlock();
    next
}

/// Who has a guard may be waiting for this thread: see `deltas`.
fn wait<S: Scheme>(own: &mut S::Mutator<'_>) {
    own.safe_point();
    hint::spin_loop();
}
